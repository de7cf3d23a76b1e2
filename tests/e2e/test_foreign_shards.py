"""Shards that do not fit: another tokenizer, no BOS, the inside of a document, unknown pieces."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray

from paramgolf.data.shards import open_shard, write_shard
from paramgolf.data.streams import read_streams
from paramgolf.data.tokenizer import BOS, EOS, UNKNOWN, Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from tests.e2e.command import Cli
from tests.e2e.mini import mini_options

VOCAB = 512
DOCUMENTS = [text[:4000] for _, text in sorted(topics.items())[:40]]
Change = Callable[[NDArray[np.uint16]], NDArray[np.uint16]]


@pytest.fixture(scope="module")
def built(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `data build`, with two shards of validation."""
    folder = tmp_path_factory.mktemp("foreign")
    lines = (json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (folder / "text.jsonl").write_text("".join(lines))
    options = ["--vocab-size", str(VOCAB), "--val-share", "0.3", "--shard-tokens", "8000"]
    options += ["--max-overlap", "1"]
    result = cli("data", "build", folder / "text.jsonl", *options, "--out", folder / "built")
    assert result.code == 0, result.stderr
    assert (folder / "built" / "text_val_000001.bin").exists()
    return folder / "built"


def options(source: Path) -> list[str]:
    return [*mini_options(source), "--model.vocab-size", str(VOCAB), "--adapt.text", "none"]


def as_fetched(built: Path, folder: Path) -> Path:
    """Copy the shards into a folder like that of `data fetch`."""
    folder.mkdir()
    for path in (*built.glob("*.bin"), built / "tokenizer.model"):
        (folder / path.name).write_bytes(path.read_bytes())
    own = {"sha256": Tokenizer.load(built / "tokenizer.model").sha256}
    (folder / "source.json").write_text(json.dumps({"files": {"tokenizer.model": own}}))
    return folder


# Another tokenizer of the same size.


@pytest.mark.parametrize("kind", ["built", "fetched"])
def test_another_tokenizer_is_an_error_everywhere(
    kind: str, built: Path, cli: Cli, tmp_path: Path
) -> None:
    folder = built if kind == "built" else as_fetched(built, tmp_path / "fetched")
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(DOCUMENTS[::-1][:9], VOCAB))
    message = f"paramgolf: {folder} was built with another tokenizer"
    given = ["--data.tokenizer", other]
    for command in (
        ["data", "info", folder, "--tokenizer", other],
        ["run", "tiny", *options(folder), *given, "--out", tmp_path / "run"],
        ["run", "tiny", *options(folder), *given, "--out", tmp_path / "run", "--dry-run"],
    ):
        assert cli.error(*command, code=1).startswith(message)
    for names in (["text_val_000000.bin", "text_val_000001.bin"], ["text_val_000000.bin"]):
        paths = [folder / name for name in names]
        with pytest.raises(UserError, match="was built with another tokenizer"):
            list(read_streams(paths, Tokenizer.load(other)))
        (stream,) = read_streams(paths, Tokenizer.load(folder / "tokenizer.model"))
        assert stream.texts[0] in DOCUMENTS
    assert cli("data", "info", folder).code == 0


# Tokens that `encode` does not return.


def without_bos(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return tokens[tokens != BOS]


def eos_for_bos(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.where(tokens == BOS, EOS, tokens).astype(np.uint16)


def eos_between(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.insert(tokens, np.flatnonzero(tokens == BOS)[1:], EOS)


def with_unknown(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    changed = tokens.copy()
    changed[[7, 20, 33]] = UNKNOWN
    return changed


def inside(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return tokens[5:]


REFUSED: list[tuple[Change, str]] = [
    (without_bos, "does not begin with BOS (1)"),
    (eos_for_bos, "does not begin with BOS (1)"),
    (inside, "does not begin with BOS (1)"),
    (eos_between, "tokens are control or unused pieces"),
    (with_unknown, ": 3 of"),
]


def changed(built: Path, folder: Path, split: str, change: Change) -> Path:
    """Write the first shard of every split as another program would, one of them changed."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((built / "tokenizer.model").read_bytes())
    for path in built.glob("text_*_000000.bin"):
        if "adapt" not in path.name:
            tokens = np.array(open_shard(path))
            write_shard(folder / path.name, change(tokens) if split in path.name else tokens)
    return folder


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[x.__name__ for x, _ in REFUSED])
def test_validation_shards_are_refused_before_training(
    change: Change, words: str, built: Path, cli: Cli, tmp_path: Path
) -> None:
    folder = changed(built, tmp_path / "shards", "val", change)
    run = tmp_path / "run"
    result = cli("run", "tiny", *options(folder), "--out", run)
    assert result.code == 1
    assert words in result.stderr
    assert not (run / "stages" / "train.json").exists()
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    with pytest.raises(UserError) as error:
        list(read_streams([folder / "text_val_000000.bin"], tokenizer))
    assert words in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("change", [change for change, _ in REFUSED], ids=lambda x: x.__name__)
def test_any_training_shards_are_counted_alike(
    change: Change, built: Path, cli: Cli, tmp_path: Path
) -> None:
    folder = changed(built, tmp_path / "shards", "train", change)
    assert cli("run", "tiny", *options(folder), "--out", tmp_path / "run").code == 0
    audited = cli("audit", tmp_path / "run")
    assert audited.code == 0, audited.stdout


# A tokenizer without byte fallback.


def test_the_number_of_unknown_pieces_is_told(cli: Cli, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(DOCUMENTS).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer(model.getvalue())
    for text, number in (("a \u65e5 b \u672c", 2), ("\u65e5\u672c", 1)):
        path = tmp_path / "text.txt"
        path.write_text(text)
        with pytest.raises(UserError, match=f"{number} of .* unknown pieces: use a tokenizer with"):
            list(read_streams([path], tokenizer))
    (tmp_path / "own.model").write_bytes(tokenizer.model)

    def lines(texts: Sequence[str]) -> str:
        return "".join(json.dumps({"text": text.replace("\n", " ")}) + "\n" for text in texts)

    (tmp_path / "train.jsonl").write_text(lines(DOCUMENTS[:30]))
    (tmp_path / "val.jsonl").write_text(lines([*DOCUMENTS[30:], "\u65e5 and \u672c"]))
    given = ["--data.tokenizer", tmp_path / "own.model", "--out", tmp_path / "run"]
    result = cli("run", "tiny", *options(tmp_path), "--data.val-targets", "0", *given)
    assert result.code == 1
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    texts = [json.loads(line)["text"] for line in (tmp_path / "val.jsonl").open()]
    number = sum(library.is_unknown(token) for text in texts for token in library.encode(text))
    assert number >= 2
    assert f"the 'val' split: {number} of " in result.stderr
    assert not (tmp_path / "run" / "results.json").exists()
