"""Removes from source text what does not change its behaviour, and nothing else.

Edits the text itself. Writing out a syntax tree instead would produce different text under
different Python versions.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator

_Edit = tuple[int, int, str]
"""The first character of a span, its end, and the text that replaces it."""


def stripped(source: str) -> str:
    """Return ASCII source without comments, docstrings, blank lines and annotations of signatures.

    Decorated functions keep their annotations, since the decorator may read them (Triton's does),
    and so do the fields of classes.
    """
    assert source.isascii(), "columns are bytes in syntax trees, but characters in tokens"
    source = _edited(source, _docstrings_and_annotations(source))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    source = _edited(source, _comments(source, tokens))
    inside_strings = _lines_inside_strings(tokens)
    lines = enumerate(source.splitlines(), start=1)
    kept = (line for number, line in lines if number in inside_strings or line.strip())
    return "\n".join(kept) + "\n"


def _edited(source: str, edits: Iterator[_Edit]) -> str:
    for begin, end, replacement in sorted(edits, reverse=True):
        source = source[:begin] + replacement + source[end:]
    return source


def _docstrings_and_annotations(source: str) -> Iterator[_Edit]:
    offsets = _line_offsets(source)

    def begin(node: ast.expr | ast.stmt | ast.arg) -> int:
        return offsets[node.lineno - 1] + node.col_offset

    def end(node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return offsets[node.end_lineno - 1] + node.end_col_offset

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            strings = [s for s in node.body if _is_string(s)]
            # A body that consists of its docstring alone must not become empty.
            needed = 0 if isinstance(node, ast.Module) or len(strings) < len(node.body) else 1
            for number, statement in enumerate(strings):
                yield begin(statement), end(statement), "0" if number < needed else ""
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            if node.returns is not None:
                yield source.rindex("->", 0, begin(node.returns)), end(node.returns), ""
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg) and argument.annotation is not None:
                    yield begin(argument) + len(argument.arg), end(argument.annotation), ""


def _is_string(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _comments(source: str, tokens: list[tokenize.TokenInfo]) -> Iterator[_Edit]:
    """Comments together with the white space before them."""
    offsets = _line_offsets(source)
    for token in tokens:
        if token.type == tokenize.COMMENT:
            line = offsets[token.start[0] - 1]
            code = source[line : line + token.start[1]].rstrip()
            yield line + len(code), line + token.end[1], ""


def _lines_inside_strings(tokens: list[tokenize.TokenInfo]) -> set[int]:
    """Return the numbers of the lines that begin inside a string, where white space matters."""
    parts = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return {
        number
        for token in tokens
        if token.type in parts
        for number in range(token.start[0] + 1, token.end[0] + 1)
    }


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets
