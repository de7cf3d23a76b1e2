"""Text of any size to shards, tokenizer and manifest: streaming, resumable, reproducible.

The input is read in chunks. Each is encoded to a file of its own in `.build/`; a build that was
killed reads the input again, checks that it is the same, and encodes what was not encoded yet.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import require, require_positive, require_share
from paramgolf.data.chunks import Chunk, SeenDocuments, exact_key
from paramgolf.data.documents import Document, batches
from paramgolf.data.encoding import encode_documents
from paramgolf.data.fingerprints import Fingerprints, fingerprints
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.shards import MANIFEST, SPLITS, ShardWriter
from paramgolf.data.sidecars import write_sidecars
from paramgolf.data.sources import find_sources, read_documents
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import locked, read_json, sha256_of_file, write_bytes, write_json
from paramgolf.version import __version__

VERSION = 1

_CHUNK_CHARS = 32 << 20
_TRAIN, _VAL, _ADAPT = range(len(SPLITS))
_EXAMPLES = 2


@dataclass(frozen=True)
class BuildConfig:
    """What to make of which text."""

    sources: tuple[str, ...]
    """Files, folders, globs, or - (stdin): .txt, .md, .markdown, .rst (a document a file), .jsonl
    [.gz|.xz|.zst] and .parquet (a document a row)."""
    val: tuple[str, ...] = ()
    """Validation text, from sources of its own; by default a share of the documents."""
    tokenizer: str = ""
    """A SentencePiece model to use; by default one is trained on the training text."""
    vocab_size: int = 8192
    """Pieces of the tokenizer that is trained."""
    case_ops: bool = False
    """Train it with CaseOps: capitals become operators and lower case, losslessly."""
    sample_bytes: int = 32_000_000
    """Train it on a random sample of so much text."""
    val_share: float = 0.1
    """Share of the documents (by the hash of their words) for validation."""
    adapt_share: float = 0.1
    """Share of the documents (likewise) for adaptation; 0: none."""
    text_key: str = ""
    """Where the text of a row is; by default "text", then "content", then a Parquet file's only
    string column."""
    shard_tokens: int = 10_000_000
    """Tokens in a shard file."""
    max_overlap: float = 0.01
    """The largest share of the validation text's 13-word shingles that other splits may hold."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "SOURCE", "", "a file, a folder, a glob, or - (stdin)")
        require_share("data build", self, "val_share", "adapt_share", "max_overlap")
        total = self.adapt_share + (0 if self.val else self.val_share)
        require(total < 1, "val_share + adapt_share", total, "below 1, to leave training text")
        require_positive("data build", self, "sample_bytes", "shard_tokens")
        allowed = "between 257 (every byte is a piece) and 65,536 (tokens are stored as uint16)"
        require(256 < self.vocab_size <= 65_536, "vocab_size", self.vocab_size, allowed)


def build(config: BuildConfig, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Build a folder of shards; gives its manifest. Equal input and settings give equal bytes.

    Args:
        config: what to make.
        out: the folder; what an interrupted build left there is gone on with.
        reporter: the console.

    Raises:
        UserError: if a source cannot be read or has changed, or the validation text overlaps with
            the training text.
        ConfigError: if `out` holds the text of other sources or settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        return _Build(config, out, reporter).run()


class _Counts:
    def __init__(self) -> None:
        self.read = self.empty = self.duplicates = self.bytes = 0


class _Build:
    def __init__(self, config: BuildConfig, out: Path, reporter: Reporter) -> None:
        self._config, self._out, self._reporter = config, out, reporter
        self._work = out / ".build"
        self._counts = _Counts()
        self._digests = [hashlib.sha256() for _ in SPLITS]
        self._bytes = [0] * len(SPLITS)
        self._in_both: list[str] = []

    def run(self) -> dict[str, Any]:
        config, work = self._config, self._work
        manifest = self._out / MANIFEST
        if not manifest.exists():
            work.mkdir(exist_ok=True)
        self._files = {
            "val": find_sources(config.val, work / "stdin-val.txt"),
            "train": find_sources(config.sources, work / "stdin.txt"),
        }
        settings = self._settings()
        if manifest.exists():
            made = read_json(manifest)
            _require_equal(self._out, made["settings"], settings)
            self._reporter.line(f"{self._out} is finished already")
            shutil.rmtree(work, ignore_errors=True)
            return made
        begun = work / "settings.json"
        if begun.exists():
            chunks = settings.keys() - {"max_overlap", "shard_tokens"}  # what shapes them
            _require_equal(self._out, read_json(begun), {key: settings[key] for key in chunks})
        else:
            write_json(begun, settings)
        tokenizer = self._tokenizer()
        chunks = self._encode(tokenizer)
        texts, overlap = self._compared(chunks)
        result = self._write(chunks, texts, tokenizer, settings, overlap)
        write_json(manifest, result)
        shutil.rmtree(work)
        return result

    def _settings(self) -> dict[str, Any]:
        """All that shapes the output, as JSON reads it back."""
        config = self._config
        given = asdict(config)
        if config.tokenizer:
            tokenizer = Tokenizer.load(Path(config.tokenizer))
            if config.case_ops and not tokenizer.case_ops:
                raise ConfigError(
                    f"--case-ops is not possible with {config.tokenizer}: U+E001 to U+E004 are not "
                    "among its user-defined pieces; take one of the two away"
                )
            given["tokenizer"] = tokenizer.sha256
        files = {
            split: [{"file": str(path), "bytes": path.stat().st_size} for path in paths]
            for split, paths in self._files.items()
        }
        return json.loads(json.dumps({**given, "files": files}))

    def _documents(self, split: str, name: str) -> Iterator[Document]:
        """All documents of a split's files that are not empty."""
        paths = self._files[split]
        sizes = [path.stat().st_size for path in paths]
        progress = self._reporter.progress(name, sum(sizes), "bytes")
        before = 0
        for path, size in zip(paths, sizes, strict=True):
            begin = before

            def update(done: int, begin: int = begin) -> None:
                progress.update(begin + done)

            yield from read_documents(path, self._config.text_key, update)
            before += size

    # The tokenizer.

    def _tokenizer(self) -> Tokenizer:
        config = self._config
        if config.tokenizer:
            return Tokenizer.load(Path(config.tokenizer))
        trained = self._work / "tokenizer.model"
        if not trained.exists():
            texts = self._sample()
            size = sum(len(text.encode()) for text in texts)
            self._reporter.line(
                f"  tokenizer {config.vocab_size:,} pieces from {len(texts):,} documents, "
                f"{size:,} bytes"
            )
            write_bytes(trained, train_tokenizer(texts, config.vocab_size, config.case_ops))
        return Tokenizer.load(trained)

    def _sample(self) -> list[str]:
        """Training documents by the smallest hashes: a random sample, the same for equal texts."""
        kept: list[tuple[int, str]] = []  # a heap, the largest hash on top
        keys: set[int] = set()
        size = 0
        for document in self._documents("train", "sample"):
            key, _ = exact_key(document)
            if key in keys or not document.text:
                continue
            heapq.heappush(kept, (-key, document.text))
            keys.add(key)
            size += len(document.text.encode())
            while size - (largest := len(kept[0][1].encode())) >= self._config.sample_bytes:
                keys.remove(-heapq.heappop(kept)[0])
                size -= largest
        texts = [text for _, text in sorted(kept, reverse=True)]
        splits = self._split(fingerprints(texts).documents, "train")
        return [text for text, split in zip(texts, splits, strict=True) if split == _TRAIN]

    # Chunks.

    def _split(self, keys: NDArray[np.uint64], source: str) -> NDArray[np.uint8]:
        """Splits of documents by the hash of their words: edited spaces do not part them."""
        if source == "val":
            return np.full(len(keys), _VAL, np.uint8)
        config = self._config
        places = keys.astype(np.float64) / 2.0**64
        val_share = 0.0 if config.val else config.val_share
        splits = np.full(len(keys), _TRAIN, np.uint8)
        splits[places < val_share + config.adapt_share] = _ADAPT
        splits[places < val_share] = _VAL
        return splits

    def _encode(self, tokenizer: Tokenizer) -> list[Path]:
        """Make the chunks that are not there; gives all."""
        seen = {"val": SeenDocuments(), "train": SeenDocuments()}
        paths: list[Path] = []
        for source in ("val", "train"):
            for part in batches(self._documents(source, "encode"), _CHUNK_CHARS):
                paths.append(self._work / f"chunk_{len(paths):06d}.safetensors")
                fresh, digest = self._fresh(part, source, seen)
                if paths[-1].exists():
                    chunk = Chunk.load(paths[-1])
                    if chunk.digest != digest:
                        raise UserError(
                            f"the text has changed since {self._out} was begun (near "
                            f"{part[0].name}): remove {self._work} and build again"
                        )
                else:
                    encoded = encode_documents(fresh, tokenizer)
                    splits = self._split(encoded.prints.documents, source)
                    names = [
                        name if split == _VAL else ""
                        for (name, _), split in zip(fresh, splits, strict=True)
                    ]
                    chunk = Chunk(digest, encoded, splits, names)
                    chunk.save(paths[-1])
                for (_, text), split in zip(fresh, chunk.splits.tolist(), strict=True):
                    content = text.encode()
                    self._digests[split].update(content + b"\0")
                    self._bytes[split] += len(content)
        return paths

    def _fresh(
        self, part: list[Document], source: str, seen: dict[str, SeenDocuments]
    ) -> tuple[list[Document], str]:
        """The documents that are neither empty nor met before, and the hash of all."""
        whole = hashlib.sha256()
        fresh: list[Document] = []
        counts = self._counts
        for document in part:
            key, digest = exact_key(document)
            whole.update(digest)
            counts.read += 1
            if not document.text:
                counts.empty += 1
            elif key in seen[source]:
                counts.duplicates += 1
            else:
                if source == "train" and key in seen["val"]:
                    self._in_both.append(document.name)
                seen[source].add(key)
                fresh.append(document)
        return fresh, whole.hexdigest()

    # The splits.

    def _compared(self, chunks: list[Path]) -> tuple[dict[str, Text], _Overlap]:
        """What the splits are recognised by, and how far validation overlaps with the others.

        Raises:
            UserError: if it overlaps more than the settings allow.
        """
        gathered = [Gathering() for _ in SPLITS]
        progress = self._reporter.progress("compare", 2 * len(chunks), "chunks")
        for number, path in enumerate(chunks, start=1):
            chunk = Chunk.load(path)
            for split, gathering in enumerate(gathered):
                gathering.add(chunk.encoded.prints.of(chunk.splits == split))
            progress.update(number)
        texts = {
            name: gathering.text(digest.hexdigest())
            for name, gathering, digest in zip(SPLITS, gathered, self._digests, strict=True)
        }
        for name in ("train", "val"):
            if not len(texts[name].documents):
                raise UserError(
                    f"of {self._counts.read:,} documents none is in the split {name!r} (splits go "
                    "by hash): change --val-share, or name validation files with --val"
                )
        known = Provenance({name: texts[name] for name in ("train", "adapt")})
        edited: list[str] = []
        for number, (names, prints) in enumerate(_validation(chunks), start=1):
            edited += [names[i] for i in known.seen_of(prints)]
            progress.update(len(chunks) + number)
        overlap = _Overlap(known.share(texts["val"].shingles) or 0.0, len(edited))
        touched = (
            name
            for names, prints in _validation(chunks)
            for number, name in enumerate(names)
            if known.share(prints.shingles[prints.document_of == number])
        )
        self._require_disjoint(overlap, chain(self._in_both, edited, touched))
        return texts, overlap

    def _require_disjoint(self, overlap: _Overlap, candidates: Iterable[str]) -> None:
        """Raise if the overlap is too much, with the first of the documents that have some."""
        both, most = self._in_both, self._config.max_overlap
        if not both and overlap.shingle_share <= most:
            return
        examples: dict[str, None] = {}  # a name may come twice
        for name in candidates:
            examples[name] = None
            if len(examples) == _EXAMPLES:
                break
        raise UserError(
            f"the validation text overlaps with the training text: {len(both):,} documents are in "
            f"both, {overlap.documents:,} have half of their 13-word shingles there, and "
            f"{overlap.shingle_share:.2%} of all its shingles (at most {most:.2%}): "
            f"{' and '.join(examples)}; "
            + (
                "take them out of the sources"
                if both
                else "take them out of the sources, or allow it with --max-overlap (its scores "
                "are then in-sample)"
            )
        )

    def _write(
        self,
        chunks: list[Path],
        texts: dict[str, Text],
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        overlap: _Overlap,
    ) -> dict[str, Any]:
        """Write the shards and what goes with them; gives the manifest."""
        out, config, counts = self._out, self._config, self._counts
        names = [name for name in SPLITS if len(texts[name].documents)]
        writers = {name: ShardWriter(out, name, config.shard_tokens) for name in names}
        progress = self._reporter.progress("write", len(chunks), "chunks")
        for number, path in enumerate(chunks, start=1):
            chunk = Chunk.load(path)
            for name, writer in writers.items():
                writer.add(chunk.encoded.of(chunk.splits == SPLITS.index(name)))
            progress.update(number)
        splits: dict[str, Any] = {}
        for name, writer in writers.items():
            shards = {shard: sha256_of_file(out / shard) for shard in writer.finish()}
            texts[name] = replace(texts[name], shards=tuple(shards.values()))
            splits[name] = {
                "documents": len(texts[name].documents),
                "bytes": self._bytes[SPLITS.index(name)],
                "tokens": writer.tokens,
                "text_sha256": texts[name].sha256,
                "shards": shards,
            }
            if name == "val" and tokenizer.case_ops:
                sidecars = write_sidecars([out / shard for shard in shards], tokenizer)
                splits[name]["sidecars"] = {path.name: sha256_of_file(path) for path in sidecars}
        write_bytes(out / "tokenizer.model", tokenizer.model)
        made_of = "not known: the tokenizer was given" if config.tokenizer else "train"
        provenance = out / "provenance.safetensors"
        Provenance({name: texts[name] for name in names}, {"tokenizer": made_of}).save(provenance)
        return {
            "version": VERSION,
            "paramgolf": __version__,
            "settings": settings,
            "documents": {
                "read": counts.read,
                "empty": counts.empty,
                "duplicates": counts.duplicates,
            },
            "tokenizer": {
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "case_ops": tokenizer.case_ops,
            },
            "splits": splits,
            "overlap": overlap._asdict(),
            "provenance_sha256": sha256_of_file(provenance),
        }


def _validation(chunks: list[Path]) -> Iterator[tuple[list[str], Fingerprints]]:
    """Names and fingerprints of the validation documents of every chunk."""
    for path in chunks:
        chunk = Chunk.load(path)
        wanted = chunk.splits == _VAL
        names = [name for name, own in zip(chunk.names, wanted, strict=True) if own]
        yield names, chunk.encoded.prints.of(wanted)


class _Overlap(NamedTuple):
    """Of the validation text with the others."""

    shingle_share: float
    documents: int
    """With half of their shingles in the others."""


def _require_equal(out: Path, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if made.get(key, False) != value:  # an older one did not have every key
            what = "other files, or files of other sizes" if key == "files" else f"another {key}"
            raise ConfigError(
                f"{out} was begun with {what}: choose another --out, or remove that folder"
            )
