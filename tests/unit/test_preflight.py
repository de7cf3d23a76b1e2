"""What is found before a run begins: text, budget, memory, disk, time."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paramgolf.config import LimitsConfig, RunConfig
from paramgolf.data.shards import write_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.pipeline import estimate
from paramgolf.pipeline import preflight as module
from paramgolf.pipeline.estimate import expected_seconds
from paramgolf.pipeline.preflight import preflight
from paramgolf.pipeline.session import remove_unprepared
from paramgolf.recipes import RECIPES
from paramgolf.runtime.files import exclusive
from paramgolf.runtime.rundir import RunDir
from tests.e2e.mini import mini_config

TEXT = "some words of a small text that is long enough to be cut into documents"


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **values)}
    )


def write_jsonl(folder: Path, **documents: int) -> Path:
    folder.mkdir()
    for split, count in documents.items():
        lines = [json.dumps({"text": f"{split} {i} " + TEXT}) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n" if lines else "")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    random = np.random.default_rng(0)
    texts = ["".join(map(chr, random.integers(97, 123, 9))) for _ in range(2000)]
    texts = [" ".join(texts[i : i + 40]) for i in range(0, 2000, 40)]
    return Tokenizer(train_tokenizer(texts, 300))


@pytest.fixture
def shards(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    def write(**tokens: int) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        for split, count in tokens.items():
            stream = np.full(count, 70, np.uint16)
            stream[::100] = tokenizer.bos
            write_shard(folder / f"text_{split}_000000.bin", stream)
        return folder

    return write


def mini(source: Path, **data: Any) -> RunConfig:
    config = changed(mini_config(source), "data", **data)
    return changed(config, "model", vocab_size=300)


def message(config: RunConfig, out: Path) -> str:
    with pytest.raises(UserError) as raised:
        preflight(config, out)
    assert not out.exists()
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("recipe", ["tiny", "tiny-score-first"])
def test_a_recipe_that_needs_nothing(recipe: str, tmp_path: Path) -> None:
    findings = preflight(RECIPES[recipe][1], tmp_path / "run")
    assert {finding.name for finding in findings} == {"text", "bytes", "memory", "disk", "time"}
    assert not any(finding.warning for finding in findings)
    assert not (tmp_path / "run").exists()


def test_a_missing_text_names_the_folder(tmp_path: Path) -> None:
    said = message(mini(tmp_path / "nowhere"), tmp_path / "run")
    assert "nowhere" in said
    assert "is not a directory" in said
    (tmp_path / "empty").mkdir()
    assert "data build" in message(mini(tmp_path / "empty"), tmp_path / "run")


def test_json_lines_have_no_adaptation_text_without_a_cut(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "text", train=5, val=5)
    config = mini(source, val_targets=0)
    assert "--adapt.text none" in message(config, tmp_path / "run")
    assert preflight(changed(config, "adapt", text="none"), tmp_path / "run")
    assert preflight(mini(source, val_targets=10), tmp_path / "run")
    assert preflight(mini(source, val_targets=0, val_bytes=10), tmp_path / "run")
    rest = mini(source, val_targets=0, val_bytes=10, val_part="rest")
    assert "--data.val-part first" in message(rest, tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val"])
def test_json_lines_need_both_splits(split: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "text", train=5, val=5)
    (source / f"{split}.jsonl").write_text("")
    assert "contains no document" in message(mini(source), tmp_path / "run")


@pytest.mark.parametrize(
    ("tokens", "targets", "works"),
    [
        ({"train": 2000, "val": 500, "adapt": 200}, 0, True),
        ({"train": 2000, "val": 500}, 0, False),
        ({"train": 2000, "val": 500}, 250, True),
        ({"train": 2000, "val": 500}, 450, False),  # the rest begins in the last document
        ({"train": 2000, "val": 500, "adapt": 40}, 0, False),  # shorter than a sequence of 64
    ],
)
def test_shards_and_their_adaptation_text(
    tokens: dict[str, int], targets: int, works: bool, shards: Callable[..., Path], tmp_path: Path
) -> None:
    config = mini(shards(**tokens), val_targets=targets)
    if works:
        assert preflight(config, tmp_path / "run")
    else:
        assert "adapt.text" in message(config, tmp_path / "run")
        assert preflight(changed(config, "adapt", text="none"), tmp_path / "run")


@pytest.mark.parametrize(("val_bytes", "targets"), [(200, 202), (247, 249), (248, 250)])
def test_bytes_of_shards_are_counted_as_targets_are(
    val_bytes: int, targets: int, shards: Callable[..., Path], tmp_path: Path
) -> None:
    """Every 100th of these tokens is BOS, and every other one a byte."""
    source = shards(train=2000, val=500)
    cuts = {
        "targets": {"val_targets": targets},
        "bytes": {"val_targets": 0, "val_bytes": val_bytes},
    }
    said = {
        (how, part): preflight(
            changed(mini(source, **cut, val_part=part), "adapt", text="none"), tmp_path / "run"
        )[0].text
        for how, cut in cuts.items()
        for part in ("first", "rest")
    }
    assert said["targets", "first"] == said["bytes", "first"]
    assert f"val {targets + 1}, adapt 200 tokens" in said["bytes", "first"]
    assert said["targets", "rest"] == said["bytes", "rest"]
    assert "val 200 tokens" in said["bytes", "rest"]


def test_few_validation_documents_are_a_warning(
    shards: Callable[..., Path], tmp_path: Path
) -> None:
    config = mini(shards(train=2000, val=400, adapt=200), val_targets=0)
    warnings = [finding.text for finding in preflight(config, tmp_path / "run") if finding.warning]
    assert any("has 4 of" in text and "0.20 BPB" in text for text in warnings)


def test_another_vocabulary_names_the_right_one(
    shards: Callable[..., Path], tmp_path: Path
) -> None:
    config = changed(mini(shards(train=2000, val=400, adapt=200)), "model", vocab_size=512)
    assert "--model.vocab-size 300" in message(config, tmp_path / "run")


def test_a_budget_below_the_code_names_one_that_works(tmp_path: Path) -> None:
    config = changed(RECIPES["tiny"][1], "pack", budget_bytes=1000)
    said = message(config, tmp_path / "run")
    assert "pack.budget_bytes = 1,000" in said
    wanted = int(said.split("expected ")[1].split(" or more")[0].replace(",", ""))
    config = changed(config, "pack", budget_bytes=wanted)
    assert any(f.name == "bytes" and f.warning for f in preflight(config, tmp_path / "run"))


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_total_memory", lambda: 100_000_000)
    assert "--train.micro-batch-tokens" in message(RECIPES["tiny"][1], tmp_path / "run")


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    assert "too little space" in message(RECIPES["tiny"][1], tmp_path / "deep" / "run")


def test_a_limit_that_cannot_hold_is_a_warning(tmp_path: Path) -> None:
    config = changed(RECIPES["tiny"][1], "limits", evaluation_seconds=0.001)
    warnings = [finding.text for finding in preflight(config, tmp_path / "run") if finding.warning]
    assert any("evaluation budget" in text for text in warnings)


@pytest.mark.parametrize(
    ("limits", "adapt", "option"),
    [
        ({"evaluation_seconds": 400}, {"epochs": 21}, "--adapt.epochs"),
        ({"evaluation_seconds": 30}, {"text": "none"}, "--score.stride"),
        ({"evaluation_seconds": 40}, {"epochs": 1}, "--score.stride"),
        ({"evaluation_seconds": 1}, {"text": "none"}, "--data.val-targets"),
        ({"training_seconds": 600}, {}, "--train.reserve-seconds"),
        ({"training_seconds": 30}, {}, "--pack.calibration-batches"),
    ],
)
def test_the_advised_option_keeps_the_limit(
    limits: dict[str, int], adapt: dict[str, Any], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the speed of eight GPUs, without them: the recipe `record` and what it is told to set."""
    monkeypatch.setattr(estimate, "_measured_flops", lambda _: 3e14)
    config = dataclasses.replace(RECIPES["record"][1], limits=LimitsConfig(**limits), device="cpu")
    config = changed(changed(config, "adapt", **adapt), "train", reserve_seconds=0)
    tokens = {"train": 8_000_000_000, "val": 40_540_161}
    (warning,) = (found.text for found in expected_seconds(config, tokens, 8) if found.warning)
    assert option in warning
    for section, key, value in re.findall(r"--(\w+)\.([\w-]+) (\d+)", warning):
        config = changed(config, section, **{key.replace("-", "_"): int(value)})
    warned = any(found.warning for found in expected_seconds(config, tokens, 8))
    assert warned == (not re.search(option + r" \d", warning))


def test_the_bits_of_a_bin_width_are_those_of_a_quantized_normal() -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    for width in (0.1575, 0.4145, 1.0):
        counts = torch.bincount((values / width).round().long() + 200).double()
        shares = counts[counts > 0] / counts.sum()
        assert module._entropy_bits(width) == pytest.approx(
            float(-(shares * shares.log2()).sum()), abs=0.07
        )


def test_only_an_abandoned_run_without_text_is_removed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "tiny", RECIPES["tiny"][1])
    with exclusive(run.path):  # as another process that resumes it does
        remove_unprepared(run)
        assert run.config_file.exists()
    run.finish_stage("prepare", {})
    remove_unprepared(run)
    assert run.config_file.exists()
    run.stage_file("prepare").unlink()
    remove_unprepared(run)
    assert not run.path.exists()
