"""The audit against scorers that learn in ways that no decoder can repeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring import adapters, predictor, score_first
from paramgolf.verify.audited_run import AuditedRun, load_run
from paramgolf.verify.model_checks import Losses, learned_losses
from tests.e2e import cheats

pytestmark = pytest.mark.slow

PATCHED = [
    (score_first, "score_then_learn"),
    (predictor, "score_first_losses"),
    (adapters.DocumentScorer, "_score_batch"),
]


@pytest.fixture(scope="module")
def run(score_first_run: Path) -> AuditedRun:
    return load_run(score_first_run, 1, 0, select_runtime("cpu"), Reporter())


@pytest.fixture(scope="module")
def rebuilt(run: AuditedRun) -> Losses:
    """The audit's own losses."""
    return learned_losses(run, run.config.score.stride, 4096, lambda _: None)


@pytest.fixture
def patches() -> Iterator[None]:
    honest = [getattr(owner, name) for owner, name in PATCHED]
    yield
    for (owner, name), function in zip(PATCHED, honest, strict=True):
        setattr(owner, name, function)


def excess(run: AuditedRun, rebuilt: Losses) -> float:
    """How many times the limit the losses of `scoring` and of the audit differ; see `_compare`."""
    losses = run.predictor.losses(run.stream, batch_tokens=4096).double().numpy()
    worst, mean = np.abs(losses - rebuilt).max(), abs((losses - rebuilt).mean())
    return float(max(worst / run.limits.loss, mean / run.limits.mean_loss))


def test_the_audit_computes_what_is_scored(run: AuditedRun, rebuilt: Losses) -> None:
    assert run.config.score_first.adapter_rank
    assert run.config.score_first.optimizer == "adamw"
    assert excess(run, rebuilt) < 0.1


@pytest.mark.usefixtures("patches")
@pytest.mark.parametrize(
    "cheat",
    [
        pytest.param(cheats.LATER_PART, id="matrices from the later part of the document"),
        pytest.param(cheats.LEARNED_FIRST, id="a global step before its documents are scored"),
        pytest.param(
            cheats.BETTER_OF_TWO_RATES.format(unit="document", size=10**6),
            id="a document scored twice and the better kept",
        ),
        pytest.param(cheats.ORDER_BY_LOSS, id="an order chosen by loss"),
        pytest.param(
            cheats.BETTER_OF_TWO_RATES.format(unit="chunk", size=16),
            id="a learning rate chosen by the loss of the chunk",
        ),
    ],
)
def test_what_no_decoder_can_repeat_is_caught(run: AuditedRun, rebuilt: Losses, cheat: str) -> None:
    """Condition 3: the state that scored a chunk comes from what was scored before it."""
    exec(cheat, {})
    assert excess(run, rebuilt) > 10
