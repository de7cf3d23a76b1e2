"""Fetching shards with `huggingface_hub` from a local server, which sometimes goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from paramgolf.data.hub.fetch import Fetched, fetch
from paramgolf.data.shards import find_shards, open_shard
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import locked
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.hub import API, Fault, LocalHub, local_hub
from tests.e2e.mini import read_results, shrinking_options

REPO = "kevclark/parameter-golf"
OTHER_REPO = "willdepueoai/parameter-golf"
TRAIN, VAL, TOKENS = 5, 2, 3000
MANIFEST = "datasets/manifest.json"
TOKENIZER = "datasets/tokenizers/fineweb_8192_bpe.model"


def path_of(name: str, variant: str = "sp8192") -> str:
    return f"datasets/datasets/fineweb10B_{variant}/{name}"


def names(train_shards: int = 2) -> list[str]:
    shards = [f"fineweb_val_{number:06d}.bin" for number in range(VAL)]
    shards += [f"fineweb_train_{number:06d}.bin" for number in range(train_shards)]
    return [*shards, "tokenizer.model"]


def shard(seed: int, magic: int = 20240520, tokens: int = TOKENS) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, tokens
    content = np.random.default_rng(seed).integers(8192, size=TOKENS)
    return header.tobytes() + content.astype("<u2").tobytes()


def manifest(variant: str = "sp8192", **stats: Any) -> dict[str, Any]:
    numbers = {"files_train": TRAIN, "files_val": VAL, "unknown": None} | stats
    variants = (variant, "sp1")
    return {
        "datasets": [
            {"name": f"fineweb10B_{name}", "tokenizer_name": f"bpe_{name}", "stats": numbers}
            for name in variants
        ],
        "tokenizers": [
            {"name": f"bpe_{name}", "model_path": f"tokenizers/fineweb_{name[2:]}_bpe.model"}
            for name in variants
        ]
        + [{"name": "bytes without a model"}],
    }


def repository(first_seed: int = 0, variant: str = "sp8192") -> dict[str, bytes]:
    files = {
        path_of(name, variant): shard(first_seed + number)
        for number, name in enumerate(names(TRAIN)[:-1])
    }
    files[MANIFEST] = json.dumps(manifest(variant)).encode()
    files[f"datasets/tokenizers/fineweb_{variant[2:]}_bpe.model"] = b"a model\n" * 99
    return files


class Case:
    """A hub, a folder, and a fetch from one to the other."""

    def __init__(self, hub: LocalHub, out: Path) -> None:
        self.hub, self.out = hub, out

    def get(self, train_shards: int = 2, variant: str = "sp8192", **options: Any) -> Fetched:
        """Fetch two training shards, unless told otherwise."""
        options = {"reporter": Reporter(), "endpoint": self.hub.endpoint} | options
        return fetch("fineweb", variant, train_shards, self.out, **options)

    def error(self, *arguments: Any, **options: Any) -> str:
        """Fetch, and return the message of the error."""
        with pytest.raises(UserError) as raised:
            self.get(*arguments, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def visible(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}

    def check(self, train_shards: int = 2, complete: bool = True) -> None:
        """The folder contains what the hub has, and all of it if the fetch is complete."""
        commit, found = self.hub.heads[REPO], self.visible()
        source = json.loads(found.pop("source.json"))
        assert source["complete"] is complete
        assert sorted(source["files"]) == sorted(found)
        assert (source["repo"], source["revision"]) == (REPO, commit)
        assert (source["dataset"], source["train_shards"]) == ("fineweb10B_sp8192", train_shards)
        if complete:
            assert sorted(found) == sorted(names(train_shards))
            assert not (self.out / ".fetch").exists()
        else:
            assert "tokenizer.model" not in found
        for name, content in found.items():
            path = TOKENIZER if name == "tokenizer.model" else path_of(name)
            assert content == self.hub.commits[commit][path], name
            digest = hashlib.sha256(content).hexdigest()
            assert source["files"][name] == {"bytes": len(content), "sha256": digest}


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with local_hub() as hub:
        hub.commit(REPO, repository())
        yield Case(hub, tmp_path / "fineweb")


# What arrives, and what a second call downloads.


def test_fetches_what_was_requested(case: Case) -> None:
    said = io.StringIO()
    fetched = case.get(reporter=Reporter(said))
    case.check()
    assert sorted(path.name for path in case.out.iterdir()) == sorted([*names(), "source.json"])
    total = sum(len(content) for name, content in case.visible().items() if name != "source.json")
    assert fetched == Fetched(
        REPO, case.hub.heads[REPO], "fineweb10B_sp8192", 2, VAL, bytes=total, received_bytes=total
    )
    for split, count in (("train", 2), ("val", VAL)):
        assert [len(open_shard(path)) for path in find_shards(case.out, split)] == [TOKENS] * count
    assert case.hub.taken() == [*names()[:-1], "fineweb_8192_bpe.model"]
    assert f"fineweb10B_sp8192 of {REPO} at {case.hub.heads[REPO][:12]}: 5 files" in said.getvalue()


def test_sidecars_come_with_their_shards(case: Case) -> None:
    """Original bytes of data with CaseOps; here only the validation shards have them."""
    sidecars = [f"fineweb_val_bytes_{number:06d}.bin" for number in range(VAL)]
    more = {path_of(name): shard(90 + number) for number, name in enumerate(sidecars)}
    case.hub.commit(REPO, repository() | more)
    case.get()
    assert sorted(case.visible()) == sorted([*names(), *sidecars, "source.json"])
    assert [path.name for path in find_shards(case.out, "val")] == names()[:VAL]
    (case.out / sidecars[1]).write_bytes(b"damaged")
    case.hub.taken()
    case.get()
    assert case.hub.taken() == [sidecars[1]]


def test_a_second_call_downloads_nothing(case: Case) -> None:
    case.get()
    before = {path: path.stat().st_mtime_ns for path in case.out.glob("*.[bm]*")}
    assert len(before) == 5
    case.hub.taken()
    assert case.get().received_bytes == 0
    assert case.hub.taken() == []
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (case.out / "source.json").write_text('{"dataset": ')  # correct files are kept without it, too
    case.get()
    assert case.hub.taken() == []
    case.check()


def test_more_shards_later_only_add(case: Case) -> None:
    case.get(1)
    case.hub.taken()
    case.get(3)
    assert case.hub.taken() == names(3)[VAL + 1 : -1]
    case.get(0)
    assert case.hub.taken() == names(TRAIN)[VAL + 3 : -1]
    case.check(TRAIN)


def test_fewer_shards_set_the_others_aside(case: Case) -> None:
    case.get(4)
    said = io.StringIO()
    case.get(1, reporter=Reporter(said))
    case.check(1)
    assert f"3 shards that were not requested moved to {case.out / '.unused'}" in said.getvalue()
    case.hub.taken()
    assert case.get(3).received_bytes == 0  # they come back without the hub
    assert case.hub.taken() == []
    case.check(3)
    (left,) = (case.out / ".unused").iterdir()
    left.write_bytes(b"damaged")
    case.get(4)
    assert case.hub.taken() == [left.name]
    case.check(4)
    assert not (case.out / ".unused").exists()


def test_wrong_files_are_replaced(case: Case) -> None:
    case.get(3)
    truncated, changed, tokenizer = (case.out / names(3)[i] for i in (0, 3, -1))
    truncated.write_bytes(truncated.read_bytes()[:-5])
    content = bytearray(changed.read_bytes())
    content[2000] ^= 1
    changed.write_bytes(content)
    tokenizer.write_bytes(tokenizer.read_bytes().swapcase())
    (case.out / names(3)[1]).unlink()
    case.hub.taken()
    case.get(3)
    assert case.hub.taken() == [names(3)[i] for i in (0, 1, 3)] + ["fineweb_8192_bpe.model"]
    case.check(3)


def test_the_hub_moves_on(case: Case) -> None:
    """Files that are the same in the new commit stay; an old commit can be named."""
    old = case.hub.heads[REPO]
    case.get(0)
    files = repository() | {path_of(names()[0]): shard(100), path_of(names()[2]): shard(101)}
    files[MANIFEST] = json.dumps(manifest(files_train=3)).encode()
    case.hub.commit(REPO, files)
    case.hub.taken()
    case.get(0)
    assert case.hub.taken() == [names()[0], names()[2]]
    case.check(3)
    case.hub.heads[REPO] = old
    case.get(3, revision=old)
    case.check(3)
    assert case.hub.taken() == [names()[0], names()[2]]


def test_another_repository_with_the_same_content(case: Case) -> None:
    case.get()
    case.hub.commit("somebody/mirror", repository())
    case.hub.taken()
    assert case.get(repo="somebody/mirror").repo == "somebody/mirror"
    assert case.hub.taken() == []


# Files that no fetch put there.


def test_another_data_set_does_not_mix_in(case: Case) -> None:
    case.hub.commit(OTHER_REPO, repository(50, "sp1024"))
    case.hub.faults[path_of(names()[1], "sp1024")] = Fault(403)  # not even an unfinished one
    assert "refuses" in case.error(variant="sp1024")
    before = case.visible()
    message = f"{case.out} contains fineweb10B_sp1024, which would mix with fineweb10B_sp8192; name"
    assert case.error().startswith(message)
    assert case.visible() == before


@pytest.mark.parametrize("name", ["fineweb_train_000003.bin", "mine_train_000000.bin"])
def test_shards_of_unknown_origin_are_left_alone(case: Case, name: str) -> None:
    case.out.mkdir()
    (case.out / name).write_bytes(shard(77))
    assert f"{case.out / name} would mix with the requested shards" in case.error()
    assert case.visible() == {name: shard(77)}
    assert case.hub.taken() == []


def test_a_file_of_unknown_origin_is_not_overwritten(case: Case) -> None:
    case.out.mkdir()
    (case.out / names()[2]).write_bytes(shard(77))
    message = case.error()
    assert f"{case.out / names()[2]} is not that of fineweb10B_sp8192 (SHA-256" in message
    assert "no fetch put it there; name another folder with --out" in message
    # The same content is welcome, wherever it came from.
    (case.out / names()[2]).write_bytes(case.hub.commits[case.hub.heads[REPO]][path_of(names()[2])])
    case.get()
    assert names()[2] not in case.hub.taken()
    case.check()


# Interruptions and damage.


def test_a_dropped_connection_is_resumed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what it writes
    path = path_of(names()[2])
    case.hub.faults[path] = Fault(after=1500)
    case.get()
    assert [first for asked, first in case.hub.requests if asked == path] == [0, 1500]
    case.check()


def test_killed_in_the_middle(case: Case) -> None:
    """Also one that replaces a commit: files of two commits never lie side by side."""
    case.hub.commit(REPO, repository(first_seed=200))
    case.get(3)
    case.hub.commit(REPO, repository())
    case.hub.faults[path_of(names()[2])] = Fault(after=2500, stall=True)
    case.hub.taken()
    process = multiprocessing.get_context("fork").Process(target=case.get)
    process.start()
    assert case.hub.stalled.wait(60)
    process.kill()
    process.join()
    assert case.visible().keys() == {*names()[:2], "source.json", "tokenizer.model"}
    (case.out / "tokenizer.model").unlink()  # the same in both
    case.hub.taken()
    case.get()
    assert case.hub.taken() == [*names()[2:4], "fineweb_8192_bpe.model"]
    case.check()


def test_a_fetch_that_fails_keeps_what_is_complete(case: Case) -> None:
    path = path_of(names()[2])
    case.hub.faults[path] = Fault(500)
    message = case.error()
    assert f"cannot fetch {path} of {REPO} at {case.hub.heads[REPO][:12]} from http" in message
    assert "(the hub answered 500); check the network, then try again: complete" in message
    case.hub.requests.clear()
    case.get()
    assert case.hub.taken() == [*names()[2:4], "fineweb_8192_bpe.model"]
    case.check()


@pytest.mark.parametrize(
    ("path", "send", "reason"),
    [
        (path_of(names()[1]), lambda content: content[:-100], "should be of size 7024"),
        (path_of(names()[1]), lambda content: content + bytes(9), "has size 7033"),
        (path_of(names()[1]), lambda content: content[:-1] + b"?", "is damaged (SHA-256"),
        (TOKENIZER, bytes.swapcase, "is damaged (not the git object"),
    ],
    ids=["truncated", "longer", "other content", "tokenizer"],
)
def test_a_damaged_file(case: Case, path: str, send: Callable[[bytes], bytes], reason: str) -> None:
    content = send(case.hub.commits[case.hub.heads[REPO]][path])
    case.hub.faults[path] = Fault(content=content)
    message = case.error()
    assert f"{path} of {REPO} at {case.hub.heads[REPO][:12]} " in message
    assert reason in message
    case.check(complete=False)
    case.get()
    case.check()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (shard(5, magic=1), "is not a token shard (its magic number is not 20240520)"),
        (shard(5, tokens=TOKENS + 5), "7,024 bytes, but its header says 7,034"),
    ],
    ids=["magic", "token count"],
)
def test_a_shard_that_is_wrong_on_the_hub(case: Case, content: bytes, reason: str) -> None:
    case.hub.commit(REPO, repository() | {path_of(names()[0]): content})
    message = case.error()
    assert path_of(names()[0]) in message
    assert reason in message
    assert sorted(case.visible()) == ["source.json"]


def test_too_little_space(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=27_000))
    message = case.error()
    assert message.startswith(f"{case.out} has 0 MB free, but 0 MB are needed; free space, ask for")
    assert case.hub.taken() == []
    assert list(case.out.iterdir()) == []


def test_the_disk_fills_up(case: Case) -> None:
    case.get(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        message = case.error(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"cannot write {case.out}")
    assert "File too large; free space or name another folder with --out" in message
    assert json.loads((case.out / "source.json").read_text())["complete"] is False
    case.get(2)
    case.check()


def test_out_is_a_file(case: Case) -> None:
    case.out.write_text("mine")
    assert f"cannot write {case.out}: File exists" in case.error()
    assert case.out.read_text() == "mine"


def test_two_at_once(case: Case) -> None:
    case.out.mkdir()
    with locked(case.out):
        assert f"{case.out} is in use by another paramgolf process" in case.error()


# What the hub does not have, and a hub that cannot be reached.


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(403, "GatedRepo"), "(it does not exist, or is private or gated); check --repo"),
        (Fault(403), "(the hub refuses the list of files); check --repo, accept its terms at http"),
        (Fault(503), "(the hub answered 503); check the network"),
        (Fault(200), "does not answer like the Hugging Face hub (the list of files of"),
    ],
)
def test_a_list_of_files_that_does_not_come(case: Case, fault: Fault, expected: str) -> None:
    case.hub.faults[API] = fault
    message = case.error()
    assert expected in message
    assert ("HF_TOKEN" in message) == (fault.status in (401, 403))
    assert not case.out.exists()


def test_no_such_repository_revision_or_file(case: Case) -> None:
    message = "cannot read the data set repository nobody/nothing (it does not exist, or is"
    assert case.error(repo="nobody/nothing").startswith(message)
    assert case.error(revision="v7") == f"{REPO} has no revision 'v7'; name another --revision"
    case.hub.faults[MANIFEST] = Fault(404, "EntryNotFound")
    assert f"has no {MANIFEST}; name another --revision or --repo" in case.error()
    assert not case.out.exists()


def test_no_network(case: Case) -> None:
    case.get()
    before = case.visible()
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        message = case.error(endpoint=endpoint)
    assert message.startswith(f"cannot fetch the list of files of {REPO} at main from {endpoint} (")
    assert "Connection refused); check the network, then try again" in message
    assert case.visible() == before


def test_offline_by_setting(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in case.error()


def test_without_huggingface_hub(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = case.error()
    assert message.startswith("fetching needs huggingface_hub (")
    assert message.endswith("pip install 'paramgolf[hub]'")


def test_impossible_requests(case: Case) -> None:
    with pytest.raises(ConfigError, match="unknown data set 'pile': expected fineweb"):
        fetch("pile", "sp8192", 1, case.out, Reporter())
    with pytest.raises(ConfigError, match="invalid --train-shards -1: expected 0"):
        case.get(-1)
    assert case.error(repo="nothing") == "invalid --repo 'nothing': expected OWNER/NAME"
    assert case.hub.requests == []
    assert "has 5 training shards; ask for at most 5 (0: all)" in case.error(6)
    case.hub.commit(OTHER_REPO, repository())
    message = case.error(variant="sp9")
    assert "has no variant 'sp9' of fineweb (it has sp1, sp8192); choose another" in message
    assert not case.out.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html>", "is invalid (JSONDecodeError"),
        (b'"\xff"', "is invalid (UnicodeDecodeError"),
        ([], "is invalid (TypeError"),
        ({}, "is invalid (KeyError: 'datasets')"),
        (manifest() | {"datasets": [{}]}, "is invalid (KeyError: 'name')"),
        (manifest() | {"tokenizers": []}, "is invalid (KeyError: 'bpe_sp8192')"),
        (manifest(files_train="many"), "is invalid (ValueError"),
        (manifest(files_val=0), "states 5 training and 0 validation shards"),
        (manifest(files_val=3), f"lists {path_of('fineweb_val_000002.bin')}, which does not exist"),
    ],
)
def test_an_invalid_manifest(case: Case, content: Any, expected: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    case.hub.commit(REPO, repository() | {MANIFEST: raw})
    message = case.error()
    assert message.startswith(f"{MANIFEST} of {REPO} at {case.hub.heads[REPO][:12]} {expected}")
    assert not case.out.exists()


@pytest.mark.slow
def test_a_run_takes_the_folder_as_it_is(
    case: Case, cli: Cli, mini_run: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    """Fetched shards train the same weights as the text they were built from."""
    files = {MANIFEST: json.dumps(manifest(files_train=1, files_val=1)).encode()}
    for split in ("train", "val"):
        (path,) = find_shards(mini_run.path / "data", split)
        files[path_of(f"fineweb_{split}_000000.bin")] = path.read_bytes()
    files[TOKENIZER] = (mini_run.path / "tokenizer.model").read_bytes()
    case.hub.commit(REPO, files)
    environment = {"HF_ENDPOINT": case.hub.endpoint}
    arguments = ("data", "fetch", "fineweb", "--train-shards", "0", "--out", case.out)
    fetched = command.run(*arguments, env=environment)
    assert fetched.code == 0, fetched.stderr
    assert "1 of training, 1 of validation" in fetched.stdout
    (printed,) = re.findall(r"^next +paramgolf (.*)$", fetched.stdout, re.MULTILINE)
    followed = cli(*shlex.split(printed), *shrinking_options(), "--out", tmp_path / "followed")
    assert (followed.code, followed.stderr) == (0, "")
    other = ("--variant", "sp7", "--repo", REPO, "--out", case.out)
    wrong = command.run("data", "fetch", "fineweb", *other, env=environment)
    assert (wrong.code, "sp8192" in wrong.stderr) == (1, True)
    changes = ["--data.source", case.out, "--data.tokenizer", ""]
    changes += ["--adapt.text", "none", "--data.val-targets", "0", "--out", tmp_path / "run"]
    result = cli("run", "tiny", *options, *changes)
    assert (result.code, result.stderr) == (0, "")
    ours, theirs = read_results(tmp_path / "run"), read_results(mini_run.path)
    expected = {**theirs["stages"]["ema"], "bytes_are": "as decoded"}
    assert ours["stages"]["ema"] == expected


@pytest.mark.slow
def test_record_finds_what_was_fetched(case: Case, source: Path, tmp_path: Path) -> None:
    """The two commands for many GPUs, on two CPUs: the hub's names and manifest, small shards."""
    built = tmp_path / "built"
    build = (
        *["--vocab-size", "512", "--adapt-share", "0", "--shard-tokens", "8000", "--out"],
        built,
    )
    assert command.run("data", "build", source / "train.jsonl", *build).code == 0
    shards = {split: find_shards(built, split) for split in ("train", "val")}
    counts = {f"files_{split}": len(paths) for split, paths in shards.items()}
    assert counts["files_train"] > 2
    files = {MANIFEST: json.dumps(manifest(**counts)).encode()}
    for split, paths in shards.items():
        for number, path in enumerate(paths):
            files[path_of(f"fineweb_{split}_{number:06d}.bin")] = path.read_bytes()
    files[TOKENIZER] = (built / "tokenizer.model").read_bytes()
    case.hub.commit(REPO, files)

    def paramgolf_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        environment = command.ENVIRONMENT | {"HF_ENDPOINT": case.hub.endpoint}
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=command.TIMEOUT,
        )  # fmt: skip

    missing = paramgolf_in(tmp_path, "paramgolf", "run", "record")
    (fetching,) = re.findall(r"`(paramgolf data fetch [^`]*)`", missing.stderr)
    fetched = paramgolf_in(tmp_path, *shlex.split(fetching))
    assert fetched.returncode == 0, fetched.stderr
    (running,) = re.findall(r"^on 8 GPUs +torchrun (.*)$", fetched.stdout, re.MULTILINE)
    running = running.replace("--nproc-per-node=8", "--nproc-per-node=2")
    small = [*shrinking_options(), "--model.vocab-size", "512", "--data.val-targets", "3009"]
    words = ["torch.distributed.run", *shlex.split(running), *small, "--out", "run"]
    done = paramgolf_in(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "run")
    assert results["recipe"] == "record"
    assert results["num_ranks"] == dict.fromkeys(results["num_ranks"], 2)
    assert results["corpus"]["tokens"]["val"] == 3010
    assert results["tokenizer"]["origin"]["dataset"] == "fineweb10B_sp8192"
