"""Configurations, splits, JSON Lines and text files: everything that comes in is checked."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from paramgolf.checked import from_json, to_json
from paramgolf.config import RunConfig
from paramgolf.data.corpus import split_by_hash
from paramgolf.data.documents import Document, find_jsonl, read_jsonl, read_text
from paramgolf.errors import ConfigError, UserError
from paramgolf.recipes import RECIPES
from tests.helpers import one_line

TINY = RECIPES["tiny"][1]


# Configuration.


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe: str) -> None:
    config = RECIPES[recipe][1]
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(RunConfig, json.loads(text)) == config


def test_recipes_differ_and_are_described() -> None:
    configs = [json.dumps(to_json(config)) for _, config in RECIPES.values()]
    assert len(set(configs)) == len(configs) >= 4
    assert all(purpose and "\n" not in purpose for purpose, _ in RECIPES.values())


def test_a_changed_value_survives_json() -> None:
    changed = replace(TINY, seed=2**63 - 1, train=replace(TINY.train, ema_share=0.1 + 0.2))
    read = from_json(RunConfig, json.loads(json.dumps(to_json(changed))))
    assert read == changed != TINY
    assert read.train.ema_share == 0.30000000000000004


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TINY.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_an_integer_is_accepted_for_a_float_and_becomes_one() -> None:
    values = to_json(TINY)
    values["train"]["max_seconds"] = 60
    seconds = from_json(RunConfig, values).train.max_seconds
    assert seconds == 60.0
    assert type(seconds) is float


def refusal(changes: dict[str, Any]) -> str:
    """Return the message that refuses the tiny recipe with these keys changed."""
    values = to_json(TINY)
    for key, value in changes.items():
        *sections, name = key.split(".")
        table = values
        for section in sections:
            table = table[section]
        table[name] = value
    with pytest.raises(ConfigError) as error:
        from_json(RunConfig, values)
    assert error.value.exit_code == 2
    assert isinstance(error.value, UserError)
    return one_line(error)


INVALID: list[tuple[str, Any, str]] = [
    ("seed", -1, "between 0 and 2^63 - 1"),
    ("seed", 2**63, "between 0 and 2^63 - 1"),
    ("data.source", "", "stdlib"),
    ("data.val_share", -0.1, "between 0 and 1"),
    ("data.val_share", 1.5, "between 0 and 1"),
    ("data.adapt_share", math.nan, "between 0 and 1"),
    ("data.val_bytes", -1, "0 or more"),
    ("data.val_targets", -1, "0 or more"),
    ("data.val_part", "last", "one of first, rest"),
    ("data.val_part", "rest", "a cut by data.val_bytes"),
    ("data.shard_tokens", 0, "greater than 0"),
    ("model.vocab_size", 0, "between 257"),
    ("model.vocab_size", 256, "257"),
    ("model.vocab_size", 65_537, "65,536"),
    ("model.num_layers", 0, "between 1 and 256"),
    ("model.width", -128, "greater than 0"),
    ("model.num_heads", 0, "greater than 0"),
    ("model.num_kv_heads", 0, "greater than 0"),
    ("model.mlp_ratio", 0, "greater than 0"),
    ("model.seq_len", 0, "between 1 and 65,536"),
    ("model.rotary_base", 0.0, "greater than 0"),
    ("model.rotary_base", math.nan, "greater than 0"),
    ("model.logit_softcap", -30.0, "greater than 0"),
    ("model.loop_visits", 0, "between 1 and 64"),
    ("model.rotary_dims", 15, "even"),
    ("model.rotary_dims", 2, "over 2"),
    ("model.parallel_from", -1, "between 0 and"),
    ("model.parallel_from", 7, "model.num_layers = 6"),
    ("train.max_seconds", 0.0, "greater than 0"),
    ("train.max_steps", -1, "0 (by the clock) or more"),
    ("train.batch_tokens", 0, "between 1 and 67,108,864"),
    ("train.micro_batch_tokens", -4096, "between 1 and 1,048,576"),
    ("train.reserve_seconds", -1.0, "at least 0"),
    ("train.recurrence_from", 1.01, "between 0 and 1"),
    ("train.warmdown_share", -0.01, "between 0 and 1"),
    ("train.matrix_lr", 0.0, "greater than 0"),
    ("train.embedding_lr", math.nan, "greater than 0"),
    ("train.vector_lr", -1.0, "greater than 0"),
    ("train.momentum", 1.0, "below 1"),
    ("train.momentum_start", -0.1, "at least 0"),
    ("train.ema_share", 0.0, "above 0"),
    ("train.momentum_warmup_share", 1.5, "between 0 and 1"),
    ("train.matrix_weight_decay", -0.1, "0 or more"),
    ("train.embedding_weight_decay", math.nan, "0 or more"),
    ("train.vector_weight_decay", -0.1, "0 or more"),
    ("train.short_until", 1.5, "between 0 and 1"),
    ("train.grad_clip", 0.0, "greater than 0"),
    ("train.warmup_steps", 0, "greater than 0"),
    ("train.checkpoint_seconds", -1.0, "0 or more"),
    ("adapt.epochs", 0, "between 1 and 1,000"),
    ("adapt.lr", 0.0, "greater than 0"),
    ("adapt.final_lr", -1e-5, "between 0 and"),
    ("adapt.chunk_tokens", 0, "between 1 and 1,048,576"),
    ("adapt.frozen_blocks", -1, "0 or more"),
    ("adapt.grad_clip", 0.0, "greater than 0"),
    ("pack.split", "columns", "one of measured, uniform"),
    ("pack.matrix_bin_width", 0.019, "between 0.02 and 2"),
    ("pack.matrix_bin_width", 2.1, "between 0.02 and 2"),
    ("pack.embedding_bin_width", 0.0, "between 0.02 and 2"),
    ("pack.embedding_bin_width", float("nan"), "between 0.02 and 2"),
    ("pack.calibration_batches", 0, "greater than 0"),
    ("pack.damping", 0.0, "greater than 0"),
    ("pack.budget_bytes", 0, "greater than 0"),
    ("score.stride", 0, "greater than 0"),
    ("score.batch_tokens", 10**12, "between 1 and 1,048,576"),
    ("score_first.chunk_tokens", 10**12, "between 1 and 1,048,576"),
    ("score_first.adapter_rank", -1, "between 0 and 1,024"),
    ("score.batch_tokens", -1, "between 1 and 1,048,576"),
    ("seed", "1337", "type int"),
    ("seed", 1337.0, "type int"),
    ("seed", True, "type int"),
    ("seed", None, "type int"),
    ("seed", [1337], "type int"),
    ("data.source", 5, "type str"),
    ("data.val_share", "0.1", "type float"),
    ("data.val_share", None, "type float"),
    ("data.val_share", False, "type float"),
    ("model.width", 128.0, "type int"),
    ("train.max_steps", "280", "type int"),
    ("adapt.score_every_epoch", 1, "type bool"),
    ("adapt.score_every_epoch", "true", "type bool"),
    ("device", "tpu", "one of auto, cpu, cuda"),
    ("device", None, "one of auto, cpu, cuda"),
    ("adapt.text", "val", "one of none, adapt, scored"),
    ("adapt.text", ["none"], "one of none, adapt, scored"),
    ("adapt.schedule", "linear", "one of cosine-over-epochs, restart-every-epoch"),
]


@pytest.mark.parametrize(("key", "value", "expected"), INVALID)
def test_an_invalid_value_is_named_with_what_is_expected(
    key: str, value: Any, expected: str
) -> None:
    message = refusal({key: value})
    assert message.startswith(f"invalid {key} = {value!r}: expected ")
    assert expected in message


TOKENS = ("train.batch", "train.micro_batch", "adapt.chunk", "pack.calibration_batch",
          "score.batch", "score_first.chunk")  # fmt: skip
COMBINATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"data.val_bytes": 9, "data.val_targets": 7}, ["data.val_bytes = 9", "data.val_targets = 7"]),
    ({"data.val_share": 0.5, "data.adapt_share": 0.5}, ["val_share", "adapt_share", "1.0"]),
    ({"model.width": 130}, ["model.width = 130", "model.num_heads = 4"]),
    ({"model.num_kv_heads": 3}, ["model.num_kv_heads = 3", "model.num_heads = 4"]),
    ({"model.rotary_dims": 34}, ["model.rotary_dims = 34", "32"]),
    ({"model.loop_first": 4}, ["model.loop_first", "(4, 3)"]),
    ({"model.loop_first": -1}, ["model.loop_first", "(-1, 3)"]),
    ({"model.loop_last": 6}, ["model.loop_last", "(2, 6)", "model.num_layers = 6"]),
    ({"train.max_seconds": 12.0}, ["train.reserve_seconds = 12.0", "train.max_seconds = 12.0"]),
    (
        {"train.batch_tokens": 4097},
        ["train.batch_tokens = 4097", "train.micro_batch_tokens = 2048"],
    ),
    (
        {"train.micro_batch_tokens": 100, "train.batch_tokens": 200},
        ["train.micro_batch_tokens = 100", "model.seq_len = 256"],
    ),
    ({"adapt.final_lr": 0.1}, ["adapt.final_lr = 0.1", "adapt.lr = 0.0002"]),
    ({"adapt.chunk_tokens": 300}, ["adapt.chunk_tokens = 300", "model.seq_len = 256"]),
    ({"adapt.frozen_blocks": 6}, ["adapt.frozen_blocks = 6", "model.num_layers = 6"]),
    (
        {"pack.calibration_batch_tokens": 255},
        ["pack.calibration_batch_tokens = 255", "model.seq_len = 256"],
    ),
    ({"score.batch_tokens": 8000}, ["score.batch_tokens = 8000", "model.seq_len = 256"]),
    ({"score.stride": 257}, ["score.stride = 257", "model.seq_len = 256"]),
    (
        {"train.short_until": 0.5, "model.seq_len": 255}
        | {f"{key}_tokens": 2550 for key in TOKENS},
        ["train.short_until = 0.5", "model.seq_len = 255"],
    ),
    (
        {"score_first.adapter_rank": 1, "score_first.adapter_tokens": 257},
        ["score_first.adapter_tokens = 257", "model.seq_len = 256"],
    ),
]


@pytest.mark.parametrize(("changes", "fragments"), COMBINATIONS)
def test_values_that_do_not_fit_together(changes: dict[str, Any], fragments: list[str]) -> None:
    message = refusal(changes)
    for fragment in fragments:
        assert fragment in message


def test_the_limits_themselves_are_valid() -> None:
    values = to_json(TINY)
    values["seed"] = 0
    values["model"] |= {"vocab_size": 257, "parallel_from": 6, "rotary_dims": 32}
    values["train"] |= {"reserve_seconds": 0.0, "warmdown_share": 1.0, "momentum": 0.0}
    values["adapt"] |= {"final_lr": values["adapt"]["lr"], "frozen_blocks": 5}
    values["pack"] |= {"matrix_bin_width": 2, "embedding_bin_width": 0.02}
    values["score"] |= {"stride": 256}
    values["data"] |= {"val_share": 0.0, "adapt_share": 0.0}
    assert to_json(from_json(RunConfig, values)) == values


def all_keys() -> list[str]:
    return [
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in to_json(TINY).items()
        for inner in (value if isinstance(value, dict) else [""])
    ]


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_required_by_its_name(key: str) -> None:
    values = to_json(TINY)
    *sections, name = key.split(".")
    table = values[sections[0]] if sections else values
    del table[name]
    with pytest.raises(ConfigError) as error:
        from_json(RunConfig, values)
    assert one_line(error) == f"missing key {key}"
    assert error.value.exit_code == 2


def test_unknown_keys_are_named_with_similar_and_valid_keys() -> None:
    message = refusal({"model.widht": 128})
    assert "model.widht" in message
    assert "model.width" in message
    for name in to_json(TINY)["model"]:
        assert name in message
    assert "sead" in refusal({"sead": 1})
    assert "did you mean" not in refusal({"train.xyzzy": 1})


@pytest.mark.parametrize("value", [5, [], "tiny", None])
def test_a_section_that_is_not_an_object(value: Any) -> None:
    assert "train" in refusal({"train": value})
    with pytest.raises(ConfigError):
        from_json(RunConfig, value)


# Splits.


def numbered(count: int) -> list[Document]:
    return [Document(f"d{i}", f"text number {i}") for i in range(count)]


@pytest.mark.parametrize(("val", "adapt"), [(0.1, 0.1), (0.25, 0.0), (0.0, 0.5), (0.05, 0.6)])
def test_shares_are_about_right_and_splits_disjoint(val: float, adapt: float) -> None:
    documents = numbered(6000)
    splits = split_by_hash(documents, {"val": val, "adapt": adapt}, rest="train")
    assert set(splits) == {"train", "val", "adapt"}
    for name, share in {"val": val, "adapt": adapt, "train": 1 - val - adapt}.items():
        spread = 5 * (share * (1 - share) / len(documents)) ** 0.5
        assert abs(len(splits[name]) / len(documents) - share) <= spread
    everything = [document for parts in splits.values() for document in parts]
    assert sorted(everything) == sorted(documents)
    for parts in splits.values():
        assert [int(document.name[1:]) for document in parts] == sorted(
            int(document.name[1:]) for document in parts
        )


def test_equal_texts_stay_together_whatever_their_names() -> None:
    documents = [Document(f"copy {i}", f"text {i % 40}") for i in range(400)]
    splits = split_by_hash(documents, {"val": 0.3, "adapt": 0.3}, rest="train")
    texts = [{document.text for document in parts} for parts in splits.values()]
    assert sum(map(len, texts)) == 40
    assert min(map(len, texts)) > 0


def test_a_document_keeps_its_split_when_others_come_and_go() -> None:
    documents = numbered(500)
    shares = {"val": 0.2, "adapt": 0.2}
    every, half = (split_by_hash(part, shares, "train") for part in (documents, documents[::2]))
    for name, parts in half.items():
        assert set(parts) <= set(every[name])


# JSON Lines and text files.

OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", OPENERS)
def test_jsonl_in_all_forms(suffix: str, tmp_path: Path) -> None:
    texts = ["plain", "", "caf\u00e9 \U0001f600", "two\nlines \u2028 three\r\n", 'a "quote"', "\0"]
    lines = [json.dumps({"text": text}) for text in texts[:3]]
    lines += [json.dumps({"id": i, "text": text, "x": 1}) for i, text in enumerate(texts[3:])]
    path = tmp_path / f"train{suffix}"
    path.write_bytes(OPENERS[suffix]("\n".join(lines).encode()))
    documents = list(read_jsonl(path))
    assert [document.text for document in documents] == texts
    assert [document.name for document in documents[3:]] == ["0", "1", "2"]
    assert len({document.name for document in documents}) == len(texts)


def test_jsonl_with_characters_that_are_not_escaped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes('{"text": "caf\u00e9 \u2028 \U0001f600"}\n'.encode())
    assert [document.text for document in read_jsonl(path)] == ["caf\u00e9 \u2028 \U0001f600"]


@pytest.mark.parametrize(
    "bad",
    [
        b"no json",
        b"[]",
        b'"text"',
        b"5",
        b"null",
        b"{}",
        b'{"txt": "a"}',
        b'{"text": 1}',
        b'{"text": "',
    ],
)
@pytest.mark.parametrize("suffix", OPENERS)
def test_a_bad_line_is_named(bad: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"val{suffix}"
    path.write_bytes(OPENERS[suffix](b'{"text": "a"}\n{"text": "b"}\n' + bad + b"\n"))
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    message = one_line(error)
    assert str(path) in message
    assert "line 3" in message


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz"])
@pytest.mark.parametrize("how", ["truncated", "foreign"])
def test_a_broken_archive_is_a_user_error(suffix: str, how: str, tmp_path: Path) -> None:
    content = OPENERS[suffix](b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path = tmp_path / f"train{suffix}"
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else b"foreign content")
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    assert str(path) in one_line(error)


def test_a_missing_jsonl_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        list(read_jsonl(tmp_path / "nothing.jsonl"))


def test_find_jsonl(tmp_path: Path) -> None:
    wanted = ["val.jsonl", "val_00.jsonl.gz", "val_01.jsonl.xz", "val_02.JSONL", "val_03.ndjson"]
    for name in [*wanted, "train.jsonl", "val.json", "val.jsonl.zip", "val.txt", "xval.jsonl"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_jsonl(tmp_path, "val")] == wanted


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("caf\u00e9\r\n\ufeff\0".encode())
    assert read_text(path) == "caf\u00e9\r\n\ufeff\0"
    path.write_bytes(b"latin caf\xe9 1")
    with pytest.raises(UserError) as error:
        read_text(path)
    assert str(path) in one_line(error)
    assert "byte 9" in str(error.value)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError) as error:
            read_text(missing)
        assert str(missing) in one_line(error)
