"""Training of lossless SentencePiece tokenizers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import sentencepiece

from paramgolf.data.caseops import CAPS, OPERATORS, TITLE, to_caseops
from paramgolf.data.tokenizer import BOS, EOS, PAD, UNKNOWN
from paramgolf.errors import UserError

_LONGEST_SENTENCE_BYTES = 4192
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
    piece even if the text has none, or too few for its character coverage. Equal texts give equal
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
    texts = list(texts)
    if any(" " in text for text in texts):
        with suppress(RuntimeError):  # the second attempt fails, too, and its number is right
            model = _train(texts, vocab_size, case_ops)
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            if not processor.is_unknown(processor.piece_to_id(_SPACE)):
                return model
    try:
        return _train(texts, vocab_size, case_ops, required_chars=_SPACE)
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size, option)) from error


def _train(texts: Iterable[str], vocab_size: int, case_ops: bool, **more: Any) -> bytes:
    lines = (
        line
        for text in texts
        for line in (to_caseops(text) if case_ops else text).split("\n")
        if 0 < len(line.encode()) < _LONGEST_SENTENCE_BYTES
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        character_coverage=0.9995,
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
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return (
            f"a vocabulary of {vocab_size} pieces is too small for the characters of the training "
            f"text: the smallest possible is {option} {least[1]}"
        )
    if largest := re.search(r"too high .* value <= (\d+)", reason):
        return (
            f"a vocabulary of {vocab_size} pieces is too large for the training text: give more "
            f"text; the largest possible for this one is {option} {largest[1]}"
        )
    if "!sentences_.empty()" in reason:
        return (
            "the training text has no line to train a tokenizer on: give more text, with lines "
            f"that are not empty and shorter than {_LONGEST_SENTENCE_BYTES:,} bytes"
        )
    return f"cannot train a tokenizer of {vocab_size} pieces on this text: {reason}"
