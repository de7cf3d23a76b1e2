"""What a repository of the parameter golf challenge holds, by its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from paramgolf.data.hub import Hub, HubFile
from paramgolf.data.sidecars import sidecar_of
from paramgolf.errors import UserError

T = TypeVar("T")

TOKENIZER = "tokenizer.model"

_PREFIX = "fineweb10B_"
_MANIFEST = "datasets/manifest.json"
_KINDS = {int: "whole number", str: "text", list: "list", dict: "object"}


class Plan(NamedTuple):
    """Which files a folder is to hold."""

    dataset: str
    train_shards: int
    val_shards: int
    wanted: dict[str, HubFile]
    """By the name in the folder."""
    spare: dict[str, HubFile]
    """Training shards that were not asked for."""


def make_plan(hub: Hub, variant: str, train_shards: int) -> Plan:
    """Find in a repository's manifest and among its files what is to be fetched.

    Raises:
        UserError: for a variant or a number of shards that it does not have, and for a manifest
            without what is needed here.
    """
    dataset, manifest = f"{_PREFIX}{variant}", _Manifest(hub)
    datasets, tokenizers = manifest.by_name("datasets"), manifest.by_name("tokenizers")
    if dataset not in datasets:
        there = sorted(key.removeprefix(_PREFIX) for key in datasets if key.startswith(_PREFIX))
        raise UserError(
            f"{hub} has no variant {variant!r} of fineweb, only {', '.join(there) or 'none at all'}"
            "; name one of them with --variant, or another --repo"
        )
    stats = manifest.get(datasets[dataset], "stats", dict, dataset)
    train, val = (
        manifest.get(stats, f"files_{split}", int, f"{dataset}'s stats")
        for split in ("train", "val")
    )
    if min(train, val) < 1:
        raise manifest.bad(f"says that {dataset} has {train} training and {val} validation shards")
    if train_shards > train:
        raise UserError(
            f"--train-shards {train_shards}: {dataset} of {hub} has {train} training shards; ask "
            f"for at most {train} (0: all)"
        )
    tokenizer = manifest.get(datasets[dataset], "tokenizer_name", str, dataset)
    model = manifest.get(tokenizers.get(tokenizer), "model_path", str, f"tokenizer {tokenizer!r}")
    asked = train_shards or train
    shards = [("val", number) for number in range(val)]
    shards += [("train", number) for number in range(train)]
    places: dict[str, str] = {}
    spare: dict[str, HubFile] = {}
    for split, number in shards:
        name = f"fineweb_{split}_{number:06d}.bin"
        place = f"datasets/datasets/{dataset}/{name}"
        if split == "val" or number < asked:
            places[name] = place
            sidecar = sidecar_of(Path(place))  # which data with CaseOps has
            if sidecar.as_posix() in hub.files:
                places[sidecar.name] = sidecar.as_posix()
        elif place in hub.files:
            spare[name] = hub.files[place]
    places[TOKENIZER] = f"datasets/{model}"  # last: without it the folder is of no use yet
    for place in places.values():
        if place not in hub.files:
            raise manifest.bad(f"lists {place}, which is not there")
    wanted = {name: hub.files[place] for name, place in places.items()}
    return Plan(dataset, asked, val, wanted, spare)


class _Manifest:
    """What a repository says of its data sets; keys that are not needed may be anything."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        try:
            self._values = json.loads(hub.read(_MANIFEST))
        except ValueError as error:
            raise self.bad(f"is no JSON ({error})") from error

    def bad(self, what: str) -> UserError:
        """The error of a manifest that is wrong."""
        return UserError(f"{_MANIFEST} of {self._hub} {what}; name another --revision or --repo")

    def get(self, table: Any, key: str, kind: type[T], place: str) -> T:
        """What an object has at a key.

        Raises:
            UserError: if it is none, or has nothing of this kind there.
        """
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.bad(f"has no {key!r} ({_KINDS[kind]}) in {place}")
        return value

    def by_name(self, key: str) -> dict[str, Any]:
        """The objects of a list, by their names."""
        entries = self.get(self._values, key, list, "its top level")
        return {self.get(entry, "name", str, f"one of its {key}"): entry for entry in entries}
