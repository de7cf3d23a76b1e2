"""`paramgolf export --format hf` and `lm-eval`, with transformers and lm_eval themselves."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramgolf.scoring.generate import sample_tokens
from paramgolf.scoring.predictor import Predictor, load
from tests.e2e.command import ENVIRONMENT, TIMEOUT, Cli
from tests.e2e.mini import read_results

pytestmark = pytest.mark.slow
if importlib.util.find_spec("lm_eval") is None and not os.environ.get("CI"):
    pytest.skip("needs paramgolf[ecosystem] (make test-slow)", allow_module_level=True)

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TEXTS = [
    "",
    "Hello",
    "An iPhone, an HTMLParser\n\n",
    "class A(B): <s> \u2581 x\ue001Y \u00e9\u4e2d",
]


class Exported(NamedTuple):
    """A run, its exported model, and both of them loaded with the same, random weights."""

    run: Path
    folder: Path
    ours: Predictor
    theirs: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def exported(cli: Cli, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run with CaseOps, whose weights are then moved away from where training starts."""
    root = tmp_path_factory.mktemp("huggingface")
    # Where transformers copies remote code to; it reads this when it is imported.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HF_HOME", str(root / "home"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.undo()
    run, folder = root / "run", root / "hf"
    with_caseops = [*options, "--data.case-ops", "True"]
    made = cli("run", "tiny", *with_caseops, "--out", run)
    assert made.code == 0, made.stderr
    cli.output("export", run, "--format", "hf", "--out", folder)
    ours = load(run / "model.bin", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    state = theirs.state_dict()
    state["embedding"] = state.pop("embedding.weight")
    impossible = state.pop("impossible")
    assert impossible.any()
    assert state.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(state[name], w) for name, w in ours.model.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: weight + 0.2 * torch.randn(weight.shape, generator=generator)
        for name, weight in ours.model.state_dict().items()
    }
    ours.model.load_state_dict(moved)
    moved["embedding.weight"] = moved.pop("embedding")
    theirs.load_state_dict(moved | {"impossible": impossible})
    return Exported(
        run, folder, ours, theirs, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    )


@torch.no_grad()
def our_logits(ours: Predictor, tokens_BT: torch.Tensor) -> torch.Tensor:
    hidden = ours.model(tokens_BT, ours.order)
    flat = ours.model.predicted_logits(hidden.flatten(0, 1), tokens_BT.flatten())
    return flat.view(*tokens_BT.shape, -1)


@torch.no_grad()
def test_logits(exported: Exported) -> None:
    """Whole windows, then the same in parts through the cache, which has a slot per visit."""
    tokens = torch.randint(512, (3, 64), generator=torch.Generator().manual_seed(1))
    expected = our_logits(exported.ours, tokens)
    assert expected.std() > 1
    whole = exported.theirs(tokens, use_cache=False)
    assert whole.cache is None
    torch.testing.assert_close(whole.logits, expected, atol=1e-4, rtol=0)
    cache, parts = None, []
    for part in tokens.split([10, 1, 1, 30, 22], dim=1):
        output = exported.theirs(part, cache=cache)
        cache = output.cache
        parts.append(output.logits)
    assert len(cache.layers) == 6  # 4 blocks, of which 2 are visited twice
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=0)
    last = exported.theirs(tokens, logits_to_keep=1).logits
    torch.testing.assert_close(last, expected[:, -1:], atol=1e-4, rtol=0)
    loss = exported.theirs(tokens, labels=tokens).loss
    nats = torch.nn.functional.cross_entropy(
        expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert abs(loss - nats) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(exported: Exported, side: str) -> None:
    texts = ["The statement", "A much longer text, of THREE dozen letters", "x"]
    batch = exported.tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    first = {name: values[:, :5] for name, values in batch.items()}
    head = exported.theirs(**first)
    rest = exported.theirs(batch.input_ids[:, 5:], batch.attention_mask, cache=head.cache)
    for logits in (exported.theirs(**batch).logits, torch.cat([head.logits, rest.logits], 1)):
        assert logits.isfinite().all()
        for row, text in enumerate(texts):
            alone = torch.from_numpy(exported.ours.tokenizer.encode([text])[0].astype(np.int64))
            real = logits[row, batch.attention_mask[row] == 1]
            expected = our_logits(exported.ours, alone[None])[0]
            torch.testing.assert_close(real, expected, atol=1e-4, rtol=0)


def test_text_comes_out_as_written(exported: Exported) -> None:
    ours, theirs = exported.ours.tokenizer, exported.tokenizer
    assert ours.case_ops

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(text=st.text() | st.text("aAB <s>\u2581\ue001\ue002\ue003\ue004"))
    def check(text: str) -> None:
        tokens = theirs(text).input_ids
        assert tokens == ours.encode([text])[0].tolist()
        assert theirs.decode(tokens, skip_special_tokens=True) == text
        assert theirs.decode(tokens) == "<s>" + text
        assert theirs(text, add_special_tokens=False).input_ids == tokens[1:]

    for text in TEXTS:
        check.hypothesis.inner_test(text)
    check()


def test_generate(cli: Cli, exported: Exported) -> None:
    """Greedy tokens, alone and in a batch with padding, are those of `paramgolf generate`."""
    from transformers import AutoModelForCausalLM

    ours, tokenizer = exported.ours, exported.tokenizer
    prompts = ["The statement", "x", ""]
    greedy = {"do_sample": False, "max_new_tokens": 40}
    expected = []
    for prompt in prompts:
        start = ours.tokenizer.encode([prompt])[0].tolist()
        sampled = sample_tokens(ours.model, ours.order, start, 0, 1, torch.Generator())
        tokens = list(islice(takewhile(lambda token: token != 1, sampled), 40))
        expected.append(start + tokens)
        for use_cache in (True, False):
            alone = tokenizer(prompt, return_tensors="pt")
            found = exported.theirs.generate(**alone, **greedy, use_cache=use_cache)[0].tolist()
            assert found == (start + tokens + [1])[: len(start) + 40]
    assert len({tuple(tokens[-20:]) for tokens in expected}) > 1
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    found = exported.theirs.generate(**batch, **greedy)
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    assert texts == [ours.tokenizer.decode(tokens[1:]) for tokens in expected]

    as_packed = AutoModelForCausalLM.from_pretrained(exported.folder, trust_remote_code=True)
    found = as_packed.generate(**tokenizer(prompts[0], return_tensors="pt"), **greedy)
    options = ("--prompt", prompts[0], "--temperature", "0", "--max-tokens", "40")
    text = tokenizer.decode(found[0], skip_special_tokens=True)
    assert cli.output("generate", exported.run, *options) == text + "\n"


def test_beyond_the_window(exported: Exported) -> None:
    """Refused, with and without a cache; padding does not count."""
    with pytest.raises(ValueError, match="position 64 is beyond the window of this model"):
        exported.theirs(torch.zeros(1, 65, dtype=torch.long))
    start = exported.tokenizer("x", return_tensors="pt")
    with pytest.raises(ValueError, match="shorten the text or max_new_tokens"):
        exported.theirs.generate(**start, do_sample=False, eos_token_id=None, max_new_tokens=80)
    padded = torch.ones(1, 65, dtype=torch.long)
    padded[0, 0] = 0
    assert exported.theirs(torch.ones_like(padded), padded).logits.isfinite().all()


def test_saved_again(exported: Exported, tmp_path: Path) -> None:
    """What transformers saves has the same configuration, weights and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported.theirs.save_pretrained(tmp_path)
    exported.tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    places = {"_name_or_path": "", "auto_map": ""}
    first, second = (model.config.to_dict() | places for model in (exported.theirs, again))
    assert first == second
    tokens = tokenizer(TEXTS[2], return_tensors="pt").input_ids
    assert tokens.tolist() == exported.tokenizer([TEXTS[2]]).input_ids
    assert torch.equal(again(tokens).logits, exported.theirs(tokens).logits)


def test_model_card(exported: Exported) -> None:
    card, results = (exported.folder / "README.md").read_text(), read_results(exported.run)
    for fact in (
        f"{results['stages']['sliding']['bpb']:.6f} | held-out",
        results["text"]["sha256"],
        f"{results['bytes']['total']:,}",
        results["artifact_sha256"],
    ):
        assert fact in card


def test_lm_eval(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """The harness, without paramgolf in reach, finds what `paramgolf score --rolling` does."""
    task, out = tmp_path / "task", tmp_path / "out"
    cli.output("export", exported.run, "--format", "lm-eval", "--out", task)
    documents = task / "documents.jsonl"
    lengths = [
        len(exported.ours.tokenizer.encode([json.loads(line)["text"]])[0]) - 1
        for line in documents.read_text().splitlines()
    ]
    assert min(lengths) < 64 < max(lengths), "a document within a window, and a longer one"
    cli.output("score", exported.run, documents, "--rolling", "--losses", tmp_path / "losses.npy")
    losses = np.load(tmp_path / "losses.npy")
    assert len(losses) == sum(lengths)
    expected = losses.sum() / math.log(2) / read_results(exported.run)["text"]["bytes"]
    script = (
        "import sys; sys.modules['paramgolf'] = None  # importing it is an error\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    arguments = f"pretrained={exported.folder},trust_remote_code=True,add_bos_token=False"
    command = [sys.executable, "-c", script, "--model", "hf", "--model_args", arguments]
    command += ["--include_path", task, "--tasks", "paramgolf", "--device", "cpu"]
    ended = subprocess.run(
        [*command, "--batch_size", "4", "--output_path", out],
        env=ENVIRONMENT | OFFLINE | {"HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0, ended.stderr
    (file,) = out.rglob("*.json")
    found = json.loads(file.read_text())["results"]["paramgolf"]["bits_per_byte,none"]
    assert abs(found - expected) < 1e-4


def test_mistakes(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    artifact = exported.run / "model.bin"
    rolling = ("score", artifact, __file__, "--rolling", "--stride", "0")
    assert "leave out --stride" in cli.error(*rolling, code=2)
    hf = ("export", artifact, "--format", "hf", "--out", exported.folder)
    assert "not empty" in cli.error(*hf)
    task = ("export", artifact, "--format", "lm-eval", "--out", tmp_path / "task")
    assert "contains no run" in cli.error(*task)
