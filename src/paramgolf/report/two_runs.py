"""Two finished runs side by side as one HTML page; nothing is predicted, so no model is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from paramgolf.data.claims import shown_form
from paramgolf.report import figures, sections
from paramgolf.report.page import RunFiles, environment, read_run_files
from paramgolf.runtime.files import read_tensors, write_bytes


def report_two(path_a: Path, path_b: Path, out: Path) -> int:
    """Write the page about the runs at `path_a` and `path_b` to `out`; return its size in bytes.

    Raises:
        UserError: if one is not a finished run.
    """
    a, b = read_run_files(path_a), read_run_files(path_b)
    page = render_two(a, b).encode()
    write_bytes(out, page)
    return len(page)


def render_two(a: RunFiles, b: RunFiles) -> str:
    """Render the page."""
    return environment().get_template("two_runs.html.j2").render(
        a=_side(a),
        b=_side(b),
        scores=_scores(a.results, b.results, (_text(a), _form(a)) == (_text(b), _form(b))),
        warnings=_warnings(a, b),
        groups=_groups(a.results, b.results),
        settings=_different_settings(a, b),
        chart=_losses(a, b),
        command=f"paramgolf compare {shlex.quote(str(a.run.path))} {shlex.quote(str(b.run.path))}",
    )  # fmt: skip


def _side(files: RunFiles) -> dict[str, Any]:
    return {
        "path": files.run.path,
        "recipe": files.recipe,
        "seed": files.results["seed"],
        "result": list(files.results["stages"].values())[-1],
        "form": shown_form(files.results["tokenizer"]),
        "audit": sections.verdict(files.audit, files.run.path)["kind"],
    }


def _text(files: RunFiles) -> str:
    """Return the SHA-256 of the scored text."""
    return read_tensors(files.run.documents)[1]["text_sha256"]


def _form(files: RunFiles) -> str:
    """Return in which form the scored text comes back from its tokens."""
    return files.results["tokenizer"]["restores"]


def _scores(a: dict[str, Any], b: dict[str, Any], same_text: bool) -> list[dict[str, Any]]:
    """Return the score of each stage that either run has, and the change from A to B.

    There is no change between scores of different texts, or of different forms of a text.
    """
    stages = [stage for stage in sections.TITLES if stage in a["stages"] or stage in b["stages"]]
    rows = []
    for stage in stages:
        one, other = (results["stages"].get(stage) for results in (a, b))
        change = other["bpb"] - one["bpb"] if one and other and same_text else None
        rows.append({"title": sections.TITLES[stage][0], "a": one, "b": other, "change": change})
    return rows


def _warnings(a: RunFiles, b: RunFiles) -> list[str]:
    """Return why the scores cannot be compared."""
    labels = [list(files.results["stages"].values())[-1]["label"] for files in (a, b)]
    warnings = []
    if _text(a) != _text(b):
        warnings.append("The two runs were scored on different texts.")
    elif (forms := [_form(files) for files in (a, b)])[0] != forms[1]:
        warnings.append(f"The text is restored in different forms: {forms[0]} and {forms[1]}.")
    if labels[0] != labels[1]:
        warnings.append(f"The labels of the final scores differ: {labels[0]} and {labels[1]}.")
    return warnings


def _groups(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
    """Return name and both values of sizes and seconds, by heading."""
    sizes = {"counted, total": "total", "model.bin": "model", "train_gpt.py": "code"}
    seconds = {"training": "training", "evaluation": "evaluation", "not counted": "none"}
    return {
        "Bytes": [(name, a["bytes"][key], b["bytes"][key]) for name, key in sizes.items()],
        "Seconds": [
            *((name, a["budgets"][key], b["budgets"][key]) for name, key in seconds.items()),
            ("total", sum(a["seconds"].values()), sum(b["seconds"].values())),
        ],
        "Model": [(name, a[name], b[name]) for name in ("parameters", "steps")],
    }


def _different_settings(a: RunFiles, b: RunFiles) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ."""
    ours, theirs = (
        {
            row["key"]: row["value"]
            for rows in sections.settings(files.recipe, files.config)["sections"].values()
            for row in rows
        }
        for files in (a, b)
    )
    return [(key, value, theirs[key]) for key, value in ours.items() if value != theirs[key]]


def _losses(a: RunFiles, b: RunFiles) -> figures.LineChart | None:
    points = [sections.training_points(files.run.read_events()) for files in (a, b)]
    return figures.two_losses(*points) if min(map(len, points)) > 1 else None
