"""What a program does not need is left out: definitions that nothing names, and types.

Careful rather than thorough: whatever code that is needed names anywhere, as a variable, an
attribute, a keyword or as a whole string (or a constant part of an f-string), is needed itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_INERT = (
    ast.Constant, ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp,
    ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip
"""What may be computed or not, as one likes."""

_CLOSED_BASES = {"NamedTuple", "Exception", "ValueError"}
"""Classes from outside that call no method of a class that derives from them, but `__these__`."""


def untyped(module: ast.Module, typed_classes: Collection[str]) -> ast.Module:
    """The module without annotations, docstrings and assertions (for what cannot happen).

    Fields of classes stay fields, of type 0; those of `typed_classes` keep their types.
    """
    _Untyped(typed_classes).visit(module)
    return module


def shaken(module: ast.Module, entry: str) -> ast.Module:
    """The module without what `entry`, a function that it defines, does not need.

    Left out are functions, classes, constants, imports, and methods of classes whose methods no
    library calls.
    """
    units = list(_units(module))
    separate = {id(unit.node) for unit in units}
    named = {entry}
    waiting, found = units, True
    while found:
        found = [
            unit
            for unit in waiting
            if (not unit.names or unit.names & named) and (not unit.owner or unit.owner.needed)
        ]
        for unit in found:
            unit.needed = True
            named |= set(_named(unit.node, separate))
        waiting = [unit for unit in waiting if not unit.needed]
    _Without({id(unit.node) for unit in waiting}).visit(module)
    return module


@dataclass(eq=False)
class _Unit:
    """A statement that is needed or not as a whole, but for inner units."""

    names: frozenset[str]
    """What it defines; nothing: it is needed in any case."""
    owner: _Unit | None
    """The class that a method belongs to."""
    node: ast.stmt
    needed: bool = False


def words(node: ast.AST) -> Iterator[str]:
    """The strings that are words: a name may be among them that is looked up by it."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield from re.findall(r"\A\w+\Z", child.value)


def _units(module: ast.Module) -> Iterator[_Unit]:
    closed = set(_CLOSED_BASES)
    for node in module.body:
        unit = _Unit(frozenset(_defined(node)), None, node)
        yield unit
        if not isinstance(node, ast.ClassDef):
            continue
        if all(isinstance(base, ast.Name) and base.id in closed for base in node.bases):
            closed.add(node.name)
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("__"):
                    yield _Unit(frozenset({method.name}), unit, method)


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names of a statement that does nothing but define them."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ImportFrom(module="__future__"):
            pass
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name.split(".")[0] for alias in aliases)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if all(isinstance(part, _INERT) for part in ast.walk(value)):
                yield name


def _named(node: ast.AST, separate: Collection[int]) -> Iterator[str]:
    """Everything that a statement names, apart from what its inner units do."""
    for child in ast.iter_child_nodes(node):
        if id(child) not in separate:
            yield from _named(child, separate)
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.Constant():
            yield from words(node)
        case ast.MatchClass(kwd_attrs=names) | ast.Global(names=names):
            yield from names


class _Without(ast.NodeTransformer):
    def __init__(self, nodes: Collection[int]) -> None:
        self._nodes = nodes

    def visit(self, node: ast.AST) -> ast.AST | None:
        if id(node) in self._nodes:
            return None
        visited = self.generic_visit(node)
        if isinstance(visited, ast.ClassDef) and not visited.body:
            visited.body = [ast.Pass()]
        return visited


class _Untyped(ast.NodeTransformer):
    def __init__(self, typed_classes: Collection[str]) -> None:
        self._typed_classes = typed_classes
        self._class = ""
        """The class of whose body this is."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer
        node.body = node.body or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, self._class = self._class, ""
        node.returns = None
        self.generic_visit(node)
        self._class = outer
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self._class:
            if self._class not in self._typed_classes:
                node.annotation = ast.Constant(0)
            return node
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        match node.value:
            case ast.Call(func=ast.Name(id="TypeVar")):
                return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("typing"), "cast"), args=[_, value]):
                return value
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        return None
