"""Sidecars: the original bytes of each token of a shard, never read as a shard."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece

from paramgolf.data import sidecars
from paramgolf.data.caseops import ESCAPE, OPERATORS, TITLE
from paramgolf.data.shards import ShardWriter, find_shards, open_shard, write_shard
from paramgolf.data.sidecars import check_sidecars, is_sidecar, sidecar_of, write_sidecars
from paramgolf.data.streams import read_streams
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from tests.property.test_shards import read_independently

TEXTS = [
    text[:900] for _, text in sorted(topics.items())[:12]
] + [ESCAPE * 9 + TITLE + OPERATORS * 3, "", f"HTMLParser \u2581 iOS \u00e9 {TITLE}"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(topics.values(), 600, case_ops=True))


def val_shards(folder: Path, tokenizer: Tokenizer, shard_tokens: int = 97) -> list[Path]:
    writer = ShardWriter(folder, "val", shard_tokens)
    for tokens in tokenizer.encode(TEXTS):
        writer.add(tokens)
    return [folder / name for name in writer.finish()]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_they_contain_the_bytes_of_the_texts(
    block: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where blocks and shards cut between an escape and what it escapes."""
    monkeypatch.setattr(sidecars, "_BLOCK_TOKENS", block)
    shards = val_shards(tmp_path, tokenizer, 23)
    written = write_sidecars(shards, tokenizer)
    assert [path.name for path in written] == [
        f"text_val_bytes_{number:06d}.bin" for number in range(len(shards))
    ]
    counts = [count for path in written for count in read_independently(path)]
    tokens = [token for path in shards for token in read_independently(path)]
    sizes: list[int] = []
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for token, count in zip(tokens, counts, strict=True):
        if token == tokenizer.bos:
            sizes.append(0)
            assert count == 0
        sizes[-1] += count
        if processor.id_to_piece(token) in OPERATORS:
            assert count in (0, 3)
    assert sizes == [len(text.encode()) for text in TEXTS]
    found = check_sidecars(shards, tokenizer)
    assert found == (len(shards), sum(sizes), sum(sizes))


def test_names(tmp_path: Path) -> None:
    shard = tmp_path / "fineweb_val_000012.bin"
    assert sidecar_of(shard) == tmp_path / "fineweb_val_bytes_000012.bin"
    assert is_sidecar(sidecar_of(shard))
    assert not is_sidecar(shard)


def test_they_are_never_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = val_shards(tmp_path, tokenizer)
    write_sidecars(shards, tokenizer)
    assert find_shards(tmp_path, "val") == shards
    every = sorted(tmp_path.glob("*_val_*.bin"))
    assert len(every) == 2 * len(shards)
    (stream,) = read_streams(every, tokenizer)
    assert stream.texts == TEXTS
    with pytest.raises(UserError, match="name its shard"):
        next(read_streams([sidecar_of(shards[0])], tokenizer))


def test_one_wrong_count_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = val_shards(tmp_path, tokenizer)
    write_sidecars(shards, tokenizer)
    wrong = sidecar_of(shards[2])
    counts = open_shard(wrong).copy()
    counts[41] += 2
    write_shard(wrong, counts)
    for read in (
        lambda: check_sidecars(shards, tokenizer),
        lambda: list(read_streams(shards, tokenizer)),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert "\n" not in message
        assert f"{wrong} states {counts[41]} bytes for token 41, but the tokenizer" in message
        assert f"counts {counts[41] - 2}:" in message


def test_one_of_another_length_or_no_sidecar(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = val_shards(tmp_path, tokenizer)
    (wrong, *_) = write_sidecars(shards, tokenizer)
    write_shard(wrong, open_shard(wrong)[:-1].copy())
    with pytest.raises(UserError, match=r"96 tokens.*contains 97"):
        check_sidecars(shards, tokenizer)
    wrong.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not a token shard"):
        check_sidecars(shards, tokenizer)


def test_none_or_only_some(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = val_shards(tmp_path, tokenizer)
    assert check_sidecars(shards, tokenizer) == (0, 0, 0)
    for path in write_sidecars(shards, tokenizer)[1:]:
        path.unlink()
    assert check_sidecars(shards, tokenizer).number == 1


def test_a_tokenizer_that_normalises_cannot_know_them(tmp_path: Path) -> None:
    """Sidecars built elsewhere may then differ from its pieces; both sums are returned."""
    model = tmp_path / "model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(topics.values()).split("\n")), model_prefix=str(model),
        model_type="bpe", vocab_size=500, normalization_rule_name="nmt_nfkc", byte_fallback=True,
        add_dummy_prefix=False, user_defined_symbols=list(OPERATORS), pad_id=0, bos_id=1,
        eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer.load(tmp_path / "model.model")
    assert tokenizer.case_ops
    shard = tmp_path / "fineweb_val_000000.bin"
    tokens = tokenizer.encode(["\ufb01ne Words"])[0]
    write_shard(shard, tokens)
    counts = tokenizer.token_bytes(np.append(tokenizer.bos, tokens).astype(np.uint16))
    original = counts.copy()
    original[1] += len("\ufb01".encode()) - len("fi")
    write_shard(sidecar_of(shard), original.astype(np.uint16))
    assert check_sidecars([shard], tokenizer) == (1, original.sum(), counts.sum())
    assert original.sum() == len("\ufb01ne Words".encode())
