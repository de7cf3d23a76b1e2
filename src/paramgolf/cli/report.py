"""The command that renders a finished run as a web page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from paramgolf.cli.live import standard_error, standard_output
from paramgolf.runtime.outputs import require_new_file


@dataclass(frozen=True)
class ReportArguments:
    """Write a self-contained HTML page about a run, or about two runs side by side."""

    run: tyro.conf.Positional[Path]
    """Directory of a finished run."""
    other: tyro.conf.Positional[Path | None] = None
    """Another one, to show scores, bytes, seconds, loss curves and different settings of both."""
    out: Path | None = None
    """The file to write; by default report.html in the (first) run directory, for two runs
    report-and-OTHER.html."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to predict the page's passage of text."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""


def report(arguments: list[str]) -> None:
    """`paramgolf report`: a run as an HTML page."""
    parsed = tyro.cli(ReportArguments, prog="paramgolf report", args=arguments)
    if parsed.out is not None:
        require_new_file(parsed.out, parsed.overwrite)

    from paramgolf.report.page import NAME, report
    from paramgolf.report.two_runs import report_two
    from paramgolf.runtime.device import select_runtime

    if parsed.other is not None:
        name = f"report-and-{parsed.other.resolve().name}.html"
        out = parsed.out or parsed.run / name
        size = report_two(parsed.run, parsed.other, out)
    else:
        out = parsed.out or parsed.run / NAME
        size = report(parsed.run, out, select_runtime(parsed.device), standard_error())
    standard_output().line(f"{out}, {size:,} bytes")
