"""The data stage on small folders: files, stage result and texts agree."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray

from paramgolf.data.corpus import split_by_hash, stdlib_documents
from paramgolf.data.documents import Document, text_digest
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import prepare
from paramgolf.stages.job import Job

VOCAB = 512
CPU = select_runtime("cpu")

Stream = NDArray[np.uint16]
Texts = list[str]


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Different documents of a few kilobytes; some empty, short or with unusual characters."""
    long = [text.strip()[:6000] + "\n" for _, text in sorted(topics.items())[:30]]
    return [*long[:12], "", "short", " leading, caf\u00e9 \U0001f600\tand \0 more\r\n", *long[12:]]


@pytest.fixture(scope="module")
def tokenizer_file(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "pieces.model"
    path.write_bytes(train_tokenizer(texts, VOCAB))
    return path


def new_job(run_folder: Path, source: Path | str, vocab: int = VOCAB, **data: Any) -> Job:
    tiny = RECIPES["tiny"][1]
    config = replace(
        tiny,
        device="cpu",
        # These tests decode with plain SentencePiece.
        data=replace(tiny.data, source=str(source), case_ops=False, **data),
        model=replace(tiny.model, vocab_size=vocab),
    )
    return Job(config, RunDir.create(run_folder, "tiny", config), CPU, Reporter())


def share(known: Provenance, texts: Texts) -> float | None:
    """Return the share of the sampled runs of texts that are known."""
    label = known.label(texts)
    assert label.overlap is not None
    return label.overlap.share


def prepared(job: Job) -> PreparedText:
    """Run the stage and read its result from the file, as other stages do."""
    job.run.finish_stage("prepare", prepare.run(job))
    return Job(job.config, job.run, CPU).text


def jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def jsonl_folder(folder: Path, train: Sequence[str], val: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    half = len(train) // 2
    (folder / "train_00.jsonl").write_bytes(jsonl(train[:half]))
    (folder / "train_01.jsonl").write_bytes(jsonl(train[half:]))
    (folder / "val.jsonl").write_bytes(jsonl(val))
    return folder


def shard(tokens: Sequence[int]) -> bytes:
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    return header + struct.pack(f"<{len(tokens)}H", *tokens)


def read_bin(path: Path) -> list[int]:
    content = path.read_bytes()
    return list(struct.unpack(f"<{(len(content) - 1024) // 2}H", content[1024:]))


def tokens_of(text: PreparedText, split: str, data: Path) -> list[int]:
    return [token for path in text.shards(split, data) for token in read_bin(path)]


def documents_in(tokens: list[int], model: bytes) -> Texts:
    """Return the documents, split at every BOS (1) and decoded by SentencePiece alone."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    documents: list[list[int]] = []
    for token in tokens:
        if token == 1 or not documents:
            documents.append([])
        documents[-1].append(token)
    return [processor.decode(document) for document in documents]


def sha256_of_texts(texts: Sequence[str]) -> str:
    """Return the hash that names a text: of its documents, each after its length (uint64)."""
    contents = [text.encode() for text in texts]
    return hashlib.sha256(b"".join(struct.pack("<Q", len(c)) + c for c in contents)).hexdigest()


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# (a) JSON Lines.


@pytest.mark.parametrize("given_tokenizer", [True, False])
def test_jsonl_folder(
    given_tokenizer: bool, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    train, val = texts[:20], texts[20:]
    folder = jsonl_folder(tmp_path / "text", train, val)
    file = str(tokenizer_file) if given_tokenizer else ""
    job = new_job(tmp_path / "run", folder, shard_tokens=5000, tokenizer=file)
    text = prepared(job)
    model = job.run.tokenizer.read_bytes()
    expected_model = tokenizer_file.read_bytes() if given_tokenizer else train_tokenizer(train, 512)
    assert model == expected_model
    assert text.tokenizer_sha256 == hashlib.sha256(model).hexdigest()
    assert text.source == str(folder)
    assert text.corpus_sha256 == sha256_of_texts(train + val)
    assert list(text.splits) == ["train", "val"]
    for name, documents in (("train", train), ("val", val)):
        split, tokens = text.splits[name], tokens_of(text, name, job.run.data)
        assert documents_in(tokens, model) == documents
        assert split.documents == len(documents)
        assert split.tokens == len(tokens)
        assert split.text_sha256 == sha256_of_texts(documents)
        assert text.stream(name, job.run.data).tolist() == tokens
        sizes = [len(read_bin(path)) for path in text.shards(name, job.run.data)]
        assert sizes[:-1] == [5000] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= 5000
        assert len(sizes) > 1
    assert set(job.ledger.seconds()) == {
        "data: corpus",
        "data: tokenizer",
        "data: encode",
        "data: overlap",
    }


def test_runs_of_the_splits_are_kept(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    train, val = texts[:20], texts[20:]
    folder = jsonl_folder(tmp_path / "text", train, val)
    job = new_job(tmp_path / "run", folder, tokenizer=str(tokenizer_file))
    text = prepared(job)
    known = Provenance.load(job.run.data / "provenance.safetensors")
    assert set(known.texts) == {"train", "val"}
    for name, split in text.splits.items():
        kept = known.texts[name]
        assert kept.sha256 == split.text_sha256
        assert kept.documents == split.documents
        paths = text.shards(name, job.run.data)
        assert list(kept.shards) == [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
    assert known.uses["tokenizer"].startswith("not known")
    assert share(known.of("train"), train) == 1.0
    assert share(known.of("val"), val) == 1.0
    assert share(known.of("train"), val) != 1.0


def cut_jobs(
    texts: Texts, tokenizer_file: Path, folder: Path, targets: int
) -> tuple[list[int], PreparedText, Path]:
    """Return the uncut validation stream, and the same text prepared with val_targets."""
    source = jsonl_folder(folder / "text", texts[:20], texts[20:])
    whole = new_job(folder / "whole", source, tokenizer=str(tokenizer_file))
    stream = tokens_of(prepared(whole), "val", whole.run.data)
    cut = new_job(
        folder / "cut", source, tokenizer=str(tokenizer_file), val_targets=targets, shard_tokens=999
    )
    return stream, prepared(cut), cut.run.data


@pytest.mark.parametrize("targets", [1, 1000, 5555, 12_000])
def test_val_targets_cut_the_validation_split(
    targets: int, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    stream, text, data = cut_jobs(texts, tokenizer_file, tmp_path, targets)
    model = tokenizer_file.read_bytes()
    scored = tokens_of(text, "val", data)
    assert scored == stream[: targets + 1]
    assert text.splits["val"].tokens == targets + 1
    assert text.splits["val"].documents == scored.count(1)
    assert text.splits["val"].text_sha256 == sha256_of_texts(documents_in(scored, model))
    adapt = tokens_of(text, "adapt", data)
    start = stream.index(1, targets + 1)
    assert adapt == stream[start:]
    assert text.splits["adapt"].tokens == len(adapt)
    adapted_on = documents_in(adapt, model)
    assert adapted_on == texts[-len(adapted_on) :]
    assert text.splits["adapt"].documents == len(adapted_on)
    assert text.splits["adapt"].text_sha256 == sha256_of_texts(adapted_on)
    # No document is in both: the rest of the one that is cut is left out.
    assert scored.count(1) + len(adapted_on) <= len(texts) - 20
    assert text.splits["train"].text_sha256 == sha256_of_texts(texts[:20])
    known = Provenance.load(data / "provenance.safetensors")
    assert set(known.texts) == {"train", "val", "adapt"}
    assert share(known.of("adapt"), adapted_on) == 1.0


def test_a_cut_that_leaves_no_text(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    """The first document is empty: its one target is the BOS of the next."""
    folder = jsonl_folder(tmp_path / "text", texts[:20], ["", *texts[20:]])
    job = new_job(tmp_path / "run", folder, tokenizer=str(tokenizer_file), val_targets=1)
    with pytest.raises(UserError) as error:
        prepared(job)
    assert "data.val_targets leave of the 'val' split contains no text" in one_line(error)


def test_a_cut_at_a_document_border_leaves_nothing_out(
    texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tokenizer_file)
    first_two = sum(map(len, tokenizer.encode(texts[20:22])))
    _, text, data = cut_jobs(texts, tokenizer_file, tmp_path, first_two - 1)
    model = tokenizer_file.read_bytes()
    assert documents_in(tokens_of(text, "val", data), model) == texts[20:22]
    assert documents_in(tokens_of(text, "adapt", data), model) == texts[22:]
    assert text.splits["val"].text_sha256 == sha256_of_texts(texts[20:22])


def test_a_cut_in_the_last_document_leaves_no_adaptation_text(
    texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tokenizer_file)
    total = sum(map(len, tokenizer.encode(texts[20:])))
    _, text, data = cut_jobs(texts, tokenizer_file, tmp_path, total - 3)
    assert list(text.splits) == ["train", "val"]
    assert text.splits["val"].tokens == total - 2
    with pytest.raises(UserError, match="adapt"):
        text.shards("adapt", data)


@pytest.mark.parametrize("beyond", [0, 1, 10**9])
def test_val_targets_beyond_the_text_cut_nothing(
    beyond: int, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tokenizer_file)
    total = sum(map(len, tokenizer.encode(texts[20:])))
    stream, text, data = cut_jobs(texts, tokenizer_file, tmp_path, total - 1 + beyond)
    assert tokens_of(text, "val", data) == stream
    assert list(text.splits) == ["train", "val"]


def first_bytes(texts: Sequence[str], size: int) -> Texts:
    """Return the documents up to byte `size`, the last one cut where a character ends."""
    kept: Texts = []
    for text in texts:
        content, size = text.encode()[:size], size - len(text.encode())
        kept.append(content.decode(errors="ignore"))
        if size <= 0:
            break
    return kept


@pytest.mark.parametrize("size", [1, 5000, 20_000, 33_333])
@pytest.mark.parametrize("vocab", [512, 700])
def test_val_bytes_cut_the_documents_whatever_the_tokenizer(
    size: int, vocab: int, texts: Texts, tmp_path: Path
) -> None:
    source = jsonl_folder(tmp_path / "text", texts[:20], texts[20:])
    first = prepared(job := new_job(tmp_path / "first", source, vocab=vocab, val_bytes=size))
    model, expected = job.run.tokenizer.read_bytes(), first_bytes(texts[20:], size)
    scored = tokens_of(first, "val", job.run.data)
    assert documents_in(scored, model) == expected
    assert scored == np.concatenate(Tokenizer(model).encode(expected)).tolist()
    assert first.splits["val"].bytes == size
    assert first.splits["val"].text_sha256 == sha256_of_texts(expected)
    # Whole documents behind the cut are for adaptation, or for tuning.
    behind = texts[20 + len(expected) :]
    assert documents_in(tokens_of(first, "adapt", job.run.data), model) == behind
    job = new_job(tmp_path / "rest", source, vocab=vocab, val_bytes=size, val_part="rest")
    rest = prepared(job)
    assert list(rest.splits) == ["train", "val"]
    assert documents_in(tokens_of(rest, "val", job.run.data), model) == behind
    assert rest.splits["val"].text_sha256 == first.splits["adapt"].text_sha256
    assert rest.splits["val"].bytes == sum(len(text.encode()) for text in behind)


def test_val_targets_have_a_rest_too(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    _, text, data = cut_jobs(texts, tokenizer_file, tmp_path, 4000)
    job = new_job(
        tmp_path / "rest", tmp_path / "text", tokenizer=str(tokenizer_file), val_targets=4000,
        val_part="rest",
    )  # fmt: skip
    rest = prepared(job)
    assert tokens_of(rest, "val", job.run.data) == tokens_of(text, "adapt", data)


def test_a_character_is_not_cut(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    val = ["caf\u00e9 \U0001f600 and more", "the rest"]
    source = jsonl_folder(tmp_path / "text", texts[:20], val)
    sizes = {4: "caf", 5: "caf\u00e9", 9: "caf\u00e9 ", 10: "caf\u00e9 \U0001f600"}
    for size, expected in sizes.items():
        job = new_job(
            tmp_path / f"run{size}", source, tokenizer=str(tokenizer_file), val_bytes=size
        )
        split = prepared(job).splits["val"]
        assert split.text_sha256 == sha256_of_texts([expected])
        assert split.bytes == len(expected.encode()) <= size


@pytest.mark.parametrize("beyond", [0, 1, 10**9])
def test_val_bytes_beyond_the_text_cut_nothing_and_leave_no_rest(
    beyond: int, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    source = jsonl_folder(tmp_path / "text", texts[:20], texts[20:])
    data = {
        "tokenizer": str(tokenizer_file),
        "val_bytes": sum(len(text.encode()) for text in texts[20:]) + beyond,
    }
    text = prepared(new_job(tmp_path / "first", source, **data))
    assert list(text.splits) == ["train", "val"]
    assert text.splits["val"].text_sha256 == sha256_of_texts(texts[20:])
    with pytest.raises(UserError, match="no document is behind the cut") as error:
        prepare.run(new_job(tmp_path / "rest", source, **data, val_part="rest"))
    one_line(error)


def test_small_batches_encode_as_one(
    texts: Texts, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large texts are encoded in batches, which are small here."""
    folder = jsonl_folder(tmp_path / "text", texts[:20], texts[20:28])
    whole = new_job(tmp_path / "whole", folder, tokenizer=str(tokenizer_file))
    expected = prepared(whole)
    monkeypatch.setattr(prepare, "_BATCH_CHARS", 3000)
    batched = new_job(tmp_path / "batched", folder, tokenizer=str(tokenizer_file))
    assert prepared(batched) == expected
    for name in ("text_train_000000.bin", "text_val_000000.bin", "provenance.safetensors"):
        assert (batched.run.data / name).read_bytes() == (whole.run.data / name).read_bytes()


# (b) Shards.


def shard_folder(folder: Path, texts: Texts, tokenizer: Tokenizer) -> Path:
    """Write two training shards, cut between documents, and a validation shard."""
    folder.mkdir()
    for name, part in (
        ("train_000000", texts[:10]), ("train_000001", texts[10:20]), ("val_000000", texts[20:]),
    ):  # fmt: skip
        tokens = np.concatenate(tokenizer.encode(part)).tolist()
        (folder / f"web_{name}.bin").write_bytes(shard(tokens))
    return folder


def test_shard_folder(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_file)
    folder = shard_folder(tmp_path / "text", texts, tokenizer)
    job = new_job(tmp_path / "run", folder, tokenizer=str(tokenizer_file), val_targets=4000)
    text = prepared(job)
    train = [folder / "web_train_000000.bin", folder / "web_train_000001.bin"]
    assert text.shards("train", job.run.data) == [path.resolve() for path in train]
    content = b"".join(path.read_bytes()[1024:] for path in train)
    assert text.splits["train"].text_sha256 == text_digest(texts[:20]).hex()
    assert text.splits["train"].tokens == len(content) // 2
    assert text.splits["train"].documents == 20
    assert documents_in(tokens_of(text, "train", job.run.data), tokenizer.model) == texts[:20]
    val = read_bin(folder / "web_val_000000.bin")
    assert tokens_of(text, "val", job.run.data) == val[:4001]
    assert tokens_of(text, "adapt", job.run.data) == val[val.index(1, 4001) :]
    known = Provenance.load(job.run.data / "provenance.safetensors")
    assert share(known.of("train"), texts[:20]) == 1.0
    assert job.run.tokenizer.read_bytes() == tokenizer_file.read_bytes()


@pytest.mark.parametrize("part", ["first", "rest"])
def test_shards_and_jsonl_are_cut_at_the_same_byte(
    part: str, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    shards = shard_folder(tmp_path / "shards", texts, Tokenizer.load(tokenizer_file))
    lines = jsonl_folder(tmp_path / "lines", texts[:20], texts[20:])
    splits = []
    for number, source in enumerate((shards, lines)):
        data = {"tokenizer": str(tokenizer_file), "val_bytes": 9999, "val_part": part}
        job = new_job(tmp_path / f"run{number}", source, **data)
        splits.append(prepared(job).splits["val"])
    assert splits[0] == replace(splits[1], bytes_are="as decoded")


def test_val_bytes_are_of_the_originals_under_a_tokenizer_that_normalises(
    texts: Texts, tmp_path: Path
) -> None:
    """Where the whole documents of `val_targets` are its only choice, bytes cut anywhere."""
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts[:10]), model_prefix=str(tmp_path / "nfkc"), vocab_size=600,
        model_type="bpe", byte_fallback=True, normalization_rule_name="nfkc", minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    file = tmp_path / "nfkc.model"
    vocab = Tokenizer.load(file).vocab_size
    val = ["\u2460  of two  spaces", "the \ufb01rst and more", "behind"]
    source = jsonl_folder(tmp_path / "text", texts[:20], val)
    size = len(val[0].encode()) + len("the \ufb01r".encode())
    job = new_job(tmp_path / "run", source, vocab=vocab, tokenizer=str(file), val_bytes=size)
    text = prepared(job)
    expected = [val[0], "the \ufb01r"]
    scored = text.scored_text(job.run.data, Tokenizer.load(file))
    assert (scored.texts, scored.bytes, scored.bytes_are) == (expected, size, "original")
    assert documents_in(scored.tokens.tolist(), file.read_bytes()) == ["1 of two spaces", "the fir"]


def test_shards_and_jsonl_give_the_same_validation_text(
    texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    shards = shard_folder(tmp_path / "shards", texts, Tokenizer.load(tokenizer_file))
    lines = jsonl_folder(tmp_path / "lines", texts[:20], texts[20:])
    splits = []
    for number, source in enumerate((shards, lines)):
        job = new_job(tmp_path / f"run{number}", source, tokenizer=str(tokenizer_file))
        splits.append(prepared(job).splits["val"])
    # Shards do not tell the original text, which a tokenizer may normalise.
    assert splits[0] == replace(splits[1], bytes_are="as decoded")
    assert splits[1].bytes_are == "original"
    assert splits[1].bytes == sum(len(text.encode()) for text in texts[20:])


@pytest.mark.parametrize("bad", ["web_train_000001.bin", "web_val_000000.bin"])
def test_a_token_out_of_the_vocabulary(
    bad: str, texts: Texts, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder = shard_folder(tmp_path / "text", texts, Tokenizer.load(tokenizer_file))
    tokens = read_bin(folder / bad)
    (folder / bad).write_bytes(shard([*tokens[:50], VOCAB, *tokens[51:]]))
    with pytest.raises(UserError) as error:
        prepare.run(new_job(tmp_path / "run", folder, tokenizer=str(tokenizer_file)))
    message = one_line(error)
    assert bad in message
    assert str(VOCAB) in message


@pytest.mark.parametrize("bad", ["web_train_000000.bin", "web_val_000000.bin"])
def test_a_truncated_shard(bad: str, texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = shard_folder(tmp_path / "text", texts, Tokenizer.load(tokenizer_file))
    (folder / bad).write_bytes((folder / bad).read_bytes()[:-1])
    with pytest.raises(UserError) as error:
        prepare.run(new_job(tmp_path / "run", folder, tokenizer=str(tokenizer_file)))
    assert bad in one_line(error)


def test_shards_need_a_tokenizer(texts: Texts, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = shard_folder(tmp_path / "text", texts, Tokenizer.load(tokenizer_file))
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        prepare.run(new_job(tmp_path / "run", folder))


# (c) Missing parts.


SOME = jsonl(["some text"])


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        (None, "is not a directory"),
        (b"a file", "is not a directory"),
        ({}, "train*.jsonl"),
        ({"train.txt": b"text", "val.jsonl": SOME}, "train*.jsonl"),
        ({"train.jsonl": SOME}, "val*.jsonl"),
        ({"web_train_000000.bin": shard([1, 5, 6, 7])}, "*_val_*.bin"),
        ({"train.jsonl": SOME, "val.jsonl": jsonl([""])}, "'val'"),
        ({"train.jsonl": jsonl([""]), "val.jsonl": SOME}, "'train'"),
        ({"train.jsonl": SOME, "val.jsonl": SOME + b"broken\n"}, "line 2"),
        ({"train.jsonl.gz": b"no gzip", "val.jsonl": SOME}, "train.jsonl.gz"),
    ],
    ids=str,
)
def test_missing_parts_are_reported_in_one_line(
    files: dict[str, bytes] | bytes | None, fragment: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    if isinstance(files, bytes):
        (tmp_path / "text").write_bytes(files)
    elif files is not None:
        (tmp_path / "text").mkdir()
        for name, content in files.items():
            (tmp_path / "text" / name).write_bytes(content)
    job = new_job(tmp_path / "run", tmp_path / "text", tokenizer=str(tokenizer_file))
    with pytest.raises(UserError) as error:
        prepare.run(job)
    assert fragment in one_line(error)
    assert not isinstance(error.value, ConfigError)
    assert job.run.stage_result("prepare") is None


def test_a_missing_or_foreign_tokenizer(tmp_path: Path) -> None:
    folder = jsonl_folder(tmp_path / "text", ["some", "text"], ["more"])
    (tmp_path / "foreign.model").write_bytes(b"no model")
    for number, name in enumerate(("nothing.model", "foreign.model")):
        job = new_job(tmp_path / f"run{number}", folder, tokenizer=str(tmp_path / name))
        with pytest.raises(UserError) as error:
            prepare.run(job)
        assert name in one_line(error)


def test_a_tokenizer_of_another_size(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = jsonl_folder(tmp_path / "text", ["some", "text"], ["more"])
    job = new_job(tmp_path / "run", folder, vocab=600, tokenizer=str(tokenizer_file))
    with pytest.raises(UserError) as error:
        prepare.run(job)
    assert str(tokenizer_file) in one_line(error)
    assert "512" in str(error.value)
    assert "600" in str(error.value)


def test_too_little_text_for_the_vocabulary(tmp_path: Path) -> None:
    folder = jsonl_folder(tmp_path / "text", ["some", "text"], ["more"])
    with pytest.raises(UserError) as error:
        prepare.run(new_job(tmp_path / "run", folder))
    assert "512" in one_line(error)


# (d) The documentation of Python's own library.


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return stdlib_documents()


def plain_words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation."""
    return "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()


def word_tuples(texts: Sequence[str]) -> set[tuple[str, ...]]:
    """Return all sequences of 13 consecutive words."""
    result: set[tuple[str, ...]] = set()
    for text in texts:
        words = plain_words(text)
        result.update(tuple(words[i : i + 13]) for i in range(len(words) - 12))
    return result


def test_stdlib_documents_are_text_of_different_names(stdlib: list[Document]) -> None:
    assert len({document.name for document in stdlib}) == len(stdlib) > 100
    assert sum(len(document.text) for document in stdlib) > 1_000_000
    assert all(document.text.strip() for document in stdlib)
    names = {document.name for document in stdlib}
    assert {"topic/assert", "module/json/__init__.py", "module/argparse.py"} <= names
    assert not any("/test/" in name or "site-packages" in name for name in names)


def test_stdlib_documents_repeat_no_long_paragraph(stdlib: list[Document]) -> None:
    first: dict[tuple[str, ...], str] = {}
    compared = 0
    for name, text in stdlib:
        for paragraph in text.split("\n\n"):
            words = tuple(plain_words(paragraph))
            if len(words) >= 13:
                assert first.setdefault(words, name) == name, f"{name} repeats: {words[:20]}"
                compared += 1
    assert compared > 1000


def test_stdlib_splits_hardly_overlap(stdlib: list[Document]) -> None:
    splits = split_by_hash(stdlib, {"val": 0.1, "adapt": 0.1}, rest="train")
    known = {name: word_tuples([text for _, text in part]) for name, part in splits.items()}
    assert min(map(len, known.values())) > 5000
    for one, other in (("val", "train"), ("val", "adapt"), ("adapt", "train")):
        assert len(known[one] & known[other]) < 0.01 * len(known[one])


@pytest.mark.slow
def test_stdlib_prepared(stdlib: list[Document], tokenizer_file: Path, tmp_path: Path) -> None:
    """All documents are encoded, each in exactly one split."""
    job = new_job(tmp_path / "run", "stdlib", tokenizer=str(tokenizer_file))
    text = prepared(job)
    assert text.source == "stdlib"
    assert text.corpus_sha256 == sha256_of_texts([document.text for document in stdlib])
    found: list[str] = []
    for name in ("train", "val", "adapt"):
        tokens = tokens_of(text, name, job.run.data)
        documents = documents_in(tokens, tokenizer_file.read_bytes())
        assert text.splits[name].documents == len(documents)
        assert text.splits[name].tokens == len(tokens)
        assert text.splits[name].text_sha256 == sha256_of_texts(documents)
        found += documents
    assert sorted(found) == sorted(document.text for document in stdlib)
    known = Provenance.load(job.run.data / "provenance.safetensors")
    scored = documents_in(tokens_of(text, "val", job.run.data), tokenizer_file.read_bytes())
    label = known.of("train", "adapt").label(scored)
    assert label.name == "held-out"
    assert 0 < label.overlap.seen_runs < 0.05 * label.overlap.runs
    measured = job.label(["adapt"])
    assert measured.name == "held-out"
    assert measured.overlap.documents == len(scored)
    assert measured.overlap.bytes == sum(len(text.encode()) for text in scored)
    assert 0 < job.label([]).overlap.seen_runs < measured.overlap.seen_runs
    assert job.label(["val"]).name == "in-sample"
