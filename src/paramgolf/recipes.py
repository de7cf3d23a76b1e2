"""The recipes: named configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paramgolf.config import (
    AdaptConfig,
    DataConfig,
    LimitsConfig,
    ModelConfig,
    PackConfig,
    RunConfig,
    ScoreConfig,
    ScoreFirstConfig,
    TrainConfig,
)
from paramgolf.errors import UserError

_TINY = RunConfig(
    data=DataConfig(source="stdlib", case_ops=True),
    model=ModelConfig(
        vocab_size=2048,
        num_layers=6,
        width=128,
        num_heads=4,
        num_kv_heads=2,
        seq_len=256,
        loop_first=2,
        loop_last=3,
        loop_visits=2,
        parallel_from=4,
    ),
    train=TrainConfig(
        max_steps=600,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        matrix_lr=0.04,
        momentum=0.95,
        momentum_start=0.85,
        momentum_warmup_share=0.333,
        ema_share=0.055,
    ),
    adapt=AdaptConfig(
        text="adapt",
        epochs=3,
        lr=2e-4,
        final_lr=2e-5,
        chunk_tokens=4096,
        frozen_blocks=1,
        score_every_epoch=False,
    ),
    pack=PackConfig(
        calibration_batches=32,
        calibration_batch_tokens=2048,
        budget_bytes=650_000,
    ),
    score=ScoreConfig(stride=64, batch_tokens=8192),
)

_RECORD = RunConfig(
    data=DataConfig(source="data/fineweb-sp8192", val_targets=40_540_160),
    train=TrainConfig(checkpoint_seconds=0),
    adapt=AdaptConfig(text="scored"),
    limits=LimitsConfig(training_seconds=600, evaluation_seconds=600),
)

_H200 = RunConfig(
    data=DataConfig(source="corpus", tokenizer="corpus/sp8192.model", val_targets=2_883_584),
    train=TrainConfig(
        max_seconds=180,
        reserve_seconds=0,
        batch_tokens=196_608,
        momentum_warmup_share=0.38,
        ema_share=0.05,
        checkpoint_seconds=0,
    ),
    adapt=AdaptConfig(text="none", epochs=6),
    pack=PackConfig(calibration_batches=128),
)

_BEST = replace(
    _H200,
    data=DataConfig(source="corpus", case_ops=True, val_bytes=10_597_930),
    train=replace(
        _H200.train,
        batch_tokens=98_304,
        recurrence_from=0.5,
        short_until=0.4,
        warmdown_share=1.0,
        matrix_lr=0.05,
        matrix_weight_decay=0.1,
        momentum=0.95,
        momentum_warmup_share=0.08,
        embedding_lr=0.06,
    ),
)

RECIPES: dict[str, tuple[str, RunConfig]] = {
    "tiny": (
        "minutes on a 2-core CPU; text of Python's library, no download",
        _TINY,
    ),
    "record": (
        "the reference (PR #1735): 16 MB, 8 GPUs, FineWeb; in-sample",
        _RECORD,
    ),
    "h200": ("one GPU, about 10 minutes; the model of record, trained 180 s", _H200),
    "best": ("h200 with CaseOps and with settings of training chosen for 180 s", _BEST),
    "tiny-score-first": (
        "tiny that learns from the text while it scores it (score-first)",
        replace(
            _TINY,
            score_first=ScoreFirstConfig(adapter_rank=8, adapter_lr=5e-3, adapter_tokens=32),
        ),
    ),
    "h200-score-first": (
        "h200 that learns from the text while it scores it (score-first)",
        replace(_H200, score_first=ScoreFirstConfig("adamw")),
    ),
    "h200-in-sample": (
        "h200, then 6 epochs on the scored text, as the reference does",
        replace(_H200, adapt=replace(_H200.adapt, text="scored")),
    ),
}
"""Description and configuration of every recipe, by name."""
RENAMED = {"legal": "tiny-score-first", "h200-legal": "h200-score-first"}
"""The names of today by former ones."""


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths, so that a run can be resumed from anywhere."""
    data = config.data
    source = data.source if data.source == "stdlib" else str(Path(data.source).resolve())
    tokenizer = str(Path(data.tokenizer).resolve()) if data.tokenizer else ""
    return replace(config, data=replace(data, source=source, tokenizer=tokenizer))


_BENCH_TEXT = (
    "{folder} is not a directory: recipe {recipe} needs a text; put train.jsonl.xz and "
    "val.jsonl.xz there (h200 also reads sp8192.model), or use your own: "
    "`paramgolf data build FILES... --out data/mine --vocab-size 8192`, then "
    "`paramgolf run {recipe} --data.source data/mine`"
)
_CHALLENGE_TEXT = (
    "{folder} is not a directory: recipe {recipe} needs the challenge's shards; get them with "
    "`paramgolf data fetch fineweb --variant sp8192 --train-shards 0`"
)


def require_text(recipe: str, config: RunConfig) -> None:
    """Check that the text of a recipe exists, if it is not one that the user named.

    Raises:
        UserError: with the commands that get it.
    """
    expected = RECIPES[recipe][1].data.source if recipe in RECIPES else "stdlib"
    folder = Path(config.data.source)
    if expected != "stdlib" and folder == Path(expected).resolve() and not folder.is_dir():
        help_text = _CHALLENGE_TEXT if recipe == "record" else _BENCH_TEXT
        raise UserError(help_text.format(folder=folder, recipe=recipe))
