"""Checks, and whether a stored audit is about the files of its run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from paramgolf.recipes import RECIPES
from paramgolf.verify.books import limits_in_words
from paramgolf.verify.checks import at_most, audit_is_current
from tests.written_runs import write_audit, write_run


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [(1.0, "pass"), (1.1, "FAIL"), (-9.0, "pass"), (math.nan, "FAIL"), (-math.inf, "FAIL")],
)
def test_no_number_that_is_not_finite_passes(measured: float, outcome: str) -> None:
    assert at_most("a check", "bytes", measured, 1.0, "").outcome == outcome


@pytest.mark.parametrize(
    ("recipe", "changed", "words"),
    [
        ("tiny", {}, "650,000 bytes, unlimited training time and unlimited evaluation time"),
        ("record", {}, "16,000,000 bytes, 600 s of training and 600 s of evaluation"),
        (
            "tiny",
            {"pack.budget_bytes": 900_000},
            "900,000 bytes, unlimited training time and unlimited evaluation time (recipe tiny has "
            "650,000 bytes)",
        ),
        (
            "record",
            {"limits.training_seconds": 6000.0, "limits.evaluation_seconds": 0.0},
            "16,000,000 bytes, 6,000 s of training and unlimited evaluation time "
            "(recipe record has 600 s of training, 600 s of evaluation)",
        ),
    ],
)
def test_limits_that_were_raised_are_named(
    recipe: str, changed: dict[str, float], words: str
) -> None:
    """Nothing in the files shows when they were raised, so the verdict states them."""
    config = RECIPES[recipe][1]
    for key, value in changed.items():
        section, name = key.split(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    assert limits_in_words(recipe, config) == words
    alone = words.partition(" (")[0]
    assert limits_in_words("a recipe of somebody", config) == alone


@pytest.mark.parametrize(
    "name",
    ["model.bin", "train_gpt.py", "config.json", "results.json", "events.jsonl", "stages/pack.json",
     "environment.json", "provenance.safetensors", "tokenizer.model", "documents.safetensors"],
)  # fmt: skip
def test_an_audit_is_of_the_very_files(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert not audit_is_current(run)
    write_audit(run)
    assert audit_is_current(run)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content + b" ")
    assert not audit_is_current(run)
    (run / name).unlink()
    assert not audit_is_current(run)
    (run / name).write_bytes(content)
    assert audit_is_current(run)
    (run / "stages" / "another.json").write_text("{}")
    assert not audit_is_current(run)


@pytest.mark.parametrize("content", ["", "[]", '{"files": null}', '{"files": {}}', "{}"])
def test_no_other_file_is_an_audit(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "audit.json").write_text(content)
    assert not audit_is_current(run)
