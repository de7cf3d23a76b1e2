"""False entries of results, stage files, events, configuration and checkpoints fail the audit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paramgolf.pipeline.run import collect_results
from paramgolf.pipeline.takeover import create_from
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_tensors, write_tensors
from paramgolf.runtime.ledger import OTHER
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.books import books
from paramgolf.verify.checks import Check
from paramgolf.verify.measured import measured
from paramgolf.verify.recomputed import KEYS, SELF_REPORTED, key_of, leaves, recomputed
from tests.e2e import command
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, read_results

Change = Callable[[Any], Any]


def edit(path: Path, change: Change) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_events(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the lines of events.jsonl in place, one by one."""
    lines = events(run)
    for line in lines:
        change(line)
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def collect(run: Path) -> None:
    """Write results.json anew, so that it follows from the changed stage files."""
    directory, recipe, config = RunDir.open(run)
    directory.results_file.write_text(json.dumps(collect_results(directory, recipe, config)))


def checks(run: Path, results: dict[str, Any] | None = None) -> Iterator[Check]:
    """Yield the checks that need no scoring, of results.json or of other results in its place."""
    directory, _, config = RunDir.open(run)
    results = read_results(run) if results is None else results
    yield from recomputed(directory, config, results)
    yield from books(directory, config, results)


def failed(run: Path) -> dict[str, str]:
    """Return condition and figure of the checks that fail, by name."""
    found = [check for check in checks(run) if check.outcome == "FAIL"]
    return {check.name: f"{check.condition}: {check.figure}" for check in found}


def test_an_honest_run_passes(mini_run: FinishedRun) -> None:
    assert failed(mini_run.path) == {}
    rules = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    for check in checks(mini_run.path):
        assert f"| {check.condition} |" in rules
        assert check.name in rules


# Every key of results.json.


def test_every_key_is_recomputed_or_self_reported(mini_run: FinishedRun) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    for path, _ in leaves(read_results(mini_run.path)):
        key = key_of(path)
        assert key is not None, path
    for name, key in KEYS.items():
        assert f"| `{name}` | {key.kind} | {key.basis} |" in documented
        assert (name in SELF_REPORTED) == (key.kind == "self-reported")


def false(value: Any) -> Any:
    """Return a value of the same type that differs by about 1 %."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + max(1, value // 100)
    if isinstance(value, float):
        return value * 0.99 if value else 0.01
    return value + "x" if isinstance(value, str) else [1]


def with_false(results: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of the results with a false value at a path."""
    copy = json.loads(json.dumps(results))
    inner: Any = copy
    for name in path[:-1]:
        inner = inner[int(name) if isinstance(inner, list) else name]
    last: Any = int(path[-1]) if isinstance(inner, list) else path[-1]
    inner[last] = false(inner[last])
    return copy


OTHER_CHECKS = ("scoring", "training it again", "comparing the texts")
"""What keys are recomputed from by checks that take longer."""


def test_a_false_value_of_any_key_fails(mini_run: FinishedRun) -> None:
    directory, _, config = RunDir.open(mini_run.path)
    results = read_results(mini_run.path)
    by_basis: dict[str, int] = {}
    for path, _ in leaves(results):
        changed = with_false(results, path)
        # As if the stage files said the same: only what is derived can fail.
        key = key_of(path)
        assert key is not None
        if key.kind == "recomputed" and not key.basis.startswith(OTHER_CHECKS):
            derived = recomputed(directory, config, changed)
            assert any(check.outcome == "FAIL" for check in derived), path
        assert any(check.outcome == "FAIL" for check in books(directory, config, changed)), path
        by_basis[key.basis] = by_basis.get(key.basis, 0) + 1
    assert sum(by_basis.values()) > 100
    assert by_basis["sizes of the files"] == 4


def test_a_missing_or_damaged_key_fails(mini_run: FinishedRun) -> None:
    for name in read_results(mini_run.path):
        for damage in ({}, {name: None}, {name: {"x": 1}}):
            results = read_results(mini_run.path)
            if results[name] in damage.values():
                continue
            del results[name]
            found = (check.outcome for check in checks(mini_run.path, {**results, **damage}))
            assert "FAIL" in found, (name, damage)


# False entries that agree with each other in some places.


def with_an_added_stage(run: Path) -> None:
    """As if the run had learned while it scored, which its recipe does not."""

    def add(values: dict[str, Any]) -> None:
        values["scores"]["score_first"] = {**values["scores"]["sliding"], "bpb": 0.5}

    edit(run / "stages/score.json", add)
    lines = events(run)
    sliding = next(e for e in lines if e.get("of") == "sliding")
    lines.insert(lines.index(sliding), {**sliding, "of": "score_first", "bpb": 0.5})
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    collect(run)


def with_a_stage_file_of_its_own(run: Path) -> None:
    (run / "stages/score_first.json").write_text('{"scores": {"score_first": {"bpb": 0.5}}}')


def with_a_stage_in_the_results(run: Path) -> None:
    score = {**read_results(run)["stages"]["sliding"], "bpb": 0.5}
    edit(run / "results.json", lambda values: values["stages"].update(score_first=score))


def with_an_unknown_key(run: Path) -> None:
    edit(run / "results.json", lambda values: values.update(val_bpb=0.5))


def without_a_phase(run: Path) -> None:
    edit(run / "stages/pack.json", lambda values: values["seconds"].pop("pack: Hessians"))
    collect(run)


def without_a_phase_that_is_not_required(run: Path) -> None:
    edit(run / "stages/pack.json", lambda values: values["seconds"].pop("pack: sensitivities"))
    collect(run)


def without_the_rest_of_a_stage(run: Path) -> None:
    edit(run / "stages/train.json", lambda values: values["seconds"].pop(f"train: {OTHER}"))
    collect(run)


def with_fewer_seconds(run: Path) -> None:
    """0.01 s of GPTQ less, in the stage and in the results."""

    def change(values: dict[str, Any]) -> None:
        values["seconds"]["pack: GPTQ"] -= 0.01

    edit(run / "stages/pack.json", change)
    collect(run)


def with_seconds_of_steps_in_set_up(run: Path) -> None:
    """The seconds of the stage stay the same."""

    def change(values: dict[str, Any]) -> None:
        moved = values["seconds"]["train: steps"] / 2
        values["seconds"]["train: steps"] -= moved
        values["seconds"]["train: build model"] += moved

    edit(run / "stages/train.json", change)
    collect(run)


def with_a_stage_that_took_longer_by_the_events(run: Path) -> None:
    """As if 5 s had been taken from a phase and from the stage's total."""
    passed = False

    def change(event: dict[str, Any]) -> None:
        nonlocal passed
        passed |= (event["event"], event.get("stage")) == ("stage_finished", "pack")
        event["time"] += 5.0 * passed

    edit_events(run, change)


def with_a_slow_clock(run: Path) -> None:
    """Training took a second longer by the events than by its clock."""
    passed = False

    def change(event: dict[str, Any]) -> None:
        nonlocal passed
        passed |= event["event"] == "clock_stopped"
        event["time"] += 1.0 * passed

    edit_events(run, change)


def with_raised_limits(run: Path) -> None:
    edit(run / "config.json", lambda values: values["limits"].update(training_seconds=9000.0))


def with_a_raised_budget(run: Path) -> None:
    edit(run / "config.json", lambda values: values["pack"].update(budget_bytes=89_000))
    edit(run / "stages/pack.json", lambda values: values["bytes"].update(budget=86_000))
    collect(run)


def over_the_budget(run: Path) -> None:
    total = read_results(run)["bytes"]["total"]
    edit(run / "config.json", lambda values: values["pack"].update(budget_bytes=total - 1))


def with_a_code_file_of_one_byte(run: Path) -> None:
    (run / "train_gpt.py").write_bytes(b"\n")
    edit(run / "stages/pack.json", lambda values: values["bytes"].update(code=1))
    collect(run)


def with_other_weights(run: Path) -> None:
    """Weights that were not trained here, in the file of those that were, with the same notes."""
    path = run / "checkpoints/adapted.safetensors"
    weights, notes = read_tensors(path)
    write_tensors(path, {name: tensor * 1.001 for name, tensor in weights.items()}, **notes)


def with_weights_of_other_steps(run: Path) -> None:
    path = run / "checkpoints/ema.safetensors"
    weights, notes = read_tensors(path)
    write_tensors(path, weights, **{**notes, "steps": 6000})


def with_huge_weights(run: Path) -> None:
    """They would be hashed for minutes, and tell nothing."""
    os.truncate(run / "checkpoints/ema.safetensors", 200 << 30)


def with_more_steps(run: Path) -> None:
    edit(run / "stages/train.json", lambda values: values.update(steps=7, tokens=7 * 512))
    collect(run)


def with_a_faster_rate(run: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for name in values["tokens_per_second"]:
            values["tokens_per_second"][name] *= 1.1

    edit(run / "stages/train.json", change)
    collect(run)


def with_a_faster_scorer(run: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["tokens_per_second"]["score_sliding"] *= 1.01

    edit(run / "stages/score.json", change)
    collect(run)


def with_a_better_epoch(run: Path) -> None:
    edit(run / "stages/adapt.json", lambda values: values["epochs"][0].update(bpb=0.5))
    collect(run)


def with_a_better_score_in_stage_and_results(run: Path) -> None:
    edit(run / "stages/train.json", lambda values: values["scores"]["ema"].update(bpb=0.5))
    collect(run)


def with_a_better_score_everywhere(run: Path) -> None:
    """9e-5 BPB less, in the stage, the results and the events."""

    def change(values: dict[str, Any]) -> None:
        values["scores"]["sliding"]["bpb"] -= 9e-5

    edit(run / "stages/score.json", change)
    collect(run)
    bpb = read_results(run)["stages"]["sliding"]["bpb"]
    edit_events(run, lambda event: event.get("of") == "sliding" and event.update(bpb=bpb))


def with_other_losses_of_documents(run: Path) -> None:
    tensors, notes = read_tensors(run / "documents.safetensors")
    tensors["sliding"][0] -= 0.01
    write_tensors(run / "documents.safetensors", tensors, **notes)


def with_damping_that_is_not_reported(run: Path) -> None:
    edit(run / "quantization.json", lambda values: values["embedding"].update(damping=0.1))


def with_a_better_quantization(run: Path) -> None:
    edit(run / "quantization.json", lambda values: values["embedding"].update(entropy_bits=3.0))


def with_another_shard(run: Path) -> None:
    shard = run / "data" / "text_train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\1\0")


def with_a_damaged_stage_file(run: Path) -> None:
    edit(run / "stages/train.json", lambda values: values.pop("weights_sha256"))


CHEATS: list[tuple[Callable[[Path], None], str, str]] = [
    (with_an_added_stage, "ledger", "unknown stage score_first"),
    (with_a_stage_file_of_its_own, "ledger", "stages/score_first"),
    (with_a_stage_in_the_results, "ledger", "unknown stage score_first"),
    (with_an_unknown_key, "ledger", "unknown val_bpb"),
    (without_a_phase, "seconds", "missing: pack: Hessians"),
    (without_a_phase_that_is_not_required, "seconds", "s in phases"),
    (without_the_rest_of_a_stage, "seconds", f"missing: train: {OTHER}"),
    (with_fewer_seconds, "seconds", "s in phases"),
    (with_seconds_of_steps_in_set_up, "seconds", "s of steps, but it stopped at"),
    (with_a_stage_that_took_longer_by_the_events, "seconds", "s between its events"),
    (with_a_slow_clock, "seconds", "s by the events"),
    (with_raised_limits, "code", "different: limits.training_seconds"),
    (with_a_raised_budget, "code", "different: pack.budget_bytes"),
    (over_the_budget, "bytes", "bytes on disk, budget"),
    (with_a_code_file_of_one_byte, "code", "is no code file"),
    (with_other_weights, "ledger", "adapted.safetensors was changed"),
    (with_weights_of_other_steps, "ledger", "ema.safetensors was changed"),
    (with_huge_weights, "ledger", "ema.safetensors has 214,748,364,800 bytes"),
    (with_more_steps, "seconds", "7 steps, 6 in the events"),
    (with_a_faster_rate, "seconds", "tokens per second"),
    (with_a_faster_scorer, "seconds", "score_sliding"),
    (with_a_better_epoch, "ledger", "epochs of adaptation"),
    (with_a_better_score_in_stage_and_results, "ledger", "scores of train"),
    (with_a_better_score_everywhere, "ledger", "BPB of sliding"),
    (with_other_losses_of_documents, "ledger", "losses of the documents, sliding"),
    (with_damping_that_is_not_reported, "ledger", "not match quantization.json: embedding"),
    (with_a_better_quantization, "ledger", "different: embedding"),
    (with_another_shard, "provenance", "different shards: train"),
    (with_a_damaged_stage_file, "ledger", "missing or damaged: KeyError 'weights_sha256'"),
]


@pytest.mark.parametrize(("change", "condition", "figure"), CHEATS)
def test_a_false_entry_fails(
    change: Callable[[Path], None], condition: str, figure: str, run_copy: Path
) -> None:
    change(run_copy)
    found = failed(run_copy)
    assert any(text.startswith(condition) and figure in text for text in found.values()), found


def test_an_incomplete_event_is_no_cheat(run_copy: Path) -> None:
    with (run_copy / "events.jsonl").open("a") as file:
        file.write('{"event": "stage_')
    assert failed(run_copy) == {}
    assert any("incomplete_event" in check.figure for check in checks(run_copy))


def test_time_between_phases_counts_in_the_budget_of_its_stage(run_copy: Path) -> None:
    """However long a stage was between phases: that is no cheat on a busy machine."""
    passed = False

    def longer(event: dict[str, Any]) -> None:
        nonlocal passed
        if (event["event"], event.get("stage")) == ("stage_finished", "score"):
            passed = True
            event["seconds"] += 1.09
        event["time"] += 1.09 * passed

    def between(values: dict[str, Any]) -> None:
        values["seconds"][f"score: {OTHER}"] += 1.09

    before = read_results(run_copy)["budgets"]["evaluation"]
    edit_events(run_copy, longer)
    edit(run_copy / "stages/score.json", between)
    collect(run_copy)
    assert failed(run_copy) == {}
    assert read_results(run_copy)["budgets"]["evaluation"] == pytest.approx(before + 1.09)


def test_a_run_that_took_stages_over_passes(mini_run: FinishedRun, tmp_path: Path) -> None:
    """Its events tell of them, also where the other run is gone."""
    _, recipe, config = RunDir.open(mini_run.path)
    create_from(mini_run.path, tmp_path / "run", recipe, config)
    result = command.run("run", "--resume", tmp_path / "run")
    assert result.code == 0, result.stderr
    assert failed(tmp_path / "run") == {}


# The clock of training.


@pytest.mark.slow
def test_a_checkpoint_whose_clock_was_set_back(options: list[str], tmp_path: Path) -> None:
    longer = ("--train.max-steps", "60", "--train.checkpoint-seconds", "0.05")
    run = tmp_path / "run"
    process = command.start("run", "tiny", *options, *longer, "--out", run)
    path = run / "checkpoints/training.safetensors"
    command.wait_until(path.exists, process)
    command.kill(process)
    assert not (run / "stages/train.json").exists()
    tensors, notes = read_tensors(path)
    write_tensors(path, tensors, **{**notes, "elapsed_seconds": 0.0})
    result = command.run("run", "--resume", run)
    assert result.code == 0, result.stderr
    # Resumed runs whose clocks were not set back pass: tests/e2e/test_resume.py.
    assert list(failed(run)) == ["training clock"]
    assert "seconds: resumed at step" in failed(run)["training clock"]
    # Whoever also removes what the first attempt said has steps from nowhere.
    lines = events(run)
    first = [e.get("event") for e in lines].index("clock_started")
    second = [e.get("event") for e in lines].index("training_resumed")
    kept = lines[: first + 1] + lines[second - 1 :]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert "which no attempt reached" in failed(run)["training clock"]


# Measured again.


@pytest.mark.slow
def test_a_training_that_no_machine_does_and_a_score_that_its_weights_do_not_have(
    mini_run: FinishedRun,
) -> None:
    directory, _, config = RunDir.open(mini_run.path)
    results = read_results(mini_run.path)
    honest = measured(directory, config, results, select_runtime("cpu"))
    assert [check.outcome for check in honest] == ["pass"] * 3
    for name in ("train_recurrence_off", "train_recurrence_on", "train"):
        results["tokens_per_second"][name] = 1e6  # the mini run's model does some 20,000 on a core
    results["stages"]["ema"]["bpb"] -= 9e-5
    results["stages"]["adapted"]["label"] = "score-first"
    found = {c.name: c for c in measured(directory, config, results, select_runtime("cpu"))}
    assert [check.outcome for check in found.values()] == ["FAIL"] * 3
