"""`paramgolf run`, new or resumed, and the results that it prints at the end."""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from paramgolf.checked import from_json, to_json
from paramgolf.cli.common import recipe_usage
from paramgolf.cli.live import LiveReporter, standard_output
from paramgolf.cli.results import Stage, print_findings, print_results, print_stages
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError
from paramgolf.recipes import RECIPES, RENAMED, require_text, with_absolute_paths
from paramgolf.runtime.console import is_main_rank
from paramgolf.runtime.names import choose

_T = TypeVar("_T", bound=Any)


@dataclass(frozen=True)
class RunArguments:
    """Train, adapt, quantize, pack and score a model."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: str = ""
    """Run directory to create; by default runs/RECIPE-DATE-TIME."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Reuse the text and the trained weights of this run, with its seed, data, model and train; the
    rest of the configuration is the recipe's."""
    config_file: Annotated[str, tyro.conf.arg(name="config")] = ""
    """In place of a recipe: the configuration in this JSON file (config.json of a run, or part of
    one); other options override it."""
    dry_run: bool = False
    """Only check that the run can succeed, and estimate its time."""
    until: Stage = "score"
    """Stop after this stage; `paramgolf run --resume` completes the run."""
    log: Literal["none", "wandb", "tensorboard"] = "none"
    """Also send the run's metrics to this tracker."""


@dataclass(frozen=True)
class ResumeArguments:
    """Resume a run at its last checkpoint or after its last finished stage."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    until: Stage = "score"
    """Stop after this stage; `paramgolf run --resume` completes the run."""
    log: Literal["none", "wandb", "tensorboard"] = "none"
    """Also send the run's metrics to this tracker."""


def run(arguments: list[str]) -> None:
    """Run `paramgolf run`."""
    reporter = standard_output()
    if arguments and arguments[0] == "--resume":
        _resume(arguments[1:], reporter)
        return
    if not arguments or arguments[0] in ("--help", "-h"):
        reporter.text(recipe_usage("run") + "\n")
        return
    _start(*parse_recipe(RunArguments, "run", arguments), reporter)


def parse_recipe(cls: type[_T], command: str, arguments: list[str]) -> tuple[str, _T]:
    """Parse `RECIPE [--KEY VALUE ...]` and the options of a command.

    Args:
        cls: a dataclass of the options; its field `config` is the recipe's configuration.
        command: the name of the command.
        arguments: those after the command's name, starting with the recipe or with `--config FILE`.

    Returns:
        The recipe's name and the options.

    Raises:
        ConfigError: if the recipe does not exist or the value of a key is invalid.
        UserError: if a file does not exist, or the recipe's text is missing.
    """
    recipe, default, options = _defaults(arguments)
    parsed = tyro.cli(
        cls,
        prog=f"paramgolf {command} {recipe}",
        args=_flags(options),
        default=cls(config=default),
        console_outputs=is_main_rank(),
    )
    config = with_absolute_paths(parsed.config)
    if not _value_of("--from", options):
        require_text(recipe, config)
    return recipe, dataclasses.replace(parsed, config=config)


def _defaults(arguments: list[str]) -> tuple[str, RunConfig, list[str]]:
    """The recipe's name, the configuration that the options start from, and the options."""
    file = _value_of("--config", arguments)
    if not arguments[0].startswith("-"):
        if file is not None:
            raise ConfigError(f"name either the recipe {arguments[0]} or --config {file}, not both")
        recipe, *options = arguments
        _, config = choose("recipe", recipe, RECIPES, RENAMED)
    elif file is not None:
        options = arguments
        recipe, config = _read_config(Path(file))
    else:
        raise ConfigError("name a recipe first (`paramgolf run tiny`), or --config FILE")
    source_run = _value_of("--from", options)
    if source_run is not None:
        from paramgolf.runtime.rundir import RunDir

        _, _, theirs = RunDir.open(Path(source_run))
        shared = {key: getattr(theirs, key) for key in ("seed", "data", "model", "train")}
        config = dataclasses.replace(config, **shared)
    elif _value_of("--data.source", options) is not None:
        # Another text has another tokenizer, beside it or trained on it.
        data = dataclasses.replace(config.data, tokenizer="")
        config = dataclasses.replace(config, data=data)
    return recipe, config, options


def _flags(options: list[str]) -> list[str]:
    """Return the options with `--KEY True` and `--KEY False` as flags: `--KEY` and `--no-KEY`."""
    opposites = {
        f"--{section}.{key}".replace("_", "-"): f"--{section}.no-{key}".replace("_", "-")
        for section, values in to_json(RunConfig()).items()
        if isinstance(values, dict)
        for key, value in values.items()
        if isinstance(value, bool)
    }
    opposites["--dry-run"] = "--no-dry-run"
    flags: list[str] = []
    words = iter(itertools.pairwise([*options, ""]))
    for word, following in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in opposites and not equals and following in ("True", "False"):
            value = following
            next(words)
        if name in opposites and value in ("True", "False"):
            word = name if value == "True" else opposites[name]
        flags.append(word)
    return flags


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The last value of an option, given as `--option VALUE` or `--option=VALUE`."""
    value = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, inline = argument.partition("=")
        if name == option:
            value = inline if equals else following
    return value


def _read_config(path: Path) -> tuple[str, RunConfig]:
    """The recipe's name in a configuration file, and the configuration.

    Keys that the file does not have are the recipe's.
    """
    from paramgolf.runtime.files import read_json

    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains no configuration: expected a JSON object")
    recipe = str(values.pop("recipe", path.stem))
    base = RECIPES[recipe][1] if recipe in RECIPES else RunConfig()
    merged = to_json(base)
    for key, value in values.items():
        if isinstance(value, dict):
            value = {**merged.get(key, {}), **value}
        merged[key] = value
    try:
        return recipe, from_json(RunConfig, merged)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _resume(arguments: list[str], reporter: LiveReporter) -> None:
    from paramgolf.pipeline.session import resume
    from paramgolf.pipeline.tracking import tracker

    allowed = ("--log", "--until")
    if not arguments or any(
        word.startswith("-") and word.partition("=")[0] not in allowed for word in arguments[1:]
    ):
        raise ConfigError(
            "--resume takes one run directory and no other option but --log and --until"
        )
    parsed = tyro.cli(ResumeArguments, prog="paramgolf run --resume", args=arguments)
    log = tracker(parsed.log, reporter)
    _print(resume(parsed.run, reporter, log, parsed.until), parsed.run, reporter)


def _start(recipe: str, parsed: RunArguments, reporter: LiveReporter) -> None:
    from paramgolf.pipeline.session import dry_run, start
    from paramgolf.pipeline.tracking import tracker

    out = Path(parsed.out or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    from_run = Path(parsed.from_run) if parsed.from_run else None
    if from_run is not None:
        from paramgolf.pipeline.takeover import require_trained

        require_trained(from_run, parsed.config)
    if parsed.dry_run:
        print_findings(dry_run(parsed.config, out, from_run), reporter)
        return
    log = tracker(parsed.log, reporter)
    results = start(recipe, parsed.config, out, from_run, reporter, log, until=parsed.until)
    _print(results, out, reporter)


def _print(results: dict[str, Any], path: Path, reporter: LiveReporter) -> None:
    """Print the results of a run; without them, what its finished stages gave."""
    if results:
        print_results(results, path, reporter)
    else:
        print_stages(path, reporter)
