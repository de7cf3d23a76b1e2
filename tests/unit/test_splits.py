"""Which split a document is in, with many documents and with few."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from paramgolf.data.advice import next_commands
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.noise import val_noise
from paramgolf.data.shards import write_shard
from paramgolf.data.splits import ADAPT, TRAIN, VAL, SplitFinder, assign_splits


def texts_of(number: int, seed: int = 0) -> list[str]:
    """Return documents of 20 different words each."""
    words = random.Random(seed)
    return [" ".join(str(words.random()) for _ in range(20)) for _ in range(number)]


def splits_of(texts: list[str], val: float = 0.1, adapt: float = 0.1, batch: int = 7) -> list[int]:
    finder = SplitFinder(val, adapt)
    for begin in range(0, len(texts), batch):
        finder.add(texts[begin : begin + batch])
    return assign_splits(fingerprints(texts).documents, finder.ends()).tolist()


def by_value(texts: list[str], val: float = 0.1, adapt: float = 0.1) -> list[int]:
    places = [hashed / 2**64 for hashed in fingerprints(texts).documents.tolist()]
    return [VAL if p < val else ADAPT if p < val + adapt else TRAIN for p in places]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("number", [3, 4, 5, 10, 30, 300])
def test_no_split_is_empty_and_only_an_empty_one_changes_the_splits(number: int, seed: int) -> None:
    texts = texts_of(number, seed)
    splits, usual = splits_of(texts), by_value(texts)
    assert set(splits) == {TRAIN, VAL, ADAPT}
    if set(usual) == {TRAIN, VAL, ADAPT}:
        assert splits == usual
    else:  # in order of the hashes: validation, adaptation, training
        order = np.argsort(fingerprints(texts).documents)
        ranked = [(VAL, ADAPT, TRAIN).index(splits[i]) for i in order]
        assert ranked == sorted(ranked)
        empty = 3 - len(set(usual))
        assert sum(a != b for a, b in zip(splits, usual, strict=True)) <= 2 * empty
    shuffled = random.Random(seed).sample(range(number), number)
    assert splits_of([texts[i] for i in shuffled], batch=2) == [splits[i] for i in shuffled]


@pytest.mark.parametrize("seed", range(10))
def test_with_too_few_documents_training_comes_first_and_then_validation(seed: int) -> None:
    one, two = texts_of(1, seed), texts_of(2, seed)
    assert splits_of(one) == [TRAIN]
    assert sorted(splits_of(two)) == [TRAIN, VAL]
    assert sorted(splits_of(two, val=0)) == [TRAIN, ADAPT]
    assert splits_of(two, val=0, adapt=0) == [TRAIN, TRAIN]
    assert sorted(splits_of(two, val=0.9, adapt=0)) == [TRAIN, VAL]


def test_documents_with_the_same_words_stay_together_and_those_without_words_do_not_count() -> None:
    texts = texts_of(3)
    copies = [text.replace(" ", "\n") for text in texts]
    splits = splits_of([*texts, *copies, "...", "!"])
    assert splits[:3] == splits[3:6]
    assert set(splits[:3]) == {TRAIN, VAL, ADAPT}


def test_the_noise_of_few_validation_documents() -> None:
    assert "noise of about 0.23 BPB" in val_noise(3)
    assert val_noise(29)
    assert val_noise(30) == ""


def test_a_large_vocabulary_gets_a_larger_budget(tmp_path: Path) -> None:
    for split in ("train", "val", "adapt"):
        write_shard(tmp_path / f"text_{split}_000000.bin", np.ones(9, np.uint16))
    plain = f"paramgolf run tiny --data.source {tmp_path} --model.vocab-size"
    assert next_commands(tmp_path, 2048) == {"next": f"{plain} 2048"}
    assert next_commands(tmp_path, 8192) == {"next": f"{plain} 8192 --pack.budget-bytes 1050000"}
