"""Tokenizers that hold, inflate or lose the text, and exchanged texts, are caught."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from paramgolf.data.prepared import PreparedText
from paramgolf.data.shards import read_stream, write_shard
from paramgolf.data.streams import Stream, require_counted
from paramgolf.data.tokenizer import RULES, Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.pipeline.run import collect_results
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_tensors, write_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import prepare
from paramgolf.stages.job import Job
from paramgolf.study.compare import compare
from paramgolf.verify.overlap import overlap_checks
from paramgolf.verify.recomputed import recomputed
from paramgolf.verify.rerun import _fetched_again
from paramgolf.verify.text_checks import text_checks
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.hub import local_hub
from tests.e2e.mini import mini_config, mini_options, read_results, texts_of
from tests.e2e.test_audit import FAST

VOCAB = 512


def failed(run: Path) -> dict[str, str]:
    """Return condition and figure of the checks that fail, by name."""
    directory, _, config = RunDir.open(run)
    checks = text_checks(directory, config, read_results(run))
    return {c.name: f"{c.condition}: {c.figure}" for c in checks if c.outcome == "FAIL"}


def outcomes(run: Path) -> dict[str, tuple[str, str]]:
    """Return outcome and kind of all checks."""
    directory, _, config = RunDir.open(run)
    checks = text_checks(directory, config, read_results(run))
    return {c.name: (c.outcome, c.kind) for c in checks}


def rewrite(path: Path, change: Any) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def message(content: bytes, number: int = 1) -> bytes:
    """Return a field of a protocol buffer message that contains bytes."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def with_pieces(model: bytes, texts: Sequence[str]) -> bytes:
    """Return a model with texts in the place of its last pieces, as user-defined ones."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    last = processor.id_to_piece(processor.vocab_size() - len(texts)).encode()
    begin = model.index(message(last)) - 2  # of the first piece that is replaced
    end = model.index(b"\x12", model.rindex(message(processor.id_to_piece(VOCAB - 1).encode())))
    pieces = [message(text.replace(" ", "\u2581").encode()) + b"\x18\x04" for text in texts]
    return model[:begin] + b"".join(map(message, pieces)) + model[end:]


def trained(texts: Sequence[str], **options: Any) -> bytes:
    """Return a tokenizer of another program."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.split("\n") if line]),
        model_writer=model, model_type="bpe", vocab_size=VOCAB, byte_fallback=True, pad_id=0,
        bos_id=1, eos_id=2, unk_id=3, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


def write_shards(folder: Path, source: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir()
    for split in ("train", "val"):
        tokens = np.concatenate(tokenizer.encode(texts_of(source, split)))
        write_shard(folder / f"web_{split}_000000.bin", tokens)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    return folder


def run_with(cli: Cli, source: Path, tokenizer: bytes, folder: Path) -> Path:
    (folder / "given.model").write_bytes(tokenizer)
    options = [*mini_options(source), "--data.tokenizer", str(folder / "given.model")]
    budget = ["--pack.budget-bytes", "100000"]
    cli.output("run", "tiny", *options, *budget, "--out", folder / "run")
    return folder / "run"


def test_an_honest_run_passes(mini_run: FinishedRun) -> None:
    assert set(outcomes(mini_run.path).values()) == {("pass", "recomputed")}
    claim = read_results(mini_run.path)["tokenizer"]
    assert (claim["claim"], claim["long_piece_share"]) == ("trained", 0.0)


# Tokenizers that hold the text.


def test_a_tokenizer_trained_on_the_scored_text(cli: Cli, source: Path, tmp_path: Path) -> None:
    """It counts in the budget; a claim that the run trained it fails."""
    model = train_tokenizer(texts_of(source, "val"), VOCAB)
    run = run_with(cli, source, model, tmp_path)
    results = read_results(run)
    size = results["bytes"]
    assert results["tokenizer"]["claim"] == "given"
    assert size["total"] == size["model"] + size["code"] + len(model) <= size["budget"]
    assert not failed(run)
    origin = {"case_ops": False, "documents": None}
    honest = shutil.copytree(run, tmp_path / "honest")

    def claim(values: dict[str, Any]) -> None:
        values["tokenizer"] |= {"claim": "trained", "origin": origin}
        values.get("bytes", {})["total"] = size["model"] + size["code"]

    for name in ("results.json", "stages/prepare.json"):
        rewrite(run / name, claim)
    assert failed(run)["origin of the tokenizer"].startswith("bytes: trained again")
    # Nor does it pass as a known one, or uncounted.
    for name in ("results.json", "stages/prepare.json"):
        rewrite(run / name, lambda values: values["tokenizer"].update(claim="known"))
    assert "origin of the tokenizer" in failed(run)
    rewrite(honest / "results.json", lambda v: v["bytes"].update(total=size["model"]))
    assert "origin of the tokenizer" in failed(honest)


def test_a_tokenizer_whose_pieces_are_scored_lines(cli: Cli, source: Path, tmp_path: Path) -> None:
    lines = {line for text in texts_of(source, "val") for line in text.split("\n")}
    longest = sorted(lines, key=len)[-60:]
    model = with_pieces(train_tokenizer(texts_of(source, "train"), VOCAB), longest)
    run = run_with(cli, source, model, tmp_path)
    claim = read_results(run)["tokenizer"]
    assert claim["claim"] == "given"
    assert claim["long_piece_share"] > 0.05
    assert failed(run)["pieces hold no text"].startswith("bytes: ")


# Tokenizers that say they were fetched.


def write_source_json(folder: Path, model: Path, **changed: Any) -> dict[str, Any]:
    """Write by hand what `data fetch` records of a file; return the origin that it names."""
    origin = {"repo": "somebody/golf", "revision": "0" * 40, "dataset": "fineweb10B_sp512"}
    origin |= changed
    size, sha256 = model.stat().st_size, hashlib.sha256(model.read_bytes()).hexdigest()
    files = {model.name: {"bytes": size, "sha256": sha256}}
    (folder / "source.json").write_text(json.dumps({**origin, "files": files}))
    return origin


@pytest.mark.slow
def test_a_source_json_written_by_hand(cli: Cli, source: Path, tmp_path: Path) -> None:
    """The tokenizer of the scored text is not counted; every verdict says who says so."""
    model = tmp_path / "given.model"
    model.write_bytes(train_tokenizer(texts_of(source, "val"), VOCAB))
    origin = write_source_json(tmp_path, model)
    options = [*mini_options(source), "--data.tokenizer", str(model)]
    printed = cli.output("run", "tiny", *options, "--out", tmp_path / "run")
    words = " ".join(printed.split())
    assert "the tokenizer is not counted: fetched from somebody/golf (self-reported)" in words
    run, claim = tmp_path / "run", read_results(tmp_path / "run")["tokenizer"]
    assert (claim["claim"], claim["origin"]) == ("known", origin)
    assert outcomes(run)["origin of the tokenizer"] == ("pass", "self-reported")
    result = cli("audit", run, "--positions", "1", patch=FAST)
    assert result.code == 0, result.stdout + result.stderr
    assert "; tokenizer's origin self-reported" in " ".join(result.stdout.split())
    assert (
        "tokenizer's origin self-reported"
        in json.loads((run / "audit.json").read_text())["verdict"][0]
    )
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "fetched from somebody/golf (self-reported)" in page
    # A claim that names no repository is no claim of `data fetch`.
    for name in ("results.json", "stages/prepare.json"):
        rewrite(run / name, lambda values: values["tokenizer"].update(origin=None))
    assert "origin of the tokenizer" in failed(run)


def tokenizers_repository(tokenizer: bytes) -> dict[str, bytes]:
    manifest = {
        "datasets": [
            {"name": "fineweb10B_sp512", "tokenizer_name": "bpe",
             "stats": {"files_train": 1, "files_val": 1}},
        ],
        "tokenizers": [{"name": "bpe", "model_path": "tokenizers/golf.model"}],
    }  # fmt: skip
    return {
        "datasets/manifest.json": json.dumps(manifest).encode(),
        "datasets/tokenizers/golf.model": tokenizer,
    }


@pytest.mark.parametrize(
    ("hub_has", "changed", "agrees", "words"),
    [
        (b"a model", {}, "yes", ""),
        (b"another", {}, "NO", hashlib.sha256(b"another").hexdigest()[:16]),
        (b"a model", {"repo": "nobody/golf"}, "NO", "it does not exist, or is private"),
        (b"a model", {"revision": "1" * 40}, "NO", "has no revision"),
        (b"a model", {"dataset": "fineweb10B_sp9"}, "NO", "has no variant 'sp9'"),
        (b"a model", {"dataset": None}, "NO", "not fetched"),
        (None, {}, "shown", "could not be verified: cannot fetch"),
    ],
)
def test_a_rerun_fetches_the_tokenizer_again(
    hub_has: bytes | None, changed: dict[str, Any], agrees: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"a model")
    origin = {"repo": "somebody/golf", "revision": "main", "dataset": "fineweb10B_sp512"}
    claim = {"sha256": hashlib.sha256(b"a model").hexdigest(), "origin": origin | changed}
    with local_hub() as hub:
        endpoint = hub.endpoint if hub_has is not None else "http://127.0.0.1:9"
        hub.commit("somebody/golf", tokenizers_repository(hub_has or b""))
        fact = _fetched_again(claim, endpoint)
    assert (fact.agrees, words in fact.found) == (agrees, True), fact
    assert "\n" not in fact.found


# Tokenizers that inflate or lose text.


def rule(sources: str, target: str) -> str:
    """Return a rule of normalisation: every one of these characters becomes the target."""
    code = " ".join(f"{ord(character):X}" for character in target)
    return "".join(f"{ord(character):X}\t{code}\n" for character in sources)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BAD_RULES = {
    "twenty spaces": rule(" ", "\u00a0" * 20),
    "two spaces": rule(" ", "\u00a0" * 2),
    "four bytes": "".join(rule(c, chr(0x1D5BA + i)) for i, c in enumerate(LETTERS)),
    "one letter": rule(LETTERS[1:], "a"),
}


@pytest.mark.parametrize("name", BAD_RULES)
@pytest.mark.parametrize("form", ["documents", "shards", "shards, cut"])
def test_a_rule_of_normalisation_of_its_own(
    name: str, form: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "rule.tsv").write_text(BAD_RULES[name])
    model = trained(texts_of(source, "train"), normalization_rule_tsv=str(tmp_path / "rule.tsv"))
    tokenizer = Tokenizer(model)
    assert tokenizer.rule == ""
    (tmp_path / "given.model").write_bytes(model)
    folder = source
    if form != "documents":
        folder = write_shards(tmp_path / "shards", source, tokenizer)
    config = mini_config(folder)
    targets = 1000 if form == "shards, cut" else 0
    data = dataclasses.replace(
        config.data, tokenizer=str(tmp_path / "given.model"), val_targets=targets
    )
    config = dataclasses.replace(config, data=data)
    run = RunDir.create(tmp_path / "run", "tiny", config)
    with pytest.raises(UserError, match="normalises by a rule of its own"):
        prepare.run(Job(config, run, select_runtime("cpu"), Reporter()))


@pytest.mark.parametrize("name", RULES)
def test_rules_of_the_library_are_recognised(name: str, source: Path) -> None:
    model = trained(texts_of(source, "train"), normalization_rule_name=name)
    assert Tokenizer(model).rule == name
    # Not by what they are called.
    forged = model.replace(message(name.encode()), message(b"x" * len(name)))
    assert forged != model
    assert Tokenizer(forged).rule == name


def test_a_foreign_tokenizer_on_shards(cli: Cli, source: Path, tmp_path: Path) -> None:
    """It passes, and its label says what its bytes are."""
    model = trained(texts_of(source, "train"), normalization_rule_name="nmt_nfkc")
    folder = write_shards(tmp_path / "shards", source, Tokenizer(model))
    options = [*mini_options(folder), "--pack.budget-bytes", "350000"]
    printed = cli.output("run", "tiny", *options, "--out", tmp_path / "run")
    assert "held-out, bytes as decoded (quantized, sliding)" in printed
    assert f"given tokenizer {len(model):,}" in printed
    assert not failed(tmp_path / "run")


@pytest.mark.slow
def test_a_tokenizer_that_folds_case(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Less is predicted; the score says so, and is not compared with one of the original text."""
    rules = {"folded": "nfkc_cf", "whole": "identity"}
    for name, rule_name in rules.items():
        lossless = {"remove_extra_whitespaces": False, "add_dummy_prefix": False}
        options = {"normalization_rule_name": rule_name, **(lossless if name == "whole" else {})}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "given.model").write_bytes(trained(texts_of(source, "train"), **options))
        options = [*mini_options(source), "--data.tokenizer", str(folder / "given.model")]
        options += ["--pack.budget-bytes", "350000", "--data.val-targets", "0"]
        options += ["--adapt.text", "none"]
        printed = cli.output("run", "tiny", *options, "--out", folder / "run")
        form = "original" if name == "whole" else "nfkc_cf, extra spaces removed"
        assert read_results(folder / "run")["tokenizer"]["restores"] == form
        shown = f"held-out, restored as {form} (quantized, sliding)"
        assert (shown in " ".join(printed.split())) is (name == "folded")
        assert not failed(folder / "run")
    folded, whole = tmp_path / "folded" / "run", tmp_path / "whole" / "run"
    assert read_results(folded)["text"] == read_results(whole)["text"]
    with pytest.raises(UserError, match="restored as 'nfkc_cf, extra spaces removed' in"):
        compare(folded, whole, "", 0.005)
    assert cli("report", folded).code == 0
    page = (folded / "report.html").read_text()
    assert page.count("restored as nfkc_cf, extra spaces removed") >= 2
    assert "so less is predicted" in page
    directory, _, config = RunDir.open(folded)
    # The originals of the training text are not kept: the fingerprints are of the decoded text.
    rebuilt = list(overlap_checks(directory, config, read_results(folded)))[-1]
    assert (rebuilt.name, rebuilt.outcome) == ("provenance rebuilt", "pass")
    assert rebuilt.figure.endswith("byte for byte")
    # A claim of the original text fails.
    for name in ("results.json", "stages/prepare.json"):
        rewrite(folded / name, lambda values: values["tokenizer"].update(restores="original"))
    found = {c.name: c for c in recomputed(directory, config, read_results(folded))}
    assert found["text recomputed"].outcome == "FAIL"
    assert "tokenizer.restores is nfkc_cf" in found["text recomputed"].figure


# Exchanged texts.


def exchange(run: Path, texts: Sequence[str] | None, rewritten: bool) -> None:
    """Put other documents, or None: the first half of the text, in the place of the scored text.

    Args:
        run: a copy of a run.
        texts: the documents.
        rewritten: change the files that name the text accordingly.
    """
    directory, recipe, config = RunDir.open(run)
    tokenizer = Tokenizer.load(directory.tokenizer)
    (path,) = PreparedText.of(directory).shards("val", directory.data)
    tokens = read_stream([path])
    tokens = tokens[: len(tokens) // 2]
    if texts is not None:
        tokens = np.concatenate(tokenizer.encode(texts))
    write_shard(path, tokens)
    if not rewritten:
        return
    text = PreparedText.of(directory).found_text(directory.data, tokenizer)
    names = {"text_sha256": text.sha256, "bytes": text.bytes, "documents": len(text.texts)}

    def rename(values: dict[str, Any]) -> None:
        values["text"]["splits"]["val"] |= {**names, "tokens": len(tokens)}

    rewrite(run / "stages" / "prepare.json", rename)
    for stage in ("train", "adapt", "score"):
        rewrite(
            run / "stages" / f"{stage}.json",
            lambda values: [s.update(bytes=text.bytes) for s in values["scores"].values()],
        )
    tensors, _ = read_tensors(directory.documents)
    tensors["bytes"] = torch.tensor([len(document.encode()) for document in text.texts])
    write_tensors(directory.documents, tensors, text_sha256=text.sha256)
    results = collect_results(directory, recipe, config)
    directory.results_file.write_text(json.dumps(results))


@pytest.mark.parametrize("texts", [["easy words " * 300] * 2, None], ids=["easy", "half"])
@pytest.mark.parametrize("rewritten", [False, True], ids=["alone", "rewritten"])
def test_another_text_after_prepare(
    texts: list[str] | None, rewritten: bool, run_copy: Path
) -> None:
    exchange(run_copy, texts, rewritten)
    found = failed(run_copy)
    assert found["the text is that of its source"].startswith("bytes: differs")
    assert ("bytes of the text" in found) is not rewritten


@pytest.mark.parametrize(("part", "other"), [("first", "rest"), ("rest", "first")])
@pytest.mark.slow
def test_another_part_of_the_text_than_is_configured(
    part: str, other: str, cli: Cli, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cut = ["--data.val-targets", "0", "--data.val-bytes", "9001", "--data.val-part", part]
    cli.output("run", "tiny", *options, *cut, "--adapt.text", "none", "--out", run)
    assert not failed(run)
    assert (read_results(run)["text"]["bytes"] == 9001) is (part == "first")
    assert cli("audit", run, "--positions", "2").code == 0
    for changed in ({"val_part": other}, {"val_part": part, "val_bytes": 5000}):
        rewrite(run / "config.json", lambda values, own=changed: values["data"].update(own))
        assert failed(run)["the text is that of its source"].startswith("bytes: differs")


def test_a_source_that_is_gone_is_self_reported(run_copy: Path) -> None:
    rewrite(run_copy / "config.json", lambda values: values["data"].update(source="/nowhere"))
    assert outcomes(run_copy)["the text is that of its source"] == (
        "not applicable",
        "self-reported",
    )


def test_a_source_of_which_some_is_gone_is_not_hashed(run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text('{"text": "a"}\n{"text"\n')
    source = str(tmp_path)
    rewrite(run_copy / "config.json", lambda values: values["data"].update(source=source))
    run, _, config = RunDir.open(run_copy)
    checks = {c.name: c for c in recomputed(run, config, read_results(run_copy))}
    assert checks["corpus hashed again"].outcome == "not applicable"


def test_pieces_that_count_nothing(mini_run: FinishedRun) -> None:
    """SentencePiece decodes an unused piece as its text, though it counts no bytes."""
    model = (mini_run.path / "tokenizer.model").read_bytes()
    plain = Tokenizer(model)
    tokens = plain.encode(["the text of the theory"])[0]
    piece = plain._processor.id_to_piece(int(tokens[-1])).encode()
    begin = model.index(b"\n%c%b\x15" % (len(piece), piece)) - 2
    size = model[begin + 1]
    unused = model[: begin + 1] + bytes([size + 2]) + model[begin + 2 : begin + 2 + size]
    tokenizer = Tokenizer(unused + b"\x18\x05" + model[begin + 2 + size :])
    stream = Stream("the text", tokens, tokenizer.decode_documents(tokens))
    require_counted(Stream("the text", tokens, plain.decode_documents(tokens)), plain)
    with pytest.raises(UserError, match="control or unused pieces"):
        require_counted(stream, tokenizer)


def test_a_text_whose_first_token_is_not_predicted(mini_run: FinishedRun) -> None:
    tokenizer = Tokenizer.load(mini_run.path / "tokenizer.model")
    tokens = tokenizer.encode(["the text"])[0][1:]
    with pytest.raises(UserError, match="does not begin with BOS"):
        require_counted(Stream("the text", tokens, ["the text"]), tokenizer)
