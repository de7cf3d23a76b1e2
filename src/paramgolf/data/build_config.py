"""The settings of `data build`."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.checked import Checked, PositiveInt, Share, require
from paramgolf.config import VocabSize


@dataclass(frozen=True)
class BuildConfig(Checked):
    """Which text to build from, and how."""

    sources: tuple[str, ...]
    """Files, folders, globs, pipes, or - (stdin): plain text (one document per file), JSON Lines
    and Parquet (one document per row), told apart by their content; .gz, .xz and .zst as well."""
    val: tuple[str, ...] = ()
    """Sources of the validation text; by default, a share of the documents."""
    tokenizer: str = ""
    """SentencePiece model to use; by default, one is trained on the training text."""
    vocab_size: VocabSize = 8192
    """Number of pieces of a trained tokenizer."""
    case_ops: bool = False
    """Train the tokenizer with CaseOps: capitals become operators and lower case, losslessly."""
    sample_bytes: PositiveInt = 32_000_000
    """Size of the random sample of text that the tokenizer is trained on."""
    val_share: Share = 0.1
    """Share of the documents (by the hash of their letters) for validation."""
    adapt_share: Share = 0.1
    """Share of the documents (by the hash of their letters) for adaptation; 0: none."""
    text_key: str = ""
    """JSON key or Parquet column of the text; by default "text", then "content", then a Parquet
    file's only string column."""
    shard_tokens: PositiveInt = 10_000_000
    """Number of tokens in each shard file."""
    max_overlap: Share = 0.01
    """Largest share of the validation text, by bytes, that may be in documents of which other
    splits contain 40 % (in runs of 24 letters); by number of documents, twice this share."""

    def check_combinations(self) -> None:
        """Check that there are sources, and text for training and validation."""
        require(bool(self.sources), "SOURCE", "", "a file, a directory, a glob, or - (stdin)")
        expected = "above 0, or validation text of its own with --val"
        require(bool(self.val) or self.val_share > 0, "val_share", self.val_share, expected)
        total = self.adapt_share + (0 if self.val else self.val_share)
        require(total < 1, "val_share + adapt_share", total, "below 1, to leave training text")
