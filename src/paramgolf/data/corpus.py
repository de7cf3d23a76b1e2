"""The built-in corpus: the documentation of Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from paramgolf.data.documents import Document
from paramgolf.errors import UserError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_REPEATED_SHARE = 0.2
_SHINGLE_WORDS = 13
_MIN_STDLIB_BYTES = 200_000


def stdlib_documents(progress: Callable[[int, int], None] | None = None) -> list[Document]:
    """Return the documentation of Python's standard library, one document per topic or module.

    Sources are parsed, never imported. A paragraph that shares more than a fifth of its shingles
    (13 words in a row) with earlier documents is left out, so that splits by document hardly
    overlap.

    Args:
        progress: called with the number of source files read and their total.

    Raises:
        UserError: if this Python was installed without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        path
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]
    documents = list(_topics(root / "pydoc_data" / "topics.py"))
    for number, path in enumerate(sources, start=1):
        documents += _module_docstrings(path, path.relative_to(root).as_posix())
        if progress is not None:
            progress(number, len(sources))
    documents = list(_without_repeated_paragraphs(documents))
    if sum(len(document.text) for document in documents) < _MIN_STDLIB_BYTES:
        raise UserError(
            f"{root} contains too little documentation for a corpus (this Python may be a stripped "
            "build); use a complete Python, or your own text with --data.source FOLDER"
        )
    return documents


def _topics(path: Path) -> Iterator[Document]:
    """Yield the help topics of `pydoc`: one dictionary literal, assigned to `topics`."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name, text in sorted(topics.items()):
                yield Document(f"topic/{name}", text.strip() + "\n")


def _module_docstrings(path: Path, name: str) -> Iterator[Document]:
    """Yield the docstrings of one module, if it has any, as one document."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken samples
        return
    texts = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if text := ast.get_docstring(node):
            texts.append(text if isinstance(node, ast.Module) else f"{node.name}: {text}")
    if texts:
        yield Document(f"module/{name}", "\n\n".join(texts) + "\n")


def _without_repeated_paragraphs(documents: Iterable[Document]) -> Iterator[Document]:
    seen: set[str] = set()
    for name, text in documents:
        kept: list[str] = []
        fresh: set[str] = set()
        for paragraph in text.split("\n\n"):
            shingles = _shingles(paragraph)
            if len(shingles & seen) <= _REPEATED_SHARE * len(shingles):
                kept.append(paragraph)
                fresh |= shingles
        seen |= fresh
        if kept:
            yield Document(name, "\n\n".join(kept))


def _shingles(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {
        " ".join(words[begin : begin + _SHINGLE_WORDS])
        for begin in range(len(words) - _SHINGLE_WORDS + 1)
    }


def split_by_hash(
    documents: Iterable[Document], shares: dict[str, float], rest: str
) -> dict[str, list[Document]]:
    """Split documents by the hash of their text, so that equal texts stay together.

    Args:
        documents: the documents, whose order is preserved within a split.
        shares: share of the documents for each named split.
        rest: the split of all others.
    """
    splits: dict[str, list[Document]] = {rest: [], **{name: [] for name in shares}}
    for document in documents:
        digest = hashlib.sha256(b"split:" + document.text.encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        chosen = rest
        for name, share in shares.items():
            if position < share:
                chosen = name
                break
            position -= share
        splits[chosen].append(document)
    return splits
