"""A submission folder of runs that differ in their seed, made of nothing but their files."""

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
from paramgolf.publish.bundle import bundle
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_json, write_bytes, write_json
from paramgolf.runtime.ledger import account
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.compare import Scored, read_scored, require_same
from paramgolf.study.runs import Member, first_difference, flat
from paramgolf.study.seeds import Seeds, read_seeds
from paramgolf.verify.audit import audit
from paramgolf.verify.file_checks import is_of

_POSITIONS = 4  # of the audit, where it has to be run


@dataclass(frozen=True)
class Submission:
    """What a submission folder says."""

    recipe: str
    config: RunConfig
    seeds: Seeds
    stage: str
    """The final one."""
    scored: list[Scored]
    audits: list[dict[str, Any]]
    """audit.json of every finished run."""

    @property
    def chosen(self) -> Member:
        """The run whose model is in the folder: the median of the final scores (the lower one)."""
        order = sorted(range(len(self.scored)), key=lambda i: self.scored[i].bpb)
        return self.seeds.finished[order[(len(order) - 1) // 2]]

    @property
    def compliant(self) -> bool:
        """Whether the audit of every run passes."""
        return all(found["passed"] for found in self.audits)

    @property
    def label(self) -> str:
        """Of the final score."""
        return self.scored[0].label


def write_submission(
    paths: Sequence[Path], out: Path, author: str, name: str, reporter: Reporter
) -> dict[str, Any]:
    """Write the submission folder `out`; gives what submission.json holds.

    A run without a valid `audit.json` is audited first, which writes that file.

    Args:
        paths: runs, or folders of seeds.
        out: a new folder.
        author: who submits; may be empty.
        name: of the submission; empty: the recipe's.
        reporter: the console.

    Raises:
        UserError: if no run is finished, if they differ in more than their seed, if their scores
            do not compare, or if `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder with --out")
    found = _gather(paths, reporter)
    submission = _submission(found, author, name or found.recipe)
    sizes = bundle(found.chosen.path, out)
    for member, checks in zip(found.seeds.finished, found.audits, strict=True):
        results = member.results
        write_json(out / "results" / f"seed-{member.seed}.json", results)
        write_json(out / "results" / f"audit-seed-{member.seed}.json", checks)
        log = _log(member.path, results)
        write_bytes(out / f"train_log_seed{member.seed}.txt", log.encode())
    write_bytes(out / "README.md", _readme(found, submission, sizes).encode())
    write_json(out / "submission.json", submission)
    return submission


def _gather(paths: Sequence[Path], reporter: Reporter) -> Submission:
    """Read all runs and audit those that are not audited yet."""
    members = [member for path in paths for member in read_seeds(path).members]
    seeds = Seeds(sorted(members, key=lambda member: member.seed))
    if not seeds.finished:
        raise UserError(f"no run is finished: {seeds.over()}")
    numbers = [member.seed for member in seeds.members]
    twice = next((seed for seed in numbers if numbers.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"two of these runs have the seed {twice}: name each once")
    recipe, config = _require_same_configuration(seeds.finished)
    stage = list((seeds.finished[0].results or {})["stages"])[-1]
    scored = [read_scored(member, stage) for member in seeds.finished]
    require_same(scored, ("text_sha256", "bytes", "tokens", "label"))
    audits = [_audited(member, config, reporter) for member in seeds.finished]
    return Submission(recipe, config, seeds, stage, scored, audits)


def _require_same_configuration(members: Sequence[Member]) -> tuple[str, RunConfig]:
    """Recipe and configuration of all runs; the seed is the first one's.

    Raises:
        UserError: naming the first key but the seed that differs.
    """
    _, recipe, config = RunDir.open(members[0].path)
    for member in members[1:]:
        difference = first_difference(config, RunDir.open(member.path)[2], but=("seed",))
        if difference is not None:
            key, ours, theirs = difference
            raise UserError(
                f"these runs differ in more than their seed: {key} is {ours!r} in "
                f"{members[0].path} and {theirs!r} in {member.path}"
            )
    return recipe, config


def _audited(member: Member, config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """What the audit of a run found; it runs if there is none of this very artifact."""
    path = member.path / "audit.json"
    if path.exists() and is_of(read_json(path), member.results or {}):
        return read_json(path)
    reporter.line(f"audit of seed {member.seed}")
    audit(member.path, _POSITIONS, select_runtime(config.device), reporter)
    return read_json(path)


def _submission(found: Submission, author: str, name: str) -> dict[str, Any]:
    """What submission.json holds."""
    finished, scored = found.seeds.finished, found.scored
    bpb = [one.bpb for one in scored]
    environment = read_json(found.chosen.path / "environment.json")
    chosen = (found.chosen.results or {})["bytes"]
    first, last = _dates(finished)
    return {
        "name": name,
        "author": author or None,
        "date": last,
        "compliant": found.compliant,
        "label": found.label,
        "verdict": _verdict(found),
        "val_bpb": statistics.fmean(bpb),
        "val_loss": statistics.fmean(one.loss_nats for one in scored),
        "val_bpb_std": statistics.stdev(bpb) if len(bpb) > 1 else None,
        "stage": found.stage,
        "bytes_total": chosen["total"],
        "bytes_code": chosen["code"],
        "bytes_model": chosen["model"],
        "model_of_seed": found.chosen.seed,
        "seeds": {
            str(member.seed): _of_seed(member, one, checks)
            for member, one, checks in zip(finished, scored, found.audits, strict=True)
        },
        "left_out": {
            str(member.seed): member.failure or member.state for member in found.seeds.left_out
        },
        "recipe": found.recipe,
        "text_sha256": scored[0].text_sha256,
        "text_bytes": scored[0].bytes,
        "tokens": scored[0].tokens,
        "first_run_began": first,
        "num_ranks": (found.chosen.results or {})["num_ranks"],
        "hardware": {key: environment[key] for key in ("platform", "gpu", "cpu_threads")},
        "versions": {
            key: environment[key] for key in ("paramgolf", "python", "packages", "cuda")
        },
    }  # fmt: skip


def _of_seed(member: Member, one: Scored, checks: dict[str, Any]) -> dict[str, Any]:
    results = member.results or {}
    return {
        "val_bpb": one.bpb,
        "val_loss": one.loss_nats,
        "label": one.label,
        "bytes_total": results["bytes"]["total"],
        "steps": results["steps"],
        "training_seconds": results["budgets"]["training"],
        "evaluation_seconds": results["budgets"]["evaluation"],
        "audit_passed": checks["passed"],
        "artifact_sha256": results["artifact_sha256"],
    }


def _verdict(found: Submission) -> str:
    """The audits' verdict in one line; where they fail, the conditions and the seeds."""
    if found.compliant:
        first = " ".join(found.audits[0]["verdict"][0].split())
        return first.removeprefix("verdict ")
    conditions = sorted({name for checks in found.audits for name in checks["failed"]})
    seeds = [
        str(member.seed)
        for member, checks in zip(found.seeds.finished, found.audits, strict=True)
        if not checks["passed"]
    ]
    return f"NOT compliant: {', '.join(conditions)} (seeds {', '.join(seeds)})"


def _dates(members: Sequence[Member]) -> tuple[str, str]:
    """When the first event of all runs was, and the day of the last (UTC)."""
    times = [event["time"] for member in members for event in RunDir(member.path).read_events()]
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(times)))
    return began, time.strftime("%Y-%m-%d", time.gmtime(max(times)))


def _log(path: Path, results: Any) -> str:
    """events.jsonl as lines for people, and the scores."""
    lines = []
    for event in RunDir(path).read_events():
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.pop("time")))
        kind = event.pop("event")
        values = "  ".join(f"{key}={_short(value)}" for key, value in event.items())
        lines.append(f"{moment}  {kind:<15}  {values}".rstrip())
    lines.append("")
    for stage, score in results["stages"].items():
        values = "  ".join(f"{key}={_short(value)}" for key, value in score.items())
        lines.append(f"final  {stage:<12}  {values}")
    lines.append("final  bytes         " + "  ".join(
        f"{key}={results['bytes'][key]}" for key in ("total", "model", "code", "tokenizer")
    ))  # fmt: skip
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.8g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _readme(found: Submission, submission: dict[str, Any], sizes: dict[str, int]) -> str:
    """README.md, of the template beside this module."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paramgolf.publish"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    results = found.chosen.results or {}
    known = RECIPES.get(found.recipe)
    standard = flat(known[1]) if known else {}
    changed = {
        key: value
        for key, value in flat(found.config).items()
        if key not in ("seed", "data.source", "data.tokenizer") and standard.get(key) != value
    }
    return environment.get_template("submission.md.j2").render(
        found=found,
        submission=submission,
        sizes=sizes,
        results=results,
        ledger=[
            (phase, seconds, account(phase, results["adapted_on"]))
            for phase, seconds in results["seconds"].items()
        ],
        audit=found.audits[found.seeds.finished.index(found.chosen)],
        rows=found.seeds.stages() | found.seeds.sizes(),
        stages=found.seeds.stages(),
        known=known is not None,
        changed=changed,
        options=" ".join(
            f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in changed.items()
        ),
        ranks=results["num_ranks"]["train"],
    )
