"""The sources of a build: their documents, and a first reading that finds all bad files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from paramgolf.data.documents import Document, batches, text_digest
from paramgolf.data.sample import Sample
from paramgolf.data.sources import is_bad_file, read_documents
from paramgolf.data.splits import SplitFinder
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter

_SCAN_CHARS = 1 << 20
_LISTED = 10


class Sources:
    """The files of the validation text, if it has files of its own, and of all other text."""

    def __init__(self, files: dict[str, list[Path]], text_key: str, reporter: Reporter) -> None:
        """Take files of "val" and "train" with the JSON key or Parquet column of their text."""
        self.files = files
        self.skipped: list[str] = []
        """Files that were left out."""
        self.digest = ""
        """SHA-256 of all texts, as `scan` read them last."""
        self.blank: Counter[str] = Counter()
        """Blank lines of JSON Lines and texts that are null, by the name of the progress."""
        self._expected = [source for source, paths in files.items() if paths]
        self._text_key, self._reporter = text_key, reporter

    def leave_out(self, names: list[str]) -> None:
        """Do not read these files."""
        self.skipped += names
        for source, paths in self.files.items():
            self.files[source] = [path for path in paths if str(path) not in self.skipped]

    def read(self, source: str, name: str, bad: dict[str, str] | None = None) -> Iterator[Document]:
        """Yield all documents of "train" or "val".

        Args:
            source: "train" or "val".
            name: what the progress is called.
            bad: receives name and error of each file that cannot be read; None: raise the error.
        """
        paths = self.files[source]
        sizes = [path.stat().st_size for path in paths]
        progress = self._reporter.progress(name, sum(sizes), "bytes")
        before = 0
        for path, size in zip(paths, sizes, strict=True):
            begin = before

            def update(done: int, begin: int = begin) -> None:
                progress.update(begin + done)

            def blank() -> None:
                self.blank[name] += 1

            try:
                yield from read_documents(path, self._text_key, update, blank)
            except UserError as error:
                if bad is None or not is_bad_file(error):
                    raise
                bad[str(path)] = str(error)
            before += size

    def scan(self, finder: SplitFinder, sample: Sample | None, skip_bad: bool) -> bool:
        """Read everything once; return whether it was readable, and leave out what was not.

        Raises:
            UserError: naming the files that cannot be read, unless `skip_bad`; or if there is no
                text.
        """
        bad: dict[str, str] = {}
        digest = hashlib.sha256()
        for source in self._expected:
            is_empty = True
            for batch in batches(self.read(source, "check", bad), _SCAN_CHARS):
                texts = [text for _, text in batch if text]
                is_empty &= not texts
                digest.update(text_digest(texts))
                if source == "train":
                    finder.add(texts)
                    if sample is not None:
                        sample.add(batch)
            if is_empty and not bad:
                name = "validation text (--val)" if source == "val" else "text"
                reason = "all of its documents are" if self.files[source] else "no file is left"
                raise UserError(f"the {name} is empty: {reason}")
        if not bad:
            self.digest = digest.hexdigest()
            return True
        listed = "; ".join([*bad.values()][:_LISTED])
        if len(bad) > _LISTED:
            listed += f"; and {len(bad) - _LISTED:,} more"
        count = f"{len(bad):,} of {sum(map(len, self.files.values())):,} files"
        if not skip_bad:
            raise UserError(
                f"{count} cannot be read: {listed}; convert them, or leave them out with --skip-bad"
            )
        self._reporter.line(f"  left out  {count}: {listed}")
        self.leave_out([*bad])
        return False
