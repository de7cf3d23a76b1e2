"""Configuration, books, run directories, splits and JSON Lines: what comes in is checked."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.config import RunConfig, from_json, to_json
from paramgolf.data.corpus import split_by_hash
from paramgolf.data.documents import Document, find_jsonl, read_jsonl, read_text
from paramgolf.errors import ConfigError, UserError
from paramgolf.recipes import RECIPES
from paramgolf.runtime.files import (
    read_json,
    read_tensors,
    replacing,
    sha256_of_file,
    write_bytes,
    write_json,
    write_tensors,
)
from paramgolf.runtime.ledger import OTHER, Ledger, account
from paramgolf.runtime.rundir import RunDir
from tests.helpers import FakeClock

TINY = RECIPES["tiny"][1]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# Configuration.


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe: str) -> None:
    config = RECIPES[recipe][1]
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(RunConfig, json.loads(text)) == config


def test_recipes_differ_and_are_described() -> None:
    configs = [json.dumps(to_json(config)) for _, config in RECIPES.values()]
    assert len(set(configs)) == len(configs) >= 4
    assert all(purpose and "\n" not in purpose for purpose, _ in RECIPES.values())


def test_a_changed_value_survives_json() -> None:
    changed = replace(TINY, seed=2**63 - 1, train=replace(TINY.train, ema_decay=0.1 + 0.2))
    read = from_json(RunConfig, json.loads(json.dumps(to_json(changed))))
    assert read == changed != TINY
    assert read.train.ema_decay == 0.30000000000000004


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TINY.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_an_integer_is_accepted_for_a_float_and_becomes_one() -> None:
    values = to_json(TINY)
    values["train"]["max_seconds"] = 60
    seconds = from_json(RunConfig, values).train.max_seconds
    assert seconds == 60.0
    assert type(seconds) is float


def refusal(changes: dict[str, Any]) -> str:
    """The message that refuses the tiny recipe with these keys changed."""
    values = to_json(TINY)
    for key, value in changes.items():
        *sections, name = key.split(".")
        table = values
        for section in sections:
            table = table[section]
        table[name] = value
    with pytest.raises(ConfigError) as error:
        from_json(RunConfig, values)
    assert error.value.exit_code == 2
    assert isinstance(error.value, UserError)
    return one_line(error)


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("seed", -1, "between 0 and 2^63 - 1"),
    ("seed", 2**63, "between 0 and 2^63 - 1"),
    ("data.source", "", "stdlib"),
    ("data.val_share", -0.1, "between 0 and 1"),
    ("data.val_share", 1.5, "between 0 and 1"),
    ("data.adapt_share", math.nan, "between 0 and 1"),
    ("data.val_targets", -1, "0 or more"),
    ("data.shard_tokens", 0, "greater than 0"),
    ("model.vocab_size", 0, "between 257"),
    ("model.vocab_size", 256, "257"),
    ("model.vocab_size", 65_537, "65,536"),
    ("model.num_layers", 0, "between 1 and 256"),
    ("model.width", -128, "greater than 0"),
    ("model.num_heads", 0, "greater than 0"),
    ("model.num_kv_heads", 0, "greater than 0"),
    ("model.mlp_ratio", 0, "greater than 0"),
    ("model.seq_len", 0, "between 1 and 1,048,576"),
    ("model.rotary_base", 0.0, "greater than 0"),
    ("model.rotary_base", math.nan, "greater than 0"),
    ("model.logit_softcap", -30.0, "greater than 0"),
    ("model.loop_visits", 0, "between 1 and 64"),
    ("model.rotary_dims", 15, "even"),
    ("model.rotary_dims", 2, "over 2"),
    ("model.parallel_from", -1, "between 0 and"),
    ("model.parallel_from", 7, "model.num_layers = 6"),
    ("train.max_seconds", 0.0, "greater than 0"),
    ("train.max_steps", -1, "0 (by the clock) or more"),
    ("train.batch_tokens", 0, "greater than 0"),
    ("train.micro_batch_tokens", -4096, "greater than 0"),
    ("train.reserve_seconds", -1.0, "at least 0"),
    ("train.recurrence_from", 1.01, "between 0 and 1"),
    ("train.warmdown_share", -0.01, "between 0 and 1"),
    ("train.matrix_lr", 0.0, "greater than 0"),
    ("train.embedding_lr", math.nan, "greater than 0"),
    ("train.vector_lr", -1.0, "greater than 0"),
    ("train.momentum", 1.0, "below 1"),
    ("train.momentum_start", -0.1, "at least 0"),
    ("train.ema_decay", 1.0, "below 1"),
    ("train.momentum_warmup_steps", -1, "0 or more"),
    ("train.matrix_weight_decay", -0.1, "0 or more"),
    ("train.embedding_weight_decay", math.nan, "0 or more"),
    ("train.vector_weight_decay", -0.1, "0 or more"),
    ("train.grad_clip", 0.0, "greater than 0"),
    ("train.warmup_steps", 0, "greater than 0"),
    ("train.checkpoint_seconds", -1.0, "0 or more"),
    ("adapt.epochs", 0, "greater than 0"),
    ("adapt.lr", 0.0, "greater than 0"),
    ("adapt.final_lr", -1e-5, "between 0 and"),
    ("adapt.chunk_tokens", 0, "greater than 0"),
    ("adapt.frozen_blocks", -1, "0 or more"),
    ("adapt.grad_clip", 0.0, "greater than 0"),
    ("pack.split", "columns", "one of measured, uniform"),
    ("pack.matrix_bin_width", 0.019, "between 0.02 and 2"),
    ("pack.matrix_bin_width", 2.1, "between 0.02 and 2"),
    ("pack.embedding_bin_width", 0.0, "between 0.02 and 2"),
    ("pack.embedding_bin_width", float("nan"), "between 0.02 and 2"),
    ("pack.calibration_batches", 0, "greater than 0"),
    ("pack.damping", 0.0, "greater than 0"),
    ("pack.budget_bytes", 0, "greater than 0"),
    ("score.stride", 0, "greater than 0"),
    ("score.batch_tokens", -1, "greater than 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), OUT_OF_RANGE)
def test_values_out_of_range(key: str, value: Any, allowed: str) -> None:
    message = refusal({key: value})
    assert message.startswith(f"invalid {key} = {value!r}: expected ")
    assert allowed in message


WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("seed", "1337", "int"),
    ("seed", 1337.0, "int"),
    ("seed", True, "int"),
    ("seed", None, "int"),
    ("seed", [1337], "int"),
    ("data.source", 5, "str"),
    ("data.val_share", "0.1", "float"),
    ("data.val_share", None, "float"),
    ("data.val_share", False, "float"),
    ("model.width", 128.0, "int"),
    ("train.max_steps", "280", "int"),
    ("adapt.score_every_epoch", 1, "bool"),
    ("adapt.score_every_epoch", "true", "bool"),
]


@pytest.mark.parametrize(("key", "value", "type_name"), WRONG_TYPES)
def test_values_of_another_type(key: str, value: Any, type_name: str) -> None:
    message = refusal({key: value})
    assert message.startswith(f"invalid {key} = {value!r}: expected ")
    assert message.endswith(type_name)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("device", "tpu", ["auto", "cpu", "cuda"]),
        ("device", None, ["auto", "cpu", "cuda"]),
        ("adapt.text", "val", ["none", "adapt", "scored"]),
        ("adapt.text", ["none"], ["none", "adapt", "scored"]),
        ("adapt.schedule", "linear", ["cosine-over-epochs", "restart-every-epoch"]),
    ],
)
def test_values_outside_of_a_choice(key: str, value: Any, allowed: list[str]) -> None:
    message = refusal({key: value})
    assert message.startswith(f"invalid {key} = {value!r}: expected ")
    assert all(choice in message for choice in allowed)


COMBINATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"data.val_share": 0.5, "data.adapt_share": 0.5}, ["val_share", "adapt_share", "1.0"]),
    ({"model.width": 130}, ["model.width = 130", "model.num_heads = 4"]),
    ({"model.num_kv_heads": 3}, ["model.num_kv_heads = 3", "model.num_heads = 4"]),
    ({"model.rotary_dims": 34}, ["model.rotary_dims = 34", "32"]),
    ({"model.loop_first": 4}, ["model.loop_first", "(4, 3)"]),
    ({"model.loop_first": -1}, ["model.loop_first", "(-1, 3)"]),
    ({"model.loop_last": 6}, ["model.loop_last", "(2, 6)", "model.num_layers = 6"]),
    ({"train.max_seconds": 12.0}, ["train.reserve_seconds = 12.0", "train.max_seconds = 12.0"]),
    (
        {"train.batch_tokens": 4097},
        ["train.batch_tokens = 4097", "train.micro_batch_tokens = 2048"],
    ),
    (
        {"train.micro_batch_tokens": 100, "train.batch_tokens": 200},
        ["train.micro_batch_tokens = 100", "model.seq_len = 256"],
    ),
    ({"adapt.final_lr": 0.1}, ["adapt.final_lr = 0.1", "adapt.lr = 0.0002"]),
    ({"adapt.chunk_tokens": 300}, ["adapt.chunk_tokens = 300", "model.seq_len = 256"]),
    ({"adapt.frozen_blocks": 6}, ["adapt.frozen_blocks = 6", "model.num_layers = 6"]),
    (
        {"pack.calibration_batch_tokens": 255},
        ["pack.calibration_batch_tokens = 255", "model.seq_len = 256"],
    ),
    ({"score.batch_tokens": 8000}, ["score.batch_tokens = 8000", "model.seq_len = 256"]),
    ({"score.stride": 257}, ["score.stride = 257", "model.seq_len = 256"]),
]


@pytest.mark.parametrize(("changes", "fragments"), COMBINATIONS)
def test_combinations_that_are_not_possible(changes: dict[str, Any], fragments: list[str]) -> None:
    message = refusal(changes)
    for fragment in fragments:
        assert fragment in message


def test_the_limits_themselves_are_possible() -> None:
    values = to_json(TINY)
    values["seed"] = 0
    values["model"] |= {"vocab_size": 257, "parallel_from": 6, "rotary_dims": 32}
    values["train"] |= {"reserve_seconds": 0.0, "warmdown_share": 1.0, "momentum": 0.0}
    values["adapt"] |= {"final_lr": values["adapt"]["lr"], "frozen_blocks": 5}
    values["pack"] |= {"matrix_bin_width": 2, "embedding_bin_width": 0.02}
    values["score"] |= {"stride": 256}
    values["data"] |= {"val_share": 0.0, "adapt_share": 0.0}
    assert to_json(from_json(RunConfig, values)) == values


def all_keys() -> list[str]:
    return [
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in to_json(TINY).items()
        for inner in (value if isinstance(value, dict) else [""])
    ]


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_required_by_its_name(key: str) -> None:
    values = to_json(TINY)
    *sections, name = key.split(".")
    table = values[sections[0]] if sections else values
    del table[name]
    with pytest.raises(ConfigError) as error:
        from_json(RunConfig, values)
    assert one_line(error) == f"missing key {key}"
    assert error.value.exit_code == 2


def test_unknown_keys_are_named_with_what_is_near_and_possible() -> None:
    message = refusal({"model.widht": 128})
    assert "model.widht" in message
    assert "model.width" in message
    for name in to_json(TINY)["model"]:
        assert name in message
    assert "sead" in refusal({"sead": 1})
    assert "did you mean" not in refusal({"train.xyzzy": 1})


@pytest.mark.parametrize("value", [5, [], "tiny", None])
def test_a_section_that_is_no_table(value: Any) -> None:
    assert "train" in refusal({"train": value})
    with pytest.raises(ConfigError):
        from_json(RunConfig, value)


# The books.


def test_phases_add_up(ledger_clock: FakeClock) -> None:
    ledger = Ledger()
    for _ in range(3):
        with ledger.phase("train: steps"):
            ledger_clock.now += 2.0
    ledger_clock.now += 9.0
    with ledger.phase("pack: GPTQ"):
        ledger_clock.now += 1.0
    ledger.add("data: corpus", 5.0)
    ledger.add("data: corpus", 2.5)
    assert list(ledger.seconds().items()) == [
        ("train: steps", 6.0), ("pack: GPTQ", 1.0), ("data: corpus", 7.5),
    ]  # fmt: skip


def test_phases_do_not_nest() -> None:
    ledger = Ledger()
    with ledger.phase("pack: write"):
        with pytest.raises(AssertionError, match="pack: measure"), ledger.phase("pack: measure"):
            pytest.fail("entered")
        with pytest.raises(AssertionError), ledger.phase("pack: write"):
            pytest.fail("entered")
    assert list(ledger.seconds()) == ["pack: write"]


def test_an_error_is_booked_and_closes_the_phase(ledger_clock: FakeClock) -> None:
    ledger = Ledger()

    def work() -> None:
        with ledger.phase("pack: GPTQ"):
            ledger_clock.now += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert ledger.seconds()["pack: GPTQ"] == 2.0
    with ledger.phase("pack: write"):
        pass
    assert list(ledger.seconds()) == ["pack: GPTQ", "pack: write"]


def test_seconds_are_a_copy() -> None:
    ledger = Ledger()
    ledger.add("data: corpus", 1.0)
    ledger.seconds()["data: corpus"] = 99.0
    assert ledger.seconds() == {"data: corpus": 1.0}


def test_what_is_under_no_phase_is_booked_as_such(ledger_clock: FakeClock) -> None:
    ledger = Ledger()
    ledger_clock.now += 3.0
    with ledger.phase("train: steps"):
        ledger_clock.now += 1.0
    ledger.add("train: steps", 7.0, earlier=7.0)
    assert ledger.close() == {"train: steps": 8.0, OTHER: 3.0}


def test_every_phase_has_a_budget_or_a_reason() -> None:
    with pytest.raises(AssertionError, match="lunch"):
        Ledger().add("lunch", 1.0)
    assert account("pack: Hessians", "none") == ("training", "")
    assert account("score: sliding", "adapt") == ("evaluation", "")
    assert account("adapt: steps", "adapt").budget == "training"
    assert account("adapt: steps", "scored").budget == "evaluation"
    assert account("train: compile, warm up", "none").reason


# Run directories.


def test_replacing_writes_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old content", None])
@pytest.mark.parametrize("problem", [KeyError("k"), KeyboardInterrupt(), OSError(28, "No space")])
def test_replacing_leaves_the_old_file_when_the_block_raises(
    old: bytes | None, problem: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    expected = UserError if isinstance(problem, OSError) else type(problem)

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"new and incom")
            raise problem

    with pytest.raises(expected):
        write()
    assert list(tmp_path.iterdir()) == ([path] if old is not None else [])
    assert old is None or path.read_bytes() == old


def test_what_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        write_bytes(tmp_path / "folder", b"content")
    assert str(tmp_path / "folder") in one_line(error)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_json_files(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "caf\u00e9": {"b": "\n"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    (tmp_path / "bad.json").write_bytes(b'{"a": ')
    for name in ("bad.json", "nothing.json"):
        with pytest.raises(UserError) as error:
            read_json(tmp_path / name)
        assert str(tmp_path / name) in one_line(error)


def test_sha256_of_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert sha256_of_file(tmp_path / "abc") == known


def test_create_and_open(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    RunDir.create(path, "tiny", TINY)
    run, recipe, config = RunDir.open(path)
    assert (run.path, recipe, config) == (path, "tiny", TINY)
    environment = read_json(path / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_create_takes_an_empty_folder_and_no_other(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "tiny", TINY)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        RunDir.create(tmp_path, "record", RECIPES["record"][1])
    assert str(tmp_path) in one_line(error)
    assert "--resume" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_open_needs_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError) as error:
            RunDir.open(path)
        assert str(path) in one_line(error)


def test_open_checks_the_configuration(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "tiny", TINY)
    values = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**values, "seed": -5})
    with pytest.raises(ConfigError, match="seed = -5"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_bytes(b"{")
    with pytest.raises(UserError):
        RunDir.open(tmp_path)


def test_a_run_is_locked_once(tmp_path: Path) -> None:
    with RunDir(tmp_path).locked():
        with pytest.raises(UserError) as error, RunDir(tmp_path).locked():
            pytest.fail("locked twice")
        assert str(tmp_path) in one_line(error)
    with pytest.raises(KeyError), RunDir(tmp_path).locked():
        raise KeyError
    with RunDir(tmp_path).locked():
        pass


def test_a_run_is_locked_between_processes(tmp_path: Path) -> None:
    attempt = (
        "import fcntl, os, sys\n"
        "folder = os.open(sys.argv[1], os.O_RDONLY)\n"
        "try: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: sys.exit(7)\n"
    )
    command = [sys.executable, "-S", "-c", attempt, str(tmp_path)]
    with RunDir(tmp_path).locked():
        assert subprocess.run(command, check=False).returncode == 7
    assert subprocess.run(command, check=False).returncode == 0


def test_records_say_what_is_finished(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.stage_result("train") is None
    run.finish_stage("train", {"steps": 3})
    assert run.stage_result("train") == {"steps": 3}
    assert RunDir(tmp_path).stage_result("train") == {"steps": 3}
    assert run.stage_result("pack") is None


def test_events_are_appended(tmp_path: Path) -> None:
    for number in range(3):
        RunDir(tmp_path).event("stage_started", stage=f"stage {number}")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["stage"] for event in events] == ["stage 0", "stage 1", "stage 2"]
    assert all(abs(event["time"] - time.time()) < 60 for event in events)


def test_tensors_and_notes_survive(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64, requires_grad=True),
        "integer": torch.tensor(2**62),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "checkpoints" / "x.safetensors"
    write_tensors(path, tensors, step=3, nested={"a": [1.5, None]})
    read, notes = read_tensors(path)
    assert notes == {"step": 3, "nested": {"a": [1.5, None]}}
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-1],
        lambda good: good[: len(good) // 2],
        lambda good: good[:4],
        lambda good: b"",
        lambda good: good + b"\0",
        lambda good: b"foreign content " * 20,
    ],
)
def test_damaged_tensors_are_a_user_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(100)}, step=1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        read_tensors(path)
    assert str(path) in one_line(error)


def test_missing_tensors_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        read_tensors(tmp_path / "nothing")


# Splits.


def numbered(count: int) -> list[Document]:
    return [Document(f"d{i}", f"text number {i}") for i in range(count)]


@pytest.mark.parametrize(("val", "adapt"), [(0.1, 0.1), (0.25, 0.0), (0.0, 0.5), (0.05, 0.6)])
def test_shares_are_about_right_and_splits_disjoint(val: float, adapt: float) -> None:
    documents = numbered(6000)
    splits = split_by_hash(documents, {"val": val, "adapt": adapt}, rest="train")
    assert set(splits) == {"train", "val", "adapt"}
    for name, share in {"val": val, "adapt": adapt, "train": 1 - val - adapt}.items():
        spread = 5 * (share * (1 - share) / len(documents)) ** 0.5
        assert abs(len(splits[name]) / len(documents) - share) <= spread
    everything = [document for parts in splits.values() for document in parts]
    assert sorted(everything) == sorted(documents)
    for parts in splits.values():
        assert [int(document.name[1:]) for document in parts] == sorted(
            int(document.name[1:]) for document in parts
        )


def test_equal_texts_stay_together_whatever_their_names() -> None:
    documents = [Document(f"copy {i}", f"text {i % 40}") for i in range(400)]
    splits = split_by_hash(documents, {"val": 0.3, "adapt": 0.3}, rest="train")
    texts = [{document.text for document in parts} for parts in splits.values()]
    assert sum(map(len, texts)) == 40
    assert min(map(len, texts)) > 0


def test_a_document_keeps_its_split_when_others_come_and_go() -> None:
    documents = numbered(500)
    shares = {"val": 0.2, "adapt": 0.2}
    every, half = (split_by_hash(part, shares, "train") for part in (documents, documents[::2]))
    for name, parts in half.items():
        assert set(parts) <= set(every[name])


# JSON Lines and text files.

OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", OPENERS)
def test_jsonl_in_all_forms(suffix: str, tmp_path: Path) -> None:
    texts = ["plain", "", "caf\u00e9 \U0001f600", "two\nlines \u2028 three\r\n", 'a "quote"', "\0"]
    lines = [json.dumps({"text": text}) for text in texts[:3]]
    lines += [json.dumps({"id": i, "text": text, "x": 1}) for i, text in enumerate(texts[3:])]
    path = tmp_path / f"train{suffix}"
    path.write_bytes(OPENERS[suffix]("\n".join(lines).encode()))
    documents = list(read_jsonl(path))
    assert [document.text for document in documents] == texts
    assert [document.name for document in documents[3:]] == ["0", "1", "2"]
    assert len({document.name for document in documents}) == len(texts)


def test_jsonl_with_characters_that_are_not_escaped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes('{"text": "caf\u00e9 \u2028 \U0001f600"}\n'.encode())
    assert [document.text for document in read_jsonl(path)] == ["caf\u00e9 \u2028 \U0001f600"]


@pytest.mark.parametrize(
    "bad", [b"no json", b"[]", b'"text"', b"5", b"null", b"{}", b'{"txt": "a"}', b"", b'{"text": "']
)
@pytest.mark.parametrize("suffix", OPENERS)
def test_a_bad_line_is_named(bad: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"val{suffix}"
    path.write_bytes(OPENERS[suffix](b'{"text": "a"}\n{"text": "b"}\n' + bad + b"\n"))
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    message = one_line(error)
    assert str(path) in message
    assert "line 3" in message


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz"])
@pytest.mark.parametrize("how", ["truncated", "foreign"])
def test_a_broken_archive_is_a_user_error(suffix: str, how: str, tmp_path: Path) -> None:
    content = OPENERS[suffix](b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path = tmp_path / f"train{suffix}"
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else b"foreign content")
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    assert str(path) in one_line(error)


def test_a_missing_jsonl_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        list(read_jsonl(tmp_path / "nothing.jsonl"))


def test_find_jsonl(tmp_path: Path) -> None:
    wanted = ["val.jsonl", "val_00.jsonl.gz", "val_01.jsonl.xz", "val_02.jsonl"]
    for name in [*wanted, "train.jsonl", "val.json", "val.jsonl.zip", "val.txt", "xval.jsonl"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_jsonl(tmp_path, "val")] == wanted


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("caf\u00e9\r\n\ufeff\0".encode())
    assert read_text(path) == "caf\u00e9\r\n\ufeff\0"
    path.write_bytes(b"latin caf\xe9 1")
    with pytest.raises(UserError) as error:
        read_text(path)
    assert str(path) in one_line(error)
    assert "byte 9" in str(error.value)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError) as error:
            read_text(missing)
        assert str(missing) in one_line(error)
