"""A submission folder of runs that differ only in their seed, assembled from their files alone."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paramgolf.data.claims import described
from paramgolf.errors import UserError
from paramgolf.publish.bundle import bundle, without_paths
from paramgolf.publish.rendering import template
from paramgolf.publish.submitted import Submission, read_runs
from paramgolf.recipes import RECIPES
from paramgolf.report.page import refresh
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import sha256_of_file, write_bytes, write_json
from paramgolf.runtime.ledger import account
from paramgolf.runtime.outputs import require_new_directory
from paramgolf.runtime.records import read_environment
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.runs import SeedRun, flat_config
from paramgolf.verify.audit import AUDITED_POSITIONS, audit
from paramgolf.verify.audited_run import fresh_seed
from paramgolf.verify.checks import audited_files
from paramgolf.verify.summary import machine, summary


def write_submission(
    paths: Sequence[Path],
    out: Path,
    author: str,
    name: str,
    incomplete: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Audit the runs, and write the submission folder `out`; return its submission.json.

    Every run is audited, even if it has an audit.json: that file may have been written by anyone.

    Args:
        paths: run directories, or folders of seeds.
        out: a new directory.
        author: name of the submitter; may be empty.
        name: name of the submission; empty: that of the recipe.
        incomplete: submit even if seeds that were requested have no score.
        reporter: the console.

    Raises:
        UserError: see `submitted.read_runs` and `write_folder`.
    """
    require_new_directory(out)
    for run in read_runs(paths, incomplete).seeds.finished:
        reporter.line(f"audit of seed {run.seed}")
        config = RunDir.open(run.path)[2]
        runtime = select_runtime(config.device)
        audit(run.path, AUDITED_POSITIONS, fresh_seed(), runtime, reporter).save(run.path)
        refresh(run.path, reporter)
    return write_folder(read_runs(paths, incomplete), out, author, name)


def write_folder(found: Submission, out: Path, author: str, name: str) -> dict[str, Any]:
    """Write the submission folder of audited runs to `out`; return its submission.json.

    Of absolute paths of this machine, only the last part is written.

    Raises:
        UserError: if `out` is not empty, or if a file is not the one that was audited; then nothing
            is left there.
    """
    require_new_directory(out)
    said = _summary(found, author, name or found.recipe)
    try:
        sizes = bundle(found.chosen.path, out)
        for run, checks in zip(found.seeds.finished, found.audits, strict=True):
            write_json(out / "results" / f"seed-{run.seed}.json", run.results)
            write_bytes(out / f"train_log_seed{run.seed}.txt", _log(run).encode())
            _write_audit(run, checks, run is found.chosen, out)
        write_bytes(out / "README.md", _readme(found, said, sizes).encode())
        write_json(out / "submission.json", said)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return said


def _write_audit(run: SeedRun, checks: dict[str, Any], chosen: bool, out: Path) -> None:
    """Check that a run's files are those audited, also as copied; write its audit to the folder.

    The hashes in it are those of the submitted files: without paths, some differ from the run's.

    Raises:
        UserError: naming a file that changed after the audit.
    """
    files: dict[str, str] = checks["files"]
    now = audited_files(run.path)
    copies = {"results.json": out / "results" / f"seed-{run.seed}.json"}
    if chosen:
        copies |= {name: out / name for name in files if (out / name).is_file()}
    submitted = {name: sha256_of_file(copy) for name, copy in copies.items()}
    now |= {name: sha256 for name, sha256 in submitted.items() if name != "results.json"}
    changed = [key for key in (files | now) if files.get(key) != now.get(key)]
    if changed:
        raise UserError(
            f"{run.path / changed[0]} is not the file that was audited: it changed afterwards; "
            "make the submission again"
        )
    reduced = sorted(name for name, sha256 in submitted.items() if sha256 != files[name])
    content = {**checks, "files": {**files, **submitted}, "without_paths": reduced}
    write_json(out / "results" / f"audit-seed-{run.seed}.json", content)


def _summary(found: Submission, author: str, name: str) -> dict[str, Any]:
    """Return the contents of submission.json, bad news before the score."""
    began, date = _dates(found.seeds.finished)
    head = {"name": name, "author": author or None, "date": date}
    derived = summary(found.records)
    head |= {"compliant": derived["compliant"], "complete": found.complete}
    return {
        **head,
        **derived,
        "requested_seeds": list(found.seeds.requested) or None,
        "left_out": {str(run.seed): run.reason for run in found.seeds.left_out},
        "first_run_began": began,
        **machine(read_environment(RunDir(found.chosen.path))),
    }


def _dates(runs: Sequence[SeedRun]) -> tuple[str, str]:
    """Return the time of the first event of all runs and the day of the last one, in UTC."""
    times = [event["time"] for run in runs for event in RunDir(run.path).read_events()]
    if not times:
        raise UserError(f"{runs[0].path} has no events.jsonl, which says when it ran: restore it")
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


def _readme(found: Submission, said: dict[str, Any], sizes: dict[str, int]) -> str:
    """Render README.md from templates/submission.md.j2."""
    results = found.chosen.results or {}
    known = RECIPES.get(found.recipe)
    defaults = flat_config(known[1]) if known else {}
    changed = {
        key: value
        for key, value in flat_config(found.config).items()
        if key not in ("seed", "data.source", "data.tokenizer") and defaults.get(key) != value
    }
    return template("submission.md.j2").render(
        found=found,
        submission=said,
        sizes=sizes,
        results=results,
        tokenizer=described(results["tokenizer"]),
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
