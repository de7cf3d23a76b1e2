"""How long a run will take: its arithmetic over the speed of a matrix product on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

import torch

from paramgolf.config import ModelConfig, RunConfig
from paramgolf.pipeline.preflight import Finding, num_visits, num_weights
from paramgolf.runtime.console import duration
from paramgolf.runtime.device import wants_gpu

_EFFICIENCY = 0.4
"""Share of the speed of a large matrix product that training reaches, on CPUs and on GPUs."""
_COMPILE_SECONDS = 90.0
"""Of all stages on a GPU."""


def expected_seconds(
    config: RunConfig, tokens: Mapping[str, int], num_ranks: int
) -> Iterator[Finding]:
    """Estimate the time of a run, and warn of limits that it would exceed.

    Args:
        config: of the run.
        tokens: by split; a missing split has about as many as that of the recipe tiny.
        num_ranks: how many processes share the work.
    """
    speed = _EFFICIENCY * _measured_flops(config) * num_ranks
    model, train = config.model, config.train
    backward, forward = 3, 1
    plain, looped = _flops_per_token(model, False), _flops_per_token(model, True)
    share = train.recurrence_from
    training = train.max_seconds - train.reserve_seconds
    if train.max_steps:
        trained = train.max_steps * train.batch_tokens
        training = backward * trained * (share * plain + (1 - share) * looped) / speed
    val = tokens.get("val", 90_000) - 1
    adapted_on = {"none": 0, "adapt": tokens.get("adapt", 90_000), "scored": val}
    adaptation = backward * looped * config.adapt.epochs * adapted_on[config.adapt.text] / speed
    calibration = 2 * looped * config.pack.calibration_batches * (
        config.pack.calibration_batch_tokens
    ) / speed  # fmt: skip
    windows = 1 + model.seq_len / config.score.stride
    scoring = forward * looped * val * windows / speed
    learning = config.score_first
    if learning.adapter_rank:  # every window is learned from
        scoring += backward * looped * val * model.seq_len / learning.adapter_tokens / speed
    elif learning.learns:
        scoring *= 2
    if learning.optimizer != "none":
        scoring += backward * looped * val / speed
    evaluation = scoring + (adaptation if config.adapt.text == "scored" else 0)
    packing = calibration + num_weights(model) / 1e6  # about a second per million weights
    total = training + adaptation + packing + scoring
    total += _COMPILE_SECONDS if wants_gpu(config.device) else 0
    yield Finding("time", f"about {duration(total)}, of which training {duration(training)}")
    limits = config.limits
    before = packing + (adaptation if config.adapt.text == "adapt" else 0)
    if limits.training_seconds and training + before > limits.training_seconds:
        left = limits.training_seconds - before
        yield _over(
            "training", training + before, limits.training_seconds, _shorter(config, training, left)
        )
    if limits.evaluation_seconds and evaluation > limits.evaluation_seconds:
        advice = _cheaper(config, evaluation - scoring, scoring)
        yield _over("evaluation", evaluation, limits.evaluation_seconds, advice)


def _over(name: str, expected: float, limit: float, advice: str) -> Finding:
    text = f"the {name} budget is {limit:.0f} s, but about {expected:.0f} s are expected: {advice}"
    return Finding("time", text, warning=True)


def _shorter(config: RunConfig, training: float, left: float) -> str:
    """Return the option that makes training fit into the seconds that the rest leaves."""
    train = config.train
    if left <= 0:
        return "what follows training alone takes longer; lower --pack.calibration-batches"
    if train.max_steps:
        return f"set --train.max-steps {max(1, int(train.max_steps * left / training))}"
    return f"set --train.reserve-seconds {math.ceil(train.max_seconds - left)}"


def _cheaper(config: RunConfig, adaptation: float, scoring: float) -> str:
    """Return the option that makes the evaluation fit: fewer epochs, else a longer stride."""
    if config.score_first.adapter_rank:
        return "raise --score-first.adapter-tokens, lower --data.val-targets, or use more GPUs"
    limit, stride = config.limits.evaluation_seconds, config.score.stride
    if adaptation and (epochs := int(config.adapt.epochs * (limit - scoring) / adaptation)) > 0:
        return f"set --adapt.epochs {epochs} (now {config.adapt.epochs})"
    fixed, seq_len = adaptation / max(1, config.adapt.epochs), config.model.seq_len
    # Without sliding windows, a text is read once; with them, once and seq_len / stride times.
    once = scoring / (1 + seq_len / stride)
    times = (limit - fixed) / once - 1
    if times >= 1:
        less = f" and --adapt.epochs 1 (now {config.adapt.epochs})" if adaptation else ""
        return f"set --score.stride {math.ceil(seq_len / times)} (now {stride}){less}"
    return "lower --data.val-targets, or use more GPUs"


def _flops_per_token(model: ModelConfig, recurrent: bool) -> float:
    """Of a forward pass: matrix products and causal attention."""
    key_width = model.num_kv_heads * model.head_dim
    block = 2 * model.width * (2 * model.width + 2 * key_width + 2 * model.mlp_ratio * model.width)
    attention = 2 * model.seq_len * model.width
    head = 2 * model.vocab_size * model.width
    return num_visits(model, recurrent) * (block + attention) + head


def _measured_flops(config: RunConfig) -> float:
    """Floating-point operations per second of a matrix product on the device, measured briefly."""
    gpu = wants_gpu(config.device)
    size = 4096 if gpu else 512
    dtype = torch.bfloat16 if gpu else torch.float32
    matrix = torch.zeros(size, size, dtype=dtype, device="cuda" if gpu else "cpu")
    best = math.inf
    for _ in range(8):
        start = time.perf_counter()
        product = matrix @ matrix
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        del product
    return 2 * size**3 / best
