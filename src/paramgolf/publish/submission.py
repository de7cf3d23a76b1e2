"""A submission folder of runs that differ only in their seed, assembled from their files alone."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.publish.bundle import bundle, without_paths
from paramgolf.recipes import RECIPES
from paramgolf.report.page import refresh
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_json, write_bytes, write_json
from paramgolf.runtime.ledger import account
from paramgolf.runtime.outputs import require_new_directory
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.runs import SeedRun, first_difference, flat_config
from paramgolf.study.scores import RunScore, read_score, require_same
from paramgolf.study.seeds import SeedRuns, read_seeds
from paramgolf.verify.audit import audit
from paramgolf.verify.checks import audit_is_current

_AUDITED_POSITIONS = 4  # where a run has not been audited before


@dataclass(frozen=True)
class Submission:
    """The runs of a submission folder, with the scores and audits of the finished ones."""

    recipe: str
    config: RunConfig
    seeds: SeedRuns
    stage: str
    """The last stage, whose score is submitted."""
    scores: list[RunScore]
    audits: list[dict[str, Any]]
    """Contents of every audit.json."""

    @property
    def chosen(self) -> SeedRun:
        """The run whose model is submitted: the median by score (of two, the lower BPB)."""
        order = sorted(range(len(self.scores)), key=lambda i: self.scores[i].bpb)
        return self.seeds.finished[order[(len(order) - 1) // 2]]

    @property
    def compliant(self) -> bool:
        """Whether the audit of every run passes."""
        return all(found["passed"] for found in self.audits)

    @property
    def label(self) -> str:
        """Label of the submitted score."""
        return self.scores[0].label


def write_submission(
    paths: Sequence[Path], out: Path, author: str, name: str, reporter: Reporter
) -> dict[str, Any]:
    """Write the submission folder `out`; return the contents of its submission.json.

    A run without a valid `audit.json` is audited first, which writes that file.

    Of absolute paths of this machine, only the last part is written.

    Args:
        paths: run directories, or folders of seeds.
        out: a new directory.
        author: name of the submitter; may be empty.
        name: name of the submission; empty: that of the recipe.
        reporter: the console.

    Raises:
        UserError: if no run is finished, if the runs differ in more than their seed, if their
            scores are not comparable, or if `out` is not empty.
    """
    require_new_directory(out)
    found = _read_runs(paths, reporter)
    summary = _summary(found, author, name or found.recipe)
    sizes = bundle(found.chosen.path, out)
    for run, checks in zip(found.seeds.finished, found.audits, strict=True):
        write_json(out / "results" / f"seed-{run.seed}.json", run.results)
        write_json(out / "results" / f"audit-seed-{run.seed}.json", checks)
        write_bytes(out / f"train_log_seed{run.seed}.txt", _log(run).encode())
    write_bytes(out / "README.md", _readme(found, summary, sizes).encode())
    write_json(out / "submission.json", summary)
    return summary


def _read_runs(paths: Sequence[Path], reporter: Reporter) -> Submission:
    """Read all runs, check that they belong together, and audit those that are not audited yet."""
    runs = [
        run._replace(results=without_paths(run.results), failure=without_paths(run.failure))
        for path in paths
        for run in read_seeds(path).runs
    ]
    seeds = SeedRuns(sorted(runs, key=lambda run: run.seed))
    if not seeds.finished:
        raise UserError(f"no run is finished: {seeds.coverage()}")
    numbers = [run.seed for run in seeds.runs]
    repeated = next((seed for seed in numbers if numbers.count(seed) > 1), None)
    if repeated is not None:
        raise UserError(f"two of these runs have the seed {repeated}: name each run once")
    recipe, config = _require_same_configuration(seeds.finished)
    stage = list((seeds.finished[0].results or {})["stages"])[-1]
    scores = [read_score(run, stage) for run in seeds.finished]
    require_same(scores, ("text_sha256", "bytes", "tokens", "label"))
    audits = [without_paths(_read_or_make_audit(run, config, reporter)) for run in seeds.finished]
    return Submission(recipe, config, seeds, stage, scores, audits)


def _require_same_configuration(runs: Sequence[SeedRun]) -> tuple[str, RunConfig]:
    """Return the recipe and configuration of all runs, with the seed of the first one.

    Raises:
        UserError: naming the first key, apart from the seed, that differs.
    """
    first, *others = runs
    _, recipe, config = RunDir.open(first.path)
    for run in others:
        difference = first_difference(config, RunDir.open(run.path)[2], ignore=("seed",))
        if difference is not None:
            key, ours, theirs = difference
            raise UserError(
                f"these runs differ in more than their seed: {key} is {ours!r} in {first.path} "
                f"and {theirs!r} in {run.path}"
            )
    return recipe, config


def _read_or_make_audit(run: SeedRun, config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Read a run's audit.json; run the audit first if there is none of this very artifact."""
    path = run.path / "audit.json"
    if audit_is_current(run.path):
        return read_json(path)
    reporter.line(f"audit of seed {run.seed}")
    audit(run.path, _AUDITED_POSITIONS, select_runtime(config.device), reporter)
    refresh(run.path, reporter)
    return read_json(path)


def _summary(found: Submission, author: str, name: str) -> dict[str, Any]:
    """Return the contents of submission.json."""
    finished, scores = found.seeds.finished, found.scores
    bpb = [score.bpb for score in scores]
    environment = read_json(found.chosen.path / "environment.json")
    results = found.chosen.results or {}
    began, date = _dates(finished)
    return {
        "name": name,
        "author": author or None,
        "date": date,
        "compliant": found.compliant,
        "label": found.label,
        "verdict": _verdict(found),
        "val_bpb": statistics.fmean(bpb),
        "val_loss": statistics.fmean(score.loss_nats for score in scores),
        "val_bpb_std": statistics.stdev(bpb) if len(bpb) > 1 else None,
        "stage": found.stage,
        "bytes_total": results["bytes"]["total"],
        "bytes_code": results["bytes"]["code"],
        "bytes_model": results["bytes"]["model"],
        "model_of_seed": found.chosen.seed,
        "seeds": {
            str(run.seed): _seed_summary(run, score, checks)
            for run, score, checks in zip(finished, scores, found.audits, strict=True)
        },
        "left_out": {str(run.seed): run.failure or run.state for run in found.seeds.left_out},
        "recipe": found.recipe,
        "text_sha256": scores[0].text_sha256,
        "text_bytes": scores[0].bytes,
        "tokens": scores[0].tokens,
        "first_run_began": began,
        "num_ranks": results["num_ranks"],
        "hardware": {key: environment[key] for key in ("platform", "gpu", "cpu_threads")},
        "versions": {
            key: environment[key] for key in ("paramgolf", "python", "packages", "cuda")
        },
    }  # fmt: skip


def _seed_summary(run: SeedRun, score: RunScore, checks: dict[str, Any]) -> dict[str, Any]:
    """Return one seed's entry in submission.json."""
    results = run.results or {}
    return {
        "val_bpb": score.bpb,
        "val_loss": score.loss_nats,
        "label": score.label,
        "bytes_total": results["bytes"]["total"],
        "steps": results["steps"],
        "training_seconds": results["budgets"]["training"],
        "evaluation_seconds": results["budgets"]["evaluation"],
        "audit_passed": checks["passed"],
        "artifact_sha256": results["artifact_sha256"],
    }


def _verdict(found: Submission) -> str:
    """Return the audits' verdict in one line; if some fail, the failed conditions and seeds."""
    if found.compliant:
        first = " ".join(found.audits[0]["verdict"][0].split())
        return first.removeprefix("verdict ")
    conditions = sorted({name for checks in found.audits for name in checks["failed"]})
    seeds = [
        str(run.seed)
        for run, checks in zip(found.seeds.finished, found.audits, strict=True)
        if not checks["passed"]
    ]
    return f"NOT compliant: {', '.join(conditions)} (seeds {', '.join(seeds)})"


def _dates(runs: Sequence[SeedRun]) -> tuple[str, str]:
    """Return the time of the first event of all runs and the day of the last one, in UTC."""
    times = [event["time"] for run in runs for event in RunDir(run.path).read_events()]
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(times)))
    return began, time.strftime("%Y-%m-%d", time.gmtime(max(times)))


def _log(run: SeedRun) -> str:
    """Format events.jsonl and the final scores as lines of text."""
    results = run.results or {}
    lines = []
    for event in RunDir(run.path).read_events():
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.pop("time")))
        kind = event.pop("event")
        lines.append(f"{moment}  {kind:<15}  {_pairs(without_paths(event))}".rstrip())
    lines.append("")
    for stage, score in results["stages"].items():
        lines.append(f"final  {stage:<12}  {_pairs(score)}")
    sizes = {key: results["bytes"][key] for key in ("total", "model", "code", "tokenizer")}
    lines.append(f"final  bytes         {_pairs(sizes)}")
    return "\n".join(lines) + "\n"


def _pairs(values: dict[str, Any]) -> str:
    return "  ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.8g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _readme(found: Submission, summary: dict[str, Any], sizes: dict[str, int]) -> str:
    """Render README.md from templates/submission.md.j2."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paramgolf.publish"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    results = found.chosen.results or {}
    known = RECIPES.get(found.recipe)
    defaults = flat_config(known[1]) if known else {}
    changed = {
        key: value
        for key, value in flat_config(found.config).items()
        if key not in ("seed", "data.source", "data.tokenizer") and defaults.get(key) != value
    }
    return environment.get_template("submission.md.j2").render(
        found=found,
        submission=summary,
        sizes=sizes,
        results=results,
        ledger=[
            (phase, seconds, account(phase, results["adapted_on"]))
            for phase, seconds in results["seconds"].items()
        ],
        audit=found.audits[found.seeds.finished.index(found.chosen)],
        statistics=found.seeds.stages() | found.seeds.sizes(),
        stages=found.seeds.stages(),
        known=known is not None,
        changed=changed,
        options=" ".join(
            f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in changed.items()
        ),
        ranks=results["num_ranks"]["train"],
        by_steps=bool(found.config.train.max_steps),
    )
