"""All runs below some folders: which, in which order, and in a terminal of 80 columns."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from paramgolf.cli.listing import as_table, numbered_texts
from paramgolf.cli.listing import list as listing
from paramgolf.errors import UserError
from paramgolf.runtime.files import write_json
from paramgolf.study.compare import compare
from paramgolf.study.listing import ListedRun, SortKey, list_runs
from tests.written_runs import NATS_D, write_audit, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs, `a` the newest: audited, outdated audit, unfinished and unreadable."""
    write_run(tmp_path / "a", 3, NATS_D * 1.1)
    write_audit(tmp_path / "a", failed=("bytes",))
    write_run(tmp_path / "below" / "b", 2)
    write_audit(tmp_path / "below" / "b")
    results = json.loads((tmp_path / "below" / "b" / "results.json").read_text())
    results["stages"]["sliding"]["bpb"] += 0.01
    write_json(tmp_path / "below" / "b" / "results.json", results)
    write_run(tmp_path / "c", 1)
    (tmp_path / "c" / "results.json").unlink()
    (tmp_path / "c" / "stages" / "score.json").unlink()
    write_json(tmp_path / "c" / "stages" / "prepare.json", {})
    write_run(tmp_path / "d" / "run", 4)
    (tmp_path / "d" / "run" / "config.json").write_text("no JSON")
    write_json(tmp_path / "a" / "inside" / "config.json", {})
    write_json(tmp_path / "exported" / "config.json", {})
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"")
    for place, path in enumerate(("d/run", "c", "below/b", "a")):
        for file in (tmp_path / path).rglob("*"):
            os.utime(file, (1e9 + place, 1e9 + place))
    return tmp_path


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("date", ["a", "below/b", "c", "d/run"]),
        ("score", ["below/b", "a", "c", "d/run"]),
        ("size", ["below/b", "a", "c", "d/run"]),
        ("recipe", ["d/run", "c", "below/b", "a"]),
        ("path", ["a", "below/b", "c", "d/run"]),
    ],
)
def test_every_run_once_in_order(folder: Path, sort: SortKey, names: list[str]) -> None:
    runs = list_runs([folder, folder / "below"], sort)
    assert [str(run.path.relative_to(folder)) for run in runs] == names


def test_a_run_is_described_by_its_files(folder: Path) -> None:
    a, b, c, d = list_runs([folder], "path")
    stages = json.loads((a.path / "results.json").read_text())["stages"]
    assert (a.recipe, a.seed, a.state, a.bytes, a.label) == (
        "tiny",
        3,
        "finished",
        1007,
        "held-out",
    )
    assert a.bpb == stages["sliding"]["bpb"]
    assert (a.audit, b.audit, c.audit) == ("FAILED", "outdated", "none")
    assert (c.state, c.bpb, d.state, d.recipe) == ("before train", None, "unreadable", "?")
    assert [run.date for run in (a, b, c, d)] == [1e9 + 3, 1e9 + 2, 1e9 + 1, 1e9]


def test_a_single_run_may_be_named(folder: Path) -> None:
    (run,) = list_runs([folder / "a"], "date")
    assert run.path == folder / "a"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs is not a directory; start a run with"):
        list_runs([tmp_path / "runs"], "date")


def test_the_table_fits_80_columns_and_drops_nothing() -> None:
    path = Path("runs/a-rather-long-name/seeds-h200-in-sample/seed-1337")
    run = ListedRun(
        path, "h200-in-sample", 1, "finished", 1.1873, "score-first", 15_991_234, "outdated", 1e9
    )
    run = run._replace(text=("a" * 64, "original"))
    waiting = run._replace(bpb=None, state="before prepare", text=("", ""))
    other = run._replace(text=("b" * 64, "original"), tokenizer_is_self_reported=True)
    console = Console(file=io.StringIO(), width=80)
    console.print(as_table([run, waiting, other]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "h200-in-sample",
        "1.1873 ",
        "1.1873*",
        "score-first",
        "15,991,234",
        "outdated",
        "before prepare",
    ):
        assert word in text
    folded = "".join(line[len("09-09 01:46 ") :].split(" ")[0] for line in text.splitlines()[1:])
    assert folded == 3 * str(path)
    assert " # " in text.splitlines()[0]


def test_scores_of_different_texts_are_not_one_ranking(tmp_path: Path) -> None:
    """The better score is of an easier text: each text has a ranking of its own."""
    for place, (name, scale, text) in enumerate(
        [("a", 1.0, "hard"), ("b", 0.5, "easy"), ("c", 1.1, "hard"), ("d", 0.4, "easy")]
    ):
        write_run(tmp_path / name, 1, NATS_D * scale, text=text)
        for file in (tmp_path / name).rglob("*"):
            os.utime(file, (1e9 + place, 1e9 + place))
    runs = list_runs([tmp_path], "score")
    assert [run.path.name for run in runs] == ["d", "b", "a", "c"]
    assert [numbered_texts(runs)[run.text] for run in runs] == [1, 1, 2, 2]
    assert [column.header for column in as_table(runs).columns].count("#") == 1
    assert "#" not in [column.header for column in as_table(runs[:2]).columns]


def test_forms_of_a_text_are_not_one_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The better score is of the same text in lower case, of which less is predicted."""
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, NATS_D * 0.5, restores="nfkc_cf")
    for place, name in enumerate("ab"):
        for file in (tmp_path / name).rglob("*"):
            os.utime(file, (1e9 - place, 1e9 - place))
    runs = list_runs([tmp_path], "score")
    assert [run.path.name for run in runs] == ["a", "b"]
    assert [numbered_texts(runs)[run.text] for run in runs] == [1, 2]
    for options in ([str(tmp_path)], [str(tmp_path / "b")]):
        listing(options)
        assert "restored as nfkc_cf: less is predicted" in capsys.readouterr().out


def test_a_tokenizer_that_is_not_counted_by_its_own_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = {"repo": "somebody/golf", "revision": "0", "dataset": "fineweb10B_sp512"}
    for seed, (name, claim) in enumerate(
        {"a": {}, "b": {"claim": "known", "origin": fetched}}.items()
    ):
        path = write_run(tmp_path / name, seed, NATS_D * (1 + seed / 10))
        results = json.loads((path / "results.json").read_text())
        results["tokenizer"] |= claim
        write_json(path / "results.json", results)
    listing([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("* ") == 2
    assert "* with a tokenizer whose origin is self-reported" in said
    lines = {
        name: compare(tmp_path / name, tmp_path / "a", "", 0.005).verdict_line() for name in "ab"
    }
    assert ["self-reported" in line for line in lines.values()] == [False, True]
    assert "the tokenizer of A is self-reported" in lines["b"]
