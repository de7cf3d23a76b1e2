"""The runtime: memory of a CPU, time ledger, files, run directories."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paramgolf.errors import ConfigError, UserError
from paramgolf.recipes import RECIPES
from paramgolf.runtime.files import (
    copy_file,
    read_json,
    read_tensors,
    replacing,
    sha256_of_file,
    write_bytes,
    write_json,
    write_tensors,
)
from paramgolf.runtime.ledger import OTHER, Ledger, account
from paramgolf.runtime.ranks import Ranks
from paramgolf.runtime.rundir import RunDir
from tests.helpers import FakeClock, one_line
from tests.processes import on_ranks

TINY = RECIPES["tiny"][1]

# Memory.

# Each tensor is larger than all before it. glibc by itself takes such a one from the kernel every
# time, wherever its heap ends (steps of equal sizes are kept or given back as that decides).
_FAULTS = """
import resource, sys, torch
from paramgolf.runtime.device import select_runtime
if "kept" in sys.argv:
    select_runtime("cpu")
torch.ones(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 29):
    torch.ones(megabytes << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of taking and freeing 1 MB, 2 MB, ... 28 MB."""
    command = [sys.executable, "-c", _FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no mallopt")
def test_freed_memory_is_taken_again() -> None:
    # 28 of 406 MB, and as much again for each piece of the heap that something small pins.
    assert faults("kept") < faults() / 2


# Time ledger.


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


def test_an_error_is_counted_and_closes_the_phase(ledger_clock: FakeClock) -> None:
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


def test_what_is_under_no_phase_is_counted_as_such(ledger_clock: FakeClock) -> None:
    ledger = Ledger()
    ledger_clock.now += 3.0
    with ledger.phase("train: steps"):
        ledger_clock.now += 1.0
    ledger.add("train: steps", 7.0, earlier=7.0)
    assert ledger.close("train") == {"train: steps": 8.0, f"train: {OTHER}": 3.0}


def test_every_phase_has_a_budget_or_a_reason() -> None:
    with pytest.raises(AssertionError, match="lunch"):
        Ledger().add("lunch", 1.0)
    with pytest.raises(UserError, match="'lunch' is no phase"):
        account("lunch", "none")
    assert account(f"train: {OTHER}", "none").budget == "training"
    assert account(f"score: {OTHER}", "none").budget == "evaluation"
    assert account("pack: Hessians", "none") == ("training", "")
    assert account("score: sliding", "adapt") == ("evaluation", "")
    assert account("adapt: steps", "adapt").budget == "training"
    assert account("adapt: steps", "scored").budget == "evaluation"
    assert account("train: warm up", "none").reason


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
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(UserError) as error:
            write_bytes(path, b"content")
        message = one_line(error)
        assert message.startswith(f"cannot write {path}: ")
        assert message.endswith("; choose another directory")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_a_copy_whose_source_is_missing_names_the_source(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        copy_file(tmp_path / "missing", tmp_path / "new" / "copy")
    assert one_line(error) == f"cannot read {tmp_path / 'missing'}: No such file or directory"
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space or choose another directory"),
        (errno.EDQUOT, "free space or choose another directory"),
        (errno.EROFS, "choose another directory"),
        (errno.EACCES, "choose another directory"),
        (errno.EIO, ""),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_advice_follows_the_cause(number: int, advice: str, named: bool, tmp_path: Path) -> None:
    """Some calls name the file that they fail to write, others do not."""
    path = tmp_path / "file"
    reason = os.strerror(number)

    def write() -> None:
        with replacing(path) as temporary:
            raise OSError(number, reason, temporary if named else None)

    with pytest.raises(UserError) as error:
        write()
    assert one_line(error) == f"cannot write {path}: {reason}" + (advice and f"; {advice}")


def test_a_copy_without_space_is_not_the_fault_of_its_source(tmp_path: Path) -> None:
    """`shutil` names the source in such an error."""
    path = tmp_path / "new" / "copy"

    def copy() -> None:
        with replacing(path):
            raise OSError(errno.ENOSPC, "No space left", str(tmp_path / "source"))

    with pytest.raises(UserError) as error:
        copy()
    assert one_line(error).startswith(f"cannot write {path}: No space left; free space")


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


def create(ranks: Ranks, folder: Path, count: int) -> list[str]:
    """Try to create `count` runs, each at the same time as the other ranks do."""
    errors = []
    for number in range(count):
        ranks.barrier()
        try:
            config = replace(TINY, seed=ranks.rank)
            RunDir.create(folder / str(number), f"of rank {ranks.rank}", config)
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    return errors


def test_of_processes_that_create_the_same_run_one_wins(tmp_path: Path) -> None:
    attempts = zip(*on_ranks(3, create, tmp_path, 20), strict=True)
    for number, errors in enumerate(attempts):
        path = tmp_path / str(number)
        winner = errors.index("")
        _, recipe, config = RunDir.open(path)
        assert (recipe, config.seed) == (f"of rank {winner}", winner)
        for error in (error for rank, error in enumerate(errors) if rank != winner):
            assert "\n" not in error
            assert f"{path} is in use" in error or f"{path} is not empty" in error
        assert {entry.name for entry in path.iterdir()} == {"config.json", "environment.json"}


def test_create_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    """Also those that look like its own temporary files."""
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / ".file.1.tmp"
    other.write_bytes(b"")
    with pytest.raises(UserError, match="not empty"):
        RunDir.create(tmp_path, "tiny", TINY)
    assert other.exists()


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


EVENT = b'{"time": 1700000000.5, "event": "train", "step": 1}'


@pytest.mark.parametrize("end", range(1, len(EVENT)))
def test_a_half_written_last_event_is_skipped_and_reported(end: int, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.event("stage_started", stage="train")
    before = run.read_events()
    with run.events_file.open("ab") as file:
        file.write(EVENT[:end])
    *events, last = run.read_events()
    assert events == before
    assert (last["event"], last["bytes"]) == ("incomplete_event", end)
    assert abs(last["time"] - time.time()) < 60


@pytest.mark.parametrize("rest", [EVENT[:20], EVENT, b""])
def test_after_a_half_written_event_the_next_begins_on_its_own_line(
    rest: bytes, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.event("first")
    with run.events_file.open("ab") as file:
        file.write(rest)
    with run.locked():
        run.event("second")
    kinds = [json.loads(line)["event"] for line in run.events_file.read_text().splitlines()]
    between = {EVENT[:20]: ["incomplete_event"], EVENT: ["train"], b"": []}[rest]
    assert kinds == ["first", *between, "second"]
    assert [event["event"] for event in run.read_events()] == kinds


def test_a_damaged_event_before_the_last_is_an_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.events_file.write_bytes(EVENT + b"\n" + EVENT[:20] + b"\n" + EVENT + b"\n")
    with pytest.raises(UserError) as error:
        run.read_events()
    assert f"{run.events_file}, line 2" in one_line(error)
    with pytest.raises(UserError), run.locked():
        pytest.fail("locked")


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
