"""Short names: for variables in the order in which a function binds them, so that they compress.

The first variable of a function is A, the next B; those of comprehensions and lambdas are a, b.
What else is ours (globals, attributes, methods) gets names of two letters or more.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import keyword
import string
from collections.abc import Collection, Iterable, Iterator, Mapping

from paramgolf.codefile.calls import given_by_keyword
from paramgolf.codefile.scopes import Renamer, bound
from paramgolf.codefile.shaking import words


def shortened(module: ast.Module, kept: Collection[str]) -> ast.Module:
    """The module with short names for variables, and for private attributes.

    Arguments keep their names that a call may give by keyword, and so do attributes that a string
    names.

    Args:
        module: a whole program.
        kept: global names that stay.
    """
    keywords = {str(node.arg) for node in ast.walk(module) if isinstance(node, ast.keyword)}
    imports = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    reserved = {*kept, *bound(imports), *dir(builtins), *keyword.kwlist}
    names = _renamings(bound(module.body), "", reserved)
    fixed = reserved | keywords
    attributes = _renamings(_private_attributes(module), "_", fixed | set(words(module)))
    _Shortener(names, attributes, fixed, given_by_keyword(module)).visit(module)
    return module


def _renamings(names: Iterable[str], prefix: str, fixed: Collection[str]) -> dict[str, str]:
    fresh = (prefix + "".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2))
    free = (name for name in fresh if name not in fixed)
    return {name: next(free) for name in dict.fromkeys(names) if name not in fixed}


def _private_attributes(module: ast.Module) -> Iterator[str]:
    """Attributes with one leading underscore that classes of the module define."""
    for node in ast.walk(module):
        names: Iterable[str] = ()
        if isinstance(node, ast.ClassDef):
            names = bound(node.body)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names = (node.attr,)
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


class _Shortener(Renamer):
    def __init__(
        self,
        names: Mapping[str, str],
        attributes: Mapping[str, str],
        fixed: Collection[str],
        given: Mapping[int, Collection[str]],
    ) -> None:
        super().__init__(names)
        self._attributes, self._fixed, self._given = attributes, fixed, given

    def local_names(self, scope: ast.AST, names: list[str]) -> Mapping[str, str]:
        function = isinstance(scope, ast.FunctionDef)
        letters = string.ascii_uppercase if function else string.ascii_lowercase
        taken = {short for _, outer in self._scopes[1:] for short in outer.values()}
        fresh = (name for name in _letters(letters) if name not in {*taken, *self._fixed})
        given = self._given.get(id(scope), ())
        return {name: name if name in given else next(fresh) for name in names}

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._attributes.get(node.attr, node.attr)
        return self.generic_visit(node)

    def class_names(self, names: list[str]) -> Mapping[str, str]:
        return {name: self._attributes.get(name, name) for name in names}


def _letters(letters: str) -> Iterator[str]:
    """Names of one letter, then of a letter and a digit."""
    yield from letters
    for number in itertools.count(1):
        yield from (f"{letter}{number}" for letter in letters)
