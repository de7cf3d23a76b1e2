"""Which files of a repository of the parameter golf challenge to fetch, by its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from paramgolf.data.hub.repository import RemoteFile, Repository
from paramgolf.data.sidecars import sidecar_of
from paramgolf.errors import UserError
from paramgolf.runtime.files import sha256_of_file

TOKENIZER = "tokenizer.model"

_PREFIX = "fineweb10B_"
_MANIFEST = "datasets/manifest.json"


class Selection(NamedTuple):
    """The files to fetch."""

    dataset: str
    train_shards: int
    val_shards: int
    files: dict[str, RemoteFile]
    """By the name they get in the local folder; the tokenizer last."""


def fetched_tokenizer(repo: str, revision: str, dataset: str, endpoint: str | None = None) -> str:
    """Download the tokenizer of a data set; return its SHA-256. Nothing is kept.

    Args:
        repo: OWNER/NAME.
        revision: a branch, tag or commit.
        dataset: as source.json names it.
        endpoint: address of the hub; None: the usual one.

    Raises:
        Unreachable: if the hub cannot be asked.
        UserError: if it has no such repository, revision or data set.
    """
    repository = Repository(repo, revision, endpoint)
    _, _, path = _stated(repository, dataset.removeprefix(_PREFIX))
    with TemporaryDirectory() as folder:
        return sha256_of_file(repository.download(path, Path(folder)))


def select_files(repository: Repository, variant: str, train_shards: int) -> Selection:
    """Select all validation shards, the first training shards (0: all) and the tokenizer.

    Raises:
        UserError: for a variant or a number of shards that the repository does not have, and for
            an invalid manifest.
    """
    dataset = f"{_PREFIX}{variant}"
    train, val, model = _stated(repository, variant)
    if train_shards > train:
        raise UserError(
            f"--train-shards {train_shards}: {dataset} of {repository} has {train} training "
            f"shards; ask for at most {train} (0: all)"
        )
    asked = train_shards or train
    paths: dict[str, str] = {}
    for split, count in (("val", val), ("train", asked)):
        for number in range(count):
            name = f"fineweb_{split}_{number:06d}.bin"
            paths[name] = f"datasets/datasets/{dataset}/{name}"
            sidecar = sidecar_of(Path(paths[name]))  # exists where the tokenizer has CaseOps
            if sidecar.as_posix() in repository.files:
                paths[sidecar.name] = sidecar.as_posix()
    paths[TOKENIZER] = model  # last: without it, no run takes the folder for complete
    for path in paths.values():
        if path not in repository.files:
            raise _invalid(repository, f"lists {path}, which does not exist")
    files = {name: repository.files[path] for name, path in paths.items()}
    return Selection(dataset, asked, val, files)


def _stated(repository: Repository, variant: str) -> tuple[int, int, str]:
    """Read the manifest: numbers of training and validation shards, path of the tokenizer.

    Entries that are not needed may have any content.
    """
    dataset = f"{_PREFIX}{variant}"
    with TemporaryDirectory() as folder:
        content = repository.download(_MANIFEST, Path(folder)).read_bytes()
    try:
        manifest = json.loads(content)
        datasets, tokenizers = (
            {entry["name"]: entry for entry in manifest[key]} for key in ("datasets", "tokenizers")
        )
        if dataset not in datasets:
            variants = [key.removeprefix(_PREFIX) for key in datasets if key.startswith(_PREFIX)]
            raise UserError(
                f"{repository} has no variant {variant!r} of fineweb (it has "
                f"{', '.join(sorted(variants)) or 'none'}); choose another --variant or --repo"
            )
        entry: dict[str, Any] = datasets[dataset]
        train, val = (int(entry["stats"][f"files_{split}"]) for split in ("train", "val"))
        model = f"datasets/{tokenizers[entry['tokenizer_name']]['model_path']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(repository, f"is invalid ({type(error).__name__}: {error})") from error
    if min(train, val) < 1:
        raise _invalid(
            repository, f"states {train} training and {val} validation shards for {dataset}"
        )
    return train, val, model


def _invalid(repository: Repository, what: str) -> UserError:
    return UserError(f"{_MANIFEST} of {repository} {what}; name another --revision or --repo")
