"""What `paramgolf run` prints at its end: scores, sizes, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, get_args

from rich.table import Table

from paramgolf.cli.live import LiveReporter
from paramgolf.runtime.console import Reporter, duration
from paramgolf.runtime.ledger import account

if TYPE_CHECKING:
    from paramgolf.pipeline.preflight import Finding

Stage = Literal["prepare", "train", "adapt", "pack", "score"]
"""The stages of a run, in order."""
STAGE_TITLES = {
    "ema": "after EMA",
    "adapted": "after adaptation",
    "quantized": "quantized, plain",
    "sliding": "quantized, sliding",
    "score_first": "quantized, score-first",
}


def print_findings(findings: Sequence[Finding], reporter: Reporter) -> None:
    """Print what a dry run found."""
    for finding in findings:
        reporter.line(f"{'warning' if finding.warning else finding.name:<9} {finding.text}")
    reporter.line("the run can start; nothing was written")


def print_results(results: dict[str, Any], path: Path, reporter: LiveReporter) -> None:
    """Print the results of a finished run.

    Args:
        results: the content of results.json.
        path: the run directory.
        reporter: the console.
    """
    from paramgolf.data.claims import shown_form
    from paramgolf.scoring.bits_per_byte import label_of

    form = shown_form(results["tokenizer"])
    stages, size = results["stages"], results["bytes"]
    corpus, xz = results["corpus"], results["xz"]
    reporter.line("")
    reporter.table(_scores(f"{results['recipe']}, seed {results['seed']}", stages, form))
    if reporter.verbose:
        reporter.table(_seconds_by_phase(results))
    reporter.line(f"xz -9     {xz['bpb']:.4f} bits per byte for comparison: {xz['bytes']:,} bytes")
    reporter.line(f"corpus    {Path(corpus['source']).name}, sha256 {corpus['sha256'][:16]}")
    reporter.line("labels    by the texts that this run names, which only a rerun verifies;")
    reporter.line(f"          `paramgolf audit {path}` checks the rest")
    stage, score = list(stages.items())[-1]
    reporter.line("")
    label = label_of(results, stage)
    reporter.line(f"score     {score['bpb']:.4f} BPB, {label} ({STAGE_TITLES[stage]})")
    reporter.line(
        f"size      {size['total']:,} of {size['budget']:,} bytes ({_size_parts(results)})"
    )
    reporter.line(f"run       {path}")
    # Commands are not wrapped, so that they can be copied.
    reporter.text(f"next      paramgolf report {quote(str(path))}\n")
    reporter.text(f'          paramgolf generate {quote(str(path))} --prompt "Return the"\n')


def print_stages(path: Path, reporter: LiveReporter) -> None:
    """Print what the finished stages of an unfinished run gave, and how to go on."""
    from paramgolf.data.claims import shown_form
    from paramgolf.runtime.rundir import RunDir

    run, recipe, config = RunDir.open(path)
    found = {name: run.stage_result(name) for name in get_args(Stage)}
    done = {name: result for name, result in found.items() if result is not None}
    scores = {n: score for result in done.values() for n, score in result.get("scores", {}).items()}
    if scores:
        reporter.line("")
        form = shown_form(done["prepare"]["tokenizer"])
        reporter.table(_scores(f"{recipe}, seed {config.seed}", scores, form))
    text = done["prepare"]["text"]
    source, digest = Path(text["source"]).name, text["corpus_sha256"]
    reporter.line(f"corpus    {source}, sha256 {digest[:16]}")
    if packed := done.get("pack"):
        size = packed["bytes"]
        reporter.line(f"size      {size['total']:,} of {size['budget']:,} bytes")
    reporter.line(f"run       {path}, stopped after {list(done)[-1]}: no results.json yet")
    reporter.text(f"next      paramgolf run --resume {quote(str(path))}\n")


def _scores(title: str, scores: dict[str, dict[str, Any]], form: str) -> Table:
    """Return the table of a run's scores, by name; `form` is that of the text, to be shown."""
    from paramgolf.scoring.bits_per_byte import shown_label

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("BPB", "nats per\ntoken", "tokens", "text\nbytes"):
        table.add_column(column, justify="right")
    table.add_column("label")
    for stage, score in scores.items():
        table.add_row(
            STAGE_TITLES[stage],
            f"{score['bpb']:.4f}",
            f"{score['loss_nats']:.4f}",
            f"{score['tokens']:,}",
            f"{score['bytes']:,}",
            shown_label(score["label"], score["bytes_are"]) + form,
        )
    return table


def _size_parts(results: dict[str, Any]) -> str:
    """Return the parts of a run's size that count in the budget."""
    from paramgolf.data.claims import described

    size = results["bytes"]
    parts = f"model.bin {size['model']:,}, code {size['code']:,}"
    if results["tokenizer"]["claim"] == "given":
        parts += f", given tokenizer {size['tokenizer']:,}"
    elif results["tokenizer"]["claim"] == "known":
        parts += f"; the tokenizer is not counted: {described(results['tokenizer'])}"
    return parts


def _seconds_by_phase(results: dict[str, Any]) -> Table:
    seconds = results["seconds"]
    table = Table(title="seconds by phase", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("budget")
    for name, value in seconds.items():
        budget, reason = account(name, results["adapted_on"])
        table.add_row(name, f"{value:.1f}", f"not counted: {reason}" if reason else budget)
    table.add_section()
    for name, value in results["budgets"].items():
        table.add_row("total", f"{value:.1f}", "not counted" if name == "none" else name)
    total = sum(seconds.values())
    table.add_row("total", f"{total:.1f}", f"all, {duration(total)}")
    return table
