"""The prepared text of a run: its splits as shards, and the hashes of text and tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.documents import read_jsonl
from paramgolf.data.shards import read_stream
from paramgolf.data.streams import ORIGINALS, Stream
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError

if TYPE_CHECKING:
    from paramgolf.runtime.rundir import RunDir  # it imports PyTorch, and `data build` needs none


@dataclass(frozen=True)
class Split:
    """The shards of one split and their content."""

    shards: list[str]
    """Paths, absolute or relative to the run's data folder."""
    tokens: int
    documents: int
    text_sha256: str
    """`documents.text_digest` of the original documents, in hexadecimal."""
    bytes: int
    """UTF-8 bytes of the original documents."""
    bytes_are: str
    """"original"; or "as decoded" if the originals are not known: hash and bytes are then those of
    the decoded documents."""


@dataclass(frozen=True)
class PreparedText:
    """Result of the stage that prepares the text, which all other stages read."""

    source: str
    corpus_sha256: str
    tokenizer_sha256: str
    splits: dict[str, Split]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PreparedText:
        """Read what `to_json` returned."""
        splits = {
            name: Split(**{field.name: split[field.name] for field in fields(Split)})
            for name, split in values["splits"].items()
        }
        return cls(values["source"], values["corpus_sha256"], values["tokenizer_sha256"], splits)

    @classmethod
    def of(cls, run: RunDir) -> PreparedText:
        """Return the prepared text of a run.

        Raises:
            UserError: if it is not prepared yet.
        """
        record = run.stage_result("prepare")
        if record is None:
            raise UserError(f"{run.path} has no prepared text yet")
        return cls.from_json(record["text"])

    def shards(self, split: str, folder: Path) -> list[Path]:
        """Return the paths of a split's shards, given the run's data folder.

        Raises:
            UserError: if the source had no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"the text has no {split!r} split: set --data.val-bytes below the size of the "
                "validation text (the rest is for adaptation), or --adapt.text none"
            )
        return [self._shard(folder, name) for name in self.splits[split].shards]

    def _shard(self, folder: Path, name: str) -> Path:
        """Return the path of a shard: in the run's data folder, or where the source's are."""
        path, source = Path(name), Path(self.source)
        if source.is_dir():
            external = path in {file.resolve() for file in source.iterdir()}
        else:  # it is not at hand, or relative to another directory
            external = path.is_absolute() and path.match("*_train_[0-9]*.bin")
        if not external and (path.name != name or name == ".."):
            raise UserError(
                f"the shard {name!r} in stages/prepare.json is neither in {folder} nor in the "
                f"source of the text, {self.source}: restore stages/prepare.json"
            )
        return folder / name

    def stream(self, split: str, folder: Path) -> NDArray[np.uint16]:
        """Return all tokens of a split, in memory, (N + 1,)."""
        return read_stream(self.shards(split, folder))

    def scored_text(self, folder: Path, tokenizer: Tokenizer) -> Stream:
        """Return the validation text, in memory, given the run's data folder.

        Raises:
            UserError: if it is not the text that was prepared.
        """
        text, split = self.found_text(folder, tokenizer), self.splits["val"]
        if text.sha256 != split.text_sha256:
            raise UserError(
                f"the validation text in {folder} is not the one that was prepared (SHA-256 "
                f"{text.sha256[:16]} instead of {split.text_sha256[:16]}): start a new run"
            )
        return text

    def found_text(self, folder: Path, tokenizer: Tokenizer) -> Stream:
        """Return the validation text as it is now, whatever was prepared."""
        tokens, originals = self.stream("val", folder), folder / ORIGINALS
        if originals.exists():
            texts = [text for _, text in read_jsonl(originals)]
        else:
            texts = tokenizer.decode_documents(tokens)
        return Stream("the validation text", tokens, texts, self.splits["val"].bytes_are)
