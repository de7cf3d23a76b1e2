"""Commands over several runs: seeds, a comparison, an ablation."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table

from paramgolf.cli.common import recipe_usage
from paramgolf.cli.live import LiveReporter, standard_output
from paramgolf.cli.results import STAGE_TITLES
from paramgolf.cli.run import parse_recipe
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError

if TYPE_CHECKING:
    from paramgolf.study.ablate import Cell, Grid
    from paramgolf.study.compare import Comparison, Group
    from paramgolf.study.seeds import SeedRuns, Statistic
    from paramgolf.study.significance import OneSidedTest


@dataclass(frozen=True)
class SeedsArguments:
    """Run a recipe with several seeds: mean, standard deviation, range and worst seed."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = ()
    """Seeds of the runs. Required."""
    out: str = ""
    """Folder of the runs; by default runs/seeds-RECIPE. Finished runs in it are not repeated."""


@dataclass(frozen=True)
class AblateArguments:
    """Run variants of a recipe, summarised as a table and a plot."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """KEY=A,B,...: a key of the recipe and its values; several keys span a grid."""
    cell: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """KEY=VALUE ...: one variant of the recipe, instead of a grid; none: the recipe itself."""
    until: Literal["train", "adapt", "pack", "score"] = "score"
    """Stop every run after this stage, and compare its score; `train`: of the averaged weights in
    full precision, in plain windows."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Reuse the text of this run, and its weights where they would be the same; seed, data, model
    and train are then its own, and the rest of the configuration the recipe's."""
    seeds: tuple[int, ...] = ()
    """Seeds of every cell; by default the recipe's."""
    out: str = ""
    """Folder of the runs; by default runs/ablate-RECIPE. Finished runs in it are not repeated."""


@dataclass(frozen=True)
class CompareArguments:
    """Test whether A is better than B by a margin, over seeds and over documents."""

    a: tyro.conf.Positional[Path]
    """A run, or a folder of seeds."""
    b: tyro.conf.Positional[Path]
    """The run or folder of seeds to beat."""
    margin_nats: float = 0.005
    """Margin in nats per token; the challenge asks for 0.005."""
    stage: str = ""
    """Which score to compare; by default the last one of the packed file that all runs have."""
    out: Path | None = None
    """Also write the result to this JSON file."""


def seeds(arguments: list[str]) -> None:
    """`paramgolf seeds`: a recipe with several seeds."""
    reporter = standard_output()
    if not arguments or arguments[0] in ("--help", "-h"):
        reporter.text(recipe_usage("seeds") + "\n")
        return
    recipe, parsed = parse_recipe(SeedsArguments, "seeds", arguments)

    from paramgolf.study.seeds import run_seeds

    if any(argument.partition("=")[0] == "--seed" for argument in arguments):
        raise ConfigError("invalid --seed: name all seeds with --seeds")
    out = Path(parsed.out or f"runs/seeds-{recipe}")
    found = run_seeds(recipe, parsed.config, parsed.seeds, out, reporter)
    _print_seeds(f"{recipe}, {found.coverage()}", found, reporter)
    reporter.line(f"wrote {out}: seeds.json and one run per seed")
    failed = [str(run.seed) for run in found.left_out if run.seed in parsed.seeds]
    if failed:
        raise UserError(f"{len(failed)} of {len(parsed.seeds)} seeds failed: {', '.join(failed)}")


def ablate(arguments: list[str]) -> None:
    """`paramgolf ablate`: variants of a configuration."""
    reporter = standard_output()
    if not arguments or arguments[0] in ("--help", "-h"):
        reporter.text(recipe_usage("ablate") + "\n")
        return
    recipe, parsed = parse_recipe(AblateArguments, "ablate", arguments)

    from paramgolf.study.ablate import run_grid
    from paramgolf.study.cells import parse_cells, parse_grid

    if parsed.vary and parsed.cell:
        raise ConfigError("name either a grid with --vary or single variants with --cell, not both")
    if parsed.cell:
        grid = parse_cells(parsed.config, parsed.cell)
    else:
        grid = parse_grid(parsed.config, [text for some in parsed.vary for text in some])
    out = Path(parsed.out or f"runs/ablate-{recipe}")
    seeds = parsed.seeds or (parsed.config.seed,)
    from_run = Path(parsed.from_run) if parsed.from_run else None
    found = run_grid(recipe, grid, seeds, out, reporter, parsed.until, from_run)
    _print_grid(recipe, found, reporter)
    plot = ", ablation.svg" if found.is_plotted else ""
    reporter.line(f"wrote {out}: ablation.json{plot} and one folder per cell")
    if found.failed:
        raise UserError(f"{len(found.failed)} of {len(found.cells)} cells lack a run: see above")


def compare(arguments: list[str]) -> None:
    """`paramgolf compare`: is A better than B by a margin?"""
    parsed = tyro.cli(CompareArguments, prog="paramgolf compare", args=arguments)

    from paramgolf.runtime.files import write_json
    from paramgolf.study.compare import compare

    found = compare(parsed.a, parsed.b, parsed.stage, parsed.margin_nats)
    _print_comparison(found, standard_output())
    if parsed.out is not None:
        write_json(parsed.out, found.to_json())


def _print_seeds(title: str, found: SeedRuns, reporter: LiveReporter) -> None:
    from paramgolf.scoring.bits_per_byte import label_of

    stages, sizes = found.stages(), found.sizes()
    table = _table(f"statistics over {title}", "", "mean", "std", "min", "max", "worst seed")
    table.add_column("label")
    for stage, bpb in stages.items():
        table.add_row(*_cells(f"BPB, {STAGE_TITLES[stage]}", bpb, ".4f"), ", ".join(bpb.labels))
    for name, size in sizes.items():
        table.add_row(*_cells(name, size, ",.0f" if name == "bytes" else ",.1f"), "")
    by_seed = _table("by seed", "seed", "BPB", "bytes", "seconds")
    by_seed.add_column("label")
    by_seed.add_column("state", overflow="fold")
    for run in found.runs:
        figures = ["", "", "", ""]
        if run.results is not None:
            stage, last = list(run.results["stages"].items())[-1]
            figures = [
                f"{last['bpb']:.4f}",
                f"{sizes['bytes'].by_seed[run.seed]:,}",
                f"{sizes['seconds'].by_seed[run.seed]:,.1f}",
                label_of(run.results, stage),
            ]
        by_seed.add_row(str(run.seed), *figures, run.state)
    reporter.line("")
    if stages:
        reporter.table(table)
    reporter.table(by_seed)
    for run in found.left_out:
        reporter.line(f"seed {run.seed} {run.reason}")


def _cells(name: str, statistic: Statistic, form: str) -> list[str]:
    """Format name, mean, standard deviation, range and worst seed."""
    values = statistic.by_seed.values()
    std = "-" if statistic.std is None else f"{statistic.std:{form}}"
    ends = f"{min(values):{form}}", f"{max(values):{form}}"
    return [name, f"{statistic.mean:{form}}", std, *ends, str(statistic.worst_seed)]


def _print_grid(recipe: str, grid: Grid, reporter: LiveReporter) -> None:
    """Print one row per cell; stage and label are in the title if they are those of all cells."""
    rows = [_cell_figures(cell, grid.until) for cell in grid.cells]
    shared: dict[str, str] = {}
    for column in ("std", "stage", "label", "text"):
        found = {row[column] for row in rows} - {""}
        if len(found) < (1 if column == "std" else 2):
            shared[column] = "".join(found)
    about = [value for column in ("stage", "label") if (value := shared.get(column))]
    columns = [column for column in rows[0] if column not in shared]
    keys = list(grid.cells[0].values)
    titles = [key.replace(".", ".\n") for key in keys]  # narrow, so that many fit
    table = _table(", ".join([recipe, *about]), *titles, *columns)
    for cell, row in zip(grid.cells, rows, strict=True):
        values = [str(cell.values[key]) for key in keys]
        table.add_row(*values, *(row[column] for column in columns))
    reporter.line("")
    reporter.table(table)
    for cell in grid.failed:
        for run in cell.seeds.left_out:
            reporter.line(f"{cell.folder.name}, seed {run.seed} {run.reason}")
    if "text" not in shared:
        reporter.line(
            f"the cells were scored on {grid.num_texts} different texts, or forms of a text: "
            "compare BPB of the same text only; no plot is drawn"
        )


def _cell_figures(cell: Cell, until: str) -> dict[str, str]:
    """Format the figures of a cell, by the title of their column; empty where it has none."""
    sizes = cell.seeds.sizes()
    stage, bpb = cell.last_stage or ("", None)
    seconds = f"{sizes['seconds'].mean:,.1f}" if sizes else ""
    figures = {
        "BPB": f"{bpb.mean:.4f}" if bpb else "",
        "std": f"{bpb.std:.4f}" if bpb and bpb.std is not None else "",
    }
    if until in ("pack", "score"):
        figures["bytes"] = f"{sizes['bytes'].mean:,.0f}" if sizes else ""
    else:
        steps, rate = cell.steps, cell.tokens_per_second
        figures["steps"] = "" if steps is None else f"{steps:,.0f}"
        figures["tokens/s"] = "" if rate is None else f"{rate:,.0f}"
    label = ", ".join(bpb.labels) if bpb else ""
    finished = f"{len(cell.seeds.finished)} of {len(cell.seeds.runs)}"
    rest = {"seconds": seconds, "stage": stage, "label": label, "text": cell.text_sha256[:8]}
    return figures | rest | {"seeds": finished}


def _print_comparison(found: Comparison, reporter: LiveReporter) -> None:
    first, groups = found.a.scores[0], (("A", found.a), ("B", found.b))
    title = f"stage {found.stage}, {first.label}"
    table = _table(title, "", "seeds", "BPB", "std", "nats per token", "tokens")
    for name, group in groups:
        table.add_row(f"{name} {group.path}", *_group_cells(group))
    reporter.table(table)
    nats = "" if found.gain_nats is None else f", {found.gain_nats:+.5f} nats per token"
    lines = {
        "text": f"{first.bytes:,} bytes, sha256 {first.text_sha256[:16]}",
        "margin": f"{found.margin_nats:g} nats per token, {found.margin_bpb:.5f} BPB",
        "gain": f"{found.gain_bpb:+.5f} BPB{nats} (B minus A)",
        "over seeds": _describe_test(found.seeds, "Welch, {} runs"),
        "over documents": _describe_test(found.documents, "paired, {} documents"),
    }
    if found.interval_bpb is not None:
        low, high = found.interval_bpb
        lines["  interval"] = f"{low:+.5f} to {high:+.5f} BPB, 95 % of resampled documents"
    for name, group in groups:
        if group.left_out:
            lines[f"{name} without"] = ", ".join(f"{r.seed} ({r.state})" for r in group.left_out)
    lines["verdict"] = found.verdict_line()
    for name, text in lines.items():
        reporter.line(f"{name:<15} {text}")


def _group_cells(group: Group) -> list[str]:
    """Format seeds, mean BPB, its standard deviation, mean loss and tokens."""
    bpb = group.bpb.tolist()
    nats = statistics.fmean(score.loss_nats for score in group.scores)
    std = f"{statistics.stdev(bpb):.4f}" if len(bpb) > 1 else "-"
    seeds = ", ".join(str(score.seed) for score in group.scores)
    tokens = f"{group.scores[0].tokens:,}"
    return [seeds, f"{statistics.fmean(bpb):.4f}", std, f"{nats:.4f}", tokens]


def _describe_test(test: OneSidedTest | str, form: str) -> str:
    if isinstance(test, str):
        return f"not applicable: {test}"
    return (
        f"{form.format(f'{test.units:,}')}: p = {test.p_better:.2g} for better by the margin, "
        f"{test.p_worse:.2g} for worse"
    )


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right")
    return table
