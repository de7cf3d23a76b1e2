"""Removes from source text what does not change its behaviour.

Works on the text and its tokens. Writing out a syntax tree instead would produce different text
under different Python versions.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Callable, Iterable, Iterator
from string import ascii_letters, ascii_lowercase

_Span = tuple[int, int]
"""Position of the first character, and behind the last one."""
_Edit = tuple[int, int, str]
"""A span, and the text that replaces it."""
_Node = ast.expr | ast.stmt | ast.arg
_Token = tuple[int, str]
"""Type and text."""

_QUOTES = ("'", '"')


def stripped(source: str) -> str:
    """Return ASCII source without comments, docstrings, annotations and needless white space.

    Imports that only annotations needed go, too. Local variables get short names, which makes the
    code file 4,000 bytes smaller. Classes keep the annotations of their fields, and
    decorated functions all annotations, since the decorator may read them (Triton's does). A
    statement becomes one line.
    """
    assert source.isascii(), "columns count bytes in syntax trees, but characters in tokens"
    source = _edited(source, _docstrings_and_annotations(source))
    source = _edited(source, _unused_imports(source))
    source = _edited(source, _short_locals(source))
    return _without_white_space(source)


def _edited(source: str, edits: Iterable[_Edit]) -> str:
    for begin, end, replacement in sorted(edits, reverse=True):
        source = source[:begin] + replacement + source[end:]
    return source


def _spans(source: str) -> Callable[[_Node], _Span]:
    """Return the function that finds where a node of the syntax tree is."""
    offsets = _line_offsets(source)

    def span(node: _Node) -> _Span:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = offsets[node.lineno - 1] + node.col_offset
        return begin, offsets[node.end_lineno - 1] + node.end_col_offset

    return span


def _unused_imports(source: str) -> Iterator[_Edit]:
    """Names that the module imports at its top and does not mention again."""
    tree, span = ast.parse(source), _spans(source)
    nodes = list(ast.walk(tree))
    mentioned = {node.id for node in nodes if isinstance(node, ast.Name)}
    # Those in strings, too: annotations in quotes, and `__all__`.
    mentioned |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [n for n in node.names if (n.asname or n.name) in mentioned]
            kept = ", ".join(f"{n.name} as {n.asname}" if n.asname else n.name for n in names)
            if len(names) < len(node.names):
                yield (*span(node), f"from {node.module} import {kept}" if kept else "")


def _docstrings_and_annotations(source: str) -> Iterator[_Edit]:
    tree, span = ast.parse(source), _spans(source)
    kept: set[ast.AST] = set()
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            kept.update(node.body)
        elif isinstance(node, ast.FunctionDef) and node.decorator_list:
            kept.update(ast.walk(node))
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            strings = [s for s in node.body if _is_string(s)]
            # A body that consists of its docstring alone must not become empty.
            needed = 0 if isinstance(node, ast.Module) or len(strings) < len(node.body) else 1
            for number, statement in enumerate(strings):
                yield (*span(statement), "0" if number < needed else "")
        if isinstance(node, ast.FunctionDef) and node.returns and not node.decorator_list:
            begin, end = span(node.returns)
            yield source.rindex("->", 0, begin), end, ""
        if isinstance(node, ast.arg) and node.annotation and node not in kept:
            yield span(node)[0] + len(node.arg), span(node.annotation)[1], ""
        if isinstance(node, ast.AnnAssign) and node.value and node not in kept:
            yield span(node.target)[1], span(node.annotation)[1], ""


def _short_locals(source: str) -> Iterator[_Edit]:
    """Short names of local variables. Parameters, and what is in doubt, keep theirs.

    A comprehension or function inside of a function shares the variables' names with it.
    """
    tree, span = ast.parse(source), _spans(source)
    everything = list(ast.walk(tree))
    taken = {node.id for node in everything if isinstance(node, ast.Name)}
    taken |= {node.arg for node in everything if isinstance(node, ast.arg)} | {*keyword.kwlist}
    # A name of the module may be one thing in a function and another in a comprehension there.
    of_module = {name for statement in tree.body for name in _names_of(statement)}
    for function in _outermost_functions(tree.body):
        nodes = list(ast.walk(function))
        kernel = any("jit" in ast.dump(decorator) for decorator in function.decorator_list)
        if kernel or any(isinstance(node, ast.ClassDef) for node in nodes):
            continue
        variables = [node for node in nodes if isinstance(node, ast.Name)]
        assigned = dict.fromkeys(n.id for n in variables if isinstance(n.ctx, ast.Store))
        kept = of_module.union(*map(_names_kept, nodes))
        letters = (a + b for a in ["", *ascii_lowercase] for b in ascii_letters)
        free = (name for name in letters if name not in taken)
        names = {name: next(free) for name in assigned if len(name) > 1 and name not in kept}
        for variable in variables:
            if variable.id in names:
                yield (*span(variable), names[variable.id])


def _outermost_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _outermost_functions(node.body)


def _names_of(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module may bind."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        yield from [node.id] if isinstance(node, ast.Name) else _names_kept(node)


def _names_kept(node: ast.AST) -> Iterator[str]:
    """Yield the names in this node that are more than a variable's, or that have no known place."""
    match node:
        case ast.arg(name) | ast.FunctionDef(name) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.alias(name, asname):
            yield asname or name
        case ast.Global(names) | ast.Nonlocal(names):
            yield from names
        case ast.JoinedStr():  # Python 3.11 does not know the places inside
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name))


def _is_string(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _without_white_space(source: str) -> str:
    """Write one line per statement, indented by one space per level."""
    written: list[str] = []
    level, previous = 0, ""
    for kind, text in _tokens(source):
        if kind == tokenize.INDENT:
            level += 1
        elif kind == tokenize.DEDENT:
            level -= 1
        elif kind == tokenize.NEWLINE:
            written.append("\n")
            previous = ""
        elif kind not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            if not previous:
                written.append(" " * level)
            elif _need_space(previous, text):
                written.append(" ")
            written.append(text)
            previous = text
    return "".join(written)


def _tokens(source: str) -> Iterator[_Token]:
    """Yield the tokens of source text, f-strings as a whole, as Python 3.11 reads them."""
    offsets = _line_offsets(source)
    opening = getattr(tokenize, "FSTRING_START", -1)
    closing = getattr(tokenize, "FSTRING_END", -1)
    depth = begin = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == opening:
            if not depth:
                begin = offsets[token.start[0] - 1] + token.start[1]
            depth += 1
        elif token.type == closing:
            depth -= 1
            if not depth:
                yield tokenize.STRING, source[begin : offsets[token.end[0] - 1] + token.end[1]]
        elif not depth:
            yield token.type, token.string


def _need_space(left: str, right: str) -> bool:
    if left.endswith(_QUOTES):
        return right.startswith(_QUOTES)
    word = left[-1].isalnum() or left[-1] == "_"
    return word and (right[0].isalnum() or right[0] == "_" or right.startswith(_QUOTES))


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets
