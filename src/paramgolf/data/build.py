"""Text of any size to shards, tokenizer and manifest: streaming, resumable, reproducible.

First all of the input is checked. Then it is read in chunks, and each chunk is encoded to its own
file in `.build/`. If interrupted, a build reads the input again, checks that it is unchanged, and
encodes only the missing chunks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.build_config import BuildConfig
from paramgolf.data.built_folder import (
    built_manifest,
    different_setting,
    read_begun,
    remove_output,
    require_equal,
    require_manifest,
)
from paramgolf.data.chunks import Chunk, SeenDocuments, exact_key
from paramgolf.data.documents import Document, batches, digest_record, jsonl_lines
from paramgolf.data.encoding import encode_documents
from paramgolf.data.fingerprints import Fingerprints, fingerprints, salt_of
from paramgolf.data.manifest import VERSION
from paramgolf.data.overlap import Overlap, judge
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.sample import Sample
from paramgolf.data.scan import Sources
from paramgolf.data.shards import MANIFEST, SPLITS, ShardWriter
from paramgolf.data.sidecars import write_sidecars
from paramgolf.data.sources import find_sources, is_stream
from paramgolf.data.splits import TRAIN, VAL, Ends, SplitFinder, assign_splits, require_disjoint
from paramgolf.data.streams import ORIGINALS
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import (
    exclusive,
    sha256_of_file,
    write_bytes,
    write_error,
    write_json,
)
from paramgolf.runtime.signals import Stopped, received
from paramgolf.version import __version__

_CHUNK_CHARS = 32 << 20


def build(
    config: BuildConfig,
    out: Path,
    reporter: Reporter,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Build a folder of shards and return its manifest.

    Equal input and settings give equal bytes. A build that fails leaves nothing but encoded chunks
    of valid input, which do not prevent another build.

    Args:
        config: which text to build from, and how.
        out: the folder; an interrupted build in it is resumed.
        reporter: the console.
        skip_bad: leave out the files that cannot be read.
        overwrite: replace what an earlier build of other sources or settings left in `out`.

    Raises:
        UserError: if a source cannot be read or has changed, the validation text overlaps with the
            training text, or `out` cannot be written.
        ConfigError: if `out` was built from other sources or with other settings, or contains files
            of something else.
    """
    created: list[Path] = []
    try:
        created += [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out):
            return _Build(config, out, reporter).run(skip_bad, overwrite)
    except OSError as error:
        culprit = Path(error.filename or out)
        raise write_error(culprit if culprit.is_relative_to(out) else out, error) from error
    except KeyboardInterrupt:
        raise Stopped(resume="the same command resumes") from None
    finally:
        for path in created:
            with suppress(OSError):  # not empty, so that something was built
                path.rmdir()


class _Build:
    """One build into a locked folder."""

    def __init__(self, config: BuildConfig, out: Path, reporter: Reporter) -> None:
        self._config, self._out, self._reporter = config, out, reporter
        self._work = out / ".build"
        self._begun = self._work / "begun.json"
        """Written once the input is checked and the tokenizer trained: the settings, the ends of
        the splits, the salt of the sampled runs, the files left out."""
        self._failed = self._work / "failed"
        """Exists if the build was not interrupted, but failed."""
        self._trained = self._work / "tokenizer.model"
        self._is_ours = False
        """Whether the content of `.build` belongs to this build."""
        self._ends: Ends = (0.0, 0.0)
        self._salt = 0
        self._counts = {"read": 0, "empty": 0, "duplicates": 0}
        self._digests = [hashlib.sha256() for _ in SPLITS]
        self._bytes = [0] * len(SPLITS)
        self._trained_on: dict[str, int] | None = None
        """Documents and bytes that the tokenizer was trained on; None: it was given."""
        self._in_both: list[str] = []
        """Names of documents of `sources` that are also documents of `val`."""

    def run(self, skip_bad: bool, overwrite: bool) -> dict[str, Any]:
        """Build what is missing; return the manifest."""
        built = built_manifest(self._out, self._work.exists())
        stored = set(self._work.glob("stdin*"))
        if stored and any(map(is_stream, (*self._config.sources, *self._config.val))):
            self._reporter.line("  stdin     as the interrupted build stored it (pipes as well)")
        try:
            if built is None or overwrite:
                self._work.mkdir(exist_ok=True)
            return self._build(None if overwrite else built, skip_bad, overwrite)
        except Exception:
            if not received():  # a signal may look like another error
                self._clean_up(stored)
            raise

    def _build(
        self, built: dict[str, Any] | None, skip_bad: bool, overwrite: bool
    ) -> dict[str, Any]:
        config, work, note = self._config, self._work, self._reporter.line
        files = {
            source: find_sources(names, work / f"stdin-{source}", note)
            for source, names in (("val", config.val), ("train", config.sources))
        }
        self._sources = Sources(files, config.text_key, self._reporter)
        settings = self._settings()
        if built is not None:
            require_manifest(self._out, built)
            require_equal(self._out, built["settings"], settings)
            self._reporter.line(f"{self._out} is already complete")
            shutil.rmtree(work, ignore_errors=True)
            return built
        if not self._resumes(settings, overwrite):
            self._begin(settings, skip_bad)
        self._is_ours = True
        tokenizer = Tokenizer.load(Path(config.tokenizer) if config.tokenizer else self._trained)
        chunks = self._encode(tokenizer)
        texts = self._gather(chunks)
        overlap = self._measure_overlap(chunks, texts)
        remove_output(self._out)
        result = self._write(chunks, texts, tokenizer, settings, overlap)
        write_json(self._out / MANIFEST, result)
        shutil.rmtree(work)
        return result

    def _clean_up(self, stored: set[Path]) -> None:
        """After a failure, remove what this build left; keep encoded chunks for another attempt.

        Args:
            stored: standard input, as an interrupted build stored it.
        """
        if not self._begun.exists():
            shutil.rmtree(self._work, ignore_errors=True)
            return
        with suppress(OSError):  # such as a full disk
            for path in self._work.glob("stdin*"):
                if self._is_ours or path not in stored:
                    path.unlink()
            if self._is_ours:
                if not (self._out / MANIFEST).exists():
                    remove_output(self._out)
                self._failed.touch()

    def _resumes(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Return whether an earlier build is resumed; if not, remove what it left.

        Raises:
            ConfigError: if an interrupted build has other settings.
        """
        if self._begun.exists():
            begun = read_begun(self._begun)
            relevant = settings.keys() - {"max_overlap", "shard_tokens"}  # for the chunks
            wanted = {key: settings[key] for key in relevant}
            if not overwrite and not self._failed.exists():
                require_equal(self._out, begun["settings"], wanted)
            if not different_setting(begun["settings"], wanted):
                self._failed.unlink(missing_ok=True)
                self._ends, self._salt = tuple(begun["ends"]), begun["salt"]
                self._trained_on = begun["trained_on"]
                self._sources.leave_out(begun["skipped"])
                return True
        for path in self._work.iterdir():
            if not path.name.startswith("stdin"):
                path.unlink()
        return False

    def _begin(self, settings: dict[str, Any], skip_bad: bool) -> None:
        """Check all of the input, divide it into splits, and train the tokenizer.

        Raises:
            UserError: naming the files that cannot be read, or the splits that would be empty.
        """
        self._ends, sample = self._scan(skip_bad)
        if not self._config.tokenizer:
            self._train_tokenizer(sample)
        self._salt = salt_of(self._sources.digest)
        write_json(
            self._begun,
            {
                "settings": settings,
                "ends": self._ends,
                "salt": self._salt,
                "skipped": self._sources.skipped,
                "trained_on": self._trained_on,
            },
        )

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
            for split, paths in self._sources.files.items()
        }
        return json.loads(json.dumps({**given, "files": files}))

    def _scan(self, skip_bad: bool) -> tuple[Ends, list[str]]:
        """Read everything; return the ends of the splits, and the tokenizer's training text.

        Raises:
            UserError: naming the files that cannot be read, unless they are to be left out; or if
                there is no text for training or validation.
        """
        config = self._config
        val_share = 0.0 if config.val else config.val_share
        while True:
            finder = SplitFinder(val_share, config.adapt_share)
            sample = None if config.tokenizer else Sample(config.sample_bytes)
            if self._sources.scan(finder, sample, skip_bad):
                break
        if not config.val and finder.documents < 2:
            raise UserError(
                "the text is a single document, which leaves none for validation: name other text "
                "with --val, or divide this one into several files"
            )
        ends = finder.ends()
        texts = sample.texts() if sample else []
        splits = assign_splits(fingerprints(texts).documents, ends)
        return ends, [text for text, split in zip(texts, splits, strict=True) if split == TRAIN]

    def _train_tokenizer(self, texts: list[str]) -> None:
        config = self._config
        pieces, size = config.vocab_size, sum(len(text.encode()) for text in texts)
        self._reporter.line(
            f"  tokenizer {pieces:,} pieces from {len(texts):,} documents, {size:,} bytes"
        )
        model = train_tokenizer(texts, pieces, config.case_ops, "--vocab-size")
        self._trained_on = {"documents": len(texts), "bytes": size}
        write_bytes(self._trained, model)

    def _encode(self, tokenizer: Tokenizer) -> list[Path]:
        """Encode the chunks that do not exist yet; return the paths of all."""
        seen = {"val": SeenDocuments(), "train": SeenDocuments()}
        originals = self._work / ORIGINALS
        originals.unlink(missing_ok=True)
        paths: list[Path] = []
        for source in ("val", "train"):
            for part in batches(self._sources.read(source, "encode"), _CHUNK_CHARS):
                paths.append(self._work / f"chunk_{len(paths):06d}.safetensors")
                fresh, digest = self._without_duplicates(part, source, seen)
                if paths[-1].exists():
                    chunk = Chunk.load(paths[-1])
                    if chunk.digest != digest:
                        self._begun.unlink()  # so that nothing of it is used again
                        raise UserError(
                            f"the text has changed since the build of {self._out} began (near "
                            f"{part[0].name}): call again, which starts over"
                        )
                else:
                    encoded = encode_documents(fresh, tokenizer, self._salt)
                    if source == "val":
                        splits = np.full(len(fresh), VAL, np.uint8)
                    else:
                        splits = assign_splits(encoded.prints.documents, self._ends)
                    names = [
                        name if split == VAL else ""
                        for (name, _), split in zip(fresh, splits, strict=True)
                    ]
                    chunk = Chunk(digest, encoded, splits, names)
                    chunk.save(paths[-1])
                texts: list[list[str]] = [[] for _ in SPLITS]
                for (_, text), split in zip(fresh, chunk.splits.tolist(), strict=True):
                    texts[split].append(text)
                    self._digests[split].update(digest_record(text))
                    self._bytes[split] += len(text.encode())
                if not tokenizer.lossless:
                    with originals.open("ab") as file:
                        file.write(jsonl_lines(texts[VAL]))
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
        """Collect the hashes of every split."""
        gathered = {split: Gathering(self._salt) for split in SPLITS}
        progress = self._reporter.progress("hash", len(chunks), "chunks")
        for number, path in enumerate(chunks, start=1):
            chunk = Chunk.load(path)
            for split, gathering in gathered.items():
                prints = chunk.prints_of(split)
                gathering.add(len(prints.documents), prints.runs)
            progress.update(number)
        return {
            split: gathering.text(digest.hexdigest())
            for (split, gathering), digest in zip(gathered.items(), self._digests, strict=True)
        }

    def _measure_overlap(self, chunks: list[Path], texts: dict[str, Text]) -> Overlap:
        """Return how much the validation text overlaps with the other splits.

        Raises:
            UserError: if it overlaps more than the settings allow.
        """
        known = Provenance({name: texts[name] for name in ("train", "adapt")})
        names: list[str] = []
        parts: list[Fingerprints] = []
        progress = self._reporter.progress("compare", len(chunks), "chunks")
        for number, (some, prints) in enumerate(_validation(chunks), start=1):
            names += some
            parts.append(prints.sampled(known.sampling))
            progress.update(number)
        prints = Fingerprints.joined(parts)
        found = known.are_known(prints.runs)
        overlap, (_, seen) = Overlap.of(prints, found), judge(prints, found)
        examples = [*self._in_both, *(names[i] for i in np.flatnonzero(seen))]
        require_disjoint(overlap, self._config.max_overlap, len(self._in_both), examples)
        return overlap

    def _write(
        self,
        chunks: list[Path],
        texts: dict[str, Text],
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        overlap: Overlap,
    ) -> dict[str, Any]:
        """Write shards and tokenizer; return the manifest."""
        out = self._out
        texts = {name: text for name, text in texts.items() if text.documents}
        splits: dict[str, Any] = {}
        for name, writer in self._write_shards(chunks, list(texts)).items():
            shards = {shard: sha256_of_file(out / shard) for shard in writer.finish()}
            splits[name] = {
                "documents": texts[name].documents,
                "bytes": self._bytes[SPLITS.index(name)],
                "tokens": writer.tokens,
                "text_sha256": texts[name].sha256,
                "shards": shards,
            }
            if name == "val" and tokenizer.case_ops:
                sidecars = write_sidecars([out / shard for shard in shards], tokenizer)
                splits[name]["sidecars"] = {path.name: sha256_of_file(path) for path in sidecars}
        if not tokenizer.lossless:
            (self._work / ORIGINALS).replace(out / ORIGINALS)
        write_bytes(out / "tokenizer.model", tokenizer.model)
        return {
            "version": VERSION,
            "paramgolf": __version__,
            "settings": settings,
            "documents": {**self._counts, "blank": self._sources.blank["encode"]},
            **({"skipped": self._sources.skipped} if self._sources.skipped else {}),
            "tokenizer": {
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "case_ops": tokenizer.case_ops,
                "trained_on": self._trained_on,
            },
            "splits": splits,
            "overlap": overlap._asdict(),
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


def _validation(chunks: list[Path]) -> Iterator[tuple[list[str], Fingerprints]]:
    """Yield names and fingerprints of the validation documents of every chunk."""
    for path in chunks:
        chunk = Chunk.load(path)
        named = zip(chunk.names, chunk.splits, strict=True)
        yield [name for name, split in named if split == VAL], chunk.prints_of("val")
