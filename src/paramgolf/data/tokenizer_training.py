"""Training of lossless SentencePiece tokenizers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from paramgolf.data.caseops import CAPS, OPERATORS, TITLE, to_caseops
from paramgolf.data.tokenizer import BOS, EOS, PAD, UNKNOWN
from paramgolf.errors import UserError

_MAX_LINE_BYTES, _PART_CHARACTERS = 4191, 1000
"""Of a line that SentencePiece takes, and of the parts of a longer one."""
_RESERVED = "\u2585"  # SentencePiece leaves out lines that contain it
_MANY_CHARACTERS, _FEWEST_CHARACTERS = 0.9995, 0.98
"""Share of the text whose most frequent characters become pieces; SentencePiece takes no less."""
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_SPACE = "\u2581"
_CASE_PIECES = [*OPERATORS, _SPACE + TITLE, _SPACE + CAPS]
"""The operators, and Title and CAPS joined with a preceding space: with the operators alone, a
capitalised word takes three tokens, and a text 7 % more in all:
docs/experiments/caseops-tokens.md."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    case_ops: bool = False,
    option: str = "--model.vocab-size",
) -> bytes:
    """Train a lossless SentencePiece BPE model: identity normalisation, byte fallback.

    Newline is a separate piece, digits are split, and no space is added or trimmed. The space is a
    piece even if the text has none, or too few for its character coverage. All of the text is used:
    long lines are cut, in front of a space if possible. The characters of 99.95 % of the text
    become pieces; if the vocabulary is too small for them, those of 98 %. Equal texts give equal
    models.

    Args:
        texts: the training text.
        vocab_size: number of pieces.
        case_ops: train on the output of `to_caseops`, with its operators as pieces.
        option: the command-line option of `vocab_size`, for error messages.

    Returns:
        The serialized model.

    Raises:
        UserError: if the text does not allow this number of pieces, naming a number that it allows,
            or if it has no line to train on.
    """
    lines = [line for text in texts for line in _lines(to_caseops(text) if case_ops else text)]
    attempts: list[dict[str, Any]] = [
        {"required_chars": _SPACE},
        {"required_chars": _SPACE, "character_coverage": _FEWEST_CHARACTERS},
    ]
    if any(" " in line for line in lines):
        attempts.insert(0, {})
    reason = ""
    for more in attempts:
        try:
            model = _train(lines, vocab_size, case_ops, **more)
        except RuntimeError as error:
            reason = str(error)
            if more and not _TOO_SMALL.search(reason):
                break
        else:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            if not processor.is_unknown(processor.piece_to_id(_SPACE)):
                return model
    raise UserError(_explain(reason, vocab_size, option))


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, in parts that SentencePiece does not leave out."""
    for line in re.split(f"[\n{_RESERVED}]", text):
        begin = 0
        if len(line.encode()) > _MAX_LINE_BYTES:
            while len(line) - begin > _PART_CHARACTERS:
                limit = begin + _PART_CHARACTERS
                end = line.rfind(" ", begin + 1, limit)
                yield line[begin : end if end > 0 else limit]
                begin = end if end > 0 else limit
        if begin < len(line):
            yield line[begin:]


def _train(lines: list[str], vocab_size: int, case_ops: bool, **more: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        character_coverage=more.pop("character_coverage", _MANY_CHARACTERS),
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n", *(_CASE_PIECES if case_ops else [])],
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNKNOWN,
        num_threads=1,
        minloglevel=2,
        **more,
    )
    return model.getvalue()


def _explain(reason: str, vocab_size: int, option: str) -> str:
    """Say what to do about an error of SentencePiece, which names the possible sizes."""
    if least := _TOO_SMALL.search(reason):
        return (
            f"a vocabulary of {vocab_size} pieces is too small for the characters that make up "
            f"{_FEWEST_CHARACTERS:.0%} of the training text: the smallest possible is "
            f"{option} {least[1]}"
        )
    if largest := re.search(r"too high .* value <= (\d+)", reason):
        return (
            f"a vocabulary of {vocab_size} pieces is too large for the training text: give more "
            f"text; the largest possible for this one is {option} {largest[1]}"
        )
    if "!sentences_.empty()" in reason:
        return "the training text has no line to train a tokenizer on: give more text"
    return f"cannot train a tokenizer of {vocab_size} pieces on this text: {reason}"
