"""A report's passage of text: pieces as they are shown, and what the page says of each."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from typing import Any

import numpy as np
import sentencepiece

from paramgolf.data.caseops import CAPS, ESCAPE, NEXT, TITLE
from paramgolf.data.prepared import PreparedText
from paramgolf.report.passage import Passage, document_bounds, read_passage, typical_document
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import load_on

MAX_TOKENS = 700
LEVELS_BITS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Where the colour changes."""
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_VISIBLE = {"\n": "\u21b5\n", "\t": "\u21e5\t"}
_SIGNS = {TITLE: "\u21e7", NEXT: "\u21e7", CAPS: "\u21ea", ESCAPE: "\u238b"}
"""Of the operators of CaseOps: one letter, all letters; the next operator is a character."""


def passage_section(run: RunDir, results: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
    """The passage of a run as the page shows it.

    Args:
        run: finished.
        results: of `results.json`.
        runtime: where to predict; not compiled.
    """
    predictor = load_on(run.artifact, None, runtime)
    stream = PreparedText.of(run).stream("val", run.data)
    documents, _ = read_tensors(run.documents)
    bounds = document_bounds(stream, predictor.tokenizer.bos)
    document = typical_document(
        documents["bytes"].numpy(),
        documents["sliding"].double().numpy(),
        np.diff(bounds, axis=1)[:, 0],
        MAX_TOKENS,
    )
    passage = read_passage(predictor, stream, document, MAX_TOKENS)
    around = stream[passage.first : passage.first + len(passage.tokens) + 1]
    num_bytes = int(predictor.tokenizer.token_bytes(around).sum())
    bits = passage.nats / math.log(2)
    score = results["stages"]["sliding"]
    return {
        "document": document + 1,
        "num_documents": len(bounds),
        "whole_document": bool(len(passage.tokens) >= bounds[document][1] - passage.first - 1),
        "num_tokens": len(passage.tokens),
        "num_bytes": num_bytes,
        "bpb": float(bits.sum()) / num_bytes,
        "bits": float(bits.sum()),
        "first_share": float((passage.ranks == 1).mean()),
        "best_share": float((passage.best == passage.tokens[:, None]).any(1).mean()),
        "contexts": passage.contexts,
        "label": score["label"],
        "stage_bpb": score["bpb"],
        "device": runtime.device.type,
        "vocab_size": predictor.tokenizer.vocab_size,
        "case_ops": predictor.tokenizer.case_ops,
        "levels": LEVELS_BITS,
        **_tokens(passage, bits, Pieces(predictor.tokenizer.model)),
    }


def _tokens(passage: Passage, bits: np.ndarray[Any, Any], pieces: Pieces) -> dict[str, Any]:
    """The tokens as they are shown, and the data behind them, every piece once."""
    used = np.unique(np.concatenate([passage.tokens, passage.best.ravel()]))
    number = {int(token): place for place, token in enumerate(used)}
    shown, rows = [], []
    for place, token in enumerate(passage.tokens.tolist()):
        text, kind = pieces.shown(token)
        level = bisect_right(LEVELS_BITS, bits[place])
        shown.append({"text": text, "kind": kind, "level": level})
        best = [
            [number[int(other)], _short(share)]
            for other, share in zip(passage.best[place], passage.best_shares[place], strict=True)
        ]
        share = _short(math.exp(-passage.nats[place]))
        rows.append(
            [number[token], round(float(bits[place]), 4), share, int(passage.ranks[place]), best]
        )
    names = [pieces.named(int(token)) for token in used]
    return {"tokens": shown, "data": {"pieces": names, "tokens": rows}}


def _short(share: float) -> float:
    return float(f"{share:.4g}")


class Pieces:
    """How the pieces of a tokenizer are written for people."""

    def __init__(self, model: bytes) -> None:
        """Read a serialized SentencePiece model."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def shown(self, token: int) -> tuple[str, str]:
        """A token in the running text, and its kind: "text", "break", "byte" or "mark".

        Line breaks and tabs are there and visible; invisible characters are written as U+ and
        their number, bytes in hexadecimal.
        """
        processor = self._processor
        if processor.is_byte(token):
            byte = int(processor.id_to_piece(token)[1:-1], 16)
            character = chr(byte)
            if character in _VISIBLE:
                return _VISIBLE[character], "break"
            return f"{byte:02X}", "byte"
        if token == processor.bos_id():
            return "next document", "mark"
        if processor.is_control(token) or processor.is_unknown(token):
            return processor.id_to_piece(token).strip("<>"), "mark"
        text = processor.id_to_piece(token).replace(_SPACE, " ")
        kind = "text" if set(text) - set(_VISIBLE) else "break"
        return "".join(map(_visible, text)), kind

    def named(self, token: int) -> list[str]:
        """A token on its own: `shown`, with spaces to be seen."""
        text, kind = self.shown(token)
        if kind in ("text", "break"):
            text = text.replace("\n", "").replace("\t", "").replace(" ", "\u2423")
        if kind == "byte":
            character = chr(int(text, 16))
            text = f"0x{text}" + (f" {character}" if "!" <= character <= "~" else "")
        return [text, kind]


def _visible(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character)[0] == "C":
        return f"U+{ord(character):04X}"
    return character
