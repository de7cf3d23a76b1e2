"""`paramgolf run`, new or resumed, and the results that it prints at the end."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from paramgolf.cli.common import choose, usage
from paramgolf.cli.results import print_results
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError
from paramgolf.recipes import RECIPES, with_absolute_paths
from paramgolf.runtime.console import Reporter, is_main_rank, standard_output

_T = TypeVar("_T", bound=Any)


@dataclass(frozen=True)
class RunArguments:
    """Train, adapt, quantize, pack and score a model."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: str = ""
    """Run directory to create; by default runs/RECIPE-DATE-TIME."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Reuse the text and the trained weights of this run; run the remaining stages."""
    log: Literal["none", "wandb", "tensorboard"] = "none"
    """Also send the run's metrics to this tracker."""


@dataclass(frozen=True)
class ResumeArguments:
    """Resume a run at its last checkpoint or after its last finished stage."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    log: Literal["none", "wandb", "tensorboard"] = "none"
    """Also send the run's metrics to this tracker."""


def run(arguments: list[str]) -> None:
    """Run `paramgolf run`."""
    reporter = standard_output()
    if arguments and arguments[0] == "--resume":
        _resume(arguments[1:], reporter)
        return
    if not arguments or arguments[0] in ("--help", "-h"):
        reporter.line(usage())
        reporter.line("\n`paramgolf run RECIPE --help` lists all keys with the recipe's values.")
        return
    _start(arguments[0], parse_recipe(RunArguments, "run", arguments), reporter)


def parse_recipe(cls: type[_T], command: str, arguments: list[str]) -> _T:
    """Parse `RECIPE [--KEY VALUE ...]` and the options of a command.

    Args:
        cls: a dataclass of the options; its field `config` is the recipe's configuration.
        command: the name of the command.
        arguments: those after the command's name, starting with the recipe.

    Raises:
        ConfigError: if the recipe does not exist or the value of a key is invalid.
    """
    recipe = arguments[0]
    _, default = choose("recipe", recipe, RECIPES)
    parsed = tyro.cli(
        cls,
        prog=f"paramgolf {command} {recipe}",
        args=arguments[1:],
        default=cls(config=default),
        config=(tyro.conf.FlagConversionOff,),
        console_outputs=is_main_rank(),
    )
    return dataclasses.replace(parsed, config=with_absolute_paths(parsed.config))


def _resume(arguments: list[str], reporter: Reporter) -> None:
    from paramgolf.pipeline.session import resume
    from paramgolf.pipeline.tracking import tracker

    if not arguments or any(word.startswith("-") for word in arguments[1:] if word != "--log"):
        raise ConfigError("--resume takes one run directory and no other option but --log")
    parsed = tyro.cli(ResumeArguments, prog="paramgolf run --resume", args=arguments)
    print_results(resume(parsed.run, reporter, tracker(parsed.log, reporter)), parsed.run, reporter)


def _start(recipe: str, parsed: RunArguments, reporter: Reporter) -> None:
    from paramgolf.pipeline.session import start
    from paramgolf.pipeline.tracking import tracker

    out = Path(parsed.out or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    from_run = Path(parsed.from_run) if parsed.from_run else None
    results = start(recipe, parsed.config, out, from_run, reporter, tracker(parsed.log, reporter))
    print_results(results, out, reporter)
