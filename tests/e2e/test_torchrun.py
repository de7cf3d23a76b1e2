"""Whole runs under torchrun: results, lost ranks, preemption, two nodes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import ENVIRONMENT, TIMEOUT, Result, finish, wait_until
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, read_results, stages_started, table_rows, without_times

pytestmark = pytest.mark.slow

LONGER = [
    "--train.max-steps", "160",
    "--train.checkpoint-seconds", "0.3",
    "--adapt.epochs", "8",
    "--score.stride", "1",
]  # fmt: skip
SHAPED_FILES = ("model.bin", "provenance.safetensors", "tokenizer.model", "quantization.json")


def torchrun(*arguments: str | Path, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start paramgolf on two ranks (or as `options` say)."""
    options = options or ("--standalone", "--nproc-per-node=2")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "paramgolf", "run",
         *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def pid_of_rank(agent: subprocess.Popen[bytes], rank: int) -> int:
    """Return the process of a rank, a child of torchrun's agent."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


def is_in(run: Path, stage: str) -> Callable[[], bool]:
    """Return a condition: the run is in the middle of the stage."""
    if stage == "train":
        return lambda: (run / "checkpoints" / "training.safetensors").exists()
    if stage == "adapt":
        return lambda: any(event["event"] == "adapt_epoch" for event in events(run))
    return lambda: stage in stages_started(run)


def check_equal(run: Path, undisturbed: Path) -> None:
    for name in SHAPED_FILES:
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert without_times(read_results(run)) == without_times(read_results(undisturbed))


def check_nothing_half_written(run: Path, stage: str) -> None:
    assert not (run / "stages" / f"{stage}.json").exists()
    unfinished = {"train": "ema.safetensors", "adapt": "adapted.safetensors"}.get(stage)
    if unfinished:
        assert not (run / "checkpoints" / unfinished).exists()


def resume(run: Path) -> Result:
    result = finish(torchrun("--resume", run))
    assert result.code == 0, result.stderr
    return result


def own_lines(stderr: str) -> list[str]:
    """Return the lines that paramgolf prints, without those of torchrun."""
    return [line for line in stderr.splitlines() if line.startswith("paramgolf: ")]


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    result = finish(torchrun("tiny", *options, *LONGER, "--out", path))
    assert result.code == 0, result.stderr
    assert own_lines(result.stderr) == []
    return FinishedRun(path, result.stdout)


def test_two_ranks_print_and_reach_what_one_does(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    one = ["--standalone", "--nproc-per-node=1"]
    alone = finish(
        torchrun("tiny", *options, *LONGER, "--out", tmp_path / "run", options=tuple(one))
    )
    assert alone.code == 0, alone.stderr
    ours, theirs = read_results(undisturbed.path), read_results(tmp_path / "run")
    assert set(ours["num_ranks"].values()) == {2}
    assert set(theirs["num_ranks"].values()) == {1}
    assert [row[0] for row in table_rows(undisturbed.stdout)] == [
        row[0] for row in table_rows(alone.stdout)
    ]
    assert ours["stages"].keys() == theirs["stages"].keys()
    # The same training in another order of additions; adaptation differs by its averaging.
    assert ours["stages"]["ema"]["bpb"] == pytest.approx(theirs["stages"]["ema"]["bpb"], abs=2e-3)
    for stage in ours["stages"]:
        assert ours["stages"][stage]["bpb"] == pytest.approx(
            theirs["stages"][stage]["bpb"], abs=0.1
        )
        for key in ("tokens", "bytes", "label"):
            assert ours["stages"][stage][key] == theirs["stages"][stage][key]


@pytest.mark.parametrize(
    ("stage", "rank"), [("train", 1), ("train", 0), ("adapt", 1), ("score", 1)]
)
def test_a_killed_rank_stops_the_others(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path, stage: str, rank: int
) -> None:
    run = tmp_path / "run"
    agent = torchrun("tiny", *options, *LONGER, "--out", run)
    wait_until(is_in(run, stage), agent)
    os.kill(pid_of_rank(agent, rank), signal.SIGKILL)
    result = finish(agent)
    assert result.code != 0
    (message,) = own_lines(result.stderr)
    assert message.startswith(f"paramgolf: rank {rank} was lost")
    assert f"rank {rank} was lost" in (run / "logs" / f"rank{1 - rank}.log").read_text()
    check_nothing_half_written(run, stage)
    resume(run)
    check_equal(run, undisturbed.path)


def test_a_rank_without_memory_stops_the_others(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    """If only one rank fails, its log has the traceback, and rank 0 prints which rank and why."""
    run = tmp_path / "run"
    agent = torchrun("tiny", *options, *LONGER, "--out", run)
    wait_until(is_in(run, "train"), agent)
    pid = pid_of_rank(agent, 1)
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size - (1 << 20), size))
    result = finish(agent)
    (message,) = own_lines(result.stderr)
    assert message.startswith("paramgolf: rank 1 failed: unexpected ")
    assert str(run / "logs" / "rank1.log") in message
    assert "Traceback" in (run / "logs" / "rank1.log").read_text()
    check_nothing_half_written(run, "train")
    resume(run)
    check_equal(run, undisturbed.path)


@pytest.mark.parametrize(
    ("stage", "whom"), [("train", "torchrun"), ("train", "one rank"), ("adapt", "one rank")]
)
def test_preemption_is_resumable(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path, stage: str, whom: str
) -> None:
    run = tmp_path / "run"
    agent = torchrun("tiny", *options, *LONGER, "--out", run)
    wait_until(is_in(run, stage), agent)
    os.kill(agent.pid if whom == "torchrun" else pid_of_rank(agent, 1), signal.SIGTERM)
    result = finish(agent)
    assert result.code != 0
    (message,) = own_lines(result.stderr)
    assert message.startswith("paramgolf: stopped by SIGTERM")
    if whom == "one rank":
        assert "exitcode: 75" in result.stderr or "exitcode  : 75" in result.stderr
    check_nothing_half_written(run, stage)
    resume(run)
    check_equal(run, undisturbed.path)
    if stage == "train":
        (resumed,) = (e for e in events(run) if e["event"] == "training_resumed")
        assert f"after step {resumed['step']}," in message  # its checkpoint is of the last step


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def two_nodes(*arguments: str | Path) -> list[subprocess.Popen[bytes]]:
    port = free_port()
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test",
               f"--rdzv-endpoint=127.0.0.1:{port}")  # fmt: skip
    first = torchrun(*arguments, options=(*options, "--local-addr=127.0.0.1"))
    second = torchrun(*arguments, options=(*options, "--local-addr=127.0.0.1"))
    return [first, second]


def test_two_nodes_are_two_ranks(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    results = [finish(node) for node in two_nodes("tiny", *options, *LONGER, "--out", run)]
    assert [result.code for result in results] == [0, 0], results
    printed = [result.stdout for result in results if result.stdout]
    assert len(printed) == 1, "only rank 0 prints"
    check_equal(run, undisturbed.path)


def test_a_node_that_vanishes(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    nodes = two_nodes("tiny", *options, *LONGER, "--out", run)
    wait_until(is_in(run, "train"), nodes[0])
    ranks = [b"RANK=1" in _environment_of_worker(node) for node in nodes]
    victim, survivor = nodes[ranks.index(True)], nodes[ranks.index(False)]
    os.killpg(victim.pid, signal.SIGSTOP)  # so that the agent cannot close its connections
    os.kill(pid_of_rank(victim, 1), signal.SIGKILL)
    os.killpg(victim.pid, signal.SIGKILL)
    result = finish(survivor)
    victim.communicate()
    (message,) = own_lines(result.stderr)
    assert message.startswith("paramgolf: rank 1 was lost")


def _environment_of_worker(agent: subprocess.Popen[bytes]) -> list[bytes]:
    (child,) = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return Path(f"/proc/{child}/environ").read_bytes().split(b"\0")


def test_misuse_is_reported_once(options: list[str], tmp_path: Path) -> None:
    for arguments, expected in (
        (("tinny",), "unknown recipe 'tinny'"),
        (("tiny", *options, "--train.batch-tokens", "64", "--train.micro-batch-tokens", "64",
          "--out", tmp_path / "a"), "for 2 ranks"),
        (("tiny", *options, "--data.source", tmp_path / "nothing", "--out", tmp_path / "b"),
         "is not a directory"),
    ):  # fmt: skip
        result = finish(torchrun(*arguments))
        assert result.code != 0
        (message,) = own_lines(result.stderr)
        assert expected in message


def test_the_bundle_runs_on_two_ranks(
    undisturbed: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    """train_gpt.py under torchrun, from the shards of a run of the package."""
    # Results and provenance say where the tokenizer comes from; a given one counts in the budget.
    for name in ("train_gpt.py", "tokenizer.model", "results.json", "provenance.safetensors"):
        (tmp_path / name).write_bytes((undisturbed.path / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "train_gpt.py", "run", "--device", "cpu", "--source", undisturbed.path / "data",
         "--out", "again"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = read_results(tmp_path / "again"), read_results(undisturbed.path)
    for score in theirs["stages"].values():
        score["bytes_are"] = "as decoded"  # shards do not say what they were made of
    assert ours["stages"] == theirs["stages"]
    assert (ours["bytes"], ours["num_ranks"]) == (theirs["bytes"], theirs["num_ranks"])


def test_the_bundle_reports_misuse_once(undisturbed: FinishedRun, tmp_path: Path) -> None:
    code = tmp_path / "train_gpt.py"
    code.write_bytes((undisturbed.path / "train_gpt.py").read_bytes())
    for expected in ("name it with --tokenizer", "is not a directory"):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             code, "run", "--device", "cpu", "--source", "nothing", "--out", "again"],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert done.returncode != 0
        assert done.stderr.count(expected) == 1
        (tmp_path / "tokenizer.model").touch()
