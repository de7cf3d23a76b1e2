"""Shingles compared with sets of word tuples, labels, and the provenance file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data import provenance
from paramgolf.data.fingerprints import (
    SAMPLED_BITS,
    SHINGLE_WORDS,
    fingerprints,
    sampled_shingles,
    shingles,
)
from paramgolf.data.overlap import CopyFinder
from paramgolf.data.provenance import IN_SAMPLE_SHARE, Gathering, Label, Provenance, Text, union
from paramgolf.errors import UserError

WORDS = st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=0, max_size=40)
SEPARATORS = st.sampled_from([" ", "  ", "\n", "\t", ", ", ". ", "; ", " -- ", "\u2014", " (", "!"])


def random_text(seed: int, num_words: int) -> str:
    """Text; those of different seeds share no shingle, except by a rare chance."""
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3000)}" for _ in range(num_words))


def word_tuples(text: str) -> set[tuple[str, ...]]:
    """The definition, for texts of plain words and spaces."""
    words = text.split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


@given(WORDS)
def test_one_shingle_per_position(words: list[str]) -> None:
    hashes = shingles(" ".join(words))
    assert hashes.dtype == np.uint64
    assert len(hashes) == max(0, len(words) - SHINGLE_WORDS + 1)


@settings(max_examples=200)
@given(WORDS, st.data())
def test_spaces_case_and_punctuation_hide_nothing(words: list[str], data: st.DataObject) -> None:
    edited = data.draw(SEPARATORS)
    for word in words:
        written = data.draw(st.sampled_from([word, word.upper(), word.capitalize()]))
        edited += written + data.draw(SEPARATORS)
    assert shingles(edited).tolist() == shingles(" ".join(words)).tolist()


def test_twelve_words_have_no_shingle_and_thirteen_have_one() -> None:
    twelve = "a b c d e f g h i j k l"
    assert len(shingles("")) == 0
    assert len(shingles(twelve)) == 0
    assert len(shingles(twelve + " m")) == 1


@given(
    st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=13, max_size=13, unique=True)
)
def test_words_and_their_order_matter(words: list[str]) -> None:
    (original,) = shingles(" ".join(words)).tolist()
    for i in range(12):
        swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
        assert shingles(" ".join(swapped)).tolist() != [original]
        changed = [*words[:i], words[i] + "x", *words[i + 1 :]]
        assert shingles(" ".join(changed)).tolist() != [original]


def test_shingles_are_as_many_as_different_word_tuples() -> None:
    """Equal shingles have equal hashes, different ones do not."""
    text = " ".join([random_text(0, 9000), random_text(1, 9000), random_text(0, 9000)])
    assert len(np.unique(shingles(text))) == len(word_tuples(text)) < 19_000


def test_common_shingles_are_the_common_word_tuples() -> None:
    shared = random_text(2, 2500)
    first = " ".join([random_text(3, 4000), shared, random_text(4, 700)])
    second = " ".join([random_text(5, 100), shared, random_text(6, 3000)])
    common = set(shingles(first).tolist()) & set(shingles(second).tolist())
    assert len(common) == len(word_tuples(first) & word_tuples(second)) > 2400


def test_the_sample_is_consistent_between_texts() -> None:
    """A shingle is sampled in every text that contains it, or in none."""
    shared = random_text(7, 5000)
    first, second = random_text(8, 300) + " " + shared, shared + " " + random_text(9, 50)
    common = set(shingles(first).tolist()) & set(shingles(second).tolist())
    sampled = [set(sampled_shingles(text).tolist()) for text in (first, second)]
    assert sampled[0] & common == sampled[1] & common
    assert sampled[0] & common


def test_the_sample_is_a_sorted_sixteenth_of_all() -> None:
    text = random_text(10, 80_000)
    sampled = sampled_shingles(text)
    assert bool((np.diff(sampled.astype(object)) > 0).all())
    everything = set(shingles(text).tolist())
    assert set(sampled.tolist()) <= everything
    share = len(sampled) / len(everything)
    assert share == pytest.approx(1 / 2**SAMPLED_BITS, rel=0.08)  # 5 standard deviations


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=5))
def test_union_is_a_sorted_set(parts: list[list[int]]) -> None:
    joined = union(np.array(part, dtype=np.uint64) for part in parts)
    assert joined.tolist() == sorted({value for part in parts for value in part})
    assert joined.dtype == np.uint64


def known_texts(**texts: str) -> Provenance:
    return Provenance(
        {role: Text.of([text], "0" * 64) for role, text in texts.items()},
        {"training": "train"},
    )


@pytest.mark.parametrize("shared_words", [0, 500, 6000, 20_000])
def test_overlap_share_is_that_of_word_tuples(shared_words: int) -> None:
    shared = random_text(20, shared_words)
    known = shared + " " + random_text(21, 15_000)
    scored = shared + " " + random_text(22, 30_000 - shared_words)
    truth = len(word_tuples(known) & word_tuples(scored)) / len(word_tuples(scored))
    label = known_texts(train=known).label([scored])
    assert label.overlap_share is not None
    sampled = (30_000 - 12) / 2**SAMPLED_BITS
    assert abs(label.overlap_share - truth) <= 5 * (truth * (1 - truth) / sampled) ** 0.5
    assert label.name == ("in-sample" if label.overlap_share > IN_SAMPLE_SHARE else "held-out")
    assert label.name == ("in-sample" if shared_words else "held-out")


def test_labels_of_copied_disjoint_and_short_texts() -> None:
    known = known_texts(train=random_text(30, 5000), adapt=random_text(31, 5000))
    assert known.label([random_text(30, 5000)]) == Label("in-sample", 1.0)
    assert known.label([random_text(31, 5000)]) == Label("in-sample", 1.0)
    copied = known.label([random_text(30, 5000).upper().replace(" ", ",\n ")])
    assert copied == Label("in-sample", 1.0)
    assert known.label([random_text(32, 5000)]) == Label("held-out", 0.0)
    assert known.label(["much too short"]) == Label("unverified", None)
    assert known.label([]) == Label("unverified", None)


def test_documents_are_not_joined() -> None:
    """No shingle spans two documents, and a repeated document counts once."""
    known = known_texts(train=random_text(33, 3000))
    assert known.label(random_text(33, 3000).split()) == Label("unverified", None)
    half = random_text(34, 3000)
    once, often = (known.label([random_text(33, 3000), *[half] * n]) for n in (1, 9))
    assert once == often


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
        for name in ("shingles", "documents"):
            hashes, same = getattr(text, name), getattr(other.texts[role], name)
            assert same.dtype == np.uint64
            assert hashes.tolist() == same.tolist()
        assert (text.sha256, text.shards) == (other.texts[role].sha256, other.texts[role].shards)
    assert one.sampled_bits == other.sampled_bits
    assert one.uses == other.uses


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["train", "adapt", "val"]),
        st.lists(st.integers(0, 2**64 - 1), max_size=50, unique=True),
    )
)
def test_save_and_load(scratch: Path, content: dict[str, list[int]]) -> None:
    arrays = {role: np.array(values, dtype=np.uint64) for role, values in content.items()}
    saved = Provenance(
        {
            role: Text(np.sort(values), values, f"{len(values):064x}", ("ab", "cd"))
            for role, values in arrays.items()
        },
        {"training": "train", "tokenizer": "not known"},
    )
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


@pytest.mark.parametrize(("most", "more_bits"), [(2500, 1), (1200, 2), (600, 3)])
def test_too_many_shingles_are_thinned_out(
    most: int, more_bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, adapt = random_text(50, 40_000), random_text(51, 20_000)
    full = known_texts(train=train, adapt=adapt)
    assert 3500 < sum(len(text.shingles) for text in full.texts.values()) < 4000
    monkeypatch.setattr(provenance, "MAX_SHINGLES", most)
    full.save(tmp_path / "thin")
    thin = Provenance.load(tmp_path / "thin")
    assert most / 2 < sum(len(text.shingles) for text in thin.texts.values()) <= most
    assert thin.sampled_bits == SAMPLED_BITS + more_bits
    step = 2**thin.sampled_bits
    for role, text in full.texts.items():
        kept = [h for h in text.shingles.tolist() if h % step == 0]
        assert thin.texts[role].shingles.tolist() == kept
    assert thin.label([adapt]) == Label("in-sample", 1.0)
    assert thin.label([random_text(52, 20_000)]) == Label("held-out", 0.0)
    half = thin.label([random_text(51, 10_000) + " " + random_text(53, 10_000)]).overlap_share
    assert half == pytest.approx(0.5, abs=0.2)


def test_at_the_limit_nothing_is_thinned_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = known_texts(train=random_text(54, 20_000))
    monkeypatch.setattr(provenance, "MAX_SHINGLES", len(full.texts["train"].shingles))
    full.save(tmp_path / "all")
    assert_equal(full, Provenance.load(tmp_path / "all"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "foreign": lambda good: b"this is another file" * 10,
    "truncated": lambda good: good[:-1],
    "half": lambda good: good[: len(good) // 2],
    "header only": lambda good: good[:40],
    "extended": lambda good: good + b"\0" * 8,
    "without notes": lambda good: good.replace(b'"notes"', b'"motes"'),
    "invalid JSON in notes": lambda good: good.replace(rb"{\"sampled", rb"[\"sampled"),
    "other notes": lambda good: good.replace(b"sampled_bits", b"sampled_bytz"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_user_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "provenance.safetensors"
    known_texts(train=random_text(60, 3000)).save(path)
    good = path.read_bytes()
    assert DAMAGES[damage](good) != good
    path.write_bytes(DAMAGES[damage](good))
    with pytest.raises(UserError) as error:
        Provenance.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        Provenance.load(tmp_path / "nothing")


def test_copies_have_the_same_words_or_half_of_the_shingles() -> None:
    train = [random_text(seed, 2000) for seed in range(5)] + ["a short one"]
    known = Provenance({"train": Text.of(train)})
    edited = train[0].upper().replace(" ", "\n\t")
    half = " ".join(train[1].split()[:1300]) + random_text(90, 700)
    tenth = " ".join(train[2].split()[:200]) + random_text(91, 1800)
    scored = [random_text(92, 2000), edited, half, tenth, "A SHORT, ONE!", "another short one"]
    assert CopyFinder(known).find(fingerprints(scored)) == [1, 2, 4]


def test_documents_are_hashed_alone() -> None:
    """The hash of a document does not depend on the documents hashed with it."""
    texts = [random_text(seed, seed * 700) for seed in range(60)] + ["", "\n", "One.", "one", "two"]
    together = fingerprints(texts)
    for number, text in enumerate(texts):
        alone = fingerprints([text])
        assert alone.documents[0] == together.documents[number]
        own = together.shingles[together.document_of == number]
        assert alone.shingles.tolist() == own.tolist()
    assert together.documents[-3] == together.documents[-2] != together.documents[-1]
    assert len(np.unique(together.documents)) == len(texts) - 3  # 0, "" and "\n"; "One.", "one"


def test_gathering_is_bounded_and_equals_thinning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [random_text(seed, 4000) for seed in range(40)]
    full = Text.of(texts)
    monkeypatch.setattr(provenance, "MAX_SHINGLES", 1000)
    gathering = Gathering()
    for text in texts:
        gathering.add(fingerprints([text]))
    gathered = gathering.text()
    assert len(gathered.shingles) <= 2000
    assert gathered.sampled_bits > SAMPLED_BITS
    expected = full.thinned(gathered.sampled_bits)
    assert gathered.shingles.tolist() == expected.shingles.tolist()
    assert gathered.documents.tolist() == full.documents.tolist()
