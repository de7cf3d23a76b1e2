"""Training of lossless SentencePiece tokenizers."""

from __future__ import annotations

import io
from collections.abc import Iterable

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


def train_tokenizer(texts: Iterable[str], vocab_size: int, case_ops: bool = False) -> bytes:
    """Train a lossless SentencePiece BPE model: identity normalisation, byte fallback.

    Newline is a separate piece, digits are split, and no space is added or trimmed. Equal texts
    give equal models.

    Args:
        texts: the training text.
        vocab_size: number of pieces.
        case_ops: train on the output of `to_caseops`, with its operators as pieces.

    Returns:
        The serialized model.

    Raises:
        UserError: if the text is too small for this number of pieces.
    """
    lines = (
        line
        for text in texts
        for line in (to_caseops(text) if case_ops else text).split("\n")
        if 0 < len(line.encode()) < _LONGEST_SENTENCE_BYTES
    )
    model = io.BytesIO()
    try:
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
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot train a tokenizer of {vocab_size} pieces on this text: {error}; "
            "give more text or a smaller vocabulary (--model.vocab-size, data build: --vocab-size)"
        ) from error
    return model.getvalue()
