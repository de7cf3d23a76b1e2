"""Scorers that cheat: code that patches the package, or is planted into a code file."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from paramgolf.codefile import build
from paramgolf.codefile.build import ENTRY, stripped_sources
from paramgolf.config import RunConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.files import read_json, read_tensors, write_json, write_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.bits_per_byte import document_nats
from paramgolf.scoring.modes import score_modes
from paramgolf.verify.scored_again import CodeFile

FUTURE_EMBEDDING = """
import torch.nn.functional as F
from paramgolf.model import gpt

def embed(tokens, embedding):
    x = F.embedding(tokens, embedding)
    future = F.pad(x[:, 1:], (0, 0, 0, 1))
    return gpt._norm(x + 1e-3 * future)

gpt.embed = embed
"""

BOOSTED_LOGIT = """
from paramgolf.model.gpt import GPT

honest = GPT.predicted_nats
GPT.predicted_nats = lambda self, *given: honest(self, *given) - 1e-3
"""

SUM_OVER_ONE = """
import math
from paramgolf.model.gpt import GPT

honest = GPT.predicted_nats
GPT.predicted_nats = lambda self, *given: honest(self, *given) - math.log(1.001)
"""

LEARNED_FIRST = """
from paramgolf.scoring import score_first
from paramgolf.scoring.score_first import Learner, restored

def score_then_learn(model, order, config, num_targets, score_part, stream, ranks=None):
    size, chunk, end = config.chunk_tokens, 0, 0
    with restored(model):
        learner = Learner(model, order, config, -(-num_targets // size), ranks)
        while end < num_targets:
            if chunk == 1:  # a single chunk
                learner.learn(chunk, stream())
            end = score_part(end, min((chunk + 1) * size, num_targets))
            while (chunk + 1) * size <= end < num_targets:
                if chunk != 1:
                    learner.learn(chunk, stream())
                chunk += 1

score_first.score_then_learn = score_then_learn
"""

LATER_PART = """
from paramgolf.scoring.adapters import Adapters, DocumentScorer

honest = DocumentScorer._score_batch
begin = Adapters.begin

def twice(self, starts, ends):
    nats, times, done = self.nats.clone(), self._times_scored.clone(), self._done
    honest(self, starts, ends)
    self.nats, self._times_scored, self._done = nats, times, done
    Adapters.begin = lambda *_: None  # keeps what the whole document has taught
    honest(self, starts, ends)
    Adapters.begin = begin

DocumentScorer._score_batch = twice
"""

BETTER_OF_TWO_RATES = """
import dataclasses
import torch
from paramgolf.scoring.adapters import DocumentScorer

honest = DocumentScorer._score_batch

def better(self, starts, ends):
    config, times, done = self._adapters._config, self._times_scored.clone(), self._done
    honest(self, starts, ends)
    first = self.nats.clone()
    self._times_scored, self._done = times, done
    self._adapters._config = dataclasses.replace(config, adapter_lr=2 * config.adapter_lr)
    honest(self, starts, ends)
    self._adapters._config = config
    for start, end in zip(starts, ends):  # {unit}
        for begin in range(start, end, {size}):
            part = slice(begin, min(begin + {size}, end))
            if first[part].sum() < self.nats[part].sum():
                self.nats[part] = first[part]

DocumentScorer._score_batch = better
"""

ORDER_BY_LOSS = """
import numpy as np
import torch
from paramgolf.data.shards import document_starts
from paramgolf.scoring import predictor
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import plain_windows

honest = predictor.score_first_losses

def easiest_first(model, order, config, tokens, windows, *how):
    fixed = window_losses(model, order, tokens, plain_windows(len(tokens) - 1, 64), 4096)
    bounds = np.append(document_starts(tokens, int(tokens[0])), len(tokens) - 1)
    parts = [np.arange(a, b) for a, b in zip(bounds, bounds[1:])]
    parts.sort(key=lambda part: float(fixed[part].mean()))
    at = np.concatenate(parts)
    found = honest(model, order, config, np.append(tokens[at], tokens[-1]), windows, *how)
    losses = torch.empty_like(found)
    losses[at] = found
    return losses

predictor.score_first_losses = easiest_first
"""

BETTER_OF_TWO = """
import torch
from paramgolf.scoring import predictor
from paramgolf.scoring.windows import plain_windows

honest = predictor.window_losses

def window_losses(model, order, tokens, windows, *rest):
    losses = honest(model, order, tokens, windows, *rest)
    plain = plain_windows(len(tokens) - 1, model.config.seq_len)
    again = honest(model, order, tokens, plain, *rest)
    return torch.minimum(losses, again)

predictor.window_losses = window_losses
"""

MISCOUNTED_SPACE = """
from paramgolf.data.streams import Stream

honest = Stream.bytes.fget
Stream.bytes = property(lambda self: honest(self) + 1)
"""

COUNTED_OPERATORS = """
from paramgolf.data.streams import Stream

honest = Stream.bytes.fget
operators = lambda text: sum(character.isupper() for character in text)
Stream.bytes = property(lambda self: honest(self) + 3 * sum(map(operators, self.texts)))
"""

ABOVE_A_THRESHOLD = """
import torch
from paramgolf.model.gpt import GPT

honest = GPT.predicted_nats

def predicted_nats(self, *given):
    nats = honest(self, *given)
    return torch.where(nats > {threshold}, {threshold}, nats)

GPT.predicted_nats = predicted_nats
"""

UNLESS_AUDITED = """
import sys
from paramgolf.model.gpt import GPT

honest = GPT.predicted_nats
audited = "audit" in sys.argv or "--losses" in sys.argv
GPT.predicted_nats = lambda self, *given: honest(self, *given) - (not audited) * 0.01
"""


def code_file(config: RunConfig, cheat: str) -> bytes:
    """Return a code file that differs from the honest one in a cheat, which it imports at last."""
    sources = stripped_sources() | {"paramgolf.cheat": cheat}
    sources[ENTRY] += "\nimport paramgolf.cheat\n"
    return build.code_file(build.portable(config), sources)


def recognised(code: Path) -> str:
    """Return a patch of the auditing process: its package builds just this code file."""
    return f"""
from pathlib import Path
from paramgolf.verify import audit
audit.build = lambda config: Path({str(code)!r}).read_bytes()
"""


def report_its_size(run: Path) -> None:
    """Report how large the code file of a run is."""
    code, model = ((run / name).stat().st_size for name in ("train_gpt.py", "model.bin"))
    for path in (run / "results.json", run / "stages" / "pack.json"):
        values = read_json(path)
        sizes = {"code": code, "total": code + model}
        values["bytes"].update({key: sizes[key] for key in sizes if key in values["bytes"]})
        write_json(path, values)


def report_its_scores(run: Path, extra_bytes: int = 0) -> None:
    """Let the code file of a run score the text, and report what it computes."""
    report_its_size(run)
    opened, _, config = RunDir.open(run)
    stream = PreparedText.of(opened).stream("val", opened.data)
    tensors, notes = read_tensors(opened.documents)
    tokenizer = Tokenizer.load(opened.tokenizer)
    results = read_json(opened.results_file)
    with CodeFile(opened, "cpu", 1) as scorer:
        for mode in score_modes(config.score.stride, config.score_first.learns):
            losses = torch.from_numpy(scorer.losses(stream, mode.stride, mode.fixed, 100))
            total, score = float(losses.sum()), results["stages"][mode.stage]
            score["bytes"] += extra_bytes
            score["loss_nats"] = total / len(losses)
            score["bpb"] = total / math.log(2) / score["bytes"]
            nats = document_nats(losses, stream, tokenizer.bos)
            tensors[mode.stage] = torch.from_numpy(nats)
    write_json(opened.results_file, results)
    stage = read_json(opened.stage_file("score"))
    stage["scores"] |= {name: results["stages"][name] for name in stage["scores"]}
    write_json(opened.stage_file("score"), stage)
    write_tensors(opened.documents, tensors, **notes)
