"""Text sampled from a packed model, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.scoring.next_token import NextToken


def sample_tokens(
    model: GPT,
    order: LayerOrder,
    prompt: list[int],
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield tokens that continue the prompt, without end; arguments as in `sample_predictions`."""
    predictions = sample_predictions(model, order, prompt, temperature, top_p, generator)
    return (token for token, _ in predictions)


def sample_predictions(
    model: GPT,
    order: LayerOrder,
    prompt: list[int],
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[tuple[int, Tensor]]:
    """Yield tokens that continue the prompt, without end, each with the logits it was drawn from.

    The logits are (V,), float32 or wider, on the CPU, before temperature and top_p.

    Each is predicted from all preceding tokens while these fit into a window of seq_len. When the
    window is full, its later half starts the next one, so that a new token usually costs one
    position rather than a whole window.

    Args:
        model: the model, on its device.
        order: the layer order to compute in.
        prompt: at least one token.
        temperature: of the distribution; 0: always the most likely token.
        top_p: sample from the smallest set of tokens with this total probability.
        generator: on the CPU.
    """
    seq_len = model.config.seq_len
    unread = prompt[-seq_len:]
    window: list[int] = []
    next_token = NextToken(model, order)
    next_token.begin(rows=1)
    while True:
        if len(window) + len(unread) > seq_len:
            unread = (window + unread)[-max(1, seq_len // 2) :]
            window = []
            next_token.begin(rows=1)
        logits_V = next_token.read(torch.tensor([unread]))[0].cpu()
        window += unread
        unread = [_sample(logits_V, temperature, top_p, generator)]
        yield unread[0], logits_V


def _sample(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = (logits_V.double() / temperature).softmax(0).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    kept = torch.where(before < top_p, probabilities, 0.0)  # always keeps the most likely
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def streamed_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens as they arrive; yield whole characters, up to the end of the document."""
    decoder = StreamDecoder(tokenizer)
    for token in tokens:
        if token == tokenizer.bos:  # the next document starts
            return
        if text := decoder.add([token]):
            yield text


class StreamDecoder:
    """Decodes the tokens of a document as they arrive, in whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start a document of this tokenizer."""
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, tokens: Sequence[int]) -> str:
        """Return what these tokens add to the text; empty if its last character is incomplete."""
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens)
        # A trailing U+FFFD may be a character of which some byte pieces are still missing.
        if text.endswith("\ufffd") or len(text) <= len(self._shown):
            return ""
        added, self._shown = text[len(self._shown) :], text
        return added
