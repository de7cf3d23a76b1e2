"""Which arguments of a program's functions its calls give by keyword."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_Function = ast.FunctionDef | ast.Lambda


def given_by_keyword(module: ast.Module) -> dict[int, set[str]]:
    """By identity of each function's node: keywords of calls that may be calls of it.

    Functions are told apart by their names. A call of what may be a variable may be one of any; a
    call of something from outside may pass its keywords to a function among its arguments.

    Raises:
        ValueError: if `**` gives a function what only its named arguments can take.
    """
    functions = [node for node in ast.walk(module) if isinstance(node, _Function)]
    classes = {node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef)}
    names = {node.name for node in functions if isinstance(node, ast.FunctionDef)}
    closed = names - {n.name for n in functions if isinstance(n, ast.FunctionDef) and n.args.kwarg}
    variables = set(_variables(module))
    anywhere = set[str]()
    by_name: dict[str, set[str]] = {name: set() for name in names}
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        keywords = {str(keyword.arg) for keyword in call.keywords}
        called = _name(call.func)
        if called in closed and any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(f"{ast.unparse(call)}: ** cannot be followed there")
        if called is None or called in variables:
            anywhere |= keywords
        elif called in classes:
            by_name.get("__init__", set()).update(keywords)
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        for name in {called, *map(_name, arguments)} & names:
            by_name[str(name)] |= keywords
    return {
        id(node): anywhere | (by_name[node.name] if isinstance(node, ast.FunctionDef) else set())
        for node in functions
    }


def _name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _variables(module: ast.Module) -> Iterator[str]:
    """Names of variables, arguments and attributes that are assigned to."""
    for node in ast.walk(module):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name):
                yield name
