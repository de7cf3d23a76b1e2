"""Token shards and their tokenizer from the Hugging Face hub into one folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from paramgolf.data.hub import GOES_ON, Hub, HubFile, size_of
from paramgolf.data.manifest import Plan, make_plan
from paramgolf.data.shards import find_shards, open_shard
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
    """Of what had to come from the hub."""


def fetch(
    name: str,
    variant: str,
    train_shards: int,
    out: Path,
    reporter: Reporter,
    repo: str = "",
    revision: str = "main",
) -> Fetched:
    """Fetch all validation shards, the first training shards and the tokenizer.

    When it returns, `out` holds just what was asked for, as the hub has it at one commit: the
    shards under their own names, tokenizer.model, and source.json, which says where they are from.
    However it ends, every file under its final name is whole and right, source.json says whether
    all are there ("complete"), and a next call goes on with what is half there, in the hidden
    folder `.fetch`.

    A file whose content is right is kept, whichever commit or repository it came from; others
    that a fetch of this data set put there are replaced. Asking for more training shards only
    adds; asking for fewer sets the others aside in `.fetch`, from where they come back without the
    hub. What no fetch of this data set put there is never touched: a file in the way, or a shard
    that a run would read besides, is an error.

    Args:
        name: "fineweb".
        variant: the tokenizer, as it is called in the data set's name, such as "sp8192".
        train_shards: how many; 0: all.
        out: the folder, new or of an earlier fetch.
        reporter: told what is there already, and the progress.
        repo: OWNER/NAME of the repository; "": one that has the variant.
        revision: branch, tag or commit.

    Raises:
        ConfigError: for arguments that can never work.
        UserError: without the hub, for what it does not have, for damage, or without space.
    """
    if name != "fineweb":
        raise ConfigError(f"there is no data set {name!r} to fetch; there is: fineweb")
    if train_shards < 0:
        raise ConfigError(f"--train-shards {train_shards}: must be 0 (all of them) or more")
    hub = Hub(repo or _REPOS.get(variant, _CHALLENGE_REPO), revision, reporter)
    plan = make_plan(hub, variant, train_shards)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            return _Folder(out, hub, plan, reporter).fill()
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; free space or name "
            f"another folder with --out, {GOES_ON}"
        ) from error


class _Folder:
    """The folder that is being filled."""

    def __init__(self, out: Path, hub: Hub, plan: Plan, reporter: Reporter) -> None:
        self._out, self._hub, self._plan, self._reporter = out, hub, plan, reporter
        self._parts = out / ".fetch"
        self._digests: dict[str, str] = {}
        """Of the files that are there and right, by name."""

    def fill(self) -> Fetched:
        """Make the folder hold just the files of the plan."""
        hub, plan = self._hub, self._plan
        wrong, others = self._look(self._is_ours())
        missing = [name for name in plan.wanted if name not in self._digests]
        total = sum(file.size for file in plan.wanted.values())
        done = sum(plan.wanted[name].size for name in self._digests)
        done += sum(size_of(self._part(name, plan.wanted[name])) for name in missing)
        space = shutil.disk_usage(self._out).free + sum(size_of(path) for path in wrong)
        if total - done > space:
            raise UserError(
                f"{self._out} has {_mb(space)} free, but {_mb(total - done)} are to come; free "
                "space, ask for fewer --train-shards, or name another folder with --out"
            )
        self._reporter.line(
            f"{plan.dataset} of {hub}: {len(plan.wanted)} files, {_mb(total)}, of which "
            f"{_mb(total - done)} are to come"
        )
        self._record(complete=False)  # from here on this folder is that of this data set
        for path in wrong:
            path.unlink()
        self._set_aside(others)
        received = 0
        progress = self._reporter.progress("fetch", total / 1e6, "MB")
        progress.update(done / 1e6)

        def report(count: int) -> None:
            nonlocal received
            received += count
            progress.update(min(done + received, total) / 1e6)  # what is fetched again counts twice

        for name in missing:
            self._fetch(name, plan.wanted[name], report)
            self._record(complete=False)
        self._record(complete=True)
        self._tidy()
        return Fetched(
            repo=hub.repo,
            revision=hub.revision,
            dataset=plan.dataset,
            train_shards=plan.train_shards,
            val_shards=plan.val_shards,
            bytes=total,
            received_bytes=received,
        )

    def _is_ours(self) -> bool:
        """Whether an earlier fetch of this data set filled the folder."""
        source = self._out / "source.json"
        try:
            values = read_json(source)
        except UserError:
            return False
        dataset = values.get("dataset") if isinstance(values, dict) else None
        if dataset not in (None, self._plan.dataset):
            raise UserError(
                f"{self._out} holds {dataset}, with which {self._plan.dataset} would mix; name "
                "another folder with --out"
            )
        return dataset is not None

    def _look(self, ours: bool) -> tuple[list[Path], list[Path]]:
        """Find files that are wrong, and shards that a run would read besides; changes nothing."""
        plan, wrong, others = self._plan, [], []
        present = [name for name in plan.wanted if os.path.lexists(self._out / name)]
        progress = self._reporter.progress("check", len(present), "files")
        for number, name in enumerate(present):
            progress.update(number)
            try:
                self._digests[name] = _check(self._out / name, plan.wanted[name])
            except UserError as error:
                if not ours:
                    raise UserError(
                        f"{self._out / name} is not that of {plan.dataset} ({error}), and no fetch "
                        "put it there; name another folder with --out"
                    ) from error
                wrong.append(self._out / name)
        for split in ("train", "val", "adapt"):
            for path in find_shards(self._out, split):
                if path.name in plan.wanted:
                    continue
                if not ours or not _SHARD.fullmatch(path.name):
                    raise UserError(
                        f"{path} would mix with the shards asked for, and no fetch put it there; "
                        "name another folder with --out"
                    )
                others.append(path)
        return wrong, others

    def _set_aside(self, others: list[Path]) -> None:
        """Take shards that were not asked for out of the way, as if they were still to be checked.

        Those that the hub does not have either are deleted.
        """
        aside = 0
        for path in others:
            file = self._plan.spare.get(path.name)
            if file is not None and file.size == size_of(path):
                self._parts.mkdir(exist_ok=True)
                path.replace(self._part(path.name, file))
                aside += 1
            else:
                path.unlink()
        if aside:
            self._reporter.line(
                f"  {aside} more training shards set aside in {self._parts}: delete it for their "
                "space, or ask for more --train-shards to have them back"
            )

    def _part(self, name: str, file: HubFile) -> Path:
        """Where a file is gathered; another content has another place."""
        return self._parts / f"{(file.sha256 or file.blob)[:16]}-{name}"

    def _fetch(self, name: str, file: HubFile, report: Callable[[int], None]) -> None:
        """Bring one file to its final name, with a second attempt from nothing if it is wrong."""
        self._parts.mkdir(exist_ok=True)
        part = self._part(name, file)
        for last in (False, True):
            self._hub.receive(file, part, report)
            try:
                self._digests[name] = _check(part, file)
                break
            except UserError as error:
                part.unlink(missing_ok=True)
                if last:
                    raise UserError(
                        f"{file.path} of {self._hub} came damaged twice ({error}); try again "
                        "later, or name another --revision or --repo"
                    ) from error
                self._reporter.line(f"  {name}: {error}; fetching it again")
        part.replace(self._out / name)

    def _record(self, complete: bool) -> None:
        hub, plan = self._hub, self._plan
        files = {
            name: {"bytes": file.size, "sha256": self._digests[name]}
            for name, file in plan.wanted.items()
            if name in self._digests
        }
        write_json(
            self._out / "source.json",
            {
                "repo": hub.repo,
                "revision": hub.revision,
                "dataset": plan.dataset,
                "complete": complete,
                "train_shards": plan.train_shards,
                "val_shards": plan.val_shards,
                "files": files,
            },
        )

    def _tidy(self) -> None:
        """Delete what no later fetch of this commit could use."""
        useful = {self._part(name, file) for name, file in self._plan.spare.items()}
        if self._parts.is_dir():
            for path in set(self._parts.iterdir()) - useful:
                path.unlink()
            with suppress(OSError):  # what is useful remains
                self._parts.rmdir()


def _check(path: Path, file: HubFile) -> str:
    """The SHA-256 of a local file.

    Raises:
        UserError: saying what is wrong, if it is not the hub's file or no shard.
    """
    if not path.is_file():
        raise UserError("there is no file")
    if (size := size_of(path)) != file.size:
        raise UserError(f"{size:,} bytes instead of {file.size:,}")
    digest, right = sha256_of_file(path), file.sha256
    if right and digest != right:
        raise UserError(f"SHA-256 {digest[:12]}... instead of {right[:12]}...")
    if not right:
        content = b"blob %d\0" % size + path.read_bytes()
        if hashlib.sha1(content, usedforsecurity=False).hexdigest() != file.blob:
            raise UserError("the SHA-1 of git's object is another")
    if _SHARD.fullmatch(file.path.rsplit("/", 1)[-1]):
        open_shard(path)
    return digest


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
