"""Logging of a run's events to Weights & Biases or TensorBoard while it runs (optional extras).

They receive the events of `events.jsonl`; no other part of a run depends on them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal

from paramgolf.checked import to_json
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.rundir import Listener, RunDir

_TRAIN = ("loss_nats", "tokens_per_second", "lr_factor", "elapsed_seconds")
_EPOCH = ("train_loss_nats", "bpb")


def tracker(
    log: Literal["none", "wandb", "tensorboard"], reporter: Reporter
) -> Callable[[RunDir], Listener] | None:
    """Return a function that opens the log of a run and returns the listener for its events.

    Raises:
        ConfigError: if the package is not installed.
    """
    if log == "none":
        return None
    if importlib.util.find_spec(log) is None:
        raise ConfigError(f"--log {log} needs the package {log}: pip install 'paramgolf[{log}]'")
    open_log = {"wandb": _wandb, "tensorboard": _tensorboard}[log]
    return lambda run: guarded(run, open_log, reporter)


def guarded(run: RunDir, open_log: Callable[[RunDir], Listener], reporter: Reporter) -> Listener:
    """Open a log whose failures do not end the run: it reports them and continues without the log.

    Raises:
        UserError: if the log cannot be opened.
    """
    try:
        listener = open_log(run)
    except Exception as error:
        raise UserError(
            f"cannot open the log: {error}; then resume with `paramgolf run --resume {run.path}`"
        ) from error

    def listen(kind: str, values: dict[str, Any]) -> None:
        try:
            listener(kind, values)
        except Exception as error:
            run.listener = None
            reason = f"{type(error).__name__}: {error}"
            run.event("log_failed", reason=reason)
            reporter.line(f"  log       failed; the run continues without it: {reason}")

    return listen


def figures(kind: str, values: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of every figure of an event that a log shows."""
    match kind:
        case "train":
            for name in _TRAIN:
                yield f"train/{name}", values[name], values["step"]
        case "adapt_epoch":
            for name in _EPOCH:
                if name in values:
                    yield f"adapt/{name}", values[name], values["epoch"]
        case "score":
            yield f"bpb/{values['of']} ({values['label']})", values["bpb"], 0
        case "stage_finished":
            yield f"seconds/{values['stage']}", values["seconds"], 0


def _wandb(run: RunDir) -> Listener:
    import wandb

    _, recipe, config = RunDir.open(run.path)
    opened = wandb.init(
        project="paramgolf",
        name=run.path.name,
        dir=run.path,
        config={"recipe": recipe, **to_json(config)},
    )
    # Stages count their steps separately, so each group has its own axis.
    for group in ("train", "adapt"):
        opened.define_metric(f"{group}/step")
        opened.define_metric(f"{group}/*", step_metric=f"{group}/step")

    def listen(kind: str, values: dict[str, Any]) -> None:
        for name, value, step in figures(kind, values):
            group = name.split("/")[0]
            if group in ("train", "adapt"):
                opened.log({name: value, f"{group}/step": step})
            else:
                opened.summary[name] = value
        if kind == "run_finished":
            opened.finish()

    return listen


def _tensorboard(run: RunDir) -> Listener:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"))

    def listen(kind: str, values: dict[str, Any]) -> None:
        for name, value, step in figures(kind, values):
            writer.add_scalar(name, value, step)
        writer.flush()
        if kind == "run_finished":
            writer.close()

    return listen
