"""The same documents by every way in, however they are encoded, packed, named and given."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data.documents import find_jsonl, read_jsonl, read_text
from paramgolf.data.scan import Sources
from paramgolf.data.sources import find_sources
from paramgolf.data.texts import read_texts
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
CHARACTERS = st.sampled_from('ab {}[]"\\\n\r\t\u00e9\u2028\u4e2d\U0001f600\ufeff')
BLANK = ("", " ", "\t ", "\r")


class Packed(NamedTuple):
    """The bytes of a file, and how its name ends."""

    content: bytes
    suffix: str


class JsonLines(NamedTuple):
    """Documents, and JSON Lines of them with blank lines and nulls between."""

    texts: list[str]
    blank: int
    lines: str


@st.composite
def packed(draw: st.DrawFn, text: str) -> Packed:
    """Encode a text, and compress it in members that begin anywhere, with zeros between."""
    encoding = draw(st.sampled_from([*ENCODINGS]))
    content = ENCODINGS[encoding] + text.encode(encoding)
    suffix = draw(st.sampled_from(["", *PACKINGS]))
    if not suffix:
        return Packed(content, "")
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
    parts = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    zeros = [4 * draw(st.integers(0, 400)) for _ in parts]
    members = [PACKINGS[suffix](part) + bytes(n) for part, n in zip(parts, zeros, strict=True)]
    return Packed(b"".join(members), suffix)


@st.composite
def json_lines(draw: st.DrawFn) -> JsonLines:
    lines: list[str] = []
    texts: list[str] = []
    blank = 0
    for kind in [*draw(st.lists(st.sampled_from("dddbn"), max_size=8)), "d"]:
        key = draw(st.sampled_from(["text", "content"]))
        text = draw(st.text(CHARACTERS, max_size=12)) if kind == "d" else None
        if kind == "b":
            line = draw(st.sampled_from(BLANK))
        else:
            line = json.dumps({"n": 1, key: text}, ensure_ascii=draw(st.booleans()))
        lines.append(line + draw(st.sampled_from(["\n", "\r\n"])))
        texts += [] if text is None else [text]
        blank += text is None
    last = lines[-1].rstrip() if draw(st.booleans()) else lines[-1]
    return JsonLines(texts, blank, "".join([*lines[:-1], last]))


@contextmanager
def fed(path: Path, content: bytes) -> Iterator[None]:
    """Write to a pipe while the block reads it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    try:
        yield
    finally:
        writer.join(timeout=60)
    assert not writer.is_alive()


@contextmanager
def ways(scratch: Path, given: Packed, name: str) -> Iterator[Iterator[str]]:
    """Yield sources that contain nothing but a file: itself, folder, glob, pipe, standard input."""
    folder = scratch / "folder"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    file = folder / (name + given.suffix)
    file.write_bytes(given.content)

    def sources() -> Iterator[str]:
        yield from (str(file), str(folder), str(folder / "*"))
        with fed(scratch / "pipe", given.content):
            yield str(scratch / "pipe")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.content)))
            yield "-"

    yield sources()


def built(source: str, scratch: Path) -> tuple[list[str], int]:
    """Return the documents as `data build` reads them, twice, and the number of blank ones."""
    for old in scratch.glob("stored-*"):
        old.unlink()
    sources = Sources({"train": find_sources([source], scratch / "stored")}, "", Reporter())
    texts = [text for _, text in sources.read("train", "check")]
    assert texts == [text for _, text in sources.read("train", "encode")]
    assert sources.blank["check"] == sources.blank["encode"]
    return texts, sources.blank["encode"]


@settings(max_examples=60)
@given(data=st.data(), wanted=json_lines())
@pytest.mark.parametrize("name", ["train.jsonl", "train.NDJSON", "train.json", "train.txt"])
def test_json_lines_are_the_same_by_every_way_in(
    scratch: Path, tokenizer: Tokenizer, name: str, data: st.DataObject, wanted: JsonLines
) -> None:
    given = data.draw(packed(wanted.lines))
    with ways(scratch, given, name) as sources:
        for source in sources:
            assert built(source, scratch) == (wanted.texts, wanted.blank)
    if any(wanted.texts):
        with ways(scratch, given, name) as sources:
            for source in sources:
                (stream,), left_out = read_texts([source], "", tokenizer)
                assert stream.texts == wanted.texts
                assert len(left_out) == (wanted.blank > 0)
    if name in ("train.jsonl", "train.NDJSON"):  # as `run` finds and reads them
        (file,) = find_jsonl(scratch / "folder", "train")
        assert [text for _, text in read_jsonl(file)] == wanted.texts


@settings(max_examples=60)
@given(data=st.data(), text=st.text(CHARACTERS, min_size=1, max_size=60))
@pytest.mark.parametrize("name", ["a.txt", "a.MD"])
def test_a_plain_text_is_the_same_by_every_way_in(
    scratch: Path, tokenizer: Tokenizer, name: str, data: st.DataObject, text: str
) -> None:
    text = "x" + text  # neither a mark nor JSON
    given = data.draw(packed(text))
    with ways(scratch, given, name) as sources:
        for source in sources:
            assert built(source, scratch) == ([text], 0)
    with ways(scratch, given, name) as sources:
        for source in sources:
            (stream,), left_out = read_texts([source], "", tokenizer)
            assert (stream.texts, left_out) == ([text], [])
    plain = Packed(text.encode(), "")  # which `compress` is to restore, byte for byte
    with ways(scratch, plain, name) as sources:
        assert read_text(Path(next(sources))) == text
    with fed(scratch / "pipe", plain.content):
        assert read_text(scratch / "pipe") == text


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("suffix", PACKINGS)
def test_what_is_cut_off_or_damaged_is_an_error(
    scratch: Path, suffix: str, data: st.DataObject
) -> None:
    """Unless it is cut off between two members, or the damage is in what is not read."""
    parts = [b"".join(b'{"text": "%d %d"}\n' % (n, i) for i in range(40)) for n in range(3)]
    packed_parts = [PACKINGS[suffix](part) for part in parts]
    whole = b"".join(packed_parts)
    ends = [len(b"".join(packed_parts[:count])) for count in range(4)]
    texts = [f"{n} {i}" for n in range(3) for i in range(40)]
    path = scratch / f"damaged.jsonl{suffix}"
    cut = data.draw(st.integers(1, len(whole)))
    path.write_bytes(whole[:cut])
    if cut in ends:
        assert [text for _, text in read_jsonl(path)] == texts[: 40 * ends.index(cut)]
    else:
        with pytest.raises(UserError, match="damaged"):
            list(read_jsonl(path))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    with suppress(UserError):
        found = [text for _, text in read_jsonl(path)]
        assert found == texts or suffix == ".zst"  # of which a checksum is an option
    garbage = data.draw(st.binary(min_size=1, max_size=20).filter(lambda b: b.strip(b"\0")))
    path.write_bytes(whole + garbage)
    with pytest.raises(UserError, match="damaged"):
        list(read_jsonl(path))
