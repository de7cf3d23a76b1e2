"""`paramgolf data build` and `data info`: from ordinary files to shards, and back."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow
import pytest
import sentencepiece
import zstandard
from pyarrow import parquet

from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.provenance import Provenance
from tests.e2e import command
from tests.e2e.command import ENVIRONMENT, Cli, finish, killed_while_writing
from tests.e2e.mini import mini_options, read_results, table_rows
from tests.property.test_shards import read_independently

VOCAB = 500


def shuffled_topics() -> list[str]:
    """Words of Python's documentation in a random order, so that no two texts overlap."""
    texts = []
    for name, text in sorted(topics.items())[:40]:
        words = (text.split(" ") * 900)[:900]
        random.Random(name).shuffle(words)
        texts.append(f"{name}\n\n{' '.join(words)}")
    return texts


TEXTS = shuffled_topics()


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def read_shards(folder: Path, split: str) -> list[str]:
    """Read the documents of a split without the package."""
    processor = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    documents: list[list[int]] = []
    for path in sorted(folder.glob(f"*_{split}_*.bin")):
        for token in read_independently(path):
            if token == processor.bos_id():
                documents.append([])
            else:
                documents[-1].append(token)
    return [processor.decode(tokens) for tokens in documents]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Markdown files, and among them files that must not be read."""
    folder = tmp_path_factory.mktemp("notes") / "notes"
    for number, text in enumerate(TEXTS):
        path = folder / ("deep/er" if number % 3 else ".") / f"{number:02d}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "copy.txt").write_text(TEXTS[5])
    (folder / "empty.md").write_text("")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.md").write_text("hidden " * 500)
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    return folder


@pytest.fixture(scope="module")
def built(notes: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder built from the notes; do not write to it."""
    out = tmp_path_factory.mktemp("built") / "out"
    result = cli("data", "build", notes, "--out", out, "--vocab-size", str(VOCAB))
    assert result.code == 0, result.stderr
    assert "42 read, 1 duplicates and 1 empty" in result.stdout
    assert f"--data.source {out} --model.vocab-size {VOCAB}" in result.stdout
    return out


def test_every_document_is_in_one_split(built: Path) -> None:
    splits = {name: read_shards(built, name) for name in ("train", "val", "adapt")}
    assert all(splits.values())
    assert sorted(text for texts in splits.values() for text in texts) == sorted(TEXTS)
    for name, texts in splits.items():
        for place in fingerprints(texts).documents / 2.0**64:
            assert name == ("val" if place < 0.1 else "adapt" if place < 0.2 else "train")
    manifest = json.loads((built / "manifest.json").read_text())
    for name, texts in splits.items():
        stated = manifest["splits"][name]
        assert stated["documents"] == len(texts)
        assert stated["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["documents"] == {"read": 42, "empty": 1, "duplicates": 1, "blank": 0}
    assert not (built / ".build").exists()


def test_the_same_documents_in_other_files_give_the_same_shards(
    built: Path, cli: Cli, tmp_path: Path
) -> None:
    order = [*range(0, 40, 3), *(n for n in range(40) if n % 3)]
    texts = [TEXTS[i] for i in order]
    plain = jsonl(texts)
    (tmp_path / "a.jsonl").write_bytes(plain)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(plain))
    half = len(jsonl(texts[:20])) - 7  # a frame may end inside a line
    frames = [zstandard.compress(part) for part in (plain[:half], plain[half:])]
    (tmp_path / "d.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "e.jsonl").write_bytes(jsonl(texts, "content"))
    table = pyarrow.table({"id": list(range(40)), "body": texts})
    parquet.write_table(table, tmp_path / "f.parquet", row_group_size=7)
    results = []
    for path in sorted(tmp_path.iterdir()):
        out = tmp_path / f"out-{path.name}"
        options = ("--tokenizer", built / "tokenizer.model")
        result = cli("data", "build", path, "--out", out, *options)
        assert result.code == 0, result.stderr
        results.append({k: v for k, v in content_of(out).items() if k != "manifest.json"})
    assert [result == results[0] for result in results] == [True] * 6
    assert read_shards(tmp_path / "out-a.jsonl", "train") == [
        text for text in texts if fingerprints([text]).documents[0] / 2.0**64 >= 0.2
    ]


@pytest.mark.parametrize("kind", ["json lines", "text"])
def test_standard_input(kind: str, built: Path, tmp_path: Path) -> None:
    content = jsonl(TEXTS) if kind == "json lines" else "\n".join(TEXTS).encode()
    (tmp_path / "val.txt").write_text("Nothing of this is in the other text. " * 9)
    command = [sys.executable, "-m", "paramgolf", "data", "build", "-", "--out", "out"]
    command += ["--val", "val.txt", "--adapt-share", "0", "--tokenizer", built / "tokenizer.model"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, input=content, check=False)
    assert done.returncode == 0
    wanted = TEXTS if kind == "json lines" else ["\n".join(TEXTS)]
    assert read_shards(tmp_path / "out", "train") == wanted
    assert list((tmp_path / "out").glob("*_adapt_*")) == []


def test_a_finished_folder_is_left_alone_and_other_settings_are_refused(
    built: Path, notes: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built, out)
    before = content_of(out)
    again = cli("data", "build", notes, "--out", out, "--vocab-size", str(VOCAB))
    assert again.code == 0
    assert "is already complete" in again.stderr
    other = cli("data", "build", notes, "--out", out, "--vocab-size", "600")
    assert (other.code, "vocab_size" in other.stderr) == (2, True)
    fewer = cli("data", "build", notes / "deep", "--out", out, "--vocab-size", str(VOCAB))
    assert (fewer.code, "another --out" in fewer.stderr) == (2, True)
    assert content_of(out) == before


SMALL_CHUNKS = "from paramgolf.data import build; build._CHUNK_CHARS = 20_000"


def start_build(source: Path, out: Path, writes: int | None = None) -> subprocess.Popen[bytes]:
    """Start a build, which kills itself after so many files, in the middle of the next one."""
    patch = SMALL_CHUNKS if writes is None else f"{SMALL_CHUNKS}\n{killed_while_writing(writes)}"
    more = ("--vocab-size", str(VOCAB), "--shard-tokens", "9000")
    return command.start("data", "build", source, "--out", out, *more, patch=patch)


@pytest.mark.slow
def test_an_interrupted_build_gives_the_same_bytes(notes: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert finish(start_build(notes, undisturbed)).code == 0
    assert len(list(undisturbed.glob("*_train_*.bin"))) > 3
    for writes in (1, 2, 3, 4, 6):
        assert finish(start_build(notes, out, writes)).code == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
    assert finish(start_build(notes, out)).code == 0
    assert content_of(out) == content_of(undisturbed)


@pytest.mark.slow
def test_a_source_that_changes_between_kill_and_resume_is_noticed(
    notes: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "notes", tmp_path / "out"
    shutil.copytree(notes, source)
    assert finish(start_build(source, out, 5)).code == -signal.SIGKILL
    assert len(list((out / ".build").glob("chunk_*"))) >= 2
    first = source / "00.md"
    first.write_text(first.read_text().replace("e", "o", 1))
    result = finish(start_build(source, out))
    assert result.code == 1
    assert "has changed" in result.stderr
    assert not (out / ".build").exists()
    assert finish(start_build(source, out)).code == 0


def test_validation_text_that_is_in_training_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "val.jsonl").write_bytes(jsonl([*TEXTS[3:6], "Another text altogether. " * 40]))
    command = ("data", "build", tmp_path / "train.jsonl", "--val", tmp_path / "val.jsonl")
    command += ("--out", tmp_path / "out", "--vocab-size", str(VOCAB), "--max-overlap", "1")
    result = cli(*command)
    assert result.code == 1
    assert "3 documents are in both" in result.stderr
    assert "train.jsonl:4 and train.jsonl:5" in result.stderr
    assert list((tmp_path / "out").glob("*.bin")) == []
    (tmp_path / "val.jsonl").write_bytes(jsonl(["Another text altogether. " * 40]))
    assert cli(*command).code == 0  # another build, which the failed one does not block


def test_edited_copies_are_refused_unless_they_are_allowed(cli: Cli, tmp_path: Path) -> None:
    edited = [text.replace("a", "u", 40).replace(" ", "\n") for text in TEXTS[:3]]
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "val.jsonl").write_bytes(jsonl([*edited, "Another text altogether. " * 40]))
    command = ("data", "build", tmp_path / "train.jsonl", "--val", tmp_path / "val.jsonl")
    command += ("--out", tmp_path / "out", "--vocab-size", str(VOCAB))
    refused = cli(*command)
    assert refused.code == 1
    assert re.search("0 documents are in both, 3 of [34] are seen there", refused.stderr)
    assert "val.jsonl:1 and val.jsonl:2" in refused.stderr
    assert "--max-overlap" in refused.stderr
    allowed = cli(*command, "--max-overlap", "1")
    assert allowed.code == 0, allowed.stderr
    assert re.search("3 of [34] validation documents seen", allowed.stdout)


def test_shared_passages_are_shown_and_allowed(cli: Cli, tmp_path: Path) -> None:
    """Fewer than 40 % of a document's runs are in the training text: it is not seen."""
    own = "Nobody else wrote this sentence number {}, {} or {} of another text, or so it seems. "
    texts = ["".join(own.format(n, 3 * n, 7 * n) for n in range(k, k + 150)) for k in (0, 1000)]
    passages = [f"{text} {TEXTS[number][:2500]}" for number, text in enumerate(texts)]
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "val.jsonl").write_bytes(jsonl(["Another text altogether. " * 40, *passages]))
    command = ("data", "build", tmp_path / "train.jsonl", "--val", tmp_path / "val.jsonl")
    built = cli(*command, "--out", tmp_path / "out", "--vocab-size", str(VOCAB))
    assert built.code == 0, built.stderr
    (share,) = re.findall(r"0 of 3 validation documents seen.*?([\d.]+)% of all runs", built.stdout)
    assert 5 < float(share) < 30


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gzip": ("a.jsonl.gz", lambda: truncated(gzip.compress(jsonl(TEXTS))), "after line"),
    "xz": ("a.jsonl.xz", lambda: truncated(lzma.compress(jsonl(TEXTS))), "after line"),
    "zstd": ("a.jsonl.zst", lambda: truncated(zstandard.compress(jsonl(TEXTS))), "after line"),
    "no zstd": ("a.jsonl.zst", lambda: b"this is something else", "line 1"),
    "no JSON": ("a.jsonl", lambda: jsonl(TEXTS) + b"{", "line 41"),
    "no text": ("a.jsonl", lambda: jsonl(TEXTS, "body"), 'a "text" string'),
    "no UTF-8": ("a.md", lambda: b"caf\xe9", "byte 3"),
    "parquet": ("a.parquet", lambda: b"PAR1 and nothing", "Parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named(case: str, cli: Cli, tmp_path: Path) -> None:
    name, content, reason = BAD_FILES[case]
    (tmp_path / name).write_bytes(content())
    result = cli("data", "build", tmp_path, "--out", tmp_path / "out", "--vocab-size", str(VOCAB))
    assert result.code == 1
    assert name in result.stderr
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_columns_of_a_parquet_file(cli: Cli, tmp_path: Path) -> None:
    table = pyarrow.table({"title": TEXTS, "body": TEXTS, "number": list(range(40))})
    parquet.write_table(table, tmp_path / "a.parquet")
    command = ("data", "build", tmp_path / "a.parquet", "--out", tmp_path / "out")
    unclear = cli(*command, "--vocab-size", str(VOCAB))
    assert (unclear.code, "title (string), body (string)" in unclear.stderr) == (2, True)
    wrong = cli(*command, "--vocab-size", str(VOCAB), "--text-key", "number")
    assert (wrong.code, "'number'" in wrong.stderr) == (2, True)
    assert cli(*command, "--vocab-size", str(VOCAB), "--text-key", "body").code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nothing-here"], "nothing-here"),
        (["no*matches"], "no*matches"),
        ([], "SOURCE"),
        (["a.md", "--val-share", "1"], "val_share"),
        (["a.md", "--vocab-size", "99"], "--vocab-size = 99"),
        (["a.md", "--val-share", "0"], "--val"),
        (["a.md"], "a single document"),
        (["a.md", "b.md", "--vocab-size", "9999"], "the largest possible for this one is --vocab"),
        (["a.md", "b.md", "--vocab-size", "258"], "the smallest possible is --vocab-size"),
        (["empty.md"], "the text is empty"),
        (["a.md", "--val", "empty.md"], "the validation text (--val) is empty"),
        (["a.md", "--tokenizer", "a.md"], "SentencePiece"),
    ],
)
def test_misuse(options: list[str], reason: str, cli: Cli, tmp_path: Path) -> None:
    for name, text in (("a.md", TEXTS[0]), ("b.md", TEXTS[1]), ("empty.md", "")):
        (tmp_path / name).write_text(text)
    result = cli("data", "build", *options, "--out", "new/out", cwd=tmp_path)
    assert result.code in (1, 2)
    assert reason in result.stderr
    assert result.stderr.count("\n") < 4
    assert not (tmp_path / "new").exists()


def test_without_a_folder_to_build(cli: Cli) -> None:
    result = cli("data", "build", "a.md")
    assert (result.code, "--out" in result.stderr) == (2, True)


def test_info_recounts_what_build_wrote(built: Path, cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "info", built)
    assert result.code == 0, result.stderr
    manifest: dict[str, Any] = json.loads((built / "manifest.json").read_text())
    for name, split in manifest["splits"].items():
        row = next(line for line in result.stdout.splitlines() if f" {name} " in line)
        for value in (split["documents"], split["tokens"], split["bytes"]):
            assert f" {value:,} " in row
    assert "matches all 3 shards" in result.stdout
    assert read_shards(built, "val")[0].splitlines()[0][:100] in result.stdout
    shutil.copytree(built, tmp_path / "copy")
    shard = tmp_path / "copy" / "text_val_000000.bin"
    content = bytearray(shard.read_bytes())
    content[-1:] = b"\x00"
    content[-2:-1] = bytes([content[-2] ^ 1])
    shard.write_bytes(content)
    altered = cli("data", "info", tmp_path / "copy")
    assert "does not match: text_val_000000.bin" in altered.stdout


def test_a_run_takes_the_tokenizer_from_the_folder(built: Path, cli: Cli, tmp_path: Path) -> None:
    wrong = cli("run", "tiny", "--data.source", built, "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert f"--model.vocab-size {VOCAB}" in wrong.stderr


def run_on(folder: Path, cli: Cli, out: Path, *more: str | Path) -> str:
    """Start a mini run on a folder; return its output."""
    options = [*mini_options(folder), "--model.vocab-size", str(VOCAB), "--data.val-targets", "0"]
    result = cli("run", "tiny", *options, *more, "--out", out)
    assert result.code == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_two_commands_from_markdown_to_a_score(built: Path, cli: Cli, tmp_path: Path) -> None:
    """The run trains on the folder's texts, and with its tokenizer."""
    run_on(built, cli, tmp_path / "run")
    results = read_results(tmp_path / "run")
    val = read_shards(built, "val")
    assert results["stages"]["sliding"]["bytes"] == sum(len(text.encode()) for text in val)
    assert results["stages"]["sliding"]["label"] == "held-out"
    ours = Provenance.load(tmp_path / "run" / "provenance.safetensors")
    theirs = json.loads((built / "manifest.json").read_text())["splits"]
    assert ours.uses["tokenizer"] == "train"
    for name in ("train", "adapt"):
        assert ours.texts[name].documents == theirs[name]["documents"]
        assert ours.texts[name].sha256 == theirs[name]["text_sha256"]
    scored = cli("score", tmp_path / "run" / "model.bin", built / "text_train_000000.bin")
    assert table_rows(scored.stdout)[0][5:] == ["in-sample", "100.0%"]


@pytest.mark.slow
def test_a_tokenizer_that_normalises_is_scored_over_the_original_bytes(
    notes: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "foreign"),
        model_type="bpe", vocab_size=VOCAB, normalization_rule_name="nmt_nfkc", byte_fallback=True,
        add_dummy_prefix=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    tokenizer = tmp_path / "foreign.model"
    built = cli("data", "build", notes, "--out", tmp_path / "out", "--tokenizer", tokenizer)
    assert built.code == 0, built.stderr
    assert "not lossless" in cli("data", "info", tmp_path / "out").stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    sizes = {"out": manifest["splits"]["val"]["bytes"]}
    (folder := tmp_path / "jsonl").mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(TEXTS[8:]))
    (folder / "val.jsonl").write_bytes(jsonl(TEXTS[:8]))
    sizes["jsonl"] = sum(len(text.encode()) for text in TEXTS[:8])
    for name, size in sizes.items():
        run = tmp_path / f"run-{name}"
        more = ["--pack.budget-bytes", "330000"]  # of which the given tokenizer takes most
        more += ["--data.tokenizer", tokenizer, "--adapt.text", "none"] if name == "jsonl" else []
        stdout = run_on(tmp_path / name, cli, run, *more)
        for score in read_results(run)["stages"].values():
            assert (score["bytes"], score["bytes_are"]) == (size, "original")
        assert "bytes as decoded" not in stdout
    text = "\ufb01ne \u2460 and  so   on, " * 40
    plain = unicodedata.normalize("NFKC", " ".join(text.split()))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(plain)
    model = tmp_path / "run-out" / "model.bin"
    original, normal = (cli("score", model, name, cwd=tmp_path) for name in ("a.txt", "b.txt"))
    assert (original.code, normal.code) == (0, 0)
    (ours,), (theirs,) = (table_rows(result.stdout) for result in (original, normal))
    assert ours[2:4] == theirs[2:4]  # the same tokens
    assert ours[4] == f"{len(text.encode()):,}" != theirs[4] == f"{len(plain.encode()):,}"
    bits = [float(row[1]) * len(own.encode()) for row, own in ((ours, text), (theirs, plain))]
    assert bits[0] == pytest.approx(bits[1], abs=1)
