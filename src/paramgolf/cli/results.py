"""What `paramgolf run` prints at its end: scores, sizes, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from paramgolf.cli.common import over_original_bytes
from paramgolf.runtime.console import Reporter, duration
from paramgolf.runtime.ledger import account

if TYPE_CHECKING:
    from paramgolf.pipeline.preflight import Finding

STAGE_TITLES = {
    "ema": "after EMA",
    "adapted": "after adaptation",
    "quantized": "quantized, plain",
    "sliding": "quantized, sliding",
    "score_first": "sliding, score-first",
}


def print_findings(findings: Sequence[Finding], reporter: Reporter) -> None:
    """Print what a dry run found."""
    for finding in findings:
        reporter.line(f"{'warning' if finding.warning else finding.name:<9} {finding.text}")
    reporter.line("the run can start; nothing was written")


def print_results(results: dict[str, Any], path: Path, reporter: Reporter) -> None:
    """Print the results of a finished run.

    Args:
        results: the content of results.json.
        path: the run directory.
        reporter: the console.
    """
    from paramgolf.scoring.bits_per_byte import Score

    corpus = results["corpus"]
    table = Table(title=f"{results['recipe']}, seed {results['seed']}", title_justify="left")
    table.add_column("")
    for column in ("BPB", "nats per\ntoken", "tokens", "text\nbytes", "compressed\nbytes"):
        table.add_column(column, justify="right")
    table.add_column("label")
    for stage, score in results["stages"].items():
        table.add_row(
            STAGE_TITLES[stage],
            f"{score['bpb']:.4f}",
            f"{score['loss_nats']:.4f}",
            f"{score['tokens']:,}",
            f"{score['bytes']:,}",
            "",
            score["label"],
        )
    xz = results["xz"]
    table.add_row("xz -9, for comparison", f"{xz['bpb']:.4f}", "", "", "", f"{xz['bytes']:,}", "")
    reporter.line("")
    reporter.table(table)
    if note := over_original_bytes(Score(**results["stages"]["sliding"])):
        reporter.line(f"original  {note}")
    size = results["bytes"]
    reporter.line(
        f"bytes     {size['total']:,} of {size['budget']:,}: model.bin {size['model']:,}, "
        f"train_gpt.py {size['code']:,}; not counted: tokenizer.model {size['tokenizer']:,}"
    )
    reporter.line(f"corpus    {corpus['source']}, sha256 {corpus['sha256'][:16]}")
    seconds = results["seconds"]
    phases = Table(title="seconds by phase", title_justify="left")
    phases.add_column("phase")
    phases.add_column("seconds", justify="right")
    phases.add_column("budget")
    for name, value in seconds.items():
        budget, reason = account(name, results["adapted_on"])
        phases.add_row(name, f"{value:.1f}", f"not counted: {reason}" if reason else budget)
    phases.add_section()
    for name, value in results["budgets"].items():
        phases.add_row("total", f"{value:.1f}", "not counted" if name == "none" else name)
    total = sum(seconds.values())
    phases.add_row("total", f"{total:.1f}", f"all, {duration(total)}")
    reporter.table(phases)
    reporter.line("labels    self-reported: only rerunning the job can verify them;")
    reporter.line(f"          `paramgolf audit {path}` checks the rest")
    reporter.line(f"files     {path}: model.bin, train_gpt.py, tokenizer.model, results.json, ...")
