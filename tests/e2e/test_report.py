"""The report of a run: scores with labels, losses of the scorer, text that stays text."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.report.page import read_run_files, render
from paramgolf.report.passage import (
    LEVELS_BITS,
    MAX_TOKENS,
    NUM_BEST,
    document_bounds,
    passage_section,
    read_passage,
    typical_document,
)
from paramgolf.report.pieces import Pieces, visible_text
from paramgolf.report.sections import training_points
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_tensors, write_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import Predictor, load_on
from paramgolf.verify.checks import audited_files
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import LEARNING, read_results

HOSTILE = """</script><img src=x onerror="alert(1)">{{ 7 * 7 }}<!--<script>'&amp;"""


class Page(HTMLParser):
    """A parsed page: elements, text, tokens of the passage, data of the script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tokens: list[tuple[set[str], str]] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        classes = set((values.get("class") or "").split())
        self.elements.append((tag, values))
        if tag in (
            "td",
            "th",
            "tr",
            "div",
            "p",
            "small",
            "dd",
            "dt",
            "li",
            "text",
            "br",
            "h2",
            "footer",
        ):
            self.text += " "
        self._open = tag if tag in ("script", "style") else "token" if "t" in classes else ""
        if tag == "script":
            self.scripts.append("")
        if self._open == "token":
            self.tokens.append((classes, ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data
        if self._open == "token":
            self.tokens[-1] = (self.tokens[-1][0], self.tokens[-1][1] + data)

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    @property
    def data(self) -> dict[str, Any]:
        """The passage's data."""
        return json.loads(self.scripts[0])

    @property
    def passage(self) -> bytes:
        """The bytes that the tokens of the passage represent."""
        parts = (
            bytes.fromhex(text)
            if "byte" in classes
            else text.replace("\u21b5\n", "\n").replace("\u21e5\t", "\t").encode()
            for classes, text in self.tokens
        )
        return b"".join(parts)


@pytest.fixture(scope="module")
def html(cli: Cli, mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a mini run."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    before = sorted(mini_run.path.rglob("*"))
    result = cli("report", mini_run.path, "--out", out)
    assert result.code == 0, result.stderr
    assert f"{out.stat().st_size:,} bytes" in result.stdout
    assert sorted(mini_run.path.rglob("*")) == before
    return out.read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def passage(mini_run: FinishedRun) -> dict[str, Any]:
    run = RunDir(mini_run.path)
    return passage_section(run, read_results(mini_run.path), select_runtime("cpu"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def loaded(run: Path) -> tuple[Predictor, np.ndarray[Any, Any]]:
    """Return the packed model of a run and the text that it was scored on."""
    directory = RunDir(run)
    stream = PreparedText.of(directory).stream("val", directory.data)
    return load_on(directory.artifact, None, select_runtime("cpu")), stream


# The page.


def test_every_score_has_its_label_beside_it(page: Page, mini_run: FinishedRun) -> None:
    stages = read_results(mini_run.path)["stages"]
    assert page.words.startswith(f"tiny: {stages['sliding']['bpb']:.4f} BPB, held-out")
    assert f"{stages['sliding']['bpb']:.4f} bits per byte held-out" in page.words
    for score in stages.values():
        for row in (f"{score['bpb']:.4f} {score['label']} ", f"{score['loss_nats']:.4f} "):
            assert row in page.words
        # In the table and in the waterfall.
        assert len(re.findall(rf"{score['bpb']:.4f} {score['label']}", page.words)) >= 2


def test_a_page_is_self_contained(html: str, page: Page) -> None:
    assert len(html.encode()) < 3_000_000
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name) or "#"
            assert target[0] == "#" or target == "data:,", (tag, target)
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {t[1:] for _, a in page.elements for t in [a.get("xlink:href") or ""] if t}
    assert targets <= set(ids)


def test_equal_runs_have_equal_pages(
    html: str, mini_run: FinishedRun, passage: dict[str, Any]
) -> None:
    assert render(read_run_files(mini_run.path), passage) == html


def test_figures_of_the_run_are_on_the_page(page: Page, mini_run: FinishedRun) -> None:
    results = read_results(mini_run.path)
    size = results["bytes"]
    for number in (size["total"], size["budget"], size["model"], size["code"], size["tokenizer"]):
        assert f"{number:,}" in page.words
    for part, number in size["by_part"].items():
        assert part in page.words
        assert f"{number:,} (" in page.words
    assert f"training {results['budgets']['training']:,.1f} s" in page.words
    xz = "xz -9 a general-purpose compressor on the same text, for comparison"
    assert f"{xz} {results['xz']['bpb']:.4f}" in page.words
    for figures in json.loads((mini_run.path / "quantization.json").read_text()).values():
        assert f"{figures['entropy_bits']:.2f}" in page.words
    for key in ("model.vocab_size", "score_first.chunk_tokens", "limits.training_seconds", "seed"):
        assert f" {key} " in page.words
    assert results["artifact_sha256"] in page.words


# The passage.


def test_the_losses_of_the_passage_are_those_of_the_score(
    page: Page, mini_run: FinishedRun
) -> None:
    predictor, stream = loaded(mini_run.path)
    losses = predictor.losses(stream, fixed=True).double().numpy()
    documents = document_bounds(stream, predictor.tokenizer.bos)
    for document in range(len(documents)):
        passage = read_passage(predictor, stream, document, 300)
        targets = np.arange(passage.first, passage.first + len(passage.tokens))
        assert np.array_equal(stream[targets + 1], passage.tokens)
        assert passage.nats.sum() == pytest.approx(losses[targets].sum(), abs=1e-4)
        assert np.abs(passage.nats - losses[targets]).max() < 1e-5
    match = re.search(r"of document (\d+) of", page.words)
    assert match
    first = documents[int(match[1]) - 1][0] - 1
    bits = np.array([token[1] for token in page.data["tokens"]])
    wanted = losses[first : first + len(bits)] / math.log(2)
    assert np.abs(bits - wanted).max() < 1e-4
    assert bits.sum() == pytest.approx(wanted.sum(), abs=1e-2)  # digits that are not shown
    for (classes, _), loss in zip(page.tokens, wanted, strict=True):
        level = sum(loss >= edge for edge in LEVELS_BITS)
        assert f"q{level}" in classes or min(abs(loss - np.array(LEVELS_BITS))) < 1e-4


def test_the_most_likely_tokens_are_those_of_the_window(mini_run: FinishedRun) -> None:
    """Against the definition in docs/rules.md: a target's window, one forward pass, softmax."""
    predictor, stream = loaded(mini_run.path)
    length, stride = predictor.artifact.model.seq_len, predictor.artifact.stride
    passage = read_passage(predictor, stream, 1, 90)
    for place in range(0, len(passage.tokens), 7):
        target = passage.first + place
        start = max(0, -(-(target + 1 - length) // stride) * stride)
        assert passage.contexts[0] <= target + 1 - start <= passage.contexts[1]
        window = torch.from_numpy(stream[start : target + 1].astype(np.int64))[None]
        with torch.no_grad():
            hidden = predictor.model(window, predictor.order)[0, -1]
            logits = predictor.model.logits(hidden).double()
        possible = ~torch.from_numpy(predictor.tokenizer.impossible_successors[stream[target]])
        left = 1 - 2**-24 * int((~possible).sum())
        shares = np.full(len(logits), 2**-24)
        shares[possible] = left * logits[possible].softmax(-1).numpy()
        best = np.argsort(-shares, kind="stable")[:NUM_BEST]
        assert shares[passage.best[place]] == pytest.approx(shares[best], rel=1e-4)
        assert passage.best_shares[place] == pytest.approx(shares[best], rel=1e-4)
        own = shares[stream[target + 1]]
        assert math.exp(-passage.nats[place]) == pytest.approx(own, rel=1e-4)
        assert passage.ranks[place] == 1 + (shares > own).sum()


def test_the_tokens_spell_the_text(page: Page, mini_run: FinishedRun) -> None:
    predictor, stream = loaded(mini_run.path)
    texts = predictor.tokenizer.decode_documents(stream)
    assert any(text.encode().startswith(page.passage) for text in texts)
    assert len(page.tokens) == min(MAX_TOKENS, len(page.data["tokens"]))
    assert len(page.passage) > 500


def test_probabilities_on_the_page_are_consistent(page: Page) -> None:
    data = page.data
    for piece, bits, share, rank, best in data["tokens"]:
        assert share == pytest.approx(2**-bits, rel=1e-3)
        assert len(best) == NUM_BEST
        shares = [other for _, other in best]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1.001
        assert (rank <= NUM_BEST) == (piece in [other for other, _ in best])
        assert all(0 <= other < len(data["pieces"]) for other, _ in best)


def test_the_typical_document_is_the_closest_of_the_long_ones() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        sizes, tokens = rng.integers(1, 2000, 12), rng.integers(1, 900, 12)
        nats = sizes * rng.uniform(0.5, 3, 12)
        chosen = typical_document(sizes, nats, tokens, 700)
        long = [d for d in range(12) if tokens[d] >= 700] or [int(tokens.argmax())]
        mean = nats.sum() / sizes.sum()
        apart = [abs(nats[d] / sizes[d] - mean) for d in long]
        assert chosen == long[int(np.argmin(apart))]


@pytest.mark.parametrize(
    ("stream", "bounds"),
    [
        ([1, 5, 6, 1, 7], [[1, 3], [4, 5]]),
        ([5, 6, 1, 7], [[0, 2], [3, 4]]),
        ([5, 6], [[0, 2]]),
        ([1, 1, 7], [[1, 1], [2, 3]]),
    ],
)
def test_document_bounds(stream: list[int], bounds: list[list[int]]) -> None:
    assert document_bounds(np.array(stream, np.uint16), 1).tolist() == bounds


@pytest.mark.parametrize("seed", range(5))
def test_capitals_are_shown_and_their_operators_kept_apart(seed: int) -> None:
    pieces_of = random.Random(seed)
    parts = [
        "The",
        "iPhone",
        "NASA",
        "HTMLParser",
        " a",
        "word",
        "-",
        " ",
        "\n",
        "\u00c9",
        "\ue002",
        "X1y",
    ]
    text = "".join(pieces_of.choices(parts, k=300))
    model = train_tokenizer([text], 320, case_ops=True)
    tokenizer = Tokenizer(model)
    tokens = tokenizer.encode([text])[0].tolist()[1:]  # without BOS
    shown = b""
    for part, kind, mark in Pieces(model).with_capitals(tokens):
        assert mark in ("", "\u21e7", "\u21ea", "\u238b")
        visible = part.replace("\u21b5", "").replace("\u21ea", "\ue002")
        shown += bytes.fromhex(part) if kind == "byte" else visible.encode()
    assert shown.decode() == text


# What the model can be used for.


def test_the_commands_of_the_page_work(
    cli: Cli, html: str, page: Page, mini_run: FinishedRun, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text(
        "These are notes about a function and its arguments.\n" * 20
    )
    commands = re.findall(
        r"<code>paramgolf ((?:generate|score|compress) [^<]*)</code><button", html
    )
    assert len(commands) == 3
    for line in commands:
        arguments = shlex.split(unescape(line))
        assert arguments[1] == str(mini_run.path)
        result = cli(*arguments, cwd=tmp_path)
        assert result.code == 0, result.stderr
    assert (tmp_path / "notes.compressed").exists()


def test_the_sample_is_what_generate_writes(
    cli: Cli, page: Page, passage: dict[str, Any], mini_run: FinishedRun
) -> None:
    sample = passage["sample"]
    result = cli(
        "generate", mini_run.path / "model.bin", "--seed", str(sample["seed"]),
        "--max-tokens", str(sample["max_tokens"]),
    )  # fmt: skip
    assert visible_text(result.stdout).strip() == sample["text"].strip()
    assert " ".join(sample["text"].split()) in page.words


def test_two_runs_side_by_side(cli: Cli, mini_run: FinishedRun, run_copy: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["stages"]["sliding"]["bpb"] -= 0.25
        values["stages"]["sliding"]["label"] = "in-sample"
        values["bytes"]["total"] += 1000

    edit(run_copy / "results.json", change)
    edit(run_copy / "config.json", lambda values: values["train"].update(matrix_lr=0.5))
    out = run_copy / "report-and-run.html"
    result = cli("report", run_copy, mini_run.path)
    assert result.code == 0, result.stderr
    assert result.stdout == f"{out}, {out.stat().st_size:,} bytes\n"
    page = Page(out.read_text())
    theirs, ours = read_results(mini_run.path), read_results(run_copy)
    a, b = (results["stages"]["sliding"]["bpb"] for results in (ours, theirs))
    assert f"sliding windows {a:.4f} in-sample {b:.4f} held-out +0.2500" in page.words
    assert "The labels of the final scores differ: in-sample and held-out." in page.words
    assert "different texts" not in page.words
    total = f"{ours['bytes']['total']:,} {theirs['bytes']['total']:,} \u22121,000"
    assert f"counted, total {total}" in page.words
    assert "Settings that differ key A B train.matrix_lr 0.5 0.022 Written" in page.words
    assert f"paramgolf compare {run_copy} {mini_run.path}" in page.words
    assert "script" not in [tag for tag, _ in page.elements]
    documents, notes = read_tensors(run_copy / "documents.safetensors")
    write_tensors(run_copy / "documents.safetensors", documents, **{**notes, "text_sha256": "0"})
    assert cli("report", run_copy, mini_run.path).code == 0
    assert "The two runs were scored on different texts." in Page(out.read_text()).words


# Hostile text.


def test_text_stays_text(run_copy: Path, passage: dict[str, Any]) -> None:
    def change(values: dict[str, Any]) -> None:
        values["corpus"]["source"] = HOSTILE
        values["stages"]["sliding"]["label"] = "in-sample"

    edit(run_copy / "results.json", change)
    edit(run_copy / "config.json", lambda values: values["data"].update(source=HOSTILE))
    edit(run_copy / "environment.json", lambda values: values.update(gpu=HOSTILE))
    row = {"name": HOSTILE, "condition": HOSTILE, "outcome": HOSTILE, "figure": HOSTILE}
    audit = {
        "passed": False,
        "failed": [],
        "unverified": [],
        "verdict": [HOSTILE, HOSTILE],
        "scores": {},
        "checks": [row],
    }
    audit["files"] = audited_files(run_copy)
    (run_copy / "audit.json").write_text(json.dumps(audit))
    tokens = [{"text": HOSTILE, "mark": "", "kind": "text", "level": 3}]
    sample = {"text": HOSTILE, "seed": 0, "max_tokens": 9, "min_chars": 9}
    data = {"pieces": [[HOSTILE, "text"]], "tokens": [[0, 1.0, 0.5, 1, [[0, 0.5]] * NUM_BEST]]}
    page = Page(
        render(
            read_run_files(run_copy), {**passage, "tokens": tokens, "data": data, "sample": sample}
        )
    )
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 2
    assert page.words.count(" ".join(HOSTILE.split())) >= 8
    assert page.data == data
    assert page.tokens == [({"t", "q3"}, HOSTILE)]
    assert not any(name.startswith("on") for _, values in page.elements for name in values)


# The verdict.


def test_without_an_audit_the_page_names_the_command(page: Page, mini_run: FinishedRun) -> None:
    assert f"Not audited paramgolf audit {mini_run.path}" in page.words
    assert "compliant" not in page.words


@pytest.mark.slow
def test_the_verdict_is_that_of_the_audit(
    cli: Cli, run_copy: Path, passage: dict[str, Any]
) -> None:
    assert cli("report", run_copy).code == 0
    assert "Not audited" in (run_copy / "report.html").read_text()
    result = cli("audit", run_copy, "--device", "cpu", "--positions", "1")
    assert result.code == 0
    assert f"{run_copy / 'report.html'} was updated" in result.stdout
    assert "Audit passed" in (run_copy / "report.html").read_text()
    audit = json.loads((run_copy / "audit.json").read_text())
    words = Page(render(read_run_files(run_copy), passage)).words
    assert "Audit passed compliant as fixed predictor" in words
    for check in audit["checks"]:
        assert " ".join(f"{check['outcome']} {check['name']}".split()) in words
        assert " ".join(check["figure"].split()) in words

    def fail(values: dict[str, Any]) -> None:
        values["passed"], values["failed"] = False, ["bytes"]
        values["checks"][0]["outcome"] = "FAIL"
        values["verdict"][0] = "verdict        NOT compliant: bytes"

    edit(run_copy / "audit.json", fail)
    html = render(read_run_files(run_copy), passage)
    words = Page(html).words
    assert "Audit FAILED NOT compliant: bytes" in words
    assert " BPB, held-out, audit failed " in words
    assert 'class="result held-out audit-failed"' in html
    assert "FAIL bytes of the text" in words
    gone = {**audit, "passed": False, "unverified": ["a check"]}
    (run_copy / "audit.json").write_text(json.dumps(gone))
    assert "Audit incomplete" in Page(render(read_run_files(run_copy), passage)).words
    other_file = {**audit, "files": {**audit["files"], "results.json": "0" * 64}}
    for other in (other_file, {**audit, "files": {}}):
        (run_copy / "audit.json").write_text(json.dumps(other))
        words = Page(render(read_run_files(run_copy), passage)).words
        assert "Audit out of date" in words
        assert "compliant" not in words


# Other kinds of runs.


@pytest.mark.parametrize(
    ("label", "recipe", "extra"),
    [
        ("in-sample", "tiny", ["--adapt.text", "scored", "--adapt.epochs", "1"]),
        ("score-first", "tiny-score-first", LEARNING),
        ("held-out", "tiny", ["--adapt.text", "none"]),
    ],
)
def test_other_runs(
    cli: Cli, mini_run: FinishedRun, options: list[str], tmp_path: Path,
    label: str, recipe: str, extra: list[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    result = cli("run", recipe, *options, *extra, "--from", mini_run.path, "--out", run)
    assert result.code == 0, result.stderr
    result = cli("report", run)
    assert result.code == 0, result.stderr
    page = Page((run / "report.html").read_text())
    stages = read_results(run)["stages"]
    final = list(stages.values())[-1]
    assert final["label"] == label
    assert f"{final['bpb']:.4f} bits per byte {label}" in page.words
    assert f"The stage train was taken from {mini_run.path}" in page.words
    assert ("None: the trained weights were used unchanged." in page.words) == ("none" in extra)
    learns = label == "score-first"
    assert ("These predictions are those of the fixed model" in page.words) == learns
    assert ("the scored text itself" in page.words) == (label == "in-sample")
    for score in stages.values():
        assert f"{score['bpb']:.4f} {score['label']}" in page.words


def test_a_resumed_run_shows_only_the_steps_that_led_to_its_weights() -> None:
    def logged(*steps: int) -> list[dict[str, Any]]:
        return [{"event": "train", "step": step} for step in steps]

    start = {"event": "stage_started", "stage": "train"}
    other = {"event": "stage_started", "stage": "adapt"}
    resumed = {"event": "training_resumed", "step": 100}

    def steps(*events: dict[str, Any]) -> list[int]:
        return [point["step"] for point in training_points(list(events))]

    assert steps(start, *logged(50, 100, 150), other) == [50, 100, 150]
    assert steps(start, *logged(50, 100, 150), start, resumed, *logged(120, 200)) == [
        50, 100, 120, 200,
    ]  # fmt: skip
    # Killed before its first checkpoint: it began again.
    assert steps(start, *logged(50), start, *logged(60)) == [60]
    assert steps(start, *logged(50), start, start, resumed, *logged(110)) == [110]


def test_a_curve_of_the_loss_needs_two_logged_steps(
    run_copy: Path, passage: dict[str, Any]
) -> None:
    def logged(*steps: int) -> str:
        return "".join(
            json.dumps({
                "time": 1.0, "event": "train", "step": step, "elapsed_seconds": step / 10,
                "loss_nats": 5.0, "lr_factor": 0.5, "recurrent": step > 3,
            }) + "\n"
            for step in steps
        )  # fmt: skip

    (run_copy / "events.jsonl").write_text(logged(1))
    words = Page(render(read_run_files(run_copy), passage)).words
    assert "No loss curve: fewer than two steps were logged." in words
    (run_copy / "events.jsonl").write_text(logged(2, 4, 6))
    words = Page(render(read_run_files(run_copy), passage)).words
    assert "(3 of 6 steps); at step 6, the last one logged, it is 5.0000 nats per token" in words
    # By the schedule at 0.35 of 6 steps, each of 0.1 s.
    assert "Depth recurrence was switched on after 0.2 s: from then on, the looped" in words
    assert "recurrence on, 2 visits" in words


# Mistakes.


def test_an_unfinished_run_has_no_report(cli: Cli, run_copy: Path) -> None:
    (run_copy / "results.json").unlink()
    assert f"`paramgolf run --resume {run_copy}`" in cli.error("report", run_copy)
    assert not (run_copy / "report.html").exists()


def test_another_artifact_has_no_report(cli: Cli, run_copy: Path) -> None:
    with (run_copy / "model.bin").open("ab") as file:
        file.write(b"x")
    assert "model.bin is not the artifact" in cli.error("report", run_copy)


def test_no_run_has_no_report(cli: Cli, tmp_path: Path) -> None:
    assert "contains no run" in cli.error("report", tmp_path)
