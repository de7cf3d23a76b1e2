"""The tokenizer of a paramgolf artifact, for Hugging Face transformers.

This file needs sentencepiece and transformers, not paramgolf. Text goes in and comes out as
written: with CaseOps (docs/format.md of paramgolf, "Text with CaseOps"), capitals become operators
before SentencePiece encodes a text, and capitals again after it has decoded one. Every text begins
with BOS, which also ends a document when text is generated. Text that spells a special token, such
as "<s>", stays text.
"""

import os
import re
import shutil

import sentencepiece
from transformers import PreTrainedTokenizer

SPACE = "\u2581"  # what SentencePiece writes for a space inside a piece
TITLE, CAPS, NEXT, ESCAPE = OPERATORS = "\ue001\ue002\ue003\ue004"
CAPITALS = re.compile("[A-Z\ue001-\ue004](?:(?<=[A-Z])[A-Z]+)?")
OPERATED = re.compile("\ue001[A-Za-z]?|\ue002[A-Za-z]*|\ue003[A-Za-z]?|\ue004[\ue001-\ue004]?")


def to_caseops(text: str) -> str:
    """Return a text with operators for its capitals."""

    def operated(found: re.Match) -> str:
        capitals = found[0]
        if capitals in OPERATORS:
            return ESCAPE + capitals
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        letters = capitals.lower()
        first = NEXT if before.isascii() and before.isalpha() else TITLE
        if len(letters) == 1:
            return first + letters
        if not "a" <= after <= "z":
            return CAPS + letters
        return (CAPS if len(letters) > 2 else first) + letters[:-1] + NEXT + letters[-1]

    return CAPITALS.sub(operated, text)


def from_caseops(text: str) -> str:
    """Return a text with capitals for its operators."""
    return OPERATED.sub(lambda found: found[0][1:].upper(), text)


class ParamgolfTokenizer(PreTrainedTokenizer):
    """SentencePiece, with CaseOps if the tokenizer was trained with it."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        case_ops: bool = False,
        split_at_mark: bool = False,
        add_bos_token: bool = True,
        **kwargs,
    ) -> None:
        """Load a tokenizer.

        Args:
            vocab_file: the SentencePiece model.
            case_ops: texts pass through CaseOps.
            split_at_mark: a U+2581 of a text, which SentencePiece would decode as a space, becomes
                the byte pieces of its UTF-8.
            add_bos_token: begin every text with BOS.
            kwargs: those of every tokenizer.
        """
        self.vocab_file = vocab_file
        self.case_ops, self.split_at_mark = case_ops, split_at_mark
        self.add_bos_token = add_bos_token
        self.processor = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        settings = {"case_ops": case_ops, "split_at_mark": split_at_mark}
        super().__init__(**settings, add_bos_token=add_bos_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return self.processor.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Return the token of every piece."""
        return {self.processor.id_to_piece(token): token for token in range(self.vocab_size)}

    def tokenize(self, text: str, **kwargs) -> list[str]:
        """Return the pieces of a text."""
        if self.case_ops:
            text = to_caseops(text)
        parts = text.split(SPACE) if self.split_at_mark else [text]
        mark = [f"<0x{byte:02X}>" for byte in SPACE.encode()]
        pieces: list[str] = []
        for number, part in enumerate(parts):
            pieces += (mark if number else []) + self.processor.encode(part, out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self.processor.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.processor.id_to_piece(index)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None) -> list[int]:
        """Return a text's tokens after BOS, or two texts', each after BOS."""
        texts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        bos = [self.bos_token_id] if self.add_bos_token else []
        return [token for text in texts for token in [*bos, *text]]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of pieces."""
        return self._decode([self.processor.piece_to_id(token) for token in tokens])

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        """Return the text of tokens; special tokens separate texts, and are shown or left out."""
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        special = set(self.all_special_ids)
        shown: list[str] = []
        text: list[int] = []
        for token in [*token_ids, None]:
            if token is not None and token not in special:
                text.append(token)
                continue
            decoded = self.processor.decode(text) if text else ""
            shown.append(from_caseops(decoded) if self.case_ops else decoded)
            text = []
            if token is not None and not skip_special_tokens:
                shown.append(self.processor.id_to_piece(token))
        return "".join(shown)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple:
        """Copy the SentencePiece model."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(save_directory, prefix + self.vocab_files_names["vocab_file"])
        if os.path.abspath(path) != os.path.abspath(self.vocab_file):
            shutil.copyfile(self.vocab_file, path)
        return (path,)
