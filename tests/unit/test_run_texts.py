"""Reading the shards of a run: on all cores, once a folder, and again if a shard changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from paramgolf.data import kept, processes, run_texts
from paramgolf.data.documents import jsonl_lines, text_digest
from paramgolf.data.fingerprints import runs_of
from paramgolf.data.overlap import Overlap
from paramgolf.data.processes import AllCores, on_all_cores
from paramgolf.data.provenance import Provenance, Text
from paramgolf.data.shards import find_shards, open_shard, write_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import prepare
from paramgolf.stages.job import Job

TEXTS = [text[:3000] for _, text in sorted(topics.items())[:40]]
TRAIN, VAL = [*TEXTS[:30], "", TEXTS[35]], TEXTS[30:]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_tokenizer(TEXTS, 512)


@pytest.fixture
def folder(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards, documents across their borders, of a text that counts as a large one."""
    monkeypatch.setattr(kept, "WORTH_TOKENS", 0)
    monkeypatch.setattr(processes, "ALONE_TOKENS", 0)
    monkeypatch.setattr(run_texts, "PART_TOKENS", 2000)
    folder, tokenizer = tmp_path / "shards", Tokenizer(model)
    for split, texts in (("train", TRAIN), ("val", VAL)):
        stream = np.concatenate(tokenizer.encode(texts))
        for number, begin in enumerate(range(0, len(stream), 9000)):
            path = folder / f"any_{split}_{number:06d}.bin"
            write_shard(path, stream[begin : begin + 9000])
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def prepared(folder: Path, out: Path) -> tuple[dict[str, Any], Provenance]:
    tiny = RECIPES["tiny"][1]
    data = replace(tiny.data, source=str(folder), case_ops=False)
    config = replace(tiny, data=data, model=replace(tiny.model, vocab_size=512), device="cpu")
    job = Job(config, RunDir.create(out, "tiny", config), select_runtime("cpu"), Reporter())
    return prepare.run(job), Provenance.load(job.run.data / "provenance.safetensors")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let reading fail, inside a `context`."""

    def fail(*_: Any) -> None:
        raise AssertionError("the texts are read")

    with monkeypatch.context() as context:
        context.setattr(AllCores, "read_all", fail)
        yield context


def check(found: tuple[dict[str, Any], Provenance], train: list[str]) -> None:
    """Compare with the texts themselves, fingerprinted at once."""
    result, known = found
    split = result["text"]["splits"]["train"]
    assert split["documents"] == len(train)
    assert split["text_sha256"] == known.texts["train"].sha256 == text_digest(train).hex()
    assert split["bytes"] == sum(len(text.encode()) for text in train)
    for name, texts in (("train", train), ("val", VAL)):
        expected = Text.of(texts, salt=known.sampling.salt)
        assert known.texts[name].runs.tolist() == expected.runs.tolist()
        assert known.texts[name].documents == len(texts)
    overlap = Overlap(**result["overlap"]["train"])
    assert overlap.documents == len(VAL)
    runs_of_train = set(runs_of(train)[0].tolist())
    shares = [
        np.mean([run in runs_of_train for run in runs_of([text])[0].tolist()]) for text in VAL
    ]
    assert overlap.seen_documents == sum(share >= 0.4 for share in shares)
    assert 0 < overlap.seen_documents < len(VAL)


def test_all_cores_find_what_one_finds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(many := prepared(folder, tmp_path / "many"), TRAIN)
    for path in folder.glob(".prepared*"):
        path.unlink()
    monkeypatch.setattr(processes, "ALONE_TOKENS", 1 << 40)
    monkeypatch.setattr(run_texts, "PART_TOKENS", 1 << 40)
    one = prepared(folder, tmp_path / "one")
    assert one[0] == many[0]
    assert one[1].content() == many[1].content()


def test_a_folder_is_read_once(folder: Path, tmp_path: Path, refuse: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="are read"):
        prepared(folder, tmp_path / "unknown")
    refuse.undo()
    first = prepared(folder, tmp_path / "first")
    refuse.setattr(AllCores, "read_all", None)
    second = prepared(folder, tmp_path / "second")
    assert second[0] == first[0]
    assert second[1].content() == first[1].content()


def test_a_shard_that_changed_is_noticed(model: bytes, folder: Path, tmp_path: Path) -> None:
    check(prepared(folder, tmp_path / "first"), TRAIN)
    path, tokenizer = find_shards(folder, "train")[-1], Tokenizer(model)
    tokens = np.array(open_shard(path))
    last = int(np.flatnonzero(tokens == tokenizer.bos)[-1])
    write_shard(path, tokens[:last])
    check(prepared(folder, tmp_path / "second"), TRAIN[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.with_suffix(".safetensors").unlink(),
        lambda file: file.with_suffix(".safetensors").write_bytes(b"x"),
        lambda file: file.write_text(file.read_text().replace('"documents": ', '"documents": 0.')),
        lambda file: file.write_text(
            json.dumps(json.loads(file.read_text()) | {"overlap": {}, "train": {}})
        ),
    ],
)
def test_damaged_files_are_made_again(folder: Path, tmp_path: Path, damage: Any) -> None:
    prepared(folder, tmp_path / "first")
    (file,) = folder.glob(".prepared*.json")
    good = file.read_bytes()
    damage(file)
    check(prepared(folder, tmp_path / "second"), TRAIN)
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise UserError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(kept, "write_json", refuse)
    check(prepared(folder, tmp_path / "first"), TRAIN)
    assert not list(folder.glob(".prepared*.json"))
    check(prepared(folder, tmp_path / "second"), TRAIN)


def test_results_come_in_order_and_few_are_ahead() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    cores = len(os.sched_getaffinity(0))
    for number, result in enumerate(on_all_cores(_square, tasks())):
        assert result == number**2
        assert len(taken) <= number + 2 * cores + 1


def _square(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number**2


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(UserError, match="was killed, perhaps for lack of memory"):
        list(on_all_cores(_die, range(3)))


@pytest.mark.slow
def test_a_stand_in_is_a_text_of_the_sizes_asked_for(model: bytes, tmp_path: Path) -> None:
    """A run takes it; all shards but linked ones differ; its manifest says what it is."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for split, texts in (("train", TRAIN), ("val", VAL)):
        (corpus / f"{split}.jsonl").write_bytes(jsonl_lines(texts))
    (corpus / "sp8192.model").write_bytes(model)
    sizes = [
        "--train-shards",
        "3",
        "--distinct",
        "2",
        "--shard-tokens",
        "50000",
        "--val-targets",
        "70000",
    ]
    script = Path(__file__).parents[2] / "scripts" / "stand_in.py"
    command = [sys.executable, script, "--out", out, "--corpus", corpus, *sizes]
    assert "3 training shards of 50,000 tokens, 2 of them distinct" in subprocess.check_output(
        command, text=True
    )
    result, _ = prepared(out, tmp_path / "run")
    tokens = {name: split["tokens"] for name, split in result["text"]["splits"].items()}
    assert (tokens["train"], tokens["val"]) == (150_000, 70_001)
    contents = [path.read_bytes() for path in find_shards(out, "train")]
    assert contents[0] == contents[2] != contents[1]
    assert "stand-in for FineWeb" in json.loads((out / "manifest.json").read_text())["stand_in"]
