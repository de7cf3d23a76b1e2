"""Which names are local where, and how to rename them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)


class Renamer(ast.NodeTransformer):
    """Renames variables by Python's rules of scope; attributes and keywords stay.

    A name that a function binds anywhere is local in all of it and in the functions within; a name
    that a class binds is a variable in its body alone, and an attribute everywhere.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        """Rename global variables so."""
        self._scopes: list[tuple[type[ast.AST], Mapping[str, str]]] = [(ast.Module, names)]

    def local_names(self, scope: ast.AST, names: list[str]) -> Mapping[str, str]:
        """What the local names of a function, lambda or comprehension become."""
        return {name: name for name in names}

    def class_names(self, names: list[str]) -> Mapping[str, str]:
        """What the names become that a class binds."""
        return {name: name for name in names}

    def renamed(self, name: str) -> str:
        """What a name becomes where the visit is now."""
        for distance, (kind, names) in enumerate(reversed(self._scopes)):
            if name in names and (distance == 0 or kind is not ast.ClassDef):
                return names[name]
        return name

    def is_global(self, name: str) -> bool:
        """Whether a name is no local one where the visit is now."""
        return not any(
            name in names and (distance == 0 or kind is not ast.ClassDef)
            for distance, (kind, names) in enumerate(reversed(self._scopes[1:]))
        )

    def in_class_with(self, name: str) -> bool:
        """Whether the visit is in the body of a class that binds a name."""
        kind, names = self._scopes[-1]
        return kind is ast.ClassDef and name in names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A variable."""
        node.id = self.renamed(node.id)
        return node

    def visit_Global(self, node: ast.Global) -> ast.AST:
        """Names of the module's, whatever is around."""
        node.names = [self._scopes[0][1].get(name, name) for name in node.names]
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        """Names of a function around."""
        node.names = [self.renamed(name) for name in node.names]
        return node

    def visit_alias(self, node: ast.alias) -> ast.AST:
        """What an import binds."""
        name = node.asname or node.name
        if self.renamed(name) != name:
            node.asname = self.renamed(name)
        return node

    def _visit_named(self, node: ast.ExceptHandler | ast.MatchAs | ast.MatchStar) -> ast.AST:
        if node.name is not None:
            node.name = self.renamed(node.name)
        return self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = _visit_named

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Its name and decorators are outside."""
        node.name = self.renamed(node.name)
        self._visit_in(node, "decorator_list")
        return self._visit_function(node)

    def _visit_function(self, node: ast.FunctionDef | ast.Lambda) -> ast.AST:
        self._visit_in(node.args, "defaults", "kw_defaults")
        names = self.local_names(node, _locals(node))
        self._scopes.append((type(node), names))
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg) and argument.arg in names:
                argument.arg = names[argument.arg]
        self._visit_in(node, "body")
        self._scopes.pop()
        return node

    visit_Lambda = _visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Its name, decorators and bases are outside."""
        node.name = self.renamed(node.name)
        self._visit_in(node, "decorator_list", "bases", "keywords")
        self._scopes.append((ast.ClassDef, self.class_names(_locals(node))))
        self._visit_in(node, "body")
        self._scopes.pop()
        return node

    def _visit_comprehension(self, node: ast.expr) -> ast.AST:
        first = node.generators[0]  # pyright: ignore[reportAttributeAccessIssue]
        self._visit_in(first, "iter")
        iterated, first.iter = first.iter, ast.Constant(None)
        self._scopes.append((type(node), self.local_names(node, _locals(node))))
        self._visit_in(node, *node._fields)
        self._scopes.pop()
        first.iter = iterated
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _visit_in(self, node: ast.AST, *fields: str) -> None:
        for field in fields:
            value = getattr(node, field)
            if isinstance(value, list):
                setattr(node, field, [element and self.visit(element) for element in value])
            elif value is not None:
                setattr(node, field, self.visit(value))


def bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their own scope, in the order of the text."""
    for node in _own_nodes(nodes):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name.split(".")[0]
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield name
            case ast.MatchStar(name=str(name)):
                yield name


def _locals(scope: ast.AST) -> list[str]:
    """The names that are local in a scope, in the order of the text."""
    names: list[str] = []
    if isinstance(scope, _COMPREHENSIONS):
        names += bound(generator.target for generator in scope.generators)
    if isinstance(scope, ast.FunctionDef | ast.Lambda):
        names += (node.arg for node in _arguments(scope.args))
    if isinstance(scope, ast.FunctionDef | ast.ClassDef):
        names += bound(scope.body)
        declared = [n for n in _own_nodes(scope.body) if isinstance(n, ast.Global | ast.Nonlocal)]
        outer = {name for node in declared for name in node.names}
        names = [name for name in names if name not in outer]
    return list(dict.fromkeys(names))


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args)
    yield from filter(None, (arguments.vararg, *arguments.kwonlyargs, arguments.kwarg))


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements and what is in them, without what is in an inner scope."""
    for node in nodes:
        yield node
        if isinstance(node, _COMPREHENSIONS):  # := binds outside
            yield from (n.target for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
        elif not isinstance(node, _SCOPES):
            yield from _own_nodes(ast.iter_child_nodes(node))
