"""Completions in the form of OpenAI's `/v1/completions`.

The tokens of `logprobs` are the tokenizer's pieces with spaces, operators of CaseOps included;
`text_offset` says where in the text each begins. Their probabilities are the model's, before
temperature and top_p.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.scoring.generate import StreamDecoder
from paramgolf.serve.reading import Read
from paramgolf.serve.requests import Completion


class Part(NamedTuple):
    """A piece of a completion's text."""

    text: str
    reads: list[tuple[Read, int]]
    """Its tokens, and where in the whole text each begins."""
    finish: str | None
    """Why the text ends with this part: "stop" or "length"; None: it goes on."""


def prompt_part(prompt: str, reads: list[Read], tokenizer: Tokenizer) -> Part:
    """Return the repeated prompt with its tokens; these may be missing."""
    tokens = np.array([tokenizer.bos, *(read.token for read in reads)], dtype=np.uint16)
    begins = np.cumsum(tokenizer.token_bytes(tokens)) - tokenizer.token_bytes(tokens)
    # A UTF-8 character has one byte that is no continuation byte.
    first = (np.frombuffer(prompt.encode(), dtype=np.uint8) & 0xC0) != 0x80
    offsets = np.append(0, np.cumsum(first))[np.minimum(begins, len(first))]
    return Part(prompt, list(zip(reads, offsets.tolist(), strict=True)), None)


def parts(
    reads: Iterable[Read], tokenizer: Tokenizer, stops: tuple[str, ...], offset: int
) -> Iterator[Part]:
    """Yield a continuation in whole characters, up to the first of the texts that stop it.

    What may turn out to be the beginning of such a text is held back.

    Args:
        reads: its tokens.
        tokenizer: decodes them.
        stops: texts; the first that occurs ends the continuation, and does not belong to it.
        offset: characters of the whole text before the continuation.
    """
    decoder = StreamDecoder(tokenizer)
    held, waiting = "", list[tuple[Read, int]]()
    sent = decoded = offset
    finish = "length"
    for read in reads:
        if read.token == tokenizer.bos:
            finish = "stop"
            break
        waiting.append((read, decoded))
        added = decoder.add([read.token])
        held, decoded = held + added, decoded + len(added)
        found = [place for place in map(held.find, stops) if place >= 0]
        if found:
            held, finish = held[: min(found)], "stop"
            end = sent + len(held)
            waiting = [(each, begin) for each, begin in waiting if begin < end]
            break
        ready = held[: len(held) - _begun(held, stops)]
        sent, held = sent + len(ready), held[len(ready) :]
        released = [pair for pair in waiting if not held or pair[1] < sent]
        waiting = waiting[len(released) :]
        if ready or released:
            yield Part(ready, released, None)
    yield Part(held, waiting, finish)


def _begun(text: str, stops: tuple[str, ...]) -> int:
    """Return how many characters at the end of a text begin one of the stops."""
    longest = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    lengths = range(longest, 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)


class Answer:
    """The objects that a client gets for one completion."""

    def __init__(
        self, head: dict[str, Any], request: Completion, tokens: NDArray[np.uint16], names: Names
    ) -> None:
        """Take what the answer is about.

        Args:
            head: id, time and model.
            request: the request.
            tokens: of the prompt, with BOS.
            names: of tokens.
        """
        self._head, self._request, self._names = head, request, names
        self._given, self._drawn = len(tokens) - 1, 0

    def parts(self, reads: Iterator[Read], tokenizer: Tokenizer) -> Iterator[Part]:
        """Yield the text that was asked for; `reads` begins with the prompt's tokens, if read."""
        request = self._request
        offset = 0
        prompt = list[Read]()
        for read in reads:
            if not read.given:
                reads = itertools.chain([read], reads)
                break
            prompt.append(read)
        if request.echo:
            offset = len(request.sampling.prompt)
            yield prompt_part(request.sampling.prompt, prompt, tokenizer)
        yield from parts(self._counted(reads, tokenizer.bos), tokenizer, request.stop, offset)

    def _counted(self, reads: Iterable[Read], bos: int) -> Iterator[Read]:
        for read in reads:
            self._drawn += read.token != bos
            yield read

    def chunk(self, part: Part) -> dict[str, Any]:
        """Return a piece of the text as an object of a stream, or as all of it."""
        choice = {
            "text": part.text,
            "index": 0,
            "logprobs": self._logprobs(part),
            "finish_reason": part.finish,
        }
        return {**self._head, "choices": [choice]}

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens so far, BOS not counted."""
        return {
            "prompt_tokens": self._given,
            "completion_tokens": self._drawn,
            "total_tokens": self._given + self._drawn,
        }

    def last_chunk(self) -> dict[str, Any]:
        """Return the object of a stream that says how many tokens it was."""
        return {**self._head, "choices": [], "usage": self.usage()}

    def whole(self, found: Iterable[Part]) -> dict[str, Any]:
        """Return the object that answers a request without a stream."""
        all_parts = list(found)
        reads = [pair for part in all_parts for pair in part.reads]
        text = "".join(part.text for part in all_parts)
        whole = self.chunk(Part(text, reads, all_parts[-1].finish))
        return {**whole, "usage": self.usage()}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        number = self._request.logprobs
        if number is None:
            return None
        names = self._names
        return {
            "tokens": [names[read.token] for read, _ in part.reads],
            "token_logprobs": [-read.nats for read, _ in part.reads],
            "top_logprobs": [
                {
                    names[token]: math.log(max(share, 1e-300))
                    for token, share in zip(read.best[:number], read.shares, strict=False)
                }
                for read, _ in part.reads
            ]
            if number
            else None,
            "text_offset": [begin for _, begin in part.reads],
        }


class Names:
    """The pieces of a tokenizer as strings."""

    def __init__(self, model: bytes) -> None:
        """Read a serialized SentencePiece model."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __getitem__(self, token: int) -> str:
        return self._processor.id_to_piece(token).replace("\u2581", " ")
