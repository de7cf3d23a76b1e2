"""The command that lists runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table

from paramgolf.cli.common import printable
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
    texts = numbered_texts(runs)
    if _several(texts):
        reporter.line("BPB of different texts, or forms of a text, (#) are not comparable:")
        for (sha256, form), number in texts.items():
            reporter.line(
                f"  #{number}: text " + (f"sha256 {sha256}" if sha256 else "not recorded")
            )
            if form != "original":
                reporter.line(f"      restored as {form}: less is predicted")
    if any(run.tokenizer_is_self_reported for run in runs):
        reporter.line(
            "* with a tokenizer whose origin is self-reported, and which is therefore not counted: "
            "`paramgolf verify RUN` checks it"
        )


def _several(texts: dict[tuple[str, str], int]) -> bool:
    """Return whether it must be said which text, or form of it, a score is of."""
    return len(texts) > 1 or any(form != "original" for _, form in texts)


def numbered_texts(runs: Sequence[ListedRun]) -> dict[tuple[str, str], int]:
    """Return a number for every text and form that finished runs were scored on."""
    from paramgolf.study.listing import texts_of

    texts = texts_of([run for run in runs if run.bpb is not None])
    return {text: number for number, text in enumerate(texts, start=1)}


def as_table(runs: Sequence[ListedRun]) -> Table:
    """Return a table that fits 80 columns: long paths are folded.

    If the runs were scored on different texts or forms of a text, a column tells which: #1, #2, ...
    """
    texts = numbered_texts(runs)
    several = _several(texts)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("date", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=8)
    for name in ("recipe", *["#"] * several, "BPB", "label", "bytes", "audit"):
        table.add_column(
            name, justify="right" if name in ("BPB", "bytes") else "left", no_wrap=True
        )
    for run in runs:
        date = time.strftime("%m-%d %H:%M", time.localtime(run.date))
        if run.bpb is None or run.bytes is None:
            figures = ("", run.state, "", "")
        else:
            mark = "*" if run.tokenizer_is_self_reported else ""
            figures = (f"{run.bpb:.4f}{mark}", run.label, f"{run.bytes:,}", run.audit)
        number = "" if run.bpb is None else str(texts[run.text])
        table.add_row(
            date, printable(run.path), printable(run.recipe), *[number] * several, *figures
        )
    return table
