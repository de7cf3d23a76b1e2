"""Planted cheats in what is written about a run: its results, its audit, its submission."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.runtime.files import read_tensors, write_json, write_tensors
from tests.e2e.command import Cli
from tests.e2e.mini import read_results

Scores = dict[str, dict[str, Any]]
Tensors = dict[str, torch.Tensor]

_CODED = ("--bytes", "3000")


def rewrite(run: Path, scores: Callable[[Scores], None], losses: Callable[[Tensors], None]) -> None:
    """Change the scores in results.json and the losses in documents.safetensors."""
    results = read_results(run)
    scores(results["stages"])
    write_json(run / "results.json", results)
    tensors, notes = read_tensors(run / "documents.safetensors")
    losses(tensors)
    write_tensors(run / "documents.safetensors", tensors, **notes)


def unchanged(_: Any) -> None:
    pass


def scaled(share: float) -> tuple[Callable[[Scores], None], Callable[[Tensors], None]]:
    """Return changes that make every packed score smaller, in both files alike."""

    def scores(stages: Scores) -> None:
        for name in ("quantized", "sliding"):
            stages[name]["bpb"] *= share
            stages[name]["loss_nats"] *= share

    def losses(tensors: Tensors) -> None:
        for name in ("quantized", "sliding"):
            tensors[name] *= share

    return scores, losses


def all_half(stages: Scores) -> None:
    for score in stages.values():
        score["bpb"] = 0.5


def over_more_bytes(stages: Scores) -> None:
    for score in stages.values():
        score["bytes"] *= 2
        score["bpb"] /= 2


def more_bytes(tensors: Tensors) -> None:
    tensors["bytes"] *= 2


def test_results_that_their_own_losses_contradict_are_not_proven(cli: Cli, run_copy: Path) -> None:
    rewrite(run_copy, all_half, unchanged)
    said = cli.error("prove", run_copy, *_CODED)
    assert "not proven: results.json of" in said
    assert "reports bpb 0.500000 for quantized, but its losses" in said


def test_bytes_that_the_text_does_not_have_are_not_proven(cli: Cli, run_copy: Path) -> None:
    rewrite(run_copy, over_more_bytes, unchanged)
    assert "bytes of text, its documents have" in cli.error("prove", run_copy, *_CODED)
    rewrite(run_copy, unchanged, more_bytes)
    assert "bytes of text, its documents have" in cli.error("prove", run_copy, *_CODED)


@pytest.mark.parametrize("share", [0.1, 0.97])
def test_losses_that_no_stream_reaches_are_not_proven(
    cli: Cli, run_copy: Path, share: float
) -> None:
    """Also of a short text: 3 % of its stream are less than the 64 bytes once allowed."""
    rewrite(run_copy, *scaled(share))
    result = cli("prove", run_copy, *_CODED)
    assert result.code == 1
    assert "bit for bit, by another process" in result.stdout
    assert "verdict   not proven" in result.stdout
    assert " is not proven: the stream takes " in result.stderr
    assert "the reported losses of these documents claim " in result.stderr
