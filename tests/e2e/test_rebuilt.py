"""Stored fingerprints are rebuilt from the text; where it is gone, the audit says what it lacks."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from paramgolf.config import RunConfig
from paramgolf.data.build import build
from paramgolf.data.build_config import BuildConfig
from paramgolf.data.provenance import Provenance
from paramgolf.data.shards import write_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import prepare
from paramgolf.stages.job import Job
from paramgolf.verify.checks import Check
from paramgolf.verify.overlap import overlap_checks
from tests.e2e.command import Cli
from tests.e2e.mini import mini_config, read_results, texts_of
from tests.e2e.test_audit import FAST, checks_of


def rebuilt(run: Path) -> Check:
    """Return the check of the provenance."""
    directory, _, config = RunDir.open(run)
    found = {c.name: c for c in overlap_checks(directory, config, read_results(run))}
    return found["provenance rebuilt"]


def without_runs(known: Provenance) -> Provenance:
    """Return what would show no text as seen."""
    nothing = dataclasses.replace(known.texts["train"], runs=np.zeros(0, np.uint64))
    return dataclasses.replace(known, texts={**known.texts, "train": nothing})


def half(known: Provenance) -> Provenance:
    text = known.texts["train"]
    some = dataclasses.replace(text, runs=text.runs[::2])
    return dataclasses.replace(known, texts={**known.texts, "train": some})


def thinned(known: Provenance) -> Provenance:
    """Return a sample of one run in 2^20."""
    texts = {name: text.thinned(20) for name, text in known.texts.items()}
    return dataclasses.replace(known, texts=texts)


def another_salt(known: Provenance) -> Provenance:
    texts = {
        name: dataclasses.replace(text, sampling=text.sampling._replace(salt=1))
        for name, text in known.texts.items()
    }
    return dataclasses.replace(known, texts=texts)


def another_hash(known: Provenance) -> Provenance:
    text = dataclasses.replace(known.texts["train"], sha256="0" * 64)
    return dataclasses.replace(known, texts={**known.texts, "train": text})


def no_adaptation(known: Provenance) -> Provenance:
    return dataclasses.replace(known.of("train"), uses={**known.uses, "adaptation": "none"})


CHEATS: list[Callable[[Provenance], Provenance]] = [
    without_runs,
    half,
    thinned,
    another_salt,
    another_hash,
    no_adaptation,
]


@pytest.mark.parametrize("cheat", CHEATS)
def test_fingerprints_that_were_written_by_hand(
    cheat: Callable[[Provenance], Provenance], run_copy: Path
) -> None:
    assert rebuilt(run_copy)[2:5:2] == ("pass", "recomputed")
    path = run_copy / "provenance.safetensors"
    cheat(Provenance.load(path)).save(path)
    found = rebuilt(run_copy)
    assert (found.outcome, found.kind) == ("FAIL", "recomputed"), found


def shards_of(source: Path, folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir()
    for split in ("train", "val"):
        tokens = np.concatenate(tokenizer.encode(texts_of(source, split)))
        write_shard(folder / f"web_{split}_000000.bin", tokens)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)


@pytest.mark.parametrize("kind", ["shards", "built"])
@pytest.mark.parametrize("text", ["none", "adapt", "scored"])
def test_shards_of_others_and_of_data_build(
    kind: str, text: Any, run_copy: Path, source: Path, tmp_path: Path
) -> None:
    """Their sample follows from the run's shards, and nothing in their folder can choose it."""
    tokenizer = Tokenizer.load(run_copy / "tokenizer.model")
    folder = tmp_path / "shards"
    if kind == "shards":
        shards_of(source, folder, tokenizer)
    else:
        given = BuildConfig(
            sources=(str(source / "train.jsonl"),),
            val=(str(source / "val.jsonl"),),
            tokenizer=str(run_copy / "tokenizer.model"),
        )
        build(given, folder, Reporter())
        another_salt(Provenance.load(run_copy / "provenance.safetensors")).save(
            folder / "provenance.safetensors"
        )
    config = mini_config(folder)
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, text=text))
    found, again = prepared(config, run_copy, tmp_path / "prepared")
    assert (found.name, found.outcome) == ("provenance rebuilt", "pass"), found
    assert again(without_runs).outcome == "FAIL"


def prepared(
    config: RunConfig, like: Path, folder: Path
) -> tuple[Check, Callable[[Callable[[Provenance], Provenance]], Check]]:
    """Prepare a text; return its check, and a function that checks again after a cheat."""
    run = RunDir.create(folder, "tiny", config)
    result = prepare.run(Job(config, run, select_runtime("cpu"), Reporter()))
    run.finish_stage("prepare", {**result, "seconds": {}})
    # As the stage `pack` writes it.
    known = Provenance.load(run.data / "provenance.safetensors")
    uses = known.uses | {"adaptation": ", ".join(config.adapt.splits) or "none"}
    dataclasses.replace(known.of("train", *config.adapt.splits), uses=uses).save(run.provenance)
    results = {**read_results(like), "stages": {}}
    results |= {key: result[key] for key in ("tokenizer", "overlap")}

    def again(cheat: Callable[[Provenance], Provenance]) -> Check:
        cheat(Provenance.load(run.provenance)).save(run.provenance)
        *_, found = overlap_checks(run, config, results)
        assert found.name == "provenance rebuilt"
        return found

    return again(lambda known: known), again


def without_one_run(known: Provenance) -> Provenance:
    text = known.texts["train"]
    rest = dataclasses.replace(text, runs=np.delete(text.runs, len(text.runs) // 2))
    return dataclasses.replace(known, texts={**known.texts, "train": rest})


@pytest.mark.parametrize("unknown", [False, True])
def test_a_tokenizer_that_changes_text(
    unknown: bool, run_copy: Path, source: Path, tmp_path: Path
) -> None:
    """Fingerprints are of the decoded text, so that not one can be left out."""

    def known(split: str) -> list[str]:
        """Return texts of characters that the tokenizer knows."""
        texts = texts_of(source, split)
        return [text.encode("ascii", "ignore").decode().replace("\n", " ") for text in texts]

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(known("train") + known("val")), character_coverage=1.0,
        model_writer=model, model_type="bpe", vocab_size=512, byte_fallback=not unknown, pad_id=0,
        bos_id=1, eos_id=2, unk_id=3, minloglevel=2, normalization_rule_name="nfkc_cf",
    )  # fmt: skip
    (tmp_path / "given.model").write_bytes(model.getvalue())
    text = tmp_path / "text"
    text.mkdir()
    russian = " \u0432\u0441\u0435 \u0441\u0447\u0430\u0441\u0442\u043b\u0438\u0432\u044b\u0435 "
    for split, added in (("train", russian * 20 + "\ufb01 \u2460 " * 20), ("val", "")):
        lines = [json.dumps({"text": text + added}) for text in known(split)]
        (text / f"{split}.jsonl").write_text("\n".join(lines))
    config = mini_config(text)
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "given.model"), val_targets=0)
    adapt = dataclasses.replace(config.adapt, text="none")
    config = dataclasses.replace(config, data=data, adapt=adapt)
    found, again = prepared(config, run_copy, tmp_path / "prepared")
    assert found.outcome == "pass", found
    assert found.figure.endswith("byte for byte")
    assert again(without_one_run).figure == "different: fingerprints of train"


GONE = [
    "scored text is held out",
    "labels match the overlap",
    "provenance rebuilt",
    "text recomputed",
    "shards match the provenance",
]


@pytest.mark.parametrize(
    ("split", "names"), [("train", ["origin of the tokenizer", *GONE]), ("adapt", GONE)]
)
def test_shards_that_are_gone(split: str, names: list[str], cli: Cli, run_copy: Path) -> None:
    """All else is audited; what needs them says so, and there is no verdict of compliance."""
    (run_copy / "data" / f"text_{split}_000000.bin").unlink()
    result = cli("audit", run_copy, "--positions", "1", patch=FAST)
    words = " ".join(result.stdout.split())
    assert result.code == 1
    assert (
        f"verdict compliance not verified: not recomputed, as files are gone: {names[0]}" in words
    )
    assert "gone self-reported scored text is held out" in words
    assert result.stderr.strip().endswith(f"could not recompute: {', '.join(names)}")
    checks = {check["name"]: check for check in checks_of(run_copy)}
    gone = [name for name, check in checks.items() if check["outcome"] == "not verified"]
    assert gone == names
    assert {checks[name]["kind"] for name in names} == {"self-reported"}
    assert "FAIL" not in {check["outcome"] for check in checks.values()}
    assert checks["score recomputed: sliding"]["outcome"] == "pass"
    audit = json.loads((run_copy / "audit.json").read_text())
    assert (audit["passed"], audit["failed"], audit["unverified"]) == (False, [], names)


def test_a_seen_text_whose_training_text_is_gone(cli: Cli, run_copy: Path) -> None:
    """The stored fingerprints still show it."""
    directory, _, _ = RunDir.open(run_copy)
    known = Provenance.load(run_copy / "data" / "provenance.safetensors")
    seen = dataclasses.replace(known.texts["train"], runs=known.texts["val"].runs)
    stored = Provenance.load(directory.provenance)
    texts = {**stored.texts, "train": seen}
    dataclasses.replace(stored, texts=texts).save(directory.provenance)
    (directory.data / "text_train_000000.bin").unlink()
    config, results = RunDir.open(run_copy)[2], read_results(run_copy)
    found = {c.name: c for c in overlap_checks(directory, config, results)}
    assert found["scored text is held out"].outcome == "FAIL"


def test_a_scored_text_that_is_gone(cli: Cli, run_copy: Path) -> None:
    (run_copy / "data" / "text_val_000000.bin").unlink()
    said = cli.error("audit", run_copy, "--positions", "1", code=2)
    assert "is gone, so nothing can be scored: restore it" in said
