"""The command that lists runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table

from paramgolf.cli.live import standard_output

if TYPE_CHECKING:
    from paramgolf.study.listing import ListedRun


@dataclass(frozen=True)
class ListArguments:
    """List runs: recipe, score with its label, bytes, audit and date."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders to search, with everything below them."""
    sort: Literal["date", "score", "size", "recipe", "path"] = "date"
    """Order: the newest, the lowest score or the smallest size first, or by name."""


def list(arguments: Sequence[str]) -> None:
    """`paramgolf list`: all runs below some folders."""
    parsed = tyro.cli(ListArguments, prog="paramgolf list", args=arguments)

    from paramgolf.study.listing import list_runs

    runs = list_runs(parsed.folders, parsed.sort)
    reporter = standard_output()
    if not runs:
        names = ", ".join(map(str, parsed.folders))
        reporter.line(f"no runs in {names}; start one with `paramgolf run tiny`")
        return
    reporter.table(as_table(runs))


def as_table(runs: Sequence[ListedRun]) -> Table:
    """Return a table that fits 80 columns: long paths are folded."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("date", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=8)
    for name in ("recipe", "BPB", "label", "bytes", "audit"):
        table.add_column(
            name, justify="right" if name in ("BPB", "bytes") else "left", no_wrap=True
        )
    for run in runs:
        date = time.strftime("%m-%d %H:%M", time.localtime(run.date))
        if run.bpb is None or run.bytes is None:
            figures = ("", run.state, "", "")
        else:
            figures = (f"{run.bpb:.4f}", run.label, f"{run.bytes:,}", run.audit)
        table.add_row(date, str(run.path), run.recipe, *figures)
    return table
