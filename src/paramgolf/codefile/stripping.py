"""Removes from source text what does not change what it does, and nothing else.

Works on spans of the text, not on a syntax tree that is written out again: how trees are written
differs between Python versions.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator

_Edit = tuple[int, int, str]
"""First character, end, and what takes their place."""


def stripped(source: str) -> str:
    """Source without comments, docstrings, blank lines, and annotations of signatures.

    Decorated functions keep their annotations, which the decorator may read (Triton's does), and so
    do fields of classes.
    """
    source = _edited(source, _docstrings_and_annotations(source))
    source = _edited(source, _comments(source))
    inside_strings = _lines_inside_strings(source)
    lines = enumerate(source.splitlines(), start=1)
    kept = (line.rstrip() for number, line in lines if number in inside_strings or line.strip())
    return "\n".join(kept) + "\n"


def _edited(source: str, edits: Iterator[_Edit]) -> str:
    for begin, end, replacement in sorted(edits, reverse=True):
        source = source[:begin] + replacement + source[end:]
    return source


def _docstrings_and_annotations(source: str) -> Iterator[_Edit]:
    offsets = _line_offsets(source)

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        begin = offsets[node.lineno - 1] + node.col_offset
        return begin, begin + len(ast.get_source_segment(source, node) or "")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            strings = [s for s in node.body if _is_string(s)]
            # A body of nothing but its docstring must not become empty.
            needed = 0 if isinstance(node, ast.Module) or len(strings) < len(node.body) else 1
            for number, statement in enumerate(strings):
                yield (*span(statement), "0" if number < needed else "")
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            arguments = node.args
            if node.returns is not None:
                begin, end = span(node.returns)
                yield source.rindex("->", 0, begin), end, ""
            for argument in ast.walk(arguments):
                if isinstance(argument, ast.arg) and argument.annotation is not None:
                    begin = offsets[argument.lineno - 1] + argument.col_offset + len(argument.arg)
                    yield begin, span(argument.annotation)[1], ""


def _is_string(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _comments(source: str) -> Iterator[_Edit]:
    offsets = _line_offsets(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            begin = offsets[token.start[0] - 1] + token.start[1]
            yield begin, begin + len(token.string), ""


def _lines_inside_strings(source: str) -> set[int]:
    """Numbers of the lines that begin inside a string, whose white space matters."""
    parts = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return {
        number
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in parts
        for number in range(token.start[0] + 1, token.end[0] + 1)
    }


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets
