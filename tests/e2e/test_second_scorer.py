"""`paramgolf score` against tests/reference.py, which knows only exported weights and the text."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paramgolf.compress.artifact import Artifact, encode
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import scales_from_exponents
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.model.roles import QUANTIZED_ROLES, input_of, role
from tests.e2e.command import Cli
from tests.e2e.mini import table_rows, texts_of
from tests.helpers import random_model, small_config
from tests.reference import Scorer, bits_per_byte, encoded, impossible_successors

MODELS: dict[str, dict[str, Any]] = {
    "both kinds of blocks": {},
    "sequential, odd visits": {
        "num_layers": 5, "loop_first": 1, "loop_last": 2, "loop_visits": 2, "parallel_from": 5,
    },
    "parallel, no loop": {
        "parallel_from": 0, "loop_visits": 1, "num_kv_heads": 4, "rotary_dims": 8,
        "rotary_base": 50.0,
    },
    "all looped, odd skips": {
        "num_layers": 3, "loop_first": 0, "loop_last": 2, "num_kv_heads": 1, "parallel_from": 1,
    },
    "one block": {
        "num_layers": 1, "loop_first": 0, "loop_last": 0, "loop_visits": 1, "parallel_from": 1,
        "mlp_ratio": 3, "logit_softcap": 30.0,
    },
    "one block, visited three times": {
        "num_layers": 1, "loop_first": 0, "loop_last": 0, "parallel_from": 0, "num_heads": 2,
        "width": 24, "rotary_dims": 6, "seq_len": 33,
    },
}  # fmt: skip
STRIDES = [0, 2, 5]
NUM_CHARS = 400
VOCAB = 400


def random_artifact(config: ModelConfig, seed: int, tokenizer: bytes) -> Artifact:
    """A model without neutral parameters, quantized with random scales."""
    generator = torch.Generator().manual_seed(seed)
    matrices, vectors, columns = {}, {}, {}
    for name, parameter in random_model(config, seed, torch.float32).named_parameters():
        weights = parameter.detach()
        if role(name) not in QUANTIZED_ROLES:
            vectors[name] = weights.bfloat16()
            continue
        exponents = torch.randint(-4, 5, (weights.size(1),), generator=generator)
        shared = columns.setdefault(input_of(name), scales_from_exponents(exponents))
        notch = torch.log2(weights.abs().amax(dim=1) / 40) * 8
        rows = scales_from_exponents(notch.round().long())
        integers = (weights / (rows.float()[:, None] * shared.float())).round().clamp(-127, 127)
        matrices[name] = Quantized(integers.to(torch.int8), rows, shared)
    digest = hashlib.sha256(tokenizer).hexdigest()
    return Artifact(config, digest, "0" * 64, 7, ScoreFirstConfig(), matrices, vectors)


@pytest.fixture(scope="module")
def tokenizer(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of VOCAB pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(texts_of(source, "train"), VOCAB))
    return path


@pytest.fixture(scope="module")
def impossible(tokenizer: Path) -> NDArray[np.bool_]:
    return impossible_successors(tokenizer, user_defined="\n")


@pytest.fixture(scope="module")
def texts(source: Path) -> list[str]:
    """Documents of several lengths, one of them of a single character."""
    whole = texts_of(source, "val")[0]
    cuts = sorted(random.Random(0).sample(range(1, NUM_CHARS), 3))
    return ["x", *(whole[a:b] for a, b in zip([0, *cuts], [*cuts, NUM_CHARS], strict=True))]


@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_those_of_a_second_scorer(
    cli: Cli,
    tokenizer: Path,
    impossible: NDArray[np.bool_],
    texts: list[str],
    name: str,
    tmp_path: Path,
) -> None:
    """Loss by loss, for plain and sliding windows: 1e-6 nats in the mean."""
    config = small_config(vocab_size=VOCAB, **MODELS[name])
    artifact = random_artifact(config, len(name), tokenizer.read_bytes())
    model, text = tmp_path / "model.bin", tmp_path / "text.jsonl"
    model.write_bytes(encode(artifact)[0])
    cli.output("export", model, "--out", tmp_path / "weights")
    lines = [json.dumps({"text": document}) + "\n" for document in texts]
    text.write_text("".join(lines))

    scorer, tokens = Scorer(tmp_path / "weights", impossible), encoded(tokenizer, texts)
    for stride in STRIDES:
        losses = tmp_path / f"losses{stride}.npy"
        printed = cli.output(
            "score", model, text, "--tokenizer", tokenizer, "--device", "cpu",
            "--stride", str(stride), "--losses", losses,
        )  # fmt: skip
        expected = scorer.losses(tokens, stride)
        found = np.load(losses)
        assert found.mean() == pytest.approx(expected.mean(), rel=0, abs=1e-6)
        assert np.abs(found - expected).max() < 5e-5, "errors that cancel in the mean"
        row = table_rows(printed)[0]
        assert row[1] == f"{bits_per_byte(expected, texts):.4f}"
        assert row[3] == f"{len(tokens) - 1:,}"

    losses = tmp_path / "rolling.npy"
    printed = cli.output(
        "score", model, text, "--tokenizer", tokenizer, "--device", "cpu",
        "--rolling", "--losses", losses,
    )  # fmt: skip
    documents = [scorer.rolling_losses(encoded(tokenizer, [document])) for document in texts]
    lengths = [len(document) for document in documents]
    assert min(lengths) < config.seq_len < max(lengths)
    expected = np.concatenate(documents)
    assert np.abs(np.load(losses) - expected).max() < 5e-5
    assert table_rows(printed)[0][1] == f"{bits_per_byte(expected, texts):.4f}"
