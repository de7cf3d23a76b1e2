"""A submission folder takes everything from the files of the runs, bad news first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paramgolf.errors import UserError
from paramgolf.publish.submission import write_folder, write_submission
from paramgolf.publish.submitted import read_runs
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_json
from paramgolf.verify.facts import submitted
from tests.written_runs import BYTES_D, NATS_D, TINY, write_audit, write_run, write_seeds

SCALES = {5: 1.02, 7: 0.98, 9: 1.0}


def submit(
    paths: list[Path], out: Path, author: str = "", name: str = "", incomplete: bool = False
) -> dict[str, Any]:
    """Write the folder of runs whose audits were written by hand; a real submission audits them."""
    return write_folder(read_runs(paths, incomplete), out, author, name)


def audited(folder: Path, failed: tuple[str, ...] = ()) -> Path:
    """Write a folder of three seeds with their audits."""
    write_seeds(folder, {seed: NATS_D * scale for seed, scale in SCALES.items()})
    for seed in SCALES:
        write_audit(folder / f"seed-{seed}", failed if seed == 9 else ())
    return folder


def beginning(out: Path) -> str:
    """Return README.md up to the first table."""
    return (out / "README.md").read_text().split("|")[0]


def test_every_figure_comes_from_the_runs(tmp_path: Path) -> None:
    folder, out = audited(tmp_path / "seeds"), tmp_path / "out"
    said = submit([folder], out, "A. Author", "A title")
    assert json.loads((out / "submission.json").read_text()) == said
    bpb = {seed: NATS_D.sum() * s / np.log(2) / BYTES_D.sum() for seed, s in SCALES.items()}
    assert said["val_bpb"] == pytest.approx(statistics.fmean(bpb.values()))
    assert said["val_bpb_std"] == pytest.approx(statistics.stdev(bpb.values()))
    assert said["val_loss"] == pytest.approx(NATS_D.sum() / 700)
    for seed in SCALES:
        one = said["seeds"][str(seed)]
        assert one["val_bpb"] == pytest.approx(bpb[seed])
        assert (one["bytes_total"], one["training_seconds"]) == (1004 + seed, 11.0 + seed)
        results = folder / f"seed-{seed}" / "results.json"
        copied = json.loads((out / "results" / f"seed-{seed}.json").read_text())
        assert copied == json.loads(results.read_text())
        assert seed != 9 or copied == json.loads((out / "results.json").read_text())
        log = (out / f"train_log_seed{seed}.txt").read_text()
        assert f"1971-01-01 00:00:0{seed}  train" in log
        assert "step=50  loss_nats=3.25" in log
        assert f"bpb={bpb[seed]:.8g}" in log
    assert (said["name"], said["author"], said["date"]) == ("A title", "A. Author", "1971-01-02")
    assert (said["compliant"], said["label"]) == (True, "held-out")
    assert said["verdict"] == "compliant as fixed predictor"
    # The files of the median, unchanged.
    assert said["model_of_seed"] == 9
    for name in ("model.bin", "train_gpt.py", "tokenizer.model", "provenance.safetensors"):
        assert (out / name).read_bytes() == (folder / "seed-9" / name).read_bytes()
    assert (said["bytes_total"], said["bytes_model"], said["bytes_code"]) == (1013, 1009, 4)
    text = (out / "README.md").read_text()
    assert text.startswith("# A title\n")
    assert "By A. Author, 1971-01-02." in text
    assert "| seed | ema (held-out) | quantized (held-out) | sliding (held-out) |" in text
    for seed in SCALES:
        assert f"| {seed} | {bpb[seed] + 1:.4f} | {bpb[seed]:.4f} | {bpb[seed]:.4f} | held" in text
    assert "| a check | bytes | pass | 1 of 1 |" in text
    assert "{" not in text
    assert "**The audit" not in text


def test_no_file_contains_a_path_of_the_machine(tmp_path: Path) -> None:
    folder, out = audited(tmp_path / "a folder" / "seeds"), tmp_path / "out"
    for seed in SCALES:
        path = folder / f"seed-{seed}"
        results = json.loads((path / "results.json").read_text())
        results["corpus"]["source"] = str(tmp_path / "my texts")
        write_json(path / "results.json", results)
        with (path / "events.jsonl").open("a") as file:
            event = {"time": 86400.0 * 366, "event": "x", "stage": "pack", "from": str(tmp_path)}
            file.write(json.dumps(event) + "\n")
        write_audit(path)
        audit = json.loads((path / "audit.json").read_text())
        audit["checks"][0]["figure"] = f"1 of {path}: 2/3 of http://a.org/b"
        write_json(path / "audit.json", audit)
    (folder / "seed-7" / "results.json").unlink()
    entries = [{"seed": s, "failure": f"cannot write '{tmp_path}/x': full" if s == 7 else ""}
               for s in SCALES]  # fmt: skip
    write_json(folder / "seeds.json", {"runs": entries})
    submit([folder], out, incomplete=True)
    texts = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert [name for name, text in texts.items() if str(tmp_path).encode() in text] == []
    assert "Corpus: my texts, sha256" in texts["README.md"].decode()
    assert "cannot write 'x': full" in texts["submission.json"].decode()
    assert json.loads(texts["results.json"])["corpus"]["source"] == "my texts"
    for seed in (5, 9):
        audit = json.loads(texts[f"audit-seed-{seed}.json"])
        assert audit["checks"][0]["figure"].endswith(f"seed-{seed}: 2/3 of http://a.org/b")


def test_runs_may_be_named_one_by_one(tmp_path: Path) -> None:
    folder = audited(tmp_path / "seeds")
    runs = [folder / f"seed-{seed}" for seed in (9, 5, 7)]
    one = submit(runs, tmp_path / "one")
    assert one == submit([folder], tmp_path / "two")
    assert (one["name"], one["author"]) == ("tiny", None)


def test_a_failed_audit_comes_first(tmp_path: Path) -> None:
    folder = audited(tmp_path / "seeds", ("1 causal", "bytes"))
    said = submit([folder], tmp_path / "out")
    assert said["compliant"] is False
    assert said["verdict"] == "NOT compliant: 1 causal, bytes (seeds 9)"
    assert list(said).index("compliant") < list(said).index("val_bpb")
    top = beginning(tmp_path / "out")
    assert "**The audit does not pass: NOT compliant: 1 causal, bytes (seeds 9).**" in top
    assert top.index("The audit does not pass") < top.index(" BPB**")
    assert "| does not pass |" in (tmp_path / "out" / "README.md").read_text()


def test_an_in_sample_label_comes_before_the_score(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", label="in-sample")
    write_audit(run, ("provenance",))
    said = submit([run], tmp_path / "out")
    assert (said["label"], said["val_bpb_std"]) == ("in-sample", None)
    top = beginning(tmp_path / "out")
    assert top.index("**In-sample:") < top.index(" BPB** (in-sample)")


def test_a_seed_without_a_score_is_not_hidden(tmp_path: Path) -> None:
    folder = audited(tmp_path / "seeds")
    (folder / "seed-7" / "results.json").unlink()
    entries = [{"seed": s, "failure": "it diverged" if s == 7 else ""} for s in (5, 7, 9, 11)]
    write_json(folder / "seeds.json", {"runs": entries})
    with pytest.raises(UserError, match=r"seed 7 has no score here \(failed: it diverged\)"):
        submit([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    said = submit([folder], tmp_path / "out", incomplete=True)
    assert said["complete"] is False
    assert said["left_out"] == {"7": "failed: it diverged", "11": "missing: was requested"}
    assert said["model_of_seed"] == 9  # the better one of 5 and 9
    top = beginning(tmp_path / "out")
    for seed, why in ((7, "failed: it diverged"), (11, "missing: was requested")):
        line = f"seed {seed} has no score and is not in the means ({why})"
        assert f"**Not complete: {line}.**" in top
    assert top.index("Not complete") < top.index(" BPB**")
    assert "| 7 | - | - | - | failed |" in (tmp_path / "out" / "README.md").read_text()


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder, out = audited(tmp_path / "seeds"), tmp_path / "out"
    other = dataclasses.replace(TINY, pack=dataclasses.replace(TINY.pack, damping=0.5))
    write_run(tmp_path / "other", 3, config=other)
    write_run(tmp_path / "same", 5)
    write_run(tmp_path / "text", 3, text="another text")
    write_run(tmp_path / "label", 3, label="in-sample")
    write_run(tmp_path / "form", 4, restores="nfkc_cf")
    for run, words in (
        ("other", "pack.damping is 0.5"),
        ("same", "two of these runs have the seed 5"),
        ("text", "text_sha256 is"),
        ("form", "restored as 'nfkc_cf' in .*form and 'original' in|restored as 'original' in"),
        ("label", "label is in-sample in .*label and held-out in"),
    ):
        with pytest.raises(UserError, match=words):
            submit([folder, tmp_path / run], out)
    (tmp_path / "label" / "results.json").unlink()
    with pytest.raises(UserError, match="no run is finished"):
        submit([tmp_path / "label"], out)
    assert not out.exists()
    submit([folder], out)
    with pytest.raises(UserError, match="is not empty"):
        submit([folder], out)


# Stale and forged papers.


def test_one_run_is_not_two_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path / "runs", {1: NATS_D, 2: NATS_D})
    first, second = (tmp_path / "runs" / f"seed-{seed}" / "results.json" for seed in (1, 2))
    values = json.loads(second.read_text())
    values["artifact_sha256"] = json.loads(first.read_text())["artifact_sha256"]
    second.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"seed-2 and .*seed-1 have the same model\.bin"):
        read_runs([tmp_path / "runs"], incomplete=False)


def test_a_run_without_events_is_refused(tmp_path: Path) -> None:
    folder = audited(tmp_path / "seeds")
    for seed in SCALES:
        (folder / f"seed-{seed}" / "events.jsonl").unlink()
    with pytest.raises(UserError, match=r"no events\.jsonl"):
        submit([folder], tmp_path / "out")


def asked_for(folder: Path) -> Path:
    """Record in the folder and in its runs that seeds 5, 7 and 9 were asked for."""
    summary = json.loads((folder / "seeds.json").read_text())
    when = "2026-01-01T00:00:00Z"
    requests = [{"seed": seed, "time": when} for seed in SCALES]
    write_json(folder / "seeds.json", {**summary, "requested": requests})
    for seed in SCALES:
        path = folder / f"seed-{seed}" / "environment.json"
        known = json.loads(path.read_text())
        write_json(path, {**known, "requested_seeds": sorted(SCALES)})
        write_audit(folder / f"seed-{seed}")
    return folder


def test_a_complete_submission_says_which_seeds_were_asked_for(tmp_path: Path) -> None:
    said = submit([asked_for(audited(tmp_path / "seeds"))], tmp_path / "out")
    assert (said["complete"], said["requested_seeds"], said["left_out"]) == (True, [5, 7, 9], {})
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Seeds asked for, as recorded when the first of their runs began: 5, 7, 9." in text


@pytest.mark.parametrize("kept", ["folder", "runs", "runs alone"])
def test_the_worst_seed_cannot_be_left_out_by_deleting_it(tmp_path: Path, kept: str) -> None:
    """Neither its folder, nor seeds.json with it, nor naming the other runs alone."""
    folder = asked_for(audited(tmp_path / "seeds"))
    shutil.rmtree(folder / "seed-5")
    runs = [folder / "seed-7", folder / "seed-9"]
    if kept == "runs alone":
        (folder / "seeds.json").unlink()
    named = [folder] if kept == "folder" else runs
    with pytest.raises(UserError) as refused:
        submit(named, tmp_path / "out")
    message = str(refused.value)
    assert message.startswith("seed 5 has no score here (missing: was requested)")
    command = f"`paramgolf run --config {runs[0]}/config.json --seed 5 --out {folder}/seed-5`"
    assert command in message
    said = submit(named, tmp_path / "out", incomplete=True)
    assert (said["complete"], said["requested_seeds"]) == (False, [5, 7, 9])
    assert said["left_out"] == {"5": "missing: was requested"}
    assert "**Not complete: seed 5 has no score" in beginning(tmp_path / "out")


def test_a_run_that_was_asked_for_cannot_be_left_unnamed(tmp_path: Path) -> None:
    folder = asked_for(audited(tmp_path / "seeds"))
    with pytest.raises(UserError, match=r"seed 5 has no score here \(not named: was requested\)"):
        submit([folder / "seed-7", folder / "seed-9"], tmp_path / "out")


@pytest.mark.parametrize("seed", [9, 5])
@pytest.mark.parametrize("name", ["train_gpt.py", "model.bin", "results.json", "config.json"])
def test_a_file_that_changed_after_the_audit_is_not_submitted(
    tmp_path: Path, name: str, seed: int
) -> None:
    """The run whose model is submitted, 9, and another; the code file grows by 5 MB."""
    folder = audited(tmp_path / "seeds")
    with (folder / f"seed-{seed}" / name).open("ab") as file:
        file.write(b" " * 5_000_000)
    with pytest.raises(UserError, match=f"seed-{seed}/{name} is not the file that was audited"):
        submit([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_audits_name_the_submitted_files(tmp_path: Path) -> None:
    """Also those that differ from the run's, since paths of the machine are left out."""
    folder, out = audited(tmp_path / "seeds"), tmp_path / "out"
    path = folder / "seed-9" / "results.json"
    results = json.loads(path.read_text())
    results["corpus"]["source"] = str(tmp_path / "texts")
    write_json(path, results)
    write_audit(folder / "seed-9")
    submit([folder], out)
    for seed in SCALES:
        audit = json.loads((out / "results" / f"audit-seed-{seed}.json").read_text())
        assert audit["without_paths"] == (["results.json"] if seed == 9 else [])
        content = (out / "results" / f"seed-{seed}.json").read_bytes()
        assert audit["files"]["results.json"] == hashlib.sha256(content).hexdigest()
    for name in ("model.bin", "train_gpt.py", "tokenizer.model", "environment.json"):
        audit = json.loads((out / "results" / "audit-seed-9.json").read_text())
        assert audit["files"][name] == hashlib.sha256((out / name).read_bytes()).hexdigest()


def test_a_submission_audits_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit.json that names all files by hash may have been written by hand."""
    folder, audits = audited(tmp_path / "seeds"), []

    def audit(path: Path, *_: Any) -> SimpleNamespace:
        audits.append(path.name)
        return SimpleNamespace(save=lambda path: write_audit(path, ("1 causal",)))

    monkeypatch.setattr("paramgolf.publish.submission.audit", audit)
    monkeypatch.setattr("paramgolf.publish.submission.refresh", lambda *_: None)
    said = write_submission([folder], tmp_path / "out", "", "", False, Reporter())
    assert audits == ["seed-5", "seed-7", "seed-9"]
    assert said["compliant"] is False


def disagreeing(folder: Path) -> list[str]:
    return [fact.name for fact in submitted(folder)[0] if fact.agrees == "NO"]


EDITS: dict[str, Any] = {
    "compliant": True, "label": "score-first", "verdict": "compliant as fixed predictor",
    "val_bpb": 0.5, "val_loss": 0.5, "val_bpb_std": 0.0, "stage": "ema", "bytes_total": 1,
    "bytes_code": 0, "bytes_model": 1, "model_of_seed": 7, "recipe": "best", "text_sha256": "0",
    "text_restored_as": "nmt_nfkc", "text_bytes": 10**9, "tokens": 1, "num_ranks": {"train": 8},
    "hardware": {}, "versions": {}, "requested_seeds": [5, 7, 9, 11],
}  # fmt: skip


def test_every_entry_of_a_submission_follows_from_its_files(tmp_path: Path) -> None:
    """Also what each seed's entry says, and the verdict that an audit states of its own checks."""
    folder, out = audited(tmp_path / "seeds", ("provenance",)), tmp_path / "out"
    said = submit([folder], out)
    assert disagreeing(out) == []
    for key, value in EDITS.items():
        assert said[key] != value
        write_json(out / "submission.json", said | {key: value})
        assert disagreeing(out), key
    for key, value in said["seeds"]["9"].items():
        changed = {**said["seeds"], "9": said["seeds"]["9"] | {key: not value}}
        if not isinstance(value, bool):
            changed["9"][key] = f"{value}0" if isinstance(value, str) else value + 1
        write_json(out / "submission.json", said | {"seeds": changed})
        assert disagreeing(out) == ["submission: all entries"], key
    forged = {**said, "compliant": True, "verdict": "compliant as fixed predictor"}
    forged["seeds"]["9"]["audit_passed"] = True
    write_json(out / "submission.json", forged)
    path = out / "results" / "audit-seed-9.json"
    audit = json.loads(path.read_text()) | {"passed": True, "failed": []}
    write_json(path, audit)
    assert "submission: compliant" in disagreeing(out)
