"""Commands over several runs: seeds, a comparison, an ablation grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from paramgolf.cli.common import usage
from paramgolf.cli.run import STAGE_TITLES, parse_recipe
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter, standard_output

if TYPE_CHECKING:
    from paramgolf.study.ablate import Grid
    from paramgolf.study.compare import Comparison, OneSided, Side
    from paramgolf.study.seeds import Row, Seeds


@dataclass(frozen=True)
class SeedsArguments:
    """Run a recipe for several seeds, or go on with it: mean, deviation, range, worst seed."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = ()
    """Of the runs. Required."""
    out: str = ""
    """The folder of all runs; by default runs/seeds-RECIPE. What is finished there is taken."""


@dataclass(frozen=True)
class AblateArguments:
    """Run a grid of configurations, or go on with it: a table and a plot."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """KEY=A,B,...: a key of the recipe and its values; several span a grid. Required."""
    seeds: tuple[int, ...] = ()
    """Of every cell; by default the recipe's."""
    out: str = ""
    """The folder of all runs; by default runs/ablate-RECIPE. What is finished there is taken."""


@dataclass(frozen=True)
class CompareArguments:
    """Test whether A is better than B by a margin, over seeds and over documents."""

    a: tyro.conf.Positional[Path]
    """A run, or a folder of seeds."""
    b: tyro.conf.Positional[Path]
    """The one to be beaten."""
    margin_nats: float = 0.005
    """Per token; the challenge asks for 0.005."""
    stage: str = ""
    """Of the score; by default the last one of the packed file that all runs have."""
    out: Path | None = None
    """Write the result there, too, as JSON."""


def seeds(arguments: list[str]) -> None:
    """`paramgolf seeds`: a recipe for several seeds."""
    reporter = standard_output()
    if _asks_for_usage(arguments, reporter):
        return
    from paramgolf.study.seeds import run_seeds

    recipe, parsed = arguments[0], parse_recipe(SeedsArguments, "seeds", arguments)
    if parsed.config.seed != RECIPES[recipe][1].seed:
        raise ConfigError("--seed is not possible here: name all seeds with --seeds")
    out = Path(parsed.out or f"runs/seeds-{recipe}")
    found = run_seeds(recipe, parsed.config, parsed.seeds, out, reporter)
    _print_seeds(f"{recipe}, {found.over()}", found, reporter)
    reporter.line(f"everything is in {out}: seeds.json, a run for every seed")
    failed = [str(m.seed) for m in found.left_out if m.seed in parsed.seeds]
    if failed:
        raise UserError(f"{len(failed)} of {len(parsed.seeds)} seeds failed: {', '.join(failed)}")


def ablate(arguments: list[str]) -> None:
    """`paramgolf ablate`: a grid of configurations."""
    reporter = standard_output()
    if _asks_for_usage(arguments, reporter):
        return
    from paramgolf.study.ablate import parse_grid, run_grid

    recipe, parsed = arguments[0], parse_recipe(AblateArguments, "ablate", arguments)
    grid = parse_grid(parsed.config, [text for some in parsed.vary for text in some])
    out = Path(parsed.out or f"runs/ablate-{recipe}")
    seeds = parsed.seeds or (parsed.config.seed,)
    found = run_grid(recipe, grid, seeds, out, reporter)
    _print_grid(recipe, found, reporter)
    reporter.line(f"everything is in {out}: ablation.json, ablation.svg, a folder for every cell")
    if found.failed:
        raise UserError(f"{len(found.failed)} of {len(found.cells)} cells lack a run: see above")


def compare(arguments: list[str]) -> None:
    """`paramgolf compare`: is A better than B by a margin?"""
    from paramgolf.runtime.files import write_json
    from paramgolf.study.compare import compare

    parsed = tyro.cli(CompareArguments, prog="paramgolf compare", args=arguments)
    found = compare(parsed.a, parsed.b, parsed.stage, parsed.margin_nats)
    _print_comparison(found, standard_output())
    if parsed.out is not None:
        write_json(parsed.out, found.to_json())


def _asks_for_usage(arguments: list[str], reporter: Reporter) -> bool:
    """Whether no recipe is named; then the usage is printed."""
    if arguments and arguments[0] not in ("--help", "-h"):
        return False
    reporter.line(usage())
    return True


def _print_seeds(title: str, found: Seeds, reporter: Reporter) -> None:
    stages, sizes = found.stages(), found.sizes()
    table = _table(f"statistics over {title}", "", "mean", "std", "min", "max", "worst seed")
    table.add_column("label")
    for stage, row in stages.items():
        table.add_row(*_cells(f"BPB, {STAGE_TITLES[stage]}", row, ".4f"), ", ".join(row.labels))
    for name, row in sizes.items():
        table.add_row(*_cells(name, row, ",.0f" if name == "bytes" else ",.1f"), "")
    by_seed = _table("by seed", "seed", "BPB", "bytes", "seconds")
    by_seed.add_column("label")
    by_seed.add_column("state", overflow="fold")
    for member in found.members:
        figures = ["", "", "", ""]
        if member.results is not None:
            last = list(member.results["stages"].values())[-1]
            figures = [
                f"{last['bpb']:.4f}",
                f"{sizes['bytes'].by_seed[member.seed]:,}",
                f"{sizes['seconds'].by_seed[member.seed]:,.1f}",
                last["label"],
            ]
        by_seed.add_row(str(member.seed), *figures, member.state)
    reporter.line("")
    if stages:
        reporter.table(table)
    reporter.table(by_seed)
    for member in found.left_out:
        reporter.line(f"seed {member.seed} {member.state}: {member.failure or 'no results.json'}")


def _cells(name: str, row: Row, form: str) -> list[str]:
    """Name, mean, standard deviation, range, worst seed."""
    values = row.by_seed.values()
    std = "-" if row.std is None else f"{row.std:{form}}"
    ends = f"{min(values):{form}}", f"{max(values):{form}}"
    return [name, f"{row.mean:{form}}", std, *ends, str(row.worst_seed)]


def _print_grid(recipe: str, grid: Grid, reporter: Reporter) -> None:
    keys = list(grid.cells[0].values)
    table = _table(recipe, *keys, "BPB", "std", "bytes", "seconds")
    for column in ("stage", "label"):
        table.add_column(column)
    table.add_column("seeds", justify="right")
    for cell in grid.cells:
        figures = [""] * 6
        if cell.last_stage is not None:
            (stage, row), sizes = cell.last_stage, cell.seeds.sizes()
            figures = [
                f"{row.mean:.4f}",
                "-" if row.std is None else f"{row.std:.4f}",
                f"{sizes['bytes'].mean:,.0f}",
                f"{sizes['seconds'].mean:,.1f}",
                stage,
                ", ".join(row.labels),
            ]
        runs = f"{len(cell.seeds.finished)} of {len(cell.seeds.members)}"
        table.add_row(*(str(cell.values[key]) for key in keys), *figures, runs)
    reporter.line("")
    reporter.table(table)
    for cell in grid.failed:
        for member in cell.seeds.left_out:
            why = f"{member.state}: {member.failure or 'no results.json'}"
            reporter.line(f"{cell.folder.name}, seed {member.seed} {why}")
    if grid.num_texts > 1:
        reporter.line(
            f"the cells were scored on {grid.num_texts} different texts: their BPB do not compare"
        )


def _print_comparison(found: Comparison, reporter: Reporter) -> None:
    first = found.a.scored[0]
    title = f"stage {found.stage}, {first.label}"
    table = _table(title, "", "seeds", "BPB", "std", "nats", "tokens")
    for name, side in (("A", found.a), ("B", found.b)):
        table.add_row(f"{name} {side.path}", *_side(side))
    reporter.table(table)
    lines = {
        "text": f"{first.bytes:,} bytes, sha256 {first.text_sha256[:16]}",
        "margin": f"{found.margin_nats:g} nats a token, {found.margin_bpb:.5f} BPB",
        "gain": f"{found.gain_bpb:+.5f} BPB"
        + ("" if found.gain_nats is None else f", {found.gain_nats:+.5f} nats a token")
        + " (B less A)",
        "over seeds": _test(found.seeds, "Welch, {} runs"),
        "over documents": _test(found.documents, "paired, {} documents"),
    }
    if found.interval_bpb is not None:
        low, high = found.interval_bpb
        lines["  their gain"] = f"{low:+.5f} to {high:+.5f} BPB, 95 % of resampled documents"
    for name, side in (("A", found.a), ("B", found.b)):
        if side.left_out:
            lines[f"{name} without"] = ", ".join(f"{m.seed} ({m.state})" for m in side.left_out)
    lines["verdict"] = found.verdict_line()
    for name, text in lines.items():
        reporter.line(f"{name:<15} {text}")


def _side(side: Side) -> list[str]:
    import statistics

    bpb = side.bpb.tolist()
    nats = statistics.fmean(one.loss_nats for one in side.scored)
    std = f"{statistics.stdev(bpb):.4f}" if len(bpb) > 1 else "-"
    seeds = ", ".join(str(one.seed) for one in side.scored)
    return [seeds, f"{statistics.fmean(bpb):.4f}", std, f"{nats:.4f}", f"{side.scored[0].tokens:,}"]


def _test(test: OneSided | str, form: str) -> str:
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
