"""Kinds of files: what is read as documents, what is passed over, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from paramgolf.cli.live import LiveReporter
from paramgolf.data.build import build
from paramgolf.data.build_config import BuildConfig
from paramgolf.data.manifest import built_by_us
from paramgolf.data.sources import find_sources, read_documents
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from tests.helpers import one_line

TEXTS = [f"text {number} \u00e9" for number in range(5)]


def read(path: Path, text_key: str = "") -> list[str]:
    return [text for _, text in read_documents(path, text_key, lambda done: None)]


def found(source: Path | str, notes: list[str] | None = None) -> list[str]:
    note = (lambda line: None) if notes is None else notes.append
    return [path.name for path in find_sources([str(source)], Path("unused"), note)]


# JSON and plain text.


@pytest.mark.parametrize("name", ["a", "a.log", "a.json", "a.txt"])
def test_a_list_of_objects_is_refused(name: str, tmp_path: Path) -> None:
    for content in (json.dumps([{"text": "a"}]), json.dumps([{"text": "a"}], indent=1)):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="line 1: not a UTF-8 JSON object"):
            read(tmp_path / name)


@pytest.mark.parametrize("text", ["{{Infobox}} {", "{\\rtf1}", "[[link]]", "{-# X #-}", "[{x"])
def test_markup_is_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text)
    assert read(tmp_path / "a") == [text]


def test_other_json_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"text": "c"}'))
    (tmp_path / "c.JSON").write_bytes(b"\xff\xfe" + '\n{"text": "d"}'.encode("utf-16-le"))
    (tmp_path / "package.json").write_text('{\n  "name": "p"\n}\n')
    (tmp_path / "list.json").write_text("[1, 2]")
    notes: list[str] = []
    assert found(tmp_path, notes) == ["a.json", "b.json.gz", "c.JSON"]
    (note,) = notes
    assert "passed over 2 .json; " in note


def test_what_is_passed_over_is_counted_and_can_be_named(tmp_path: Path) -> None:
    for name in ("a.log", "b.log", "deep/c.log", "README", ".hidden.log", "d.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError) as refused:
        found(tmp_path)
    message = one_line(refused)
    assert "passed over 3 .log, " in message
    assert "1 without ending" in message
    glob = message.rpartition("such as ")[2].strip("'")
    assert found(glob) == ["a.log", "b.log", "c.log"]
    (tmp_path / "a.txt").touch()
    notes: list[str] = []
    assert found(tmp_path, notes) == ["a.txt"]
    assert "passed over 3 .log" in notes[0]
    for path in (*tmp_path.glob("*"), *tmp_path.glob("deep/*")):
        path.unlink() if path.is_file() else None
    with pytest.raises(UserError, match=r"contains no text of the kinds .*\.parquet$"):
        found(tmp_path / "deep")


def test_devices_are_refused() -> None:
    with pytest.raises(UserError, match="cannot read /dev/zero: not a regular file"):
        found("/dev/zero")


# Parquet.


@pytest.mark.parametrize("name", ["text", "body"])
@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
    ],
    ids=str,
)
def test_columns_of_text(kind: Any, name: str, tmp_path: Path) -> None:
    is_bytes = "binary" in str(kind)
    values = [text.encode() if is_bytes else text for text in TEXTS]
    column = pyarrow.array([*values[:2], None, *values[2:]]).cast(kind)
    table = pyarrow.table({"n": list(range(6)), "deep": [["a"]] * 6, name: column})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    blank: list[int] = []
    assert read(path, name) == TEXTS
    if is_bytes and name == "body":  # any bytes, unless it is named
        with pytest.raises(ConfigError) as refused:
            read(path)
        assert f"body ({kind})" in one_line(refused)
        return
    documents = read_documents(path, "", lambda done: None, lambda: blank.append(1))
    assert ([text for _, text in documents], len(blank)) == (TEXTS, 1)
    path.rename(tmp_path / "named-otherwise")
    assert read(tmp_path / "named-otherwise") == TEXTS


def test_a_column_of_something_else_is_named_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [["a"], ["b"]], "n": [1, 2]}), path)
    for key in ("", "text"):
        with pytest.raises(ConfigError, match=r"columns: text \(list<.*string>\), n \(int64\)"):
            read(path, key)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [b"a", b"caf\xe9"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: not UTF-8 text"):
        read(tmp_path / "a.parquet")


# A build from what can be read only once, and from one text.


def _lines(word: str, count: int) -> str:
    return "".join(f"{word} {n * n} is the square of {n}, and of -{n}\n" for n in range(count))


def _from_pipe(scratch: Path, text: str) -> str:
    path = scratch / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(text.encode(),), daemon=True).start()
    return str(path)


def _from_stdin(scratch: Path, text: str) -> str:
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    return "-"


def _from_file(scratch: Path, text: str) -> str:
    (scratch / "a.log").write_text(text)
    return str(scratch / "a.log")


@pytest.mark.parametrize("give", [_from_pipe, _from_stdin, _from_file])
def test_one_text_is_a_corpus_if_there_is_other_validation_text(
    give: Callable[[Path, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    text = _lines("number", 400)
    (tmp_path / "val.txt").write_text(_lines("Zahl", 40))
    config = BuildConfig((give(tmp_path, text),), (str(tmp_path / "val.txt"),), vocab_size=300)
    build(config, tmp_path / "out", Reporter())
    manifest = built_by_us(tmp_path / "out")
    assert manifest is not None
    splits = manifest["splits"]
    assert splits["train"]["documents"] == 1
    assert splits["train"]["bytes"] == len(text)
    assert manifest["tokenizer"]["trained_on"] == {"documents": 1, "bytes": len(text)}


def test_one_text_alone_is_refused(tmp_path: Path) -> None:
    source = _from_file(tmp_path, _lines("number", 400))
    with pytest.raises(UserError, match=r"a single document, .* name other text with --val"):
        build(BuildConfig((source,), vocab_size=300), tmp_path / "out", Reporter())


# What is printed.


def test_strings_in_tables_are_no_markup_and_control_nothing() -> None:
    from rich.table import Table

    names = ["[red]x.txt", "a[/b].txt", ":smile:.txt", "[bold]", "\\[x]"]
    stream = io.StringIO()
    table = Table(title="[i]title :smile:")
    for name in [*names, "h\x1b[31m"]:
        table.add_column(name)
    table.add_row(*names, "c\x1b[31m\udcff")
    LiveReporter(stream).table(table)
    printed = stream.getvalue()
    for name in [*names, "[i]title :smile:", "h\ufffd[31m", "c\ufffd[31m\ufffd"]:
        assert printed.count(name) == 1 + (name in names), name
    assert "\x1b" not in printed


def test_a_line_controls_nothing() -> None:
    stream = io.StringIO()
    LiveReporter(stream).line("[red]a\x1b[31m\x9b\udcff:smile:\tb\n  c")
    assert stream.getvalue() == "[red]a\ufffd[31m\ufffd\ufffd:smile:\tb\n  c\n"


def test_a_number_of_more_digits_than_python_converts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": -%s, "text": "one"}\n{"id": 12, "text": "two"}\n' % ("9" * 5000))
    first, second = read_documents(path, "", lambda _: None)
    assert (first.text, second) == ("one", ("12", "two"))


@pytest.mark.parametrize("start", [b"PK\3\4\x14\xff", b"BZh91AY&SY\xd6", b"%PDF-1.7\n%\xe2\xe3"])
def test_files_that_hold_text_in_a_form_that_is_not_read(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(start + bytes(range(256)))
    with pytest.raises(UserError, match=r"a\.txt is a .*, which is not read: unpack it"):
        list(read_documents(path, "", lambda _: None))
