"""The report: a finished run as one self-contained HTML page.

It is written from the run's files; only the passage of text needs the model.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.report import sections
from paramgolf.report.passage import passage_section
from paramgolf.runtime.console import Reporter, duration
from paramgolf.runtime.device import Runtime, select_runtime
from paramgolf.runtime.files import sha256_of_file, write_bytes
from paramgolf.runtime.records import (
    read_audit,
    read_environment,
    read_quantization,
    read_results,
)
from paramgolf.runtime.rundir import RunDir
from paramgolf.version import __version__

NAME = "report.html"
"""Of the report in the directory of its run."""
TEMPLATES = Path(__file__).parent / "templates"


class RunFiles(NamedTuple):
    """The files of a run that a report is written from."""

    run: RunDir
    recipe: str
    config: RunConfig
    results: dict[str, Any]
    audit: dict[str, Any] | None
    quantization: dict[str, dict[str, float]]
    environment: dict[str, Any]


def report(path: Path, out: Path, runtime: Runtime, reporter: Reporter) -> int:
    """Write the report of the run at `path` to `out`; return its size in bytes.

    Args:
        path: directory of a finished run.
        out: the HTML file.
        runtime: where to predict the passage.
        reporter: the console.

    Raises:
        UserError: if the run is not finished, or its artifact is not the one of its results.
    """
    files = read_run_files(path)
    reporter.line("  passage   predicting every token")
    # A few windows, each of a different shape: compiling would not pay.
    passage = passage_section(
        files.run, files.results, dataclasses.replace(runtime, accelerated=False)
    )
    page = render(files, passage).encode()
    write_bytes(out, page)
    return len(page)


def refresh(path: Path, reporter: Reporter) -> None:
    """Write the report in the directory of a run again, if one is there; for use after an audit."""
    out = path / NAME
    if not out.exists():
        return
    try:
        report(path, out, select_runtime("cpu"), Reporter())
    except UserError as error:
        reporter.line(f"{out} is out of date: {error}")
    else:
        reporter.line(f"{out} was updated")


def read_run_files(path: Path) -> RunFiles:
    """Read a finished run.

    Raises:
        UserError: see `report`.
    """
    run, recipe, config = RunDir.open(path)
    if not run.results_file.exists():
        raise UserError(f"{path} is not finished; resume it with `paramgolf run --resume {path}`")
    results = read_results(run)
    if not run.artifact.exists() or sha256_of_file(run.artifact) != results["artifact_sha256"]:
        raise UserError(
            f"{run.artifact} is not the artifact whose scores are in {run.results_file}; "
            "report the run that wrote it"
        )
    audit_file = path / "audit.json"
    return RunFiles(
        run,
        recipe,
        config,
        results,
        read_audit(run) if audit_file.exists() else None,
        read_quantization(run),
        read_environment(run),
    )


def render(files: RunFiles, passage: dict[str, Any]) -> str:
    """Render the page.

    Args:
        files: from `read_run_files`.
        passage: from `passage_section`.
    """
    config, results = files.config, files.results
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            path=str(files.run.path),
            recipe=files.recipe,
            results=results,
            config=config,
            version=__version__,
            verdict=sections.verdict(files.audit, files.run.path),
            scores=sections.scores(results),
            overview=sections.overview(files.run, config, results, files.environment),
            training=sections.training(files.run, config, results),
            commands=sections.commands(files.run.path),
            adaptation=sections.adaptation(results),
            sizes=sections.sizes(results),
            seconds=sections.seconds(config, results),
            quantization=sections.quantization(config, results, files.quantization),
            settings=sections.settings(files.recipe, config),
            environment=sections.environment(files.environment, results),
            passage=passage,
        )
    )


def environment() -> jinja2.Environment:
    """Return the environment of the templates of pages."""
    created = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    created.filters |= {"thousands": "{:,}".format, "duration": duration, "data": _data}
    return created


def _data(value: Any) -> Markup:
    """Return JSON for a <script> element, with nothing in it that could end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
