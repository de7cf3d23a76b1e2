"""Commands over a finished run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter, standard_output


@dataclass(frozen=True)
class AuditArguments:
    """Recompute what makes a run's score true, a line a check; exit code 1 if one fails."""

    run: tyro.conf.Positional[Path]
    """The directory of a finished run."""
    positions: int = 4
    """Positions at which every token of the alphabet is scored; each costs a window a token."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to score; as the run did."""


@dataclass(frozen=True)
class BundleArguments:
    """Write a run's code, model and tokenizer to a folder that stands alone."""

    run: tyro.conf.Positional[Path]
    """The directory of a finished run."""
    out: Path
    """A new folder."""


@dataclass(frozen=True)
class ReportArguments:
    """Write a run as one HTML page that needs nothing else: report.html."""

    run: tyro.conf.Positional[Path]
    """The directory of a finished run."""
    out: Path | None = None
    """The file to write; by default report.html in the run's directory."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the page's passage of text is predicted."""


def audit(arguments: list[str]) -> None:
    """`paramgolf audit`: recompute what makes a score true."""
    from paramgolf.runtime.device import select_runtime
    from paramgolf.verify.audit import audit

    parsed = tyro.cli(AuditArguments, prog="paramgolf audit", args=arguments)
    if parsed.positions < 1:
        raise ConfigError(f"--positions = {parsed.positions} is not possible: it must be 1 or more")
    runtime = select_runtime(parsed.device)
    result = audit(parsed.run, parsed.positions, runtime, Reporter(sys.stderr))
    reporter = standard_output()
    for check in result.checks:
        reporter.line(f"{check.outcome:<14} {check.name:<34} {check.figure}")
    reporter.line("")
    for line in result.summary():
        reporter.line(line)
    if not result.passed:
        raise UserError(f"the audit of {parsed.run} fails: {', '.join(result.failed)}")


def bundle(arguments: list[str]) -> None:
    """`paramgolf bundle`: one folder that stands alone."""
    from paramgolf.publish.bundle import bundle

    parsed = tyro.cli(BundleArguments, prog="paramgolf bundle", args=arguments)
    sizes = bundle(parsed.run, parsed.out)
    reporter = standard_output()
    for name, size in sizes.items():
        reporter.line(f"{size:>12,}  {name}")
    counted = sizes["train_gpt.py"] + sizes["model.bin"]
    reporter.line(f"{counted:>12,}  bytes count: train_gpt.py and model.bin, in {parsed.out}")


def report(arguments: list[str]) -> None:
    """`paramgolf report`: a run as an HTML page."""
    from paramgolf.report.page import report
    from paramgolf.runtime.device import select_runtime

    parsed = tyro.cli(ReportArguments, prog="paramgolf report", args=arguments)
    out = parsed.out or parsed.run / "report.html"
    size = report(parsed.run, out, select_runtime(parsed.device), Reporter(sys.stderr))
    standard_output().line(f"{out}, {size:,} bytes")
