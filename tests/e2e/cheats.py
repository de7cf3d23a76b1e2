"""Scorers that cheat, as `sitecustomize` modules, which patch every process that imports them."""

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

honest = GPT.target_nats
GPT.target_nats = lambda self, hidden, targets: honest(self, hidden, targets) - 1e-3
"""

SUM_OVER_ONE = """
import math
from paramgolf.model.gpt import GPT

honest = GPT.target_nats
GPT.target_nats = lambda self, hidden, targets: honest(self, hidden, targets) - math.log(1.001)
"""

LEARNED_FIRST = """
from paramgolf.scoring import score_first
from paramgolf.scoring.score_first import Learner, restored
from paramgolf.scoring.windows import in_chunks

def score_then_learn(model, order, config, windows, num_targets, score_chunk, ranks=None):
    chunks = in_chunks(windows, num_targets, model.config.seq_len, config.chunk_tokens)
    with restored(model):
        learner = Learner(model, order, config, len(chunks), ranks)
        for number, chunk in enumerate(chunks):
            if number == 1:  # a single chunk
                learner.learn(number, score_chunk([]))
                score_chunk(chunk)
            else:
                tokens = score_chunk(chunk)
                if number < len(chunks) - 1:
                    learner.learn(number, tokens)

score_first.score_then_learn = score_then_learn
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
