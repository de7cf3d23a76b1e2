"""How much a score may differ from its repetition: not at all where it is exact, else by noise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.runtime.rundir import this_environment

Losses = NDArray[np.float64]

_STANDARD_ERRORS = 4
_KEYS = ("platform", "cpu", "cpu_instructions", "cpu_threads")


class Limits(NamedTuple):
    """Largest differences that rounding explains, by dtype of the activations."""

    loss: float
    """Of one loss computed in batches of other shapes, in nats."""
    mean_loss: float
    """Of their mean over a text, in nats."""
    causal_loss: float
    """Of a loss after later tokens have changed, in nats: the shapes are equal."""
    logit: float
    """Of a logit after later tokens have changed."""
    probability_sum: float
    """Of the total probability of the vocabulary from 1."""
    bpb: float
    """Of a score that another machine computed: at most this, however large the noise is."""
    min_bpb: float
    """Allowed to another machine, however small the noise is: its kernels round differently."""


FLOAT32 = Limits(
    loss=1e-4, mean_loss=1e-5, causal_loss=1e-5, logit=1e-5,
    probability_sum=1e-4, bpb=2e-5, min_bpb=1e-6,
)  # fmt: skip
BFLOAT16 = Limits(
    loss=1.0, mean_loss=3e-4, causal_loss=2e-2, logit=1e-5,
    probability_sum=1e-4, bpb=1e-4, min_bpb=1e-5,
)  # fmt: skip


def limits_of(dtype: torch.dtype) -> Limits:
    """Return the limits of a model that computes in this dtype."""
    return BFLOAT16 if dtype is torch.bfloat16 else FLOAT32


class Tolerance(NamedTuple):
    """The largest difference between a reported and a recomputed score."""

    bpb: float
    nats: float
    """Standard deviation of the noise of one loss; 0 if scoring is exact."""
    why: str


def inexact(reported: dict[str, Any], on_gpu: bool, ranks: int) -> str:
    """Return why scoring here cannot repeat a run to the last digit; empty if it can.

    Args:
        reported: the run's environment.json.
        on_gpu: the run or the audit computes on a GPU.
        ranks: processes that scored together while the model learned.
    """
    if on_gpu:
        return "kernels of a GPU may round differently"
    if ranks > 1:
        return f"{ranks} ranks learned together"
    own, versions = this_environment(), reported.get("packages")
    different = [key for key in _KEYS if reported.get(key) != own[key]]
    if not isinstance(versions, dict) or versions.get("torch") != own["packages"]["torch"]:
        different.append("torch")
    return f"the run names another {' and '.join(different)}" if different else ""


def tolerance(
    difference_N: Losses, num_bytes: int, why: str, learns: bool, limits: Limits
) -> Tolerance:
    """Return what a reported score may differ by.

    Args:
        difference_N: between two ways to compute every loss, in nats.
        num_bytes: of the text.
        why: scoring cannot be exact; empty: it is. See `inexact`.
        learns: the model learned from the text, which carries noise on.
        limits: of the device.
    """
    if not why:
        return Tolerance(0.0, 0.0, "to the last digit: same processor, threads and libraries")
    nats = float(difference_N.std()) if len(difference_N) else 0.0
    noise = _STANDARD_ERRORS * nats * math.sqrt(len(difference_N)) / math.log(2) / num_bytes
    bpb = limits.bpb if learns else min(limits.bpb, max(limits.min_bpb, noise))
    return Tolerance(bpb, nats, f"limit {bpb:.1e}: {why}")
