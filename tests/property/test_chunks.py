"""Text of any size in pieces: nothing is lost where it is cut, and duplicates are recognised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data import chunks, sources
from paramgolf.data.chunks import Chunk, SeenDocuments
from paramgolf.data.encoding import Encoded
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.shards import SPLITS, ShardWriter, read_stream, whole_documents

BLOCK = 64


@settings(max_examples=200)
@given(st.text(alphabet=st.sampled_from("ab \n\u00e9\u4e2d\U0001f600"), max_size=400))
def test_a_long_text_is_cut_between_lines_or_characters(scratch: Path, text: str) -> None:
    path = scratch / "text.md"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_PLAIN_BYTES", BLOCK)
        parts = [part for _, part in sources.read_documents(path, "", lambda done: None)]
    assert "".join(parts) == text
    for part in parts[:-1]:
        assert BLOCK - 3 <= len(part.encode()) <= BLOCK or part.endswith("\n")
        assert len(part.encode()) <= BLOCK
    assert len(parts[-1].encode()) <= BLOCK


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=12),
    st.integers(1, 25),
)
def test_shards_contain_the_stream_and_are_read_in_whole_documents(
    scratch: Path, parts: list[list[int]], shard_tokens: int
) -> None:
    for old in scratch.glob("*.bin"):
        old.unlink()
    writer = ShardWriter(scratch, "train", shard_tokens)
    for part in parts:
        writer.add(np.array(part, np.uint16))
    names = writer.finish()
    stream = [token for part in parts for token in part]
    assert writer.tokens == len(stream)
    assert len(names) == -(-len(stream) // shard_tokens)
    paths = [scratch / name for name in names]
    assert read_stream(paths).tolist() == stream
    pieces = [piece.tolist() for piece in whole_documents(paths, bos=1)]
    assert [token for piece in pieces for token in piece] == stream
    assert all(piece[0] == 1 for piece in pieces[1:])


@settings(max_examples=50)
@given(st.lists(st.integers(0, 300), max_size=600), st.integers(1, 40))
def test_seen_documents_are_a_set(keys: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_RECENT_KEYS", most)
        seen, truth = SeenDocuments(), set[int]()
        for key in keys:
            spread = key * 0x9E3779B97F4A7C15 % 2**64
            assert (spread in seen) == (key in truth)
            seen.add(spread)
            truth.add(key)


@given(st.lists(st.tuples(st.text(max_size=60), st.integers(0, 2)), max_size=12))
def test_documents_of_a_split(documents: list[tuple[str, int]]) -> None:
    texts = [text + " a b c d e f g h i j k l m n"[: 2 * len(text)] for text, _ in documents]
    tokens = [np.arange(len(text), dtype=np.uint16) for text in texts]
    lengths = np.array([len(own) for own in tokens], np.int64)
    joined = np.concatenate([np.zeros(0, np.uint16), *tokens])
    splits = np.array([split for _, split in documents], np.uint8)
    chunk = Chunk("", Encoded(joined, lengths, fingerprints(texts)), splits, [])
    for number, name in enumerate(SPLITS):
        chosen = [i for i, (_, split) in enumerate(documents) if split == number]
        assert chunk.tokens_of(name).tolist() == [t for i in chosen for t in tokens[i].tolist()]
        some = fingerprints([texts[i] for i in chosen])
        for ours, theirs in zip(chunk.prints_of(name), some, strict=True):
            assert ours.tolist() == theirs.tolist()
