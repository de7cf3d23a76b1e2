"""Shards on disk, and the sequences that training samples from them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramgolf.data.batches import SequenceSampler
from paramgolf.data.shards import (
    check_vocabulary,
    find_shards,
    open_shard,
    read_stream,
    write_shard,
)
from paramgolf.errors import UserError

TOKENS = st.lists(st.integers(0, 65_535), min_size=1, max_size=600)


def as_tokens(values: list[int] | range) -> NDArray[np.uint16]:
    return np.array(values, dtype=np.uint16)


def read_independently(path: Path) -> list[int]:
    """Read a shard by the description of the format: a header of 256 int32, then uint16."""
    content = path.read_bytes()
    header = struct.unpack("<256i", content[:1024])
    assert header[:2] == (20240520, 1)
    assert not any(header[3:])
    assert len(content) == 1024 + 2 * header[2]
    return list(struct.unpack(f"<{header[2]}H", content[1024:]))


def write_independently(path: Path, values: list[int], magic: int = 20240520, ver: int = 1) -> None:
    header = struct.pack("<256i", magic, ver, len(values), *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(values)}H", *values))


@settings(max_examples=60)
@given(TOKENS)
def test_round_trip(scratch: Path, values: list[int]) -> None:
    path = scratch / "x_train_000000.bin"
    write_shard(path, as_tokens(values))
    assert read_independently(path) == values
    assert open_shard(path).tolist() == values
    assert open_shard(path).dtype == np.uint16


@settings(max_examples=60)
@given(TOKENS)
def test_reads_what_others_write(scratch: Path, values: list[int]) -> None:
    path = scratch / "x_train_000001.bin"
    write_independently(path, values)
    assert open_shard(path).tolist() == values


def test_a_slice_of_a_larger_array(tmp_path: Path) -> None:
    """Callers write slices with any stride and offset."""
    everything = as_tokens(range(1000))
    write_shard(tmp_path / "a.bin", everything[100:900:7])
    assert read_independently(tmp_path / "a.bin") == list(range(100, 900, 7))


def test_an_opened_shard_is_read_only(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", as_tokens([1, 2, 3]))
    tokens = open_shard(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 9
    assert read_independently(tmp_path / "a.bin") == [1, 2, 3]


def header_word(index: int, value: int) -> Callable[[bytes], bytes]:
    return lambda good: good[: 4 * index] + struct.pack("<i", value) + good[4 * index + 4 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "bad magic": header_word(0, 20240519),
    "big-endian magic": lambda good: struct.pack(">i", 20240520) + good[4:],
    "version 0": header_word(1, 0),
    "version 2": header_word(1, 2),
    "one token too many in the header": header_word(2, 101),
    "one token too few in the header": header_word(2, 99),
    "negative count": header_word(2, -1),
    "smallest count": header_word(2, -(2**31)),
    "largest count": header_word(2, 2**31 - 1),
    "truncated by a byte": lambda good: good[:-1],
    "truncated by a token": lambda good: good[:-2],
    "header only": lambda good: good[:1024],
    "truncated header": lambda good: good[:1000],
    "extended by a byte": lambda good: good + b"\0",
    "extended by a token": lambda good: good + b"\0\0",
    "empty": lambda good: b"",
    "zeros": lambda good: bytes(len(good)),
    "zero tokens": lambda good: header_word(2, 0)(good)[:1024],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_user_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x_val_000000.bin"
    write_shard(path, as_tokens(range(100)))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError) as error:
        open_shard(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.bin", tmp_path):
        with pytest.raises(UserError) as error:
            open_shard(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@settings(max_examples=60)
@given(st.lists(TOKENS, min_size=1, max_size=4), st.data())
def test_read_stream_across_shards(
    scratch: Path, parts: list[list[int]], data: st.DataObject
) -> None:
    limit = data.draw(st.integers(0, sum(map(len, parts)) + 3))
    paths = []
    for number, values in enumerate(parts):
        paths.append(scratch / f"s_train_{number:06d}.bin")
        write_shard(paths[-1], as_tokens(values))
    joined = [token for values in parts for token in values]
    assert read_stream(paths).tolist() == joined
    assert read_stream(paths, limit).tolist() == joined[:limit]
    assert read_stream(paths, limit).dtype == np.uint16


def test_read_stream_of_nothing() -> None:
    assert read_stream([]).tolist() == []


def test_find_shards_in_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"fineweb_train_{number:06d}.bin" for number in (10, 2, 0, 1)]
    for name in [*names, "fineweb_val_000000.bin", "fineweb_train_x.bin", "fineweb_train_0.txt"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_shards(tmp_path, "train")] == sorted(names)
    assert [path.name for path in find_shards(tmp_path, "val")] == ["fineweb_val_000000.bin"]
    assert find_shards(tmp_path, "adapt") == []


@given(TOKENS, st.integers(1, 65_536))
def test_check_vocabulary(values: list[int], vocab_size: int) -> None:
    outside = [token for token in values if token >= vocab_size]
    path = Path("some_train_000003.bin")
    if outside:
        with pytest.raises(UserError) as error:
            check_vocabulary(path, as_tokens(values), vocab_size)
        assert path.name in str(error.value)
        assert str(max(outside)) in str(error.value)
        assert str(vocab_size) in str(error.value)
    else:
        check_vocabulary(path, as_tokens(values), vocab_size)


# Sequences. Tokens are numbered through all shards, so that a row shows where it comes from.


def counting_shards(folder: Path, lengths: list[int]) -> list[Path]:
    paths, first = [], 0
    for number, length in enumerate(lengths):
        paths.append(folder / f"counting_train_{number:06d}.bin")
        write_shard(paths[-1], as_tokens(range(first, first + length)))
        first += length
    return paths


def expected_count(lengths: list[int], seq_len: int) -> int:
    """One sequence less than fits in each shard, but at least one if one fits."""
    total = 0
    for length in lengths:
        fitting = len(range(0, length - seq_len, seq_len))
        total += fitting - 1 if fitting > 1 else fitting
    return total


def epoch_rows(sampler: SequenceSampler, epoch: int) -> NDArray[np.int32]:
    count = sampler.sequences_per_epoch
    return sampler.sequences(epoch * count, count).numpy()


@settings(max_examples=80)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5),
    st.integers(2, 40),
    st.integers(0, 2**63 - 1),
    st.integers(0, 3),
)
def test_an_epoch_contains_distinct_sequences(
    scratch: Path, lengths: list[int], seq_len: int, seed: int, epoch: int
) -> None:
    shards = counting_shards(scratch, lengths)
    count = expected_count(lengths, seq_len)
    if count == 0:
        with pytest.raises(UserError, match=str(seq_len)):
            SequenceSampler(shards, seq_len, seed, "train")
        return
    sampler = SequenceSampler(shards, seq_len, seed, "train")
    assert sampler.sequences_per_epoch == count
    rows = epoch_rows(sampler, epoch)
    assert rows.shape == (count, seq_len + 1)
    borders = np.cumsum([0, *lengths])
    starts = np.sort(rows[:, 0])
    for row in rows:
        first, last = int(row[0]), int(row[-1])
        assert row.tolist() == list(range(first, first + seq_len + 1))
        shard = np.searchsorted(borders, first, side="right")
        assert last < borders[shard], "a sequence crosses into the next shard"
    # Inputs of two sequences never overlap: the last token of one may be the first of the next.
    assert bool((np.diff(starts) >= seq_len).all())
    for begin, end in pairwise(borders):
        inside = starts[(starts >= begin) & (starts < end)]
        assert bool((np.diff(inside) == seq_len).all()), "a gap between two sequences"


def test_rows_of_arbitrary_text_are_slices_of_a_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 50, length).astype(np.uint16) for length in (333, 90, 17)]
    paths = [tmp_path / f"r_train_{number}.bin" for number in range(3)]
    for path, text in zip(paths, texts, strict=True):
        write_shard(path, text)
    slices = {
        tuple(text[start : start + 9].tolist()) for text in texts for start in range(len(text) - 8)
    }
    rows = epoch_rows(SequenceSampler(paths, 8, 0, "train"), 1)
    assert all(tuple(row.tolist()) in slices for row in rows)


def test_text_of_exactly_one_sequence(tmp_path: Path) -> None:
    shards = counting_shards(tmp_path, [17])
    sampler = SequenceSampler(shards, 16, 0, "train")
    assert sampler.sequences(0, 3).tolist() == [list(range(17))] * 3
    with pytest.raises(UserError) as error:
        SequenceSampler(shards, 17, 0, "train")
    assert "17" in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 60))
def test_the_list_does_not_depend_on_the_caller(scratch: Path, cuts: list[int], first: int) -> None:
    """In chunks, in one piece, by a used sampler, and backwards: always the same."""
    shards = counting_shards(scratch, [150, 40, 200])
    total = sum(cuts)
    whole = SequenceSampler(shards, 16, 11, "train").sequences(first, total).tolist()
    chunked: list[list[int]] = []
    sampler = SequenceSampler(shards, 16, 11, "train")
    for cut in cuts:
        chunked += sampler.sequences(first + len(chunked), cut).tolist()
    assert chunked == whole
    backwards = [sampler.sequences(first + i, 1)[0].tolist() for i in reversed(range(total))]
    assert backwards[::-1] == whole


def test_ten_sequences_are_ten_times_one(tmp_path: Path) -> None:
    sampler = SequenceSampler(counting_shards(tmp_path, [300]), 16, 5, "train")
    one_by_one = [sampler.sequences(number, 1)[0].tolist() for number in range(10)]
    assert sampler.sequences(0, 10).tolist() == one_by_one


def test_epochs_seeds_and_names_differ(tmp_path: Path) -> None:
    shards = counting_shards(tmp_path, [4000, 4000])
    sampler = SequenceSampler(shards, 16, 5, "train")
    orders = {
        "epoch 0": epoch_rows(sampler, 0),
        "epoch 1": epoch_rows(sampler, 1),
        "other seed": epoch_rows(SequenceSampler(shards, 16, 6, "train"), 0),
        "other name": epoch_rows(SequenceSampler(shards, 16, 5, "adapt"), 0),
    }
    firsts = {tuple(rows[:, 0].tolist()) for rows in orders.values()}
    assert len(firsts) == len(orders)
    for rows in orders.values():
        assert rows[:, 0].tolist() != sorted(rows[:, 0].tolist()), "not shuffled"


def test_random_offsets_reach_every_token(tmp_path: Path) -> None:
    """Over many epochs, every token is the first of some sequence."""
    sampler = SequenceSampler(counting_shards(tmp_path, [200]), 8, 0, "train")
    offsets = {int(epoch_rows(sampler, epoch)[0, 0]) % 8 for epoch in range(100)}
    assert offsets == set(range(8))
