"""The provenance file: what is saved is loaded, and anything else is refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, safe_open, save

from paramgolf.data import provenance
from paramgolf.data.fingerprints import RUN_LETTERS, SAMPLED_BITS, Sampling, fingerprints, salt_of
from paramgolf.data.provenance import Gathering, Label, Provenance, Text, union
from paramgolf.errors import UserError

SALT = 0x123456789ABCDEF0


def random_text(seed: int, num_words: int) -> str:
    """Text; those of different seeds share hardly a run."""
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3000)}x{rng.randrange(300)}" for _ in range(num_words))


def known_texts(**texts: str) -> Provenance:
    return Provenance(
        {role: Text.of([text], "0" * 64, SALT) for role, text in texts.items()},
        {"training": "train"},
    )


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=5))
def test_union_is_a_sorted_set(parts: list[list[int]]) -> None:
    joined = union(np.array(part, dtype=np.uint64) for part in parts)
    assert joined.tolist() == sorted({value for part in parts for value in part})
    assert joined.dtype == np.uint64


@pytest.mark.parametrize("shared_words", [0, 500, 6000, 20_000])
def test_the_share_is_that_of_all_runs(shared_words: int) -> None:
    shared = random_text(20, shared_words)
    scored = shared + " " + random_text(22, 30_000 - shared_words)
    everything = fingerprints([scored]).runs
    known = fingerprints([shared + " " + random_text(21, 15_000)]).runs
    truth = float(np.isin(everything, known).mean())
    label = known_texts(train=shared + " " + random_text(21, 15_000)).label([scored])
    assert label.overlap.share is not None
    sampled = len(everything) / 2**SAMPLED_BITS
    assert label.overlap.runs == pytest.approx(sampled, rel=0.05)
    assert abs(label.overlap.share - truth) <= 0.001 + 5 * (truth * (1 - truth) / sampled) ** 0.5
    assert label.name == ("in-sample" if truth > 0.4 else "held-out")


def test_labels_of_copied_disjoint_and_short_texts() -> None:
    known = known_texts(train=random_text(30, 5000), adapt=random_text(31, 5000))
    for seed in (30, 31):
        copied = known.label([random_text(seed, 5000).upper().replace(" ", ",\n ")])
        assert (copied.name, copied.overlap.share) == ("in-sample", 1.0)
    assert known.label([random_text(32, 5000)]).name == "held-out"
    for texts in ([], [""], ["..."]):
        assert known.label(texts).name == "unverified"


def test_documents_are_not_joined() -> None:
    """No run spans two documents."""
    text = random_text(33, 3000)
    known = known_texts(train=text)
    words = text.split()
    assert all(len(word) < RUN_LETTERS for word in words)
    assert known.label(words).overlap.seen_runs == 0


def test_of_keeps_the_named_roles() -> None:
    known = known_texts(train=random_text(35, 3000), adapt=random_text(36, 3000))
    assert known.of("train", "adapt").label([random_text(36, 3000)]).name == "in-sample"
    alone = known.of("train")
    assert alone.label([random_text(36, 3000)]).name == "held-out"
    assert list(alone.texts) == ["train"]
    assert alone.uses == known.uses


def assert_equal(one: Provenance, other: Provenance) -> None:
    assert set(one.texts) == set(other.texts)
    for role, text in one.texts.items():
        same = other.texts[role]
        assert same.runs.dtype == np.uint64
        assert text.runs.tolist() == same.runs.tolist()
        assert text.documents == same.documents
        assert (text.sha256, text.shards) == (same.sha256, same.shards)
    assert one.sampling == other.sampling
    assert one.uses == other.uses


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["train", "adapt", "val"]),
        st.lists(st.integers(0, 2**64 - 1), max_size=50, unique=True),
    ),
    st.integers(0, 2**64 - 1),
)
def test_save_and_load(scratch: Path, content: dict[str, list[int]], salt: int) -> None:
    sampling = Sampling(salt)
    texts: dict[str, Text] = {}
    for role, values in content.items():
        runs = np.sort(np.array(values, dtype=np.uint64))
        kept = runs[sampling.includes(runs)]
        texts[role] = Text(kept, len(values), f"{len(values):064x}", ("ab", "cd"), sampling)
    saved = Provenance(texts, {"training": "train", "tokenizer": "not known"})
    path = scratch / "provenance.safetensors"
    saved.save(path)
    assert_equal(saved, Provenance.load(path))


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    texts = {"train": random_text(40, 3000), "adapt": random_text(41, 3000)}
    known_texts(**texts).save(tmp_path / "a")
    known_texts(**dict(reversed(texts.items()))).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    known_texts(train=texts["train"], adapt="").save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_salt_depends_on_every_text() -> None:
    salts = {salt_of(*digests) for digests in (["a", "b"], ["a"], ["a", "c"], ["b", "a"])}
    assert len(salts) == 4
    assert all(0 <= salt < 2**64 for salt in salts)


@pytest.mark.parametrize(("most", "more_bits"), [(9000, 2), (4500, 3), (1200, 5)])
def test_too_many_runs_are_thinned_out(
    most: int, more_bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, adapt = random_text(50, 40_000), random_text(51, 20_000)
    full = known_texts(train=train, adapt=adapt)
    assert 25_000 < sum(len(text.runs) for text in full.texts.values()) < 36_000
    monkeypatch.setattr(provenance, "MAX_RUNS", most)
    full.save(tmp_path / "thin")
    thin = Provenance.load(tmp_path / "thin")
    assert most / 2 < sum(len(text.runs) for text in thin.texts.values()) <= most
    assert thin.sampling == Sampling(SALT, SAMPLED_BITS + more_bits)
    for role, text in full.texts.items():
        kept = text.runs[thin.sampling.includes(text.runs)]
        assert thin.texts[role].runs.tolist() == kept.tolist()
    assert thin.label([adapt]).name == "in-sample"
    assert thin.label([random_text(52, 20_000)]).name == "held-out"
    half = thin.label([random_text(51, 10_000) + " " + random_text(53, 10_000)]).overlap.share
    assert half == pytest.approx(0.5, abs=0.2)


def test_at_the_limit_nothing_is_thinned_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = known_texts(train=random_text(54, 20_000))
    monkeypatch.setattr(provenance, "MAX_RUNS", len(full.texts["train"].runs))
    full.save(tmp_path / "all")
    assert_equal(full, Provenance.load(tmp_path / "all"))


def test_gathering_is_bounded_and_equals_thinning(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [random_text(seed, 4000) for seed in range(20)]
    full = Text.of(texts, salt=SALT)
    monkeypatch.setattr(provenance, "MAX_RUNS", 1000)
    gathering = Gathering(SALT)
    for text in texts:
        gathering.add(1, fingerprints([text]).runs)
    gathered = gathering.text()
    assert len(gathered.runs) <= 2000
    assert gathered.sampling.bits > SAMPLED_BITS
    expected = full.thinned(gathered.sampling.bits)
    assert gathered.runs.tolist() == expected.runs.tolist()
    assert gathered.documents == full.documents == 20


# Damaged and forged files.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "provenance.safetensors"
    known_texts(train=random_text(60, 1000), adapt=random_text(61, 300)).save(path)
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    """Return the error of loading a file of this content."""
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        Provenance.load(path)
    message = str(error.value)
    assert message.startswith(f"cannot read the provenance {path}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "foreign": lambda good: b"this is another file" * 10,
    "truncated": lambda good: good[:-1],
    "half": lambda good: good[: len(good) // 2],
    "header only": lambda good: good[:40],
    "extended": lambda good: good + b"\0" * 8,
    "without notes": lambda good: good.replace(b'"notes"', b'"motes"'),
    "invalid JSON in notes": lambda good: good.replace(rb"{\"salt", rb"[\"salt"),
    "other notes": lambda good: good.replace(b"sampled_bits", b"sampled_bitz"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_user_error(damage: str, good: bytes, tmp_path: Path) -> None:
    assert DAMAGES[damage](good) != good
    refused(tmp_path / "provenance.safetensors", DAMAGES[damage](good))


Notes = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def forged(good: bytes, path: Path, forge: Callable[[Notes, Arrays], object]) -> bytes:
    """Return a whole file with other notes and arrays."""
    path.write_bytes(good)
    with safe_open(path, framework="np") as file:
        notes = json.loads(file.metadata()["notes"])
    arrays = load(good)
    forge(notes, arrays)
    return save(arrays, metadata={"notes": json.dumps(notes, sort_keys=True)})


def changed(values: Any, key: Any, value: Any) -> None:
    values[key] = value


FORGERIES: dict[str, Callable[[Notes, Arrays], object]] = {
    **{
        f"bits of {bits!r}": lambda n, _, bits=bits: changed(n, "sampled_bits", bits)
        for bits in (-1, 0, 3, 5, 49, 64, 65, 2**70, 4.0, "4", None, True)
    },
    **{
        f"salt of {salt!r}": lambda n, _, salt=salt: changed(n, "salt", salt)
        for salt in (-1, 2**64, 0, 1.5, "1", None, True)
    },
    "falling order": lambda _, a: changed(a, "train", a["train"][::-1].copy()),
    "two swapped": lambda _, a: changed(a, "train", np.roll(a["train"], 1)),
    "one twice": lambda _, a: changed(a, "train", np.sort(np.append(a["train"], a["train"][:1]))),
    "two dimensions": lambda _, a: changed(a, "adapt", a["adapt"][:8].reshape(2, 4)),
    "other integers": lambda _, a: changed(a, "train", a["train"].view(np.int64)),
    "floats": lambda _, a: changed(a, "train", a["train"].astype(np.float64)),
    "run outside of the sample": lambda _, a: changed(
        a, "train", np.sort(a["train"] ^ np.uint64(1))
    ),
    "an array missing": lambda _, a: a.pop("adapt"),
    "an array more": lambda _, a: changed(a, "other", a["adapt"]),
    "a text missing": lambda n, _: n["texts"].pop("adapt"),
    "a key missing": lambda n, _: n["texts"]["adapt"].pop("shards"),
    "a key more": lambda n, _: changed(n, "more", 1),
    "a key of a text more": lambda n, _: changed(n["texts"]["train"], "more", 1),
    "uses missing": lambda n, _: n.pop("uses"),
    "uses a list": lambda n, _: changed(n, "uses", ["train"]),
    "a use of no text": lambda n, _: changed(n["uses"], "training", 7),
    "texts a list": lambda n, _: changed(n, "texts", ["train"]),
    "documents a text": lambda n, _: changed(n["texts"]["train"], "documents", "1"),
    "documents below 0": lambda n, _: changed(n["texts"]["train"], "documents", -1),
    "a hash of no text": lambda n, _: changed(n["texts"]["train"], "sha256", None),
    "shards a text": lambda n, _: changed(n["texts"]["train"], "shards", "abc"),
    "shards of numbers": lambda n, _: changed(n["texts"]["train"], "shards", [1]),
    "version": lambda n, _: changed(n, "version", 2),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_a_user_error(forgery: str, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "provenance.safetensors"
    assert forged(good, path, lambda n, a: None) == good
    content = forged(good, path, FORGERIES[forgery])
    assert content != good
    refused(path, content)


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_file_is_refused_or_complete(
    scratch: Path, good: bytes, data: st.DataObject
) -> None:
    """What is accepted is a file that `save` writes: only values of notes and hashes may differ."""
    content = bytearray(good)
    header = int.from_bytes(good[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([header, len(content)]))
        place = data.draw(st.integers(0, end - 1))
        kind = data.draw(st.sampled_from(["change", "insert", "remove"]))
        byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789"[]{}:,-')))
        content[place : place + (kind != "insert")] = b"" if kind == "remove" else bytes([byte])
    path = scratch / "mutated.safetensors"
    path.write_bytes(content)
    try:
        known = Provenance.load(path)
    except UserError:
        refused(path, bytes(content))
        return
    known.save(path)
    assert path.read_bytes() == content
    for text in known.texts.values():
        assert text.runs.ndim == 1
        assert bool((text.runs[1:] > text.runs[:-1]).all())
        assert bool(known.sampling.includes(text.runs).all())


def test_a_missing_or_too_large_file_is_a_user_error(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nothing"):
        Provenance.load(tmp_path / "nothing")
    monkeypatch.setattr(provenance, "_MAX_FILE_BYTES", len(good) - 1)
    assert "not a file of at most" in refused(tmp_path / "large", good)


def test_a_label_without_overlap() -> None:
    assert Label("unverified").overlap.share is None
