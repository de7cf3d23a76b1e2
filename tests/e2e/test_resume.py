"""Runs that are killed and resumed end with the same result as undisturbed ones."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramgolf.pipeline.takeover import create_from
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.books import books
from tests.e2e import command
from tests.e2e.command import Cli, finish, kill, one_line_error, wait_until
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, read_results, stages_started, table_rows, without_times

STAGES = ("prepare", "train", "adapt", "pack", "score")
LONGER = [
    "--train.max-steps", "160",
    "--train.checkpoint-seconds", "0.2",
    "--adapt.epochs", "6",
    "--pack.calibration-batches", "100",
    "--score.stride", "2",
]  # fmt: skip
"""With these options, every stage lasts long enough to be killed in its middle."""
SHAPED_FILES = ("model.bin", "provenance.safetensors", "tokenizer.model", "quantization.json")


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    result = command.run("run", "tiny", *options, *LONGER, "--out", path)
    assert result.code == 0, result.stderr
    return FinishedRun(path, result.stdout)


def check_equal(run: Path, undisturbed: FinishedRun) -> None:
    for name in SHAPED_FILES:
        assert (run / name).read_bytes() == (undisturbed.path / name).read_bytes(), name
    ours, theirs = read_results(run), read_results(undisturbed.path)
    assert without_times(ours) == without_times(theirs)
    directory, _, config = RunDir.open(run)
    assert not [check for check in books(directory, config, ours) if check.outcome == "FAIL"]
    # Who is killed between the weights' file and the books has not booked the writing.
    assert ours["seconds"].keys() | {"train: write"} == theirs["seconds"].keys()


def start_or_resume(run: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """Resume a run, or start it if it does not exist yet."""
    if (run / "config.json").exists():
        return command.start("run", "--resume", run)
    return command.start("run", "tiny", *options, *LONGER, "--out", run)


def started(run: Path, stage: str) -> int:
    """Return how often a stage was started."""
    return stages_started(run).count(stage)


def kill_in(
    run: Path, stage: str, options: list[str], begun: Callable[[], bool], delay: float
) -> None:
    """Kill a run in a stage, `delay` seconds after it began; earlier if that would be too late."""
    before = run.with_name("before")
    while True:
        if run.exists():
            shutil.copytree(run, before)
        process = start_or_resume(run, options)
        wait_until(begun, process)
        time.sleep(delay)
        kill(process)
        if not (run / "stages" / f"{stage}.json").exists():
            break
        shutil.rmtree(run)
        if before.exists():
            before.rename(run)
        delay /= 2
    shutil.rmtree(before, ignore_errors=True)


@pytest.mark.slow
def test_killed_in_every_stage(
    options: list[str], undisturbed: FinishedRun, tmp_path: Path
) -> None:
    rng = random.Random(1)
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "training.safetensors"
    seconds = read_results(undisturbed.path)["seconds"]
    phases = dict(zip(STAGES, ("data:", "train:", "adapt:", "pack:", "score:"), strict=True))
    for stage in STAGES:
        length = sum(value for name, value in seconds.items() if name.startswith(phases[stage]))
        for number in range(4 if stage == "train" else 1):

            def begun(stage: str = stage, number: int = number) -> bool:
                return started(run, stage) > number and (number != 1 or checkpoint.exists())

            kill_in(run, stage, options, begun, rng.uniform(0, 0.25) * length)
    result = finish(start_or_resume(run, options))
    assert (result.code, result.stderr) == (0, "")
    assert table_rows(result.stdout)[:5] == table_rows(undisturbed.stdout)[:5]
    for stage in STAGES:
        assert started(run, stage) == (5 if stage == "train" else 2)
    assert any(event["event"] == "training_resumed" for event in events(run))
    check_equal(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(
    options: list[str], undisturbed: FinishedRun, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    run = tmp_path / "run"
    longest = 8.0
    while True:
        process = start_or_resume(run, options)
        try:
            process.wait(rng.uniform(1, longest))
            break
        except subprocess.TimeoutExpired:
            kill(process)
        # A stage has to fit between two kills, however busy the machine is.
        longest *= 1.1
    result = finish(process)
    assert (result.code, result.stderr) == (0, "")
    check_equal(run, undisturbed)
    steps = [event["step"] for event in events(run) if event["event"] == "training_resumed"]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_killed_while_the_trained_weights_are_scored(
    options: list[str], undisturbed: FinishedRun, tmp_path: Path
) -> None:
    """The training, which took longest, is not repeated."""
    run = tmp_path / "run"
    process = start_or_resume(run, options)
    wait_until((run / "checkpoints" / "ema.safetensors").exists, process)
    kill(process)
    assert not (run / "stages" / "train.json").exists()
    result = finish(start_or_resume(run, options))
    assert (result.code, result.stderr) == (0, "")
    assert (run / "model.bin").read_bytes() == (undisturbed.path / "model.bin").read_bytes()
    check_equal(run, undisturbed)
    happened = [(event["event"], event.get("stage")) for event in events(run)]
    _, second = [number for number, event in enumerate(happened) if event[1] == "train"][:2]
    assert ("train", None) in happened[:second]  # steps,
    assert ("train", None) not in happened[second:]  # and no step again


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_asked_to_stop(
    options: list[str], undisturbed: FinishedRun, tmp_path: Path, number: int, code: int
) -> None:
    """By hand or by a scheduler; in training, both write a checkpoint of the current step."""
    run = tmp_path / "run"
    in_training = (run / "checkpoints" / "training.safetensors").exists
    for condition in (in_training, lambda: started(run, "adapt") > 0):
        process = start_or_resume(run, options)
        wait_until(condition, process)
        process.send_signal(number)
        message = one_line_error(finish(process), code=code)
        assert f"`paramgolf run --resume {run}`" in message
        if condition is in_training:
            _, notes = read_tensors(run / "checkpoints" / "training.safetensors")
            assert f"after step {notes['step']}, with a checkpoint" in message
    result = finish(start_or_resume(run, options))
    assert (result.code, result.stderr) == (0, "")
    check_equal(run, undisturbed)


STOPPED = """
import os, signal
from paramgolf.optim.trainer import Trainer
train_step = Trainer.train_step
def stopped(*arguments):
    for number in [{}]:
        os.kill(os.getpid(), number)
    return train_step(*arguments)
Trainer.train_step = stopped
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_in_a_step(
    cli: Cli, options: list[str], tmp_path: Path, number: int, code: int
) -> None:
    """The step is finished and a checkpoint written; the message says how to resume."""
    run = tmp_path / "run"
    patch = STOPPED.format(int(number))
    message = one_line_error(cli("run", "tiny", *options, "--out", run, patch=patch), code)
    assert f"after step 1, with a checkpoint; resume it with `paramgolf run --resume {run}`" in (
        message
    )
    _, notes = read_tensors(run / "checkpoints" / "training.safetensors")
    assert notes["step"] == 1


def test_stopped_in_the_last_step(cli: Cli, options: list[str], tmp_path: Path) -> None:
    """Only the weights are left to be written; later stages wait."""
    run, patch = tmp_path / "run", STOPPED.format(int(signal.SIGTERM))
    one_step = ("--train.max-steps", "1", "--adapt.text", "none")
    result = cli("run", "tiny", *options, *one_step, "--out", run, patch=patch)
    assert "after the last step" in one_line_error(result, code=75)
    assert (run / "checkpoints" / "ema.safetensors").exists()
    assert started(run, "adapt") == 0
    cli.output("run", "--resume", run)
    assert not [event for event in events(run) if event["event"] == "training_resumed"]


def test_second_interrupt_ends_at_once(cli: Cli, options: list[str], tmp_path: Path) -> None:
    run, twice = tmp_path / "run", f"{int(signal.SIGINT)}, {int(signal.SIGINT)}"
    result = cli("run", "tiny", *options, "--out", run, patch=STOPPED.format(twice))
    assert (result.code, result.stderr) == (-signal.SIGINT, "")
    assert not (run / "checkpoints" / "training.safetensors").exists()


INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("arguments", [("run", "tiny", "--out", "run"), ("generate", "model.bin")])
def test_interrupted_during_imports(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process = command.start(*arguments, cwd=tmp_path, patch=INTERRUPTED_IMPORT)
    assert finish(process) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


INTERRUPTED_GENERATION = """
import os, signal
from paramgolf.scoring import generate
generate._sample = lambda *_: os.kill(os.getpid(), signal.SIGINT)
"""


def test_interrupted_command_that_cannot_be_resumed(cli: Cli, mini_run: FinishedRun) -> None:
    artifact = mini_run.path / "model.bin"
    result = cli("generate", artifact, "--prompt", "The", patch=INTERRUPTED_GENERATION)
    assert (result.code, result.stderr) == (130, "")


@pytest.mark.slow
def test_resumed_from_another_folder(
    options: list[str], undisturbed: FinishedRun, source: Path, tmp_path: Path
) -> None:
    """The text was named by a relative path, and the run directory was moved, too."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "text").symlink_to(source)
    process = command.start(
        "run", "tiny", *options, *LONGER, "--data.source", "text", "--out", "run",
        cwd=tmp_path / "here",
    )  # fmt: skip
    wait_until(lambda: started(tmp_path / "here" / "run", "train") > 0, process)
    kill(process)
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "run").rename(tmp_path / "there" / "moved")
    (tmp_path / "here" / "text").unlink()  # it is prepared already
    result = command.run("run", "--resume", "moved", cwd=tmp_path / "there")
    assert (result.code, result.stderr) == (0, "")
    check_equal(tmp_path / "there" / "moved", undisturbed)


def test_interrupted_take_over_is_completed_on_resume(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of each file: files are whole or absent, and nothing is trained."""
    whole = shutil.copyfile
    recipe = RunDir.open(mini_run.path)[1:]
    for number in itertools.count():
        copied = itertools.count()

        def half(source: Path, path: Path, number: int = number, copied: Any = copied) -> None:
            if next(copied) < number:
                whole(source, path)
                return
            path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
            raise KeyboardInterrupt

        run = tmp_path / f"run{number}"
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copyfile", half)
            try:
                create_from(mini_run.path, run, *recipe)
                break
            except KeyboardInterrupt:
                pass
        own = ("config.json", "environment.json", "takeover.json")
        files = [path for path in run.rglob("*") if path.is_file() and path.name not in own]
        assert len(files) == number
        for path in files:
            source = mini_run.path / path.relative_to(run)
            assert path.read_bytes() == source.read_bytes(), path
        if number % 3 == 0:
            result = cli("run", "--resume", run)
            assert (result.code, result.stderr) == (0, "")
            assert stages_started(run) == ["prepare", "train", "adapt", "pack", "score"]
            assert not (run / "takeover.json").exists()
            for name in SHAPED_FILES:
                assert (run / name).read_bytes() == (mini_run.path / name).read_bytes(), name
    assert number > 4  # shards, tokenizer, weights
    assert (run / "stages" / "train.json").exists()
    assert not (run / "takeover.json").exists()


def test_take_over_that_cannot_be_completed(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"
    _, recipe, config = RunDir.open(mini_run.path)
    RunDir.create(run, recipe, config, from_run=gone)
    assert f"{gone} contains no run" in one_line_error(cli("run", "--resume", run))
    assert stages_started(run) == []
    shutil.copytree(mini_run.path, gone)
    (gone / "tokenizer.model").unlink()
    message = one_line_error(cli("run", "--resume", run))
    assert f"cannot read {gone / 'tokenizer.model'}: No such file or directory" in message
    assert "free space" not in message
    assert stages_started(run) == []


def test_resume_after_a_half_written_event(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    """Removed and recorded, so that the next event begins on a line of its own."""
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    (run / "stages" / "score.json").unlink()
    before = events(run)
    half = b'{"time": 1700000000.123, "ev'
    with (run / "events.jsonl").open("ab") as file:
        file.write(half)
    result = cli("run", "--resume", run)
    assert (result.code, result.stderr) == (0, "")
    after = events(run)
    assert after[: len(before)] == before
    assert after[len(before)]["event"] == "incomplete_event"
    assert after[len(before)]["bytes"] == len(half)
    assert after[-1]["event"] == "run_finished"


def test_audit_and_report_of_a_run_with_a_half_written_event(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    lines = (run / "events.jsonl").read_bytes()
    (run / "events.jsonl").write_bytes(lines[:-10])
    directory, _, config = RunDir.open(run)
    (fallbacks,) = (
        check
        for check in books(directory, config, read_results(run))
        if "incomplete_event" in check.figure
    )
    assert fallbacks.outcome == "pass"
    for path, note in ((run, True), (mini_run.path, False)):
        page = ("--out", tmp_path / "report.html", "--overwrite")
        assert cli("report", path, *page).code == 0
        assert ("was not written completely" in (tmp_path / "report.html").read_text()) == note


def test_resume_of_a_finished_run_prints_it_again(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (mini_run.path / "stages").iterdir()}
    results = (mini_run.path / "results.json").read_bytes()
    result = cli("run", "--resume", mini_run.path, "--verbose", cwd=tmp_path)
    assert (result.code, result.stderr) == (0, "")
    assert table_rows(result.stdout) == table_rows(mini_run.stdout)
    for stage in STAGES:
        assert f"{stage}: finished before" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (mini_run.path / "results.json").read_bytes() == results


@pytest.fixture(scope="module")
def half_trained(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in training after a checkpoint; do not write to it."""
    run = tmp_path_factory.mktemp("half") / "run"
    process = command.start(
        "run", "tiny", *options, "--train.max-steps", "100000",
        "--train.checkpoint-seconds", "0.1", "--out", run,
    )  # fmt: skip
    wait_until((run / "checkpoints" / "training.safetensors").exists, process)
    kill(process)
    return run


@pytest.fixture
def broken(half_trained: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to damage."""
    return Path(shutil.copytree(half_trained, tmp_path / "run"))


def test_resume_with_a_truncated_checkpoint(cli: Cli, broken: Path) -> None:
    checkpoint = broken / "checkpoints" / "training.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert f"{checkpoint}" in one_line_error(cli("run", "--resume", broken))
    checkpoint.write_bytes(b"")
    assert f"{checkpoint}" in one_line_error(cli("run", "--resume", broken))
    assert checkpoint.exists()


def test_resume_with_a_foreign_checkpoint(cli: Cli, broken: Path, mini_run: FinishedRun) -> None:
    checkpoint = broken / "checkpoints" / "training.safetensors"
    foreign = (mini_run.path / "checkpoints" / "ema.safetensors").read_bytes()
    checkpoint.write_bytes(foreign)
    assert f"{checkpoint}" in one_line_error(cli("run", "--resume", broken))


def test_resume_without_tokenizer(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    (run / "tokenizer.model").unlink()
    for stage in ("score", "adapt"):
        (run / "stages" / f"{stage}.json").unlink()
        message = one_line_error(cli("run", "--resume", run))
        assert f"{run / 'tokenizer.model'}: No such file" in message


def test_resume_without_shards(cli: Cli, broken: Path) -> None:
    for shard in (broken / "data").glob("text_train_*.bin"):
        shard.unlink()
    assert "text_train_000000.bin: No such file" in one_line_error(cli("run", "--resume", broken))


def test_resume_with_a_truncated_shard(cli: Cli, broken: Path) -> None:
    (shard,) = (broken / "data").glob("text_train_*.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    assert "is truncated or damaged" in one_line_error(cli("run", "--resume", broken))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"recipe": "tiny"}', '{"seed": 1.5}'])
def test_resume_with_a_damaged_configuration(cli: Cli, broken: Path, content: str) -> None:
    (broken / "config.json").write_text(content)
    result = cli("run", "--resume", broken)
    assert result.code in (1, 2)
    one_line_error(result, result.code)


def test_resume_with_an_unknown_key(cli: Cli, broken: Path) -> None:
    file = broken / "config.json"
    file.write_text(file.read_text().replace('"ema_share"', '"ema_sharre"'))
    message = one_line_error(cli("run", "--resume", broken), code=2)
    assert "train.ema_sharre" in message
    assert "train.ema_share" in message


@pytest.mark.parametrize("content", ["", "{", '{"text": {}'])
def test_resume_with_a_damaged_record(cli: Cli, broken: Path, content: str) -> None:
    record = broken / "stages" / "prepare.json"
    record.write_text(content)
    assert f"{record}" in one_line_error(cli("run", "--resume", broken))


def test_resume_ignores_what_a_killed_write_left_behind(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    for name in ("pack", "score"):
        (run / "stages" / f"{name}.json").unlink()
    for name in SHAPED_FILES:
        left = run / f".{name}.1.tmp"
        left.write_bytes((run / name).read_bytes()[:100])
        if name != "tokenizer.model":
            (run / name).unlink()
    (run / "results.json").unlink()
    result = cli("run", "--resume", run)
    assert (result.code, result.stderr) == (0, "")
    for name in SHAPED_FILES:
        assert (run / name).read_bytes() == (mini_run.path / name).read_bytes(), name
    assert without_times(read_results(run)) == without_times(read_results(mini_run.path))


@pytest.mark.parametrize(
    "written",
    ["", ".config.json.1.tmp", "config.json"],
)
def test_a_run_killed_during_its_creation_can_be_repeated_or_resumed(
    cli: Cli, options: list[str], mini_run: FinishedRun, tmp_path: Path, written: str
) -> None:
    """If it is killed while its first files are written, it can be started again or resumed."""
    run = tmp_path / "run"
    run.mkdir()
    if written:
        config = (mini_run.path / "config.json").read_bytes()
        (run / written).write_bytes(config if written == "config.json" else config[:100])
    again = cli("run", "tiny", *options, "--out", run)
    if again.code != 0:
        again = cli("run", "--resume", run)
    assert (again.code, again.stderr) == (0, "")
    assert (run / "model.bin").read_bytes() == (mini_run.path / "model.bin").read_bytes()
