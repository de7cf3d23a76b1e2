"""What a rerun is compared with: the configuration in a code file, and the facts of two runs."""

from __future__ import annotations

import bz2
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from paramgolf.checked import from_json
from paramgolf.codefile.build import build
from paramgolf.codefile.reading import configuration_in
from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.recipes import RECIPES
from paramgolf.verify.rerun import Claims, Fact, compare_claims
from tests.written_runs import TINY, write_run


@pytest.mark.parametrize("recipe", ["tiny", "record"])
def test_the_configuration_is_read_from_the_code_file(recipe: str, tmp_path: Path) -> None:
    config = dataclasses.replace(RECIPES[recipe][1], seed=77)
    (tmp_path / "train_gpt.py").write_bytes(build(config))
    found = from_json(RunConfig, configuration_in(tmp_path / "train_gpt.py"))
    data = dataclasses.replace(config.data, source=found.data.source, tokenizer="")
    assert found == dataclasses.replace(config, data=data, device="auto")


def packed(content: object) -> bytes:
    text = bz2.compress(json.dumps(content).encode()).decode("latin-1")
    return f"json.loads(bz2.decompress('''{text!r}'''.encode".encode("latin-1")


@pytest.mark.parametrize(
    "content",
    [b"", b"print('a program')", b"json.loads(bz2.decompress('''x'''.encode('latin-1')))",
     b"json.loads(bz2.decompress('''\\x'''.encode", packed([]), packed([{"seed": "x"}])],
)  # fmt: skip
def test_other_code_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_bytes(content)
    with pytest.raises(UserError, match=r"train_gpt.py (is|contains) "):
        configuration_in(tmp_path / "train_gpt.py")


def claims(tmp_path: Path, **changed: Any) -> Claims:
    """Return the claims of a run that was written by hand: 50 s of training, 600 steps."""
    if not (tmp_path / "run").exists():
        write_run(tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    results |= {
        "budgets": {"training": 50.0, "evaluation": 9.0, "none": 0.0},
        "tokens_per_second": {"train": 9000.0},
        "artifact_sha256": "a",
    }
    hardware = ("a platform", None, 2, 1)
    found = Claims("tiny", TINY, results, hardware, {"train": "t"}, "a", tmp_path, True)
    return dataclasses.replace(found, **changed)


def agreement(facts: list[Fact]) -> dict[str, str]:
    return {fact.name: fact.agrees for fact in facts}


def test_equal_runs_agree(tmp_path: Path) -> None:
    found = agreement(compare_claims(claims(tmp_path), claims(tmp_path)))
    speeds = {name: agrees for name, agrees in found.items() if name.startswith("tokens/s")}
    assert set(speeds.values()) == {"not judged"}
    assert {found[name] for name in found.keys() - speeds.keys()} == {"yes"}
    assert {"steps", "artifact", "scored text", "provenance: train", "BPB, sliding"} < set(found)


@pytest.mark.parametrize(
    ("training", "agrees"), [(11.8, "NO"), (16.6, "NO"), (16.7, "yes"), (49.0, "yes"), (999, "yes")]
)
def test_seconds_may_not_be_much_less_than_those_of_the_rerun(
    tmp_path: Path, training: float, agrees: str
) -> None:
    ours = claims(tmp_path)
    ours.results["budgets"]["training"] = training
    found = agreement(compare_claims(ours, claims(tmp_path)))
    assert found["seconds, training"] == agrees
    elsewhere = dataclasses.replace(ours, hardware=("another platform", None, 2, 1))
    assert agreement(compare_claims(elsewhere, claims(tmp_path)))["seconds, training"] == "shown"
    unknown = dataclasses.replace(ours, hardware=None)
    assert agreement(compare_claims(unknown, claims(tmp_path)))["seconds, training"] == "shown"


def test_steps_by_the_clock_need_not_be_equal(tmp_path: Path) -> None:
    by_clock = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, max_steps=0))
    for steps, by_steps, by_time in ((600, "yes", "yes"), (700, "NO", "yes"), (1900, "NO", "NO")):
        for config, expected in ((TINY, by_steps), (by_clock, by_time)):
            ours = claims(tmp_path, config=config)
            ours.results["steps"] = steps
            found = agreement(compare_claims(ours, claims(tmp_path, config=config)))
            assert found["steps"] == expected


def test_another_artifact_is_judged_by_its_scores(tmp_path: Path) -> None:
    for gain, agrees in ((0.019, "yes"), (0.021, "NO"), (float("nan"), "NO")):
        ours = claims(tmp_path, artifact_sha256="b")
        ours.results["artifact_sha256"] = "b"
        ours.results["stages"]["sliding"]["bpb"] -= gain
        found = agreement(compare_claims(ours, claims(tmp_path)))
        assert (found["artifact"], found["BPB, sliding"]) == ("shown", agrees)
