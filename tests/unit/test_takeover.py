"""The choice of the run from which a new one takes stages over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paramgolf.errors import ConfigError, UserError
from paramgolf.pipeline.takeover import best_source, require_trained
from paramgolf.recipes import RECIPES
from paramgolf.runtime.rundir import RunDir
from tests.written_runs import STAGE_RESULTS

TINY = RECIPES["tiny"][1]
OTHER_ADAPTATION = replace(TINY, adapt=replace(TINY.adapt, epochs=TINY.adapt.epochs + 1))
OTHER_PACKING = replace(TINY, pack=replace(TINY.pack, budget_bytes=500_000))


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Runs that have finished different stages, by name."""
    finished = {
        "trained": (OTHER_ADAPTATION, ("prepare", "train", "adapt")),
        "adapted": (TINY, ("prepare", "train", "adapt")),
        "trained too": (TINY, ("prepare", "train")),
        "in training": (TINY, ("prepare",)),
        "of another seed": (replace(TINY, seed=1), ("prepare", "train", "adapt")),
    }
    for name, (config, stages) in finished.items():
        run = RunDir.create(tmp_path / name, "tiny", config)
        for stage in stages:
            run.finish_stage(stage, STAGE_RESULTS[stage])
    return {name: tmp_path / name for name in [*finished, "not there"]}


def test_the_run_with_most_usable_stages_is_chosen(runs: dict[str, Path]) -> None:
    assert best_source(OTHER_PACKING, runs.values()) == runs["adapted"]
    assert best_source(OTHER_ADAPTATION, runs.values()) == runs["trained"]
    more = replace(TINY, adapt=replace(TINY.adapt, epochs=TINY.adapt.epochs + 2))
    assert best_source(more, [runs["in training"], runs["trained too"]]) == runs["trained too"]


def test_the_text_alone_is_taken_over_where_the_weights_would_differ(runs: dict[str, Path]) -> None:
    longer = replace(TINY, train=replace(TINY.train, max_steps=7))
    deeper = replace(TINY, seed=5, model=replace(TINY.model, num_layers=8))
    for config in (longer, deeper):
        assert best_source(config, [runs["not there"], runs["in training"]]) == runs["in training"]
        with pytest.raises(ConfigError, match="only adapt, pack and score may change"):
            require_trained(runs["adapted"], config)
    with pytest.raises(UserError, match="has not finished the stage 'train'"):
        require_trained(runs["in training"], TINY)


def test_no_run_is_chosen_if_none_is_usable(runs: dict[str, Path]) -> None:
    other_text = replace(TINY, data=replace(TINY.data, val_share=0.2))
    other_tokenizer = replace(TINY, model=replace(TINY.model, vocab_size=1024))
    assert best_source(other_text, runs.values()) is None
    assert best_source(other_tokenizer, runs.values()) is None
    assert best_source(TINY, [runs["not there"]]) is None
    assert best_source(TINY, []) is None
