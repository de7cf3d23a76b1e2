"""Fetching shards over HTTP from a server that answers as the hub does, or goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from paramgolf.data import hub as hub_module
from paramgolf.data.fetch import Fetched, fetch
from paramgolf.data.shards import find_shards, open_shard
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.hub import Fault, LocalHub, local_hub
from tests.e2e.mini import read_results

REPO = "kevclark/parameter-golf"
TRAIN, VAL, TOKENS = 5, 2, 3000
TOKENIZER_PATH = "datasets/tokenizers/fineweb_8192_bpe.model"
MANIFEST_PATH = "datasets/manifest.json"
QUICK = (0.01, 0.01)


def path_of(name: str, variant: str = "sp8192") -> str:
    return f"datasets/datasets/fineweb10B_{variant}/{name}"


def shard(seed: int, magic: int = 20240520) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, TOKENS
    tokens = np.random.default_rng(seed).integers(8192, size=TOKENS)
    return header.tobytes() + tokens.astype("<u2").tobytes()


def manifest(*variants: str, **stats: Any) -> dict[str, Any]:
    numbers = {"files_train": TRAIN, "files_val": VAL, "tokens_train": 7} | stats
    return {
        "version": "10B",
        "datasets": [
            {"name": f"fineweb10B_{name}", "tokenizer_name": f"bpe_{name}", "stats": numbers}
            for name in variants
        ],
        "tokenizers": [
            {
                "name": f"bpe_{name}",
                "model_path": f"tokenizers/fineweb_{name.removeprefix('sp')}_bpe.model",
                "unheard_of": [],
            }
            for name in variants
        ],
    }


def repository(first_seed: int = 0, variant: str = "sp8192") -> dict[str, bytes]:
    names = [f"fineweb_val_{number:06d}.bin" for number in range(VAL)]
    names += [f"fineweb_train_{number:06d}.bin" for number in range(TRAIN)]
    files = {path_of(name, variant): shard(first_seed + i) for i, name in enumerate(names)}
    files[MANIFEST_PATH] = json.dumps(manifest(variant, "sp1")).encode()
    files[f"datasets/tokenizers/fineweb_{variant.removeprefix('sp')}_bpe.model"] = b"a model\n" * 99
    return files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with local_hub() as hub:
        hub.commit(REPO, repository())
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_module, "WAITS", QUICK)
        yield hub


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "fineweb"


def get(out: Path, train_shards: int = 2, variant: str = "sp8192", **options: str) -> Fetched:
    return fetch("fineweb", variant, train_shards, out, Reporter(), **options)


def error(out: Path, train_shards: int = 2, variant: str = "sp8192", **options: str) -> str:
    with pytest.raises(UserError) as raised:
        get(out, train_shards, variant, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert str(raised.value.__class__.exit_code) in "12"
    return message


def names(train_shards: int = 2) -> list[str]:
    shards = [f"fineweb_val_{number:06d}.bin" for number in range(VAL)]
    shards += [f"fineweb_train_{number:06d}.bin" for number in range(train_shards)]
    return [*shards, "tokenizer.model"]


def visible(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def source(out: Path) -> dict[str, Any]:
    return json.loads((out / "source.json").read_text())


def check_right(out: Path, hub: LocalHub, train_shards: int = 2, whole: bool = True) -> None:
    """What is there is what the hub has, and all of it if it is to be whole."""
    commit = hub.heads[REPO]
    there = visible(out)
    told = json.loads(there.pop("source.json"))
    if whole:
        assert sorted(there) == sorted(names(train_shards))
        assert (told["complete"], told["train_shards"]) == (True, train_shards)
        assert (told["repo"], told["revision"]) == (REPO, commit)
        assert told["dataset"] == "fineweb10B_sp8192"
        assert sorted(told["files"]) == sorted(there)
    else:
        assert told["complete"] is False
        assert "tokenizer.model" not in there
    for name, content in there.items():
        path = TOKENIZER_PATH if name == "tokenizer.model" else path_of(name)
        assert content == hub.commits[commit][path], name
        if whole:
            digest = hashlib.sha256(content).hexdigest()
            assert told["files"][name] == {"bytes": len(content), "sha256": digest}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def part_sizes(out: Path) -> list[int]:
    return [path.stat().st_size for path in (out / ".fetch").glob("*")]


def in_child(function: Callable[[], Any], kill_when: Callable[[], bool] | None = None) -> str:
    """Run in a process of its own (killed when it is time); gives its UserError, if any."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            function()
            sender.send("no error")
        except UserError as raised:
            sender.send(str(raised))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        if kill_when is not None:
            wait_until(kill_when)
            process.kill()
            return "killed"
        assert receiver.poll(10)
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def test_sidecars_come_with_their_shards(hub: LocalHub, out: Path) -> None:
    """Original bytes of data with CaseOps; only those of the validation shards are there."""
    files = repository()
    sidecars = [f"fineweb_val_bytes_{number:06d}.bin" for number in range(VAL)]
    files |= {path_of(name): shard(90 + number) for number, name in enumerate(sidecars)}
    hub.commit(REPO, files)
    get(out)
    assert sorted(visible(out)) == sorted([*names(), *sidecars, "source.json"])
    assert (out / sidecars[1]).read_bytes() == shard(91)
    assert [path.name for path in find_shards(out, "val")] == names()[:VAL]
    (out / sidecars[1]).write_bytes(b"damaged")
    hub.taken()
    get(out)
    assert hub.taken() == [sidecars[1]]


def test_fetches_what_was_asked_for(hub: LocalHub, out: Path) -> None:
    said = io.StringIO()
    fetched = fetch("fineweb", "sp8192", 2, out, Reporter(said))
    check_right(out, hub)
    assert sorted(path.name for path in out.iterdir()) == sorted([*names(), "source.json"])
    total = sum(len(content) for name, content in visible(out).items() if name != "source.json")
    assert fetched == Fetched(
        REPO, hub.heads[REPO], "fineweb10B_sp8192", 2, VAL, bytes=total, received_bytes=total
    )
    for split, count in (("train", 2), ("val", VAL)):
        assert [len(open_shard(path)) for path in find_shards(out, split)] == [TOKENS] * count
    assert hub.taken() == [*names()[:-1], "fineweb_8192_bpe.model"]
    assert f"fineweb10B_sp8192 of {REPO} at {hub.heads[REPO][:12]}: 5 files" in said.getvalue()


def test_a_second_call_fetches_nothing(hub: LocalHub, out: Path) -> None:
    get(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.[bm]*")}
    assert len(before) == 5
    hub.taken()
    assert get(out).received_bytes == 0
    assert hub.taken() == []
    assert before == {path: path.stat().st_mtime_ns for path in before}
    check_right(out, hub)


def test_more_shards_later_only_add(hub: LocalHub, out: Path) -> None:
    get(out, 1)
    hub.taken()
    get(out, 3)
    assert hub.taken() == names(3)[VAL + 1 : -1]
    get(out, 0)
    assert hub.taken() == names(TRAIN)[VAL + 3 : -1]
    check_right(out, hub, TRAIN)


def test_fewer_shards_set_the_others_aside(hub: LocalHub, out: Path) -> None:
    get(out, 4)
    said = io.StringIO()
    fetch("fineweb", "sp8192", 1, out, Reporter(said))
    check_right(out, hub, 1)
    assert f"3 more training shards set aside in {out / '.fetch'}" in said.getvalue()
    hub.taken()
    assert get(out, 3).received_bytes == 0  # they come back without the hub
    assert hub.taken() == []
    check_right(out, hub, 3)
    assert len(list((out / ".fetch").iterdir())) == 1


def test_wrong_files_are_fetched_again(hub: LocalHub, out: Path) -> None:
    get(out, 3)
    truncated, changed, tokenizer = (out / names(3)[i] for i in (0, 3, -1))
    truncated.write_bytes(truncated.read_bytes()[:-5])
    content = bytearray(changed.read_bytes())
    content[2000] ^= 1
    changed.write_bytes(content)
    tokenizer.write_bytes(tokenizer.read_bytes().swapcase())
    (out / names(3)[1]).unlink()
    hub.taken()
    get(out, 3)
    assert hub.taken() == [names(3)[i] for i in (0, 1, 3)] + ["fineweb_8192_bpe.model"]
    check_right(out, hub, 3)


def test_the_hub_moves_on(hub: LocalHub, out: Path) -> None:
    """What is the same in the new commit stays, the rest is replaced; the old one can be named."""
    old = hub.heads[REPO]
    get(out, 3)
    files = dict(hub.commits[old])
    files[path_of(names()[0])], files[path_of(names()[2])] = shard(100), shard(101)
    new = hub.commit(REPO, files)
    hub.taken()
    get(out, 3)
    assert hub.taken() == [names()[0], names()[2]]
    check_right(out, hub, 3)
    assert source(out)["revision"] == new
    hub.heads[REPO] = old
    get(out, 3, revision=old)
    check_right(out, hub, 3)
    assert hub.taken() == [names()[0], names()[2]]


def test_a_data_set_that_became_smaller(hub: LocalHub, out: Path) -> None:
    """Shards that the new commit does not have are not left for a run to read."""
    get(out, 0)
    files = repository()
    files[MANIFEST_PATH] = json.dumps(manifest("sp8192", files_train=3)).encode()
    for name in names(TRAIN)[VAL + 3 : -1]:
        del files[path_of(name)]
    hub.commit(REPO, files)
    get(out, 0)
    check_right(out, hub, 3)
    assert not (out / ".fetch").exists()


def test_another_repository_with_the_same_content(hub: LocalHub, out: Path) -> None:
    get(out)
    hub.commit("somebody/mirror", repository())
    hub.taken()
    get(out, repo="somebody/mirror")
    assert hub.taken() == []
    assert source(out)["repo"] == "somebody/mirror"


def test_another_data_set_does_not_mix_in(hub: LocalHub, out: Path) -> None:
    hub.commit("willdepueoai/parameter-golf", repository(50, "sp1024"))
    get(out, variant="sp1024")
    before = visible(out)
    message = error(out)
    assert message.startswith(f"{out} holds fineweb10B_sp1024, with which fineweb10B_sp8192 would")
    assert "--out" in message
    assert visible(out) == before


def test_the_other_data_set_was_not_finished(hub: LocalHub, out: Path) -> None:
    hub.commit("willdepueoai/parameter-golf", repository(50, "sp1024"))
    hub.faults[path_of(names()[1], "sp1024")] = [Fault(status=403)]
    assert "refuses" in error(out, variant="sp1024")
    assert "holds fineweb10B_sp1024" in error(out)


@pytest.mark.parametrize("name", ["fineweb_train_000003.bin", "mine_train_000000.bin"])
def test_shards_of_unknown_origin_are_left_alone(hub: LocalHub, out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_bytes(shard(77))
    message = error(out)
    assert f"{out / name} would mix with the shards asked for" in message
    assert "--out" in message
    assert visible(out) == {name: shard(77)}
    assert hub.taken() == []


def test_a_file_of_unknown_origin_is_not_overwritten(hub: LocalHub, out: Path) -> None:
    out.mkdir()
    (out / names()[2]).write_bytes(shard(77))
    message = error(out)
    assert f"{out / names()[2]} is not that of fineweb10B_sp8192 (SHA-256" in message
    assert "no fetch put it there; name another folder with --out" in message
    # The same content is welcome, wherever it came from.
    (out / names()[2]).write_bytes(hub.commits[hub.heads[REPO]][path_of(names()[2])])
    get(out)
    assert names()[2] not in hub.taken()
    check_right(out, hub)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_dropped_connection_is_taken_up_again(hub: LocalHub, out: Path, how: str) -> None:
    path = path_of(names()[2])
    hub.faults[path] = [Fault(after=1500, how=how), Fault(after=2000, how=how)]
    said = io.StringIO()
    fetched = fetch("fineweb", "sp8192", 2, out, Reporter(said))
    assert [r.first_byte for r in hub.requests if r.what == path] == [0, 1500, 3500]
    assert said.getvalue().count("trying again in 0 s") == 2
    assert fetched.received_bytes == fetched.bytes
    check_right(out, hub)


def test_a_server_without_ranges(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[2])
    hub.faults[path] = [Fault(after=1500)]
    hub.serves_ranges = False
    fetched = get(out)
    assert hub.taken().count(names()[2]) == 2
    assert fetched.received_bytes == fetched.bytes + 1500
    check_right(out, hub)


def test_a_connection_that_brings_something_is_never_given_up(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.faults[path] = [Fault(after=700) for _ in range(3 * len(QUICK))]
    get(out)
    assert len([r for r in hub.requests if r.what == path]) == 3 * len(QUICK) + 1
    check_right(out, hub)


def test_a_connection_that_brings_nothing_is_given_up(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[3])
    hub.faults[path] = [Fault(after=1500), *[Fault() for _ in QUICK]]
    message = error(out)
    assert message.startswith(f"cannot fetch {path} of {REPO} at {hub.heads[REPO][:12]} from http")
    assert message.endswith("then try again: it goes on where it stopped")
    assert len([r for r in hub.requests if r.what == path]) == 1 + len(QUICK)
    check_right(out, hub, whole=False)
    assert sorted(visible(out)) == sorted([*names()[:3], "source.json"])
    # What was finished stays, and so does what was half there.
    hub.requests.clear()
    get(out)
    assert [r.first_byte for r in hub.requests if r.what == path] == [1500]
    assert hub.taken() == [names()[3], "fineweb_8192_bpe.model"]
    check_right(out, hub)


def test_silence_counts_as_dropped(
    hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", 1.0)
    path = path_of(names()[1])
    hub.faults[path] = [Fault(after=1000, how="stall")]
    start = time.monotonic()
    get(out)
    assert time.monotonic() - start < 10
    assert [r.first_byte for r in hub.requests if r.what == path] == [0, 1000]
    check_right(out, hub)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_error_is_waited_for(hub: LocalHub, out: Path, status: int) -> None:
    hub.faults["api"] = [Fault(status=status)]
    hub.faults[MANIFEST_PATH] = [Fault(status=status)]
    hub.faults[path_of(names()[0])] = [Fault(status=status)]
    get(out)
    check_right(out, hub)
    hub.faults["api"] = [Fault(status=status) for _ in range(9)]
    hub.requests.clear()
    assert f"(the hub answered {status}); check the network" in error(out)
    assert len(hub.requests) == 1 + len(QUICK)


def test_killed_in_the_middle(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[2])
    hub.faults[path] = [Fault(after=2500, how="stall")]
    assert in_child(lambda: get(out), lambda: 2500 in part_sizes(out)) == "killed"
    check_right(out, hub, whole=False)
    assert sorted(visible(out)) == sorted([*names()[:2], "source.json"])
    hub.requests.clear()
    fetched = get(out)
    assert [r.first_byte for r in hub.requests if r.what == path] == [2500]
    assert hub.taken() == [*names()[2:4], "fineweb_8192_bpe.model"]
    finished = sum(len(hub.commits[hub.heads[REPO]][path_of(name)]) for name in names()[:2])
    assert fetched.received_bytes == fetched.bytes - finished - 2500
    check_right(out, hub)
    assert not (out / ".fetch").exists()


def test_killed_while_it_replaces(hub: LocalHub, out: Path) -> None:
    """Files of two commits never lie side by side under their final names."""
    get(out)
    hub.commit(REPO, repository(first_seed=200))
    hub.faults[path_of(names()[1])] = [Fault(after=2500, how="stall")]
    assert in_child(lambda: get(out), lambda: 2500 in part_sizes(out)) == "killed"
    (out / "tokenizer.model").unlink()  # the same in both
    check_right(out, hub, whole=False)
    get(out)
    check_right(out, hub)


def test_what_is_half_there_of_another_content_is_not_gone_on_with(
    hub: LocalHub, out: Path
) -> None:
    path = path_of(names()[0])
    hub.faults[path] = [Fault(after=1500), *[Fault() for _ in QUICK]]
    error(out)
    hub.commit(REPO, repository(first_seed=300))
    hub.requests.clear()
    get(out)
    assert [r.first_byte for r in hub.requests if r.what == path] == [0]
    check_right(out, hub)
    assert not (out / ".fetch").exists()


def test_a_spoiled_part_is_fetched_from_its_beginning(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.faults[path] = [Fault(after=1500), *[Fault() for _ in QUICK]]
    error(out)
    (part,) = (out / ".fetch").iterdir()
    part.write_bytes(b"x" + part.read_bytes()[1:])
    hub.requests.clear()
    get(out)
    assert [r.first_byte for r in hub.requests if r.what == path] == [1500, 0]
    check_right(out, hub)


def other_content(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (lambda content: content[:-100], "6,924 bytes instead of 7,024"),
        (lambda content: content + bytes(9), "7,033 bytes instead of 7,024"),
        (other_content, "SHA-256"),
    ],
    ids=["truncated", "longer", "other content"],
)
def test_a_damaged_file(
    hub: LocalHub, out: Path, send: Callable[[bytes], bytes], reason: str
) -> None:
    name = names()[1]
    path = path_of(name)
    hub.sent[path] = send(hub.commits[hub.heads[REPO]][path])
    message = error(out)
    assert f"{path} of {REPO} at {hub.heads[REPO][:12]} came damaged twice ({reason}" in message
    assert hub.taken() == [names()[0], name, name]
    check_right(out, hub, whole=False)
    assert list((out / ".fetch").iterdir()) == []
    hub.sent.clear()
    get(out)
    check_right(out, hub)


def test_what_is_there_is_longer_than_what_comes(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.faults[path] = [Fault(after=7000), *[Fault() for _ in QUICK]]
    error(out)
    hub.sent[path] = hub.commits[hub.heads[REPO]][path][:6924]
    hub.requests.clear()
    assert "came damaged twice (6,924 bytes instead of 7,024)" in error(out)
    assert [r.first_byte for r in hub.requests if r.what == path] == [7000, 0]


def test_what_comes_has_no_end(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.sent[path] = hub.commits[hub.heads[REPO]][path] + bytes(20_000_000)
    found = re.search(r"([0-9,]+) bytes instead of 7,024", error(out))
    assert found is not None
    assert int(found[1].replace(",", "")) < 1_000_000


def test_a_damaged_tokenizer(hub: LocalHub, out: Path) -> None:
    """Of a file that git holds itself the hub states no SHA-256."""
    hub.sent[TOKENIZER_PATH] = hub.commits[hub.heads[REPO]][TOKENIZER_PATH].swapcase()
    assert f"{TOKENIZER_PATH} of {REPO}" in error(out)
    check_right(out, hub, whole=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (shard(5, magic=1), "is not a token shard (its magic number is not 20240520)"),
        (shard(5)[:-10], "is truncated or damaged: 7,014 bytes, but its header says 7,024"),
    ],
)
def test_a_shard_that_is_wrong_on_the_hub(
    hub: LocalHub, out: Path, content: bytes, reason: str
) -> None:
    path = path_of(names()[0])
    hub.commit(REPO, repository() | {path: content})
    message = error(out)
    assert f"{path} of {REPO}" in message
    assert reason in message
    assert hub.taken() == [names()[0]] * 2
    assert sorted(visible(out)) == ["source.json"]


def test_the_list_states_another_size(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.listed[path] = {"size": 7025, "lfs": None}
    assert "7,024 bytes instead of 7,025" in error(out)
    assert sorted(visible(out)) == ["source.json"]


def test_a_file_that_is_not_there(hub: LocalHub, out: Path) -> None:
    files = repository()
    del files[path_of(names()[3])]
    hub.commit(REPO, files)
    message = error(out)
    assert f"lists {path_of(names()[3])}, which is not there" in message
    assert not out.exists()
    get(out, 1)  # without which one can do
    check_right(out, hub, 1)


def test_a_file_that_vanishes(hub: LocalHub, out: Path) -> None:
    path = path_of(names()[0])
    hub.faults[path] = [Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})]
    assert f"{REPO} at {hub.heads[REPO][:12]} has no {path}" in error(out)
    assert hub.taken() == [names()[0]]


def test_no_such_repository(hub: LocalHub, out: Path) -> None:
    message = error(out, repo="nobody/nothing")
    assert message.startswith(f"{hub.endpoint} has no data set repository nobody/nothing, or it is")
    assert "HF_TOKEN" in message
    assert len(hub.requests) == 1
    assert not out.exists()


def test_no_such_revision(hub: LocalHub, out: Path) -> None:
    message = error(out, revision="v7")
    assert message == f"{REPO} has no revision 'v7'; name another with --revision"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "GatedRepo", "is gated: accept its terms at http"),
        (403, "GatedRepo", "is gated: accept its terms at http"),
        (403, "", "refuses the list of files"),
    ],
)
def test_no_access(hub: LocalHub, out: Path, status: int, code: str, expected: str) -> None:
    hub.faults["api"] = [Fault(status=status, headers={"X-Error-Code": code})]
    message = error(out)
    assert expected in message
    assert "HF_TOKEN" in message
    assert len(hub.requests) == 1


def test_the_token_is_sent(hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(out, 1)
    assert {request.token for request in hub.requests} == {""}
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(out, 2)
    assert len(hub.requests) == 3
    assert {request.token for request in hub.requests} == {"hf_secret"}


def test_more_shards_than_there_are(hub: LocalHub, out: Path) -> None:
    message = error(out, 6)
    assert message.startswith("--train-shards 6: fineweb10B_sp8192 of ")
    assert "has 5 training shards; ask for at most 5 (0: all)" in message
    assert not out.exists()


def test_unknown_variant(hub: LocalHub, out: Path) -> None:
    hub.commit("willdepueoai/parameter-golf", repository())
    message = error(out, variant="sp9")
    assert "has no variant 'sp9' of fineweb, only sp1, sp8192; name one" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("pile", "sp8192", 1), "there is no data set 'pile'"),
        (("fineweb", "sp8192", -1), "--train-shards -1: must be 0"),
    ],
)
def test_impossible_arguments(
    hub: LocalHub, out: Path, arguments: tuple[str, str, int], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        fetch(*arguments, out, Reporter())
    assert hub.requests == []


def test_impossible_repository_and_endpoint(
    hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert error(out, repo="nothing") == "--repo 'nothing': must be OWNER/NAME"
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    assert error(out).startswith("HF_ENDPOINT is 'huggingface.co': must be http://")


def without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


GOOD = manifest("sp8192")
DATASET, MODEL = GOOD["datasets"][0], GOOD["tokenizers"][0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html>", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ([], "has no 'datasets' (list) in its top level"),
        (without(GOOD, "datasets"), "has no 'datasets' (list) in its top level"),
        (without(GOOD, "tokenizers"), "has no 'tokenizers' (list) in its top level"),
        (GOOD | {"datasets": [{}]}, "has no 'name' (text) in one of its datasets"),
        (
            GOOD | {"datasets": [without(DATASET, "stats")]},
            "has no 'stats' (object) in fineweb10B_sp8192",
        ),
        (manifest("sp8192", files_train="5"), "has no 'files_train' (whole number)"),
        (manifest("sp8192", files_val=True), "has no 'files_val' (whole number)"),
        (manifest("sp8192", files_val=0), "has 5 training and 0 validation shards"),
        (
            GOOD | {"datasets": [without(DATASET, "tokenizer_name")]},
            "has no 'tokenizer_name' (text) in fineweb10B_sp8192",
        ),
        (GOOD | {"tokenizers": []}, "has no 'model_path' (text) in tokenizer 'bpe_sp8192'"),
        (
            GOOD | {"tokenizers": [without(MODEL, "model_path")]},
            "has no 'model_path' (text) in tokenizer 'bpe_sp8192'",
        ),
    ],
)
def test_a_manifest_that_is_wrong(hub: LocalHub, out: Path, content: Any, expected: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    hub.commit(REPO, repository() | {MANIFEST_PATH: raw})
    message = error(out)
    assert message.startswith(f"{MANIFEST_PATH} of {REPO} at {hub.heads[REPO][:12]} ")
    assert expected in message
    assert not out.exists()


def test_no_manifest(hub: LocalHub, out: Path) -> None:
    hub.commit(REPO, without(repository(), MANIFEST_PATH))
    assert f"has no {MANIFEST_PATH}; name another --revision or --repo" in error(out)


def test_no_hub_at_all(hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(out)
    before = visible(out)
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        message = error(out)
    assert message.startswith(f"cannot fetch list of files of {REPO} at main from {endpoint} (")
    assert "Connection refused); check the network, then try again" in message
    assert visible(out) == before


def test_something_else_answers(hub: LocalHub, out: Path) -> None:
    """As the page of a network that wants a password first."""
    hub.faults["api"] = [Fault(status=200)]
    message = error(out)
    assert message.startswith(f"{hub.endpoint} does not answer as the hub does (list of files of")


def test_offline_by_setting(hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in error(out)
    assert hub.requests == []


def test_without_huggingface_hub(hub: LocalHub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = error(out)
    assert message.startswith("fetching needs huggingface_hub (")
    assert message.endswith("pip install 'paramgolf[hub]'")


def test_too_little_space_is_known_beforehand(hub: LocalHub, out: Path) -> None:
    hub.listed[path_of(names()[3])] = {"size": 10**18, "lfs": None}
    message = error(out)
    assert message.startswith(f"{out} has ")
    assert "MB free, but 1,000,000,000,000 MB are to come; free space, ask for fewer" in message
    assert hub.taken() == []
    assert list(out.iterdir()) == []


def test_the_disk_fills_up(hub: LocalHub, out: Path) -> None:
    get(out, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        get(out, 2)

    message = in_child(limited)
    assert message.startswith(f"cannot write {out}")
    assert "File too large; free space or name another folder with --out" in message
    assert "goes on where it stopped" in message
    there = visible(out)
    assert sorted(there) == sorted([*names(1), "source.json"])
    assert json.loads(there["source.json"])["complete"] is False
    get(out, 2)
    check_right(out, hub)


def test_out_is_a_file(hub: LocalHub, out: Path) -> None:
    out.write_text("mine")
    message = error(out)
    assert f"cannot write {out}: File exists" in message
    assert out.read_text() == "mine"


def test_two_at_once(hub: LocalHub, out: Path) -> None:
    hub.faults[path_of(names()[0])] = [Fault(after=10, how="stall")]
    context = multiprocessing.get_context("fork")
    other = context.Process(target=get, args=(out,))
    other.start()
    try:
        assert hub.stalled.wait(10)
        message = error(out)
        assert message.startswith(f"{out} is in use by another paramgolf process; wait for it")
    finally:
        other.kill()
        other.join()
    get(out)
    check_right(out, hub)


def test_a_source_file_that_cannot_be_read(hub: LocalHub, out: Path) -> None:
    """Right files are kept, and it is written anew."""
    get(out)
    (out / "source.json").write_text('{"dataset": ')
    hub.taken()
    get(out)
    assert hub.taken() == []
    check_right(out, hub)


@pytest.mark.slow
def test_a_run_takes_the_folder_as_it_is(
    hub: LocalHub,
    out: Path,
    cli: Cli,
    mini_run: FinishedRun,
    options: list[str],
    tmp_path: Path,
) -> None:
    """Fetched shards train the weights that the text they were made of trained."""
    files = {MANIFEST_PATH: json.dumps(manifest("sp8192", files_train=1, files_val=1)).encode()}
    for split in ("train", "val"):
        (path,) = find_shards(mini_run.path / "data", split)
        files[path_of(f"fineweb_{split}_000000.bin")] = path.read_bytes()
    files[TOKENIZER_PATH] = (mini_run.path / "tokenizer.model").read_bytes()
    hub.commit(REPO, files)
    there = {"HF_ENDPOINT": hub.endpoint}
    fetched = command.run(
        *("data", "fetch", "fineweb", "--train-shards", "0", "--out", out), env=there
    )
    assert fetched.code == 0, fetched.stderr
    assert "1 of training, 1 of validation" in fetched.stdout
    assert f"--data.source {out}" in fetched.stdout
    other = ("--variant", "sp7", "--repo", REPO, "--out", out)
    wrong = command.run("data", "fetch", "fineweb", *other, env=there)
    assert (wrong.code, "sp8192" in wrong.stderr) == (1, True)
    changes = ["--data.source", out, "--data.tokenizer", ""]
    changes += ["--adapt.text", "none", "--data.val-targets", "0", "--out", tmp_path / "run"]
    result = cli("run", "tiny", *options, *changes)
    assert (result.code, result.stderr) == (0, "")
    ours, theirs = read_results(tmp_path / "run"), read_results(mini_run.path)
    assert ours["stages"]["ema"] == theirs["stages"]["ema"]
