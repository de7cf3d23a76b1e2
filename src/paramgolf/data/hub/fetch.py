"""Token shards and their tokenizer from the Hugging Face hub into one folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from paramgolf.data.hub.repository import RemoteFile, Repository
from paramgolf.data.hub.selection import Selection, select_files
from paramgolf.data.shards import find_splits, open_shard
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import locked, read_json, sha256_of_file, write_json

_REPOS = {"sp8192": "kevclark/parameter-golf"}
_CHALLENGE_REPO = "willdepueoai/parameter-golf"
_SHARD = re.compile(r"fineweb_(train|val|val_bytes)_\d{6}\.bin")


class Fetched(NamedTuple):
    """What a fetch left in its folder."""

    repo: str
    revision: str
    """The commit."""
    dataset: str
    train_shards: int
    val_shards: int
    bytes: int
    """Of all files."""
    received_bytes: int
    """Of the files that were downloaded by this call."""


def fetch(
    name: str,
    variant: str,
    train_shards: int,
    out: Path,
    reporter: Reporter,
    repo: str = "",
    revision: str = "main",
    endpoint: str | None = None,
) -> Fetched:
    """Fetch all validation shards, the first training shards and the tokenizer.

    Afterwards `out` contains exactly the requested files as of one commit: the shards under their
    own names, tokenizer.model, and source.json, which states their origin. However a fetch ends,
    every file under its final name is complete and correct, and source.json states whether all
    files are there ("complete"). The next call downloads only what is missing.

    A file with the right content is kept, whichever commit or repository it came from. Other files
    that a fetch of this data set left are replaced. Training shards that are not requested any
    more move to the hidden folder `.unused`, from which a later fetch takes them back. Files that
    no fetch of this data set left are never touched: where they would be overwritten, or read as
    shards by a run, the fetch ends with an error.

    Args:
        name: "fineweb".
        variant: the tokenizer, as in the name of the data set, such as "sp8192".
        train_shards: how many; 0: all.
        out: a new folder, or one of an earlier fetch.
        reporter: the console.
        repo: OWNER/NAME of the repository; "": one that has the variant.
        revision: branch, tag or commit.
        endpoint: address of the hub; None: HF_ENDPOINT, or https://huggingface.co.

    Raises:
        ConfigError: for invalid arguments.
        UserError: if the hub cannot be reached, lacks a file or sends a damaged one, if disk space
            is insufficient, or if `out` contains other files that are in the way.
    """
    if name != "fineweb":
        raise ConfigError(f"unknown data set {name!r}: expected fineweb")
    if train_shards < 0:
        raise ConfigError(f"invalid --train-shards {train_shards}: expected 0 (all) or more")
    repository = Repository(repo or _REPOS.get(variant, _CHALLENGE_REPO), revision, endpoint)
    selection = select_files(repository, variant, train_shards)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            return _Fetch(out, repository, selection, reporter).run()
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; free space or name "
            "another folder with --out, then try again: complete files are kept"
        ) from error


class _Fetch:
    """One fetch into a locked folder."""

    def __init__(
        self, out: Path, repository: Repository, selection: Selection, reporter: Reporter
    ) -> None:
        self._out, self._repository = out, repository
        self._selection, self._reporter = selection, reporter
        self._downloads, self._unused = out / ".fetch", out / ".unused"
        self._digests: dict[str, str] = {}
        """SHA-256 of the files that are present and correct, by name."""

    def run(self) -> Fetched:
        repository, selection, out = self._repository, self._selection, self._out
        files = selection.files
        own = self._is_own_folder()
        correct, wrong = self._check_present(own)
        unwanted = self._find_unwanted(own)
        missing = [name for name in files if name not in correct]
        total = sum(file.size for file in files.values())
        needed = sum(files[name].size for name in missing)
        self._require_space(needed, freed=sum(path.lstat().st_size for path in wrong))
        self._reporter.line(
            f"{selection.dataset} of {repository}: {len(files)} files, {_mb(total)}, of which "
            f"{_mb(needed)} will be downloaded"
        )
        self._write_source(complete=False)  # from now on the folder belongs to this data set
        for path in wrong:
            path.unlink()
        self._set_aside(unwanted)
        for name, path in correct.items():
            path.replace(out / name)
        progress, done = self._reporter.progress("fetch", total / 1e6, "MB"), total - needed
        progress.update(done / 1e6)
        for name in missing:
            self._download(name, files[name])
            self._write_source(complete=False)
            done += files[name].size
            progress.update(done / 1e6)
        self._write_source(complete=True)
        shutil.rmtree(self._downloads, ignore_errors=True)
        with suppress(OSError):  # missing, or shards remain in it
            self._unused.rmdir()
        return Fetched(
            repo=repository.name,
            revision=repository.revision,
            dataset=selection.dataset,
            train_shards=selection.train_shards,
            val_shards=selection.val_shards,
            bytes=total,
            received_bytes=needed,
        )

    def _is_own_folder(self) -> bool:
        """Return whether an earlier fetch of this data set filled the folder.

        Raises:
            UserError: if it was a fetch of another data set.
        """
        try:
            values = read_json(self._out / "source.json")
        except UserError:
            return False
        dataset = values.get("dataset") if isinstance(values, dict) else None
        if dataset not in (None, self._selection.dataset):
            raise UserError(
                f"{self._out} contains {dataset}, which would mix with {self._selection.dataset}; "
                "name another folder with --out"
            )
        return dataset is not None

    def _check_present(self, own: bool) -> tuple[dict[str, Path], list[Path]]:
        """Compare the requested files that exist with the hub's; change nothing.

        Returns:
            The correct ones by name, and the paths of the wrong ones.

        Raises:
            UserError: for a wrong one in a folder that is not of an earlier fetch.
        """
        correct: dict[str, Path] = {}
        wrong: list[Path] = []
        files = self._selection.files
        progress = self._reporter.progress("check", len(files), "files")
        for number, (name, file) in enumerate(files.items()):
            progress.update(number)
            path = self._out / name
            if not os.path.lexists(path):
                path = self._unused / name
                if not path.exists():
                    continue
            try:
                self._digests[name] = _check(path, file)
                correct[name] = path
            except UserError as error:
                if not own:
                    raise UserError(
                        f"{path} is not that of {self._selection.dataset} ({error}), and no fetch "
                        "put it there; name another folder with --out"
                    ) from error
                wrong.append(path)
        return correct, wrong

    def _find_unwanted(self, own: bool) -> list[Path]:
        """Return shards that were not requested, but that a run would read; change nothing.

        Raises:
            UserError: for one that no fetch of this data set put there.
        """
        found = chain.from_iterable(find_splits(self._out).values())
        unwanted = [path for path in found if path.name not in self._selection.files]
        for path in unwanted:
            if not own or not _SHARD.fullmatch(path.name):
                raise UserError(
                    f"{path} would mix with the requested shards, and no fetch put it there; "
                    "name another folder with --out"
                )
        return unwanted

    def _require_space(self, needed: int, freed: int) -> None:
        space = shutil.disk_usage(self._out).free + freed
        if needed > space:
            raise UserError(
                f"{self._out} has {_mb(space)} free, but {_mb(needed)} are needed; free space, ask "
                "for fewer --train-shards, or name another folder with --out"
            )

    def _set_aside(self, unwanted: list[Path]) -> None:
        for path in unwanted:
            self._unused.mkdir(exist_ok=True)
            path.replace(self._unused / path.name)
        if unwanted:
            self._reporter.line(
                f"  {len(unwanted)} shards that were not requested moved to {self._unused}: delete "
                "it to free their space; a fetch of more --train-shards takes them back"
            )

    def _download(self, name: str, file: RemoteFile) -> None:
        """Download one file, check it, and move it to its final name."""
        path = self._repository.download(file.path, self._downloads)
        try:
            self._digests[name] = _check(path, file)
        except UserError as error:
            path.unlink()
            raise UserError(
                f"{file.path} of {self._repository} is damaged ({error}); try again, or name "
                "another --revision or --repo"
            ) from error
        path.replace(self._out / name)

    def _write_source(self, complete: bool) -> None:
        """Write source.json: where the files come from, and which are present and correct."""
        repository, selection = self._repository, self._selection
        write_json(
            self._out / "source.json",
            {
                "repo": repository.name,
                "revision": repository.revision,
                "dataset": selection.dataset,
                "complete": complete,
                "train_shards": selection.train_shards,
                "val_shards": selection.val_shards,
                "files": {
                    name: {"bytes": file.size, "sha256": self._digests[name]}
                    for name, file in selection.files.items()
                    if name in self._digests
                },
            },
        )


def _check(path: Path, file: RemoteFile) -> str:
    """Return the SHA-256 of a local file.

    Raises:
        UserError: if its content is not that of the hub, or not a valid shard.
    """
    if not path.is_file():
        raise UserError("not a file")
    if (size := path.stat().st_size) != file.size:
        raise UserError(f"{size:,} bytes instead of {file.size:,}")
    digest = sha256_of_file(path)
    if file.sha256:
        if digest != file.sha256:
            raise UserError(f"SHA-256 {digest[:12]}... instead of {file.sha256[:12]}...")
    else:
        blob = b"blob %d\0" % size + path.read_bytes()
        if hashlib.sha1(blob, usedforsecurity=False).hexdigest() != file.blob_id:
            raise UserError(f"not the git object {file.blob_id[:12]}...")
    if _SHARD.fullmatch(Path(file.path).name):
        open_shard(path)  # its header and size
    return digest


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
