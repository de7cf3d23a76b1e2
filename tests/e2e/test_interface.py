"""What `import paramgolf` offers, against the commands; the examples of docs/python.md."""

from __future__ import annotations

import dataclasses
import doctest
import html
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramgolf
from paramgolf import interface
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import MINI, read_results, require_same_artifact, table_rows, without_times
from tests.helpers import one_line

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TEXT = "Some words, na\u00efve \u4e2d\u6587 <s> & a \U0001f40d.\n\n\tReturn the Value of HTML.\n"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def model(mini_run: FinishedRun) -> paramgolf.Predictor:
    return paramgolf.load(mini_run.path, device="cpu")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# Examples.


@pytest.mark.slow
def test_the_page_is_true(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").symlink_to(source)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=OPTIONS)
    assert failed == 0
    assert tried > 10


def test_the_docstrings_are_true(
    mini_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes").symlink_to(mini_run.path)
    names = {
        "math": math,
        "paramgolf": paramgolf,
        "predictor": paramgolf.load("runs/notes", device="cpu"),
        "run": paramgolf.Run(mini_run.path, read_results(mini_run.path)),
    }
    failed, tried = doctest.testmod(interface, extraglobs=names, optionflags=OPTIONS)
    assert failed == 0
    assert tried > 10


def test_importing_loads_nothing_that_is_slow() -> None:
    """Completion, `paramgolf --version` and type checkers should not wait for PyTorch."""
    code = "import sys, paramgolf; dir(paramgolf); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "paramgolf" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "matplotlib", "sentencepiece", "tyro", "rich"}


def test_all_that_is_public_exists_and_is_documented() -> None:
    assert dir(paramgolf) == sorted(paramgolf.__all__)
    for name in paramgolf.__all__:
        assert getattr(paramgolf, name)
        assert name.startswith("__") or name in PAGE.read_text(), name
    for name in vars(paramgolf.Predictor):
        assert name.startswith("_") or name in PAGE.read_text(), name
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        paramgolf.loads  # noqa: B018


# The commands as the oracle.


def test_score_and_losses_are_those_of_the_command(
    cli: Cli, model: paramgolf.Predictor, mini_run: FinishedRun, text: Path, tmp_path: Path
) -> None:
    for options, how in (
        ([], {}),
        (["--stride", "0", "--fixed"], {"stride": 0, "fixed": True}),
    ):
        file = tmp_path / "losses.npy"
        named = (mini_run.path, text.name, "--device", "cpu", "--losses", file, "--overwrite")
        printed = cli.output("score", *named, *options, cwd=tmp_path)
        losses = model.losses(TEXT, **how)
        assert losses.dtype == np.float64
        np.testing.assert_array_equal(losses, np.load(file))
        score = model.score(TEXT, **how)
        ((_, bpb, nats, tokens, size, label, _),) = table_rows(printed)
        assert (f"{score.bpb:.4f}", f"{score.loss_nats:.4f}") == (bpb, nats)
        assert (str(score.tokens), str(score.bytes), score.label) == (tokens, size, label)
        assert score.bytes == len(TEXT.encode())


def test_a_list_is_several_documents(model: paramgolf.Predictor) -> None:
    texts = ["One document.", "Another one."]
    assert model.score(texts).bytes == len("".join(texts).encode())
    tokens = model.tokens(texts)
    assert tokens.count("<s>") == 1  # of the second; the first one is not predicted
    assert "".join(tokens) == "<s>".join(texts)
    assert len(model.losses(texts)) == len(tokens)
    assert model.score(texts[:1]) == model.score(texts[0])


def test_a_model_that_learns_scores_as_its_command(
    cli: Cli, score_first_run: Path, source: Path, tmp_path: Path
) -> None:
    model = paramgolf.load(score_first_run, device="cpu")
    documents = [json.loads(line)["text"] for line in (source / "val.jsonl").open()][:2]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    losses = tmp_path / "losses.npy"
    cli.output("score", score_first_run, file, "--losses", losses, "--device", "cpu")
    np.testing.assert_array_equal(model.losses(documents), np.load(losses))
    assert model.score(documents).label == "score-first"
    assert model.score(documents, fixed=True).bpb != model.score(documents).bpb


def test_generate_writes_what_the_command_writes(
    cli: Cli, model: paramgolf.Predictor, mini_run: FinishedRun
) -> None:
    options = ("--prompt", "The", "--max-tokens", "70", "--seed", "4")
    printed = cli.output("generate", mini_run.path, *options)
    pieces = list(model.generate("The", max_tokens=70, seed=4))
    assert printed == "The" + "".join(pieces) + "\n"
    assert len(pieces) > 1
    assert list(model.generate("The", max_tokens=0)) == []


def test_the_command_restores_what_compress_returns_and_the_reverse(
    cli: Cli, model: paramgolf.Predictor, mini_run: FinishedRun, text: Path, tmp_path: Path
) -> None:
    ours, theirs, restored = (tmp_path / name for name in ("ours", "theirs", "restored"))
    ours.write_bytes(model.compress(TEXT))
    cli.output("decompress", mini_run.path, ours, "--out", restored)
    assert restored.read_text() == TEXT
    cli.output("compress", mini_run.path, text, "--out", theirs)
    assert model.decompress(theirs.read_bytes()) == TEXT


@pytest.mark.parametrize("text", ["", " ", "a", "\n" * 70, "\U0001f40d" * 40, "\ue000 \ufffd"])
def test_compressed_texts_are_restored(model: paramgolf.Predictor, text: str) -> None:
    assert model.decompress(model.compress(text)) == text


def test_run_makes_the_artifact_of_the_command(
    mini_run: FinishedRun, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(source.parent)
    keys = {
        f"{section}__{key}": value
        for section, values in MINI.items()
        for key, value in values.items()
    }
    out = tmp_path / "run"
    run = paramgolf.run("tiny", out=out, data__source=Path(source.name), device="cpu", **keys)
    assert run.path == out
    require_same_artifact(out, mini_run.path)
    assert without_times(run.results) == without_times(read_results(mini_run.path))
    assert run.results == read_results(out)
    assert capsys.readouterr() == ("", "")
    assert run.load().score(TEXT) == paramgolf.load(mini_run.path).score(TEXT)


# HTML.


def test_coloured_is_the_text_with_its_bits(model: paramgolf.Predictor) -> None:
    text = 'Bold <b>words</b> & "quotes", a &amp; and\n\ta \u202e bidi override.'
    page = model.coloured(text)
    assert page._repr_html_() == page
    spans = re.findall(r'<span style="([^"]*)" title="([^"]+) bits">(.*?)</span>', page, re.DOTALL)
    bits = model.losses(text) / math.log(2)
    assert [float(title) for _, title, _ in spans] == pytest.approx(bits, abs=0.005)
    shown = html.unescape("".join(each for _, _, each in spans))
    expected = text.replace("\n", "\u21b5\n").replace("\t", "\u21e5\t")
    expected = expected.replace("&", "[26]")  # the tokenizer has no piece for it
    assert shown == expected.replace("\u202e", "[E2][80][AE]")
    assert set(re.findall(r"</?(\w+)", page)) == {"div", "span", "small"}
    colours = [re.findall(r"background:(#\w{6})", style) for style, _, _ in spans]
    order = np.argsort(bits)
    assert colours[order[0]] != colours[order[-1]]
    by_bits = [str(colours[place]) for place in order]
    assert len(list(itertools.groupby(by_bits))) == len(set(by_bits))  # each colour is one range


# Errors.


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model__width": -64}, "invalid model.width = -64: expected a value greater than 0"),
        ({"train__max_steps": "5"}, "invalid train.max_steps = '5': expected type int"),
        ({"train__max_stepz": 5}, "unknown key 'train.max_stepz' (did you mean train.max_steps?)"),
        ({"model__width": 1.5}, "invalid model.width = 1.5: expected type int"),
        ({"model__width": None}, "invalid model.width = None: expected type int"),
        ({"adapt__text": "all"}, "invalid adapt.text = 'all': expected one of none, "),
        ({"device": "tpu"}, "invalid device = 'tpu': expected one of auto, cpu, cuda"),
        ({"sed": 1}, "unknown key 'sed' (did you mean seed?)"),
        ({"trian__max_steps": 5}, "unknown section 'trian' of trian__max_steps: expected one of"),
        ({"train": {"max_steps": 5}}, "train is a section: name one of its keys, train__KEY"),
        ({"seed__of": 5}, "unknown section 'seed'"),
    ],
)
def test_a_wrong_key_is_named_and_nothing_is_written(
    keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(paramgolf.ConfigError) as error:
        paramgolf.run("tiny", out=tmp_path / "run", **keys)
    assert words in one_line(error)
    assert not list(tmp_path.iterdir())


def test_wrong_recipes_and_folders(tmp_path: Path) -> None:
    with pytest.raises(paramgolf.ConfigError) as error:
        paramgolf.run("tinny", out=tmp_path / "run")
    assert "unknown recipe 'tinny'. Did you mean 'tiny'?" in one_line(error)
    with pytest.raises(paramgolf.UserError) as error:
        paramgolf.run("tiny", out=tmp_path / "run", data__source=tmp_path / "missing")
    assert f"{tmp_path}/missing" in one_line(error)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with pytest.raises(paramgolf.UserError) as error:
        paramgolf.run("tiny", out=tmp_path / "run")
    assert f"{tmp_path}/run" in one_line(error)


def test_models_that_cannot_be_loaded(mini_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_bytes(b"no artifact")
    shutil.copy(mini_run.path / "model.bin", tmp_path / "alone.bin")
    for arguments, words in (
        ([tmp_path / "missing.bin"], f"cannot read the artifact {tmp_path}/missing.bin"),
        ([str(tmp_path)], f"{tmp_path} contains no model.bin"),
        ([tmp_path / "text.bin"], f"{tmp_path}/text.bin"),
        ([tmp_path / "alone.bin"], f"{tmp_path}/tokenizer.model"),
        ([mini_run.path, tmp_path / "none.model"], f"{tmp_path}/none.model"),
        ([mini_run.path, None, "tpu"], "invalid device = 'tpu': expected auto, cpu or cuda"),
    ):
        with pytest.raises(paramgolf.UserError) as error:
            paramgolf.load(*arguments)
        assert words in one_line(error)


def test_texts_and_numbers_that_are_refused(model: paramgolf.Predictor) -> None:
    calls = {
        "the text is empty": lambda: model.score(""),
        "the text is empty ": lambda: model.losses([]),
        "not valid Unicode": lambda: model.score("\ud800"),
        "not valid Unicode ": lambda: model.generate("\ud800"),
        "invalid stride = 65: expected 0 to 64": lambda: model.losses("Text.", stride=65),
        "invalid stride = -1: expected 0 to 64": lambda: model.score("Text.", stride=-1),
        "invalid max_tokens = -1: expected 0 or more": lambda: model.generate(max_tokens=-1),
        "invalid temperature = -1": lambda: model.generate(temperature=-1),
        "invalid top_p = 0": lambda: model.generate(top_p=0),
        "the content": lambda: model.decompress(b"junk"),
        "damaged": lambda: model.decompress(model.compress("Text.")[:-1] + b"\0"),
    }
    for words, call in calls.items():
        with pytest.raises(paramgolf.UserError) as error:
            call()
        assert words.strip() in one_line(error)


def test_a_score_is_a_value(model: paramgolf.Predictor) -> None:
    score = model.score(TEXT)
    assert isinstance(score, paramgolf.Score)
    assert dataclasses.asdict(score)["bpb"] == score.bpb
