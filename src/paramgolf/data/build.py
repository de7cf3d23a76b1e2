"""Text of any size to shards, tokenizer and manifest: streaming, resumable, reproducible.

The input is read in chunks, and each chunk is encoded to its own file in `.build/`. If interrupted,
a build reads the input again, checks that it is unchanged, and encodes only the missing chunks.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import Checked, PositiveInt, Share, VocabSize, require
from paramgolf.data.chunks import Chunk, SeenDocuments, exact_key
from paramgolf.data.documents import Document, batches
from paramgolf.data.encoding import encode_documents
from paramgolf.data.fingerprints import Fingerprints, fingerprints
from paramgolf.data.overlap import CopyFinder, Overlap, require_disjoint
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.shards import MANIFEST, SPLITS, ShardWriter, write_shard
from paramgolf.data.sidecars import count_bytes, sidecar_of
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


@dataclass(frozen=True)
class BuildConfig(Checked):
    """Which text to build from, and how."""

    sources: tuple[str, ...]
    """Files, folders, globs, or - (stdin): .txt, .md, .markdown, .rst (one document per file),
    .jsonl[.gz|.xz|.zst] and .parquet (one document per row)."""
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
    """Share of the documents (by the hash of their words) for validation."""
    adapt_share: Share = 0.1
    """Share of the documents (by the hash of their words) for adaptation; 0: none."""
    text_key: str = ""
    """JSON key or Parquet column of the text; by default "text", then "content", then a Parquet
    file's only string column."""
    shard_tokens: PositiveInt = 10_000_000
    """Number of tokens in each shard file."""
    max_overlap: Share = 0.01
    """Largest share of the validation text's 13-word shingles that other splits may contain."""

    def check_combinations(self) -> None:
        """Check that there are sources and training text."""
        require(bool(self.sources), "SOURCE", "", "a file, a directory, a glob, or - (stdin)")
        total = self.adapt_share + (0 if self.val else self.val_share)
        require(total < 1, "val_share + adapt_share", total, "below 1, to leave training text")


def build(config: BuildConfig, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Build a folder of shards and return its manifest.

    Equal input and settings give equal bytes.

    Args:
        config: which text to build from, and how.
        out: the folder; an interrupted build in it is resumed.
        reporter: the console.

    Raises:
        UserError: if a source cannot be read or has changed, or the validation text overlaps with
            the training text.
        ConfigError: if `out` was built from other sources or with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        return _Build(config, out, reporter).run()


class _Build:
    """One build into a locked folder."""

    def __init__(self, config: BuildConfig, out: Path, reporter: Reporter) -> None:
        self._config, self._out, self._reporter = config, out, reporter
        self._work = out / ".build"
        self._counts = {"read": 0, "empty": 0, "duplicates": 0}
        self._digests = [hashlib.sha256() for _ in SPLITS]
        self._bytes = [0] * len(SPLITS)
        self._in_both: list[str] = []
        """Names of documents of `sources` that are also documents of `val`."""

    def run(self) -> dict[str, Any]:
        """Build what is missing; return the manifest."""
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
            built = read_json(manifest)
            _require_equal(self._out, built["settings"], settings)
            self._reporter.line(f"{self._out} is already complete")
            shutil.rmtree(work, ignore_errors=True)
            return built
        begun = work / "settings.json"
        if begun.exists():
            relevant = settings.keys() - {"max_overlap", "shard_tokens"}  # for the chunks
            _require_equal(self._out, read_json(begun), {key: settings[key] for key in relevant})
        else:
            write_json(begun, settings)
        tokenizer = self._get_tokenizer()
        chunks = self._encode(tokenizer)
        texts = self._gather(chunks)
        overlap = self._measure_overlap(chunks, texts)
        result = self._write(chunks, texts, tokenizer, settings, overlap)
        write_json(manifest, result)
        shutil.rmtree(work)
        return result

    def _settings(self) -> dict[str, Any]:
        """Return everything that determines the output, as plain JSON values."""
        config = self._config
        given = asdict(config)
        if config.tokenizer:
            tokenizer = Tokenizer.load(Path(config.tokenizer))
            if config.case_ops and not tokenizer.case_ops:
                raise ConfigError(
                    f"--case-ops does not go with --tokenizer {config.tokenizer}, which does not "
                    "have U+E001 to U+E004 as user-defined pieces; leave one of the two options out"
                )
            given["tokenizer"] = tokenizer.sha256
        files = {
            split: [{"file": str(path), "bytes": path.stat().st_size} for path in paths]
            for split, paths in self._files.items()
        }
        return json.loads(json.dumps({**given, "files": files}))

    def _read(self, source: str, name: str) -> Iterator[Document]:
        """Read all documents of a source ("train" or "val"), with progress called `name`."""
        paths = self._files[source]
        sizes = [path.stat().st_size for path in paths]
        progress = self._reporter.progress(name, sum(sizes), "bytes")
        before = 0
        for path, size in zip(paths, sizes, strict=True):
            begin = before

            def update(done: int, begin: int = begin) -> None:
                progress.update(begin + done)

            yield from read_documents(path, self._config.text_key, update)
            before += size

    def _get_tokenizer(self) -> Tokenizer:
        """Load the given tokenizer, or train one."""
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
        """Return the documents with the smallest hashes that are in the training split.

        This is a random sample that does not depend on the order of the documents.
        """
        kept: list[tuple[int, str]] = []  # a heap with the largest hash on top
        keys: set[int] = set()
        size = 0
        for document in self._read("train", "sample"):
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
        splits = self._assign_splits(fingerprints(texts).documents, "train")
        return [text for text, split in zip(texts, splits, strict=True) if split == _TRAIN]

    def _assign_splits(self, hashes: NDArray[np.uint64], source: str) -> NDArray[np.uint8]:
        """Assign documents to splits by the hashes of their words, which ignore spaces and case."""
        if source == "val":
            return np.full(len(hashes), _VAL, np.uint8)
        config = self._config
        places = hashes.astype(np.float64) / 2.0**64
        val_share = 0.0 if config.val else config.val_share
        splits = np.full(len(hashes), _TRAIN, np.uint8)
        splits[places < val_share + config.adapt_share] = _ADAPT
        splits[places < val_share] = _VAL
        return splits

    def _encode(self, tokenizer: Tokenizer) -> list[Path]:
        """Encode the chunks that do not exist yet; return the paths of all."""
        seen = {"val": SeenDocuments(), "train": SeenDocuments()}
        paths: list[Path] = []
        for source in ("val", "train"):
            for part in batches(self._read(source, "encode"), _CHUNK_CHARS):
                paths.append(self._work / f"chunk_{len(paths):06d}.safetensors")
                fresh, digest = self._without_duplicates(part, source, seen)
                if paths[-1].exists():
                    chunk = Chunk.load(paths[-1])
                    if chunk.digest != digest:
                        raise UserError(
                            f"the text has changed since the build of {self._out} began (near "
                            f"{part[0].name}): remove {self._work} and build again"
                        )
                else:
                    encoded = encode_documents(fresh, tokenizer)
                    splits = self._assign_splits(encoded.prints.documents, source)
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

    def _without_duplicates(
        self, part: list[Document], source: str, seen: dict[str, SeenDocuments]
    ) -> tuple[list[Document], str]:
        """Return the documents that are neither empty nor seen before, and a hash of all."""
        whole = hashlib.sha256()
        fresh: list[Document] = []
        counts = self._counts
        for document in part:
            key, digest = exact_key(document)
            whole.update(digest)
            counts["read"] += 1
            if not document.text:
                counts["empty"] += 1
            elif key in seen[source]:
                counts["duplicates"] += 1
            else:
                if source == "train" and key in seen["val"]:
                    self._in_both.append(document.name)
                seen[source].add(key)
                fresh.append(document)
        return fresh, whole.hexdigest()

    def _gather(self, chunks: list[Path]) -> dict[str, Text]:
        """Collect the hashes of every split.

        Raises:
            UserError: if there is no training or no validation text.
        """
        gathered = {split: Gathering() for split in SPLITS}
        progress = self._reporter.progress("hash", len(chunks), "chunks")
        for number, path in enumerate(chunks, start=1):
            chunk = Chunk.load(path)
            for split, gathering in gathered.items():
                gathering.add(chunk.prints_of(split))
            progress.update(number)
        texts = {
            split: gathering.text(digest.hexdigest())
            for (split, gathering), digest in zip(gathered.items(), self._digests, strict=True)
        }
        for name in ("train", "val"):
            if not len(texts[name].documents):
                raise UserError(
                    f"of {self._counts['read']:,} documents, none is in the {name!r} split (splits "
                    "are by hash): change --val-share, or name validation files with --val"
                )
        return texts

    def _measure_overlap(self, chunks: list[Path], texts: dict[str, Text]) -> Overlap:
        """Return how much the validation text overlaps with the other splits.

        Raises:
            UserError: if it overlaps more than the settings allow.
        """
        known = Provenance({name: texts[name] for name in ("train", "adapt")})
        finder = CopyFinder(known)
        copies: list[str] = []
        progress = self._reporter.progress("compare", len(chunks), "chunks")
        for number, (names, prints) in enumerate(_validation(chunks), start=1):
            copies += [names[i] for i in finder.find(prints)]
            progress.update(number)
        overlap = Overlap(known.share(texts["val"].shingles) or 0.0, len(copies))
        touched = (
            name
            for names, prints in _validation(chunks)
            for number, name in enumerate(names)
            if known.share(prints.shingles[prints.document_of == number])
        )
        candidates = chain(self._in_both, copies, touched)
        require_disjoint(overlap, self._config.max_overlap, len(self._in_both), candidates)
        return overlap

    def _write(
        self,
        chunks: list[Path],
        texts: dict[str, Text],
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        overlap: Overlap,
    ) -> dict[str, Any]:
        """Write shards, tokenizer and provenance; return the manifest."""
        out, config = self._out, self._config
        texts = {name: text for name, text in texts.items() if len(text.documents)}
        splits: dict[str, Any] = {}
        for name, writer in self._write_shards(chunks, list(texts)).items():
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
        trained_on = "not known: the tokenizer was given" if config.tokenizer else "train"
        provenance = out / "provenance.safetensors"
        Provenance(texts, {"tokenizer": trained_on}).save(provenance)
        return {
            "version": VERSION,
            "paramgolf": __version__,
            "settings": settings,
            "documents": self._counts,
            "tokenizer": {
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "case_ops": tokenizer.case_ops,
            },
            "splits": splits,
            "overlap": overlap._asdict(),
            "provenance_sha256": sha256_of_file(provenance),
        }

    def _write_shards(self, chunks: list[Path], splits: list[str]) -> dict[str, ShardWriter]:
        """Pass all tokens to the writers of their splits; the last shards remain to be written."""
        writers = {name: ShardWriter(self._out, name, self._config.shard_tokens) for name in splits}
        progress = self._reporter.progress("write", len(chunks), "chunks")
        for number, path in enumerate(chunks, start=1):
            chunk = Chunk.load(path)
            for name, writer in writers.items():
                writer.add(chunk.tokens_of(name))
            progress.update(number)
        return writers


def write_sidecars(shards: Sequence[Path], tokenizer: Tokenizer) -> list[Path]:
    """Write the sidecars of all shards of a split; return their paths."""
    parts: dict[Path, list[NDArray[np.uint16]]] = {}
    for shard, _, counts in count_bytes(shards, tokenizer):
        parts.setdefault(sidecar_of(shard), []).append(counts)
    for path, counts in parts.items():
        write_shard(path, np.concatenate(counts))
    return list(parts)


def _validation(chunks: list[Path]) -> Iterator[tuple[list[str], Fingerprints]]:
    """Yield names and fingerprints of the validation documents of every chunk."""
    for path in chunks:
        chunk = Chunk.load(path)
        named = zip(chunk.names, chunk.splits, strict=True)
        yield [name for name, split in named if split == _VAL], chunk.prints_of("val")


def _require_equal(out: Path, built: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a ConfigError if a folder was built with other settings."""
    for key, value in wanted.items():
        if built.get(key, False) != value:  # older folders lack the newest keys
            what = "other files, or files of other sizes" if key == "files" else f"another {key}"
            raise ConfigError(
                f"{out} was built with {what}: choose another --out, or remove that folder"
            )
