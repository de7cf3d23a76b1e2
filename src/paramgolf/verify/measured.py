"""What the audit measures again of the stages before packing: their speed and their scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT, num_parameters
from paramgolf.optim.trainer import StepPlan, Trainer
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.records import read_environment
from paramgolf.runtime.rundir import RunDir, cpu_model
from paramgolf.stages.job import Job
from paramgolf.stages.validation import Validation
from paramgolf.verify.checks import Check, at_most, check, guarded

_MAX_FASTER = 3.0
"""How much faster than the audit a run may have trained: another process may slow the audit."""
_SECONDS, _MIN_STEPS = 5.0, 3
_MAX_HEADER_BYTES = 1 << 20
_MAX_BPB_ERROR, _MAX_BPB_ERROR_IN_BFLOAT16 = 1e-5, 1e-3


def measured(
    run: RunDir, config: RunConfig, results: dict[str, Any], runtime: Runtime
) -> Iterator[Check]:
    """Yield the checks of the speed of training and of the weights that were kept."""
    return guarded(_measured(run, config, results, runtime))


def _measured(
    run: RunDir, config: RunConfig, results: dict[str, Any], runtime: Runtime
) -> Iterator[Check]:
    yield _speed(run, config, results, runtime)
    yield from _kept_weights(run, config, results, runtime)


def _speed(run: RunDir, config: RunConfig, results: dict[str, Any], runtime: Runtime) -> Check:
    """Train a few steps, where the device is of the same kind, and compare tokens per second."""
    name, condition = "speed of training", "seconds"
    rates = results["tokens_per_second"]
    claimed = rates["train_recurrence_off"] or rates["train_recurrence_on"]
    difference = _other_device(run, config, results, runtime)
    if difference or not claimed:
        figure = difference or "no steps in the last attempt"
        return Check(name, condition, "not applicable", figure, "self-reported")
    rate = _tokens_per_second(config, runtime, recurrent=not rates["train_recurrence_off"])
    figure = f"{claimed:,.0f} tokens/s reported, {rate:,.0f} measured (limit {_MAX_FASTER:.0f}x)"
    return at_most(name, condition, claimed / rate, _MAX_FASTER, figure, "self-reported")


def _other_device(
    run: RunDir, config: RunConfig, results: dict[str, Any], runtime: Runtime
) -> str | None:
    """Return how the device of the run differs from this one; None if it does not."""
    theirs = read_environment(run)
    gpu = theirs["gpu"] if config.device != "cpu" else None
    here = torch.cuda.get_device_name() if runtime.on_gpu else None
    if results["num_ranks"]["train"] != 1:
        return f"trained by {results['num_ranks']['train']} ranks"
    if gpu != here:
        return f"trained on {gpu or 'a CPU'}, audited on {here or 'a CPU'}"
    if gpu is None and (theirs.get("cpu"), theirs["cpu_threads"]) != (
        cpu_model(),
        torch.get_num_threads(),
    ):
        threads = f"{theirs['cpu_threads']} threads"
        return f"trained on {theirs.get('cpu', 'another CPU')} with {threads}"
    return None


def _tokens_per_second(config: RunConfig, runtime: Runtime, recurrent: bool) -> float:
    """Return the speed of the fastest of several steps on random tokens.

    On a CPU, seconds in which other processes had its cores are left out.
    """
    trainer = Trainer(config, runtime)
    if runtime.accelerated:
        trainer.warm_up()
    shape = (len(trainer.share_of_batch), config.model.seq_len + 1)
    tokens = torch.randint(config.model.vocab_size, shape, dtype=torch.int32)
    tokens = tokens.to(runtime.device)
    short = (recurrent, True) in trainer.kinds()  # the faster ones, if there are any
    plan = StepPlan(recurrent, lr_factor=0.1, momentum=0.9, short=short)
    fastest, began, steps = float("inf"), time.perf_counter(), 0
    while steps < _MIN_STEPS or time.perf_counter() - began < _SECONDS:
        wall, own = time.perf_counter(), time.process_time()
        trainer.train_step(tokens, plan)
        runtime.synchronize()
        seconds = time.perf_counter() - wall
        if not runtime.on_gpu:
            seconds = min(seconds, (time.process_time() - own) / torch.get_num_threads())
        fastest, steps = min(fastest, seconds), steps + 1
    return config.train.batch_tokens / fastest


def _kept_weights(
    run: RunDir, config: RunConfig, results: dict[str, Any], runtime: Runtime
) -> Iterator[Check]:
    """Score the weights in checkpoints/ again."""
    job = Job(config, run, runtime)
    kept = {"ema": (run.trained, [])}
    if job.adapted_on:
        kept["adapted"] = (run.adapted, job.adapted_on)
    for stage, (path, adapted_on) in kept.items():
        name, condition = f"score of the weights: {stage}", "4 one pass"
        if not path.exists():
            yield Check(name, condition, "not applicable", f"{path.name} was not kept")
            continue
        model = GPT(config.model, runtime.dtype)
        try:
            require_weights_size(path, config)
            model.load_state_dict(read_tensors(path)[0])
        except (UserError, RuntimeError) as error:
            yield check(name, condition, False, " ".join(str(error).split())[:300])
            continue
        score = Validation(job).score(model.to(runtime.device), adapted_on)
        claimed = results["stages"][stage]
        exact = runtime.dtype is not torch.bfloat16
        limit = _MAX_BPB_ERROR if exact else _MAX_BPB_ERROR_IN_BFLOAT16
        reported = f"reported {claimed['bpb']:.6f} {claimed['label']}"
        figure = f"{score.bpb:.6f} BPB {score.label}, {reported}"
        close = abs(claimed["bpb"] - score.bpb) <= limit
        yield check(name, condition, close and claimed["label"] == score.label, figure)


def require_weights_size(path: Path, config: RunConfig) -> None:
    """Check that weights in checkpoints/ are no larger than the model's, before reading them.

    Raises:
        UserError: if they are.
    """
    with torch.device("meta"):
        most = 8 * num_parameters(GPT(config.model)) + _MAX_HEADER_BYTES
    if (size := path.stat().st_size) > most:
        raise UserError(
            f"{path.name} has {size:,} bytes: the model's weights take at most {most:,}"
        )
