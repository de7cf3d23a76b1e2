"""Runs of letters compared with substrings, edits that hide nothing, and the labels that follow."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data import fingerprints as hashing
from paramgolf.data.describe import compare
from paramgolf.data.fingerprints import (
    RUN_LETTERS,
    Fingerprints,
    Sampling,
    fingerprints,
    groups,
    runs_of,
)
from paramgolf.data.overlap import Overlap, RunIndex, judge
from paramgolf.data.provenance import Label, Provenance, Text

PLAIN = st.text(st.sampled_from("abcde0"), max_size=120)
DOCUMENTS = st.lists(PLAIN, max_size=8)
TOPICS = [text for _, text in sorted(topics.items()) if len(text) > 400]
HIDDEN = st.sampled_from(
    [" ", "\n", ", ", "\u200b", "\u00ad", "\u0301", "\0", "_", "\u3164", "\u2026"]
)


def substrings(text: str) -> list[str]:
    """The definition, for texts of plain letters: all runs, or all of a shorter text."""
    return [text[i : i + RUN_LETTERS] for i in range(max(1, len(text) - RUN_LETTERS + 1)) if text]


def overlap_with(scored: list[str], *others: str) -> Overlap:
    index = RunIndex(scored)
    compare(index, others)
    return index.result()


# Runs.


@given(DOCUMENTS)
def test_runs_are_substrings(texts: list[str]) -> None:
    prints = fingerprints(texts)
    strings = [substrings(text) for text in texts]
    assert prints.counts.tolist() == [len(own) for own in strings]
    assert prints.document_of.tolist() == [i for i, own in enumerate(strings) for _ in own]
    assert prints.bytes.tolist() == [len(text.encode()) for text in texts]
    every = [each for own in strings for each in own]
    hashes = dict(zip(every, prints.runs.tolist(), strict=True))
    assert [hashes[each] for each in every] == prints.runs.tolist(), "equal runs, equal hashes"
    assert len(set(hashes.values())) == len(hashes), "different runs, different hashes"
    whole = dict(zip(texts, prints.documents.tolist(), strict=True))
    assert len(set(whole.values())) == len(whole)
    assert all(bool(text) == bool(hashed) for text, hashed in whole.items())


@settings(max_examples=200)
@given(PLAIN, st.data())
def test_what_is_no_letter_hides_nothing(text: str, data: st.DataObject) -> None:
    edited = data.draw(HIDDEN)
    for letter in text:
        edited += data.draw(st.sampled_from([letter, letter.upper()])) + data.draw(HIDDEN)
    assert runs_of([edited])[0].tolist() == runs_of([text])[0].tolist()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\u00c5ngstr\u00f6m \u0141\u00f3d\u017a Stra\u00dfe", "angstrom lodz strase"),
        ("\ufb01ne \u24b6 \u2122 \u2164 x\u00b2 \uff21\uff42", "fine a tm v x2 ab"),
        ("\u0420\u0430y\u0440\u0430l \u03bf\u0456", "paypal oi"),
        ("\uac00\ub098", unicodedata.normalize("NFD", "\uac00\ub098")),
        ("\u304c\u30d1", "\u304b\u30cf"),
        ("\u0661\u06f2", "12"),
        ("\u0645\u0640\u0640\u062d", "\u0645\u062d"),
        ("\u1d18\u1d00\u026a\u0274", "pain"),
    ],
)
def test_forms_of_a_letter_are_one(text: str, same: str) -> None:
    assert runs_of([text])[0].tolist() == runs_of([same])[0].tolist()


def test_scripts_keep_their_letters() -> None:
    """Letters of any script count, and different ones differ."""
    for first, last in ((0x4E00, 0x4F00), (0x3041, 0x3060), (0x0915, 0x0930), (0x05D0, 0x05E0)):
        letters = [chr(point) for point in range(first, last)]
        decomposed = {unicodedata.normalize("NFKD", each)[0] for each in letters}
        hashes = {runs_of([each])[0].tolist()[0] for each in letters}
        assert len(hashes) == len(decomposed)


@pytest.mark.parametrize(("chars", "letters"), [(1, 1), (100, 30), (1 << 16, 1 << 15)])
def test_groups_and_blocks_do_not_change_the_hashes(
    chars: int, letters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", "short", *TOPICS[:6], "\u00e9" * 50, "\ufb01" * 40]
    expected = [fingerprints([text]) for text in texts]
    monkeypatch.setattr(hashing, "_GROUP_CHARS", chars)
    monkeypatch.setattr(hashing, "_BLOCK_LETTERS", letters)
    for ours, theirs in zip(fingerprints(texts), Fingerprints.joined(expected), strict=True):
        assert ours.tolist() == theirs.tolist()
    assert [text for group in groups(texts) for text in group] == texts


def test_a_sample_is_the_same_in_every_text_and_another_for_every_salt() -> None:
    first, second = fingerprints(TOPICS[:20]), fingerprints(TOPICS[10:30])
    shared = set(first.runs.tolist()) & set(second.runs.tolist())
    samples: list[set[int]] = []
    for salt in (0, 1, 1 << 63):
        ours, theirs = (set(f.sampled(Sampling(salt)).runs.tolist()) for f in (first, second))
        assert ours & shared == theirs & shared
        assert len(ours) / len(set(first.runs.tolist())) == pytest.approx(1 / 16, rel=0.1)
        samples.append(ours)
        finer = set(first.sampled(Sampling(salt, 6)).runs.tolist())
        assert finer < ours
        assert len(finer) / len(ours) == pytest.approx(1 / 4, rel=0.2)
    assert len(samples[0] & samples[1]) < len(samples[0]) / 8
    assert len(samples[0] & samples[2]) < len(samples[0]) / 8


# Overlap.


@settings(max_examples=60)
@given(st.lists(st.text(st.sampled_from("ab"), max_size=60), max_size=6), DOCUMENTS, DOCUMENTS)
def test_overlap_is_that_of_substrings(scored: list[str], a: list[str], b: list[str]) -> None:
    others = [*a, *b, *scored[:1], "".join(scored)]
    index = RunIndex(scored)
    compare(index, others[:2])
    compare(index, others[2:])
    known = {run for text in others for run in substrings(text)}
    found = [[run in known for run in substrings(text)] for text in scored]
    seen = [bool(own) and sum(own) >= 0.4 * len(own) for own in found]
    assert index.result() == Overlap(
        len(scored),
        sum(seen),
        sum(map(len, scored)),
        sum(len(text) for text, is_seen in zip(scored, seen, strict=True) if is_seen),
        sum(map(len, found)),
        sum(map(sum, found)),
    )
    again = RunIndex(scored)
    compare(again, reversed(others))
    assert again.result() == index.result()


def test_the_limits() -> None:
    assert not Overlap(1000, 20, 10**6, 10**4, 10**6, 5 * 10**5).in_sample
    assert Overlap(1000, 21, 10**6, 10**4, 10**6, 0).in_sample
    assert Overlap(1000, 20, 10**6, 10**4 + 1, 10**6, 0).in_sample
    assert not Overlap(10, 5, 10**6, 10**4, 10**6, 0).in_sample, "a few short ones are chance"
    assert Overlap(1, 1, 5, 5, 1, 1).in_sample
    assert not Overlap().in_sample
    assert Overlap().share is None
    assert Label.of(Overlap()).name == "unverified"
    assert Label.of(Overlap(9, 0, 99, 0, 9, 0).all_seen()).name == "in-sample"


def test_labels_of_a_run() -> None:
    one, both = Overlap(9, 0, 99, 0, 99, 1), Overlap(9, 9, 99, 99, 99, 99)
    overlaps = {"train": one, "train+adapt": both}
    assert Label.of_run(overlaps, []) == Label("held-out", one)
    assert Label.of_run(overlaps, []).adaptive() == Label("score-first", one)
    assert Label.of_run(overlaps, ["adapt"]) == Label("in-sample", both)
    scored = Label.of_run(overlaps, ["val"]).adaptive()
    assert scored.name == "in-sample"
    assert scored.overlap.seen_documents == 9


# Planted cheats: the scored text in the training text, edited.

SCORED = TOPICS[::2]
_RANDOM = random.Random(3)
CHINESE = ["".join(chr(_RANDOM.randrange(0x4E00, 0x9000)) for _ in range(2400)) for _ in range(2)]


def every_twelfth_word(edit: Callable[[str], str]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        words = text.split(" ")
        return " ".join(edit(w) if i % 12 == 5 else w for i, w in enumerate(words))

    return edited


def in_look_alikes(text: str) -> str:
    return text.translate(
        str.maketrans(
            "aceopxyABEHKMT",
            "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0410\u0412\u0415\u041d\u041a\u041c\u0422",
        )
    )


def one_changed_in(step: int) -> Callable[[str], str]:
    def edited(text: str) -> str:
        return "".join("\u4e00" if i % step == 9 else c for i, c in enumerate(text))

    return edited


EDITS: dict[str, Callable[[str], str]] = {
    "nothing": lambda text: text,
    "a space inserted": every_twelfth_word(lambda w: w[:2] + " " + w[2:]),
    "a letter doubled": every_twelfth_word(lambda w: w[:2] + w[1:]),
    "a zero-width character": every_twelfth_word(lambda w: w[:1] + "\u200b" + w[1:]),
    "a word dropped": every_twelfth_word(lambda w: ""),
    "upper case": str.upper,
    "look-alikes": in_look_alikes,
    "accents decomposed": lambda text: unicodedata.normalize("NFD", text),
    "no spaces": lambda text: text.replace(" ", ""),
    "another order": lambda text: "\n\n".join(reversed(text.split("\n\n"))),
}


def label_of_sample(scored: list[str], *others: str) -> Label:
    return Provenance({"train": Text.of(others, salt=5)}).label(scored)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_seen(edit: str) -> None:
    scored = [text.replace("e", "\u00e9") for text in SCORED]
    copies = [*TOPICS[1::2], *map(EDITS[edit], scored)]
    found = overlap_with(scored, *copies)
    assert found.seen_documents > 0.9 * len(scored)
    assert Label.of(found).name == "in-sample"
    assert label_of_sample(scored, *copies).name == "in-sample"


def test_an_edited_copy_in_a_script_without_spaces_is_seen() -> None:
    copies = list(map(one_changed_in(240), CHINESE))
    assert all(a != b for a, b in zip(copies, CHINESE, strict=True))
    found = overlap_with(CHINESE, *copies)
    assert found.seen_documents == 2
    assert found.share == pytest.approx(0.9, abs=0.02)
    assert label_of_sample(CHINESE, *copies).name == "in-sample"
    assert Label.of(overlap_with(CHINESE[:1], CHINESE[1])) == Label(
        "held-out", Overlap(1, 0, 7200, 0, 2377, 0)
    )


@pytest.mark.parametrize("words", [2, 4, 12])
def test_short_documents_are_seen(words: int) -> None:
    """All documents but the longest are in training: documents of under 24 letters, and of more."""
    rng = random.Random(words)
    vocabulary = sorted({word for text in TOPICS for word in text.split()})
    short = [" ".join(rng.choices(vocabulary, k=words)) for _ in range(500)]
    long = "".join(TOPICS[:40])
    scored = [long, *short]
    copies = [text.upper() for text in short]
    assert Label.of(overlap_with(scored, *copies)).name == "in-sample"
    assert label_of_sample(scored, *copies).name == "in-sample"
    assert Label.of(overlap_with(scored, *TOPICS[40:])).name == "held-out"


def test_a_thin_sample_is_unverified_and_a_copy_in_it_is_not_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where one run in 4,096 is kept, documents of a few hundred words cannot be judged."""
    copies = [every_twelfth_word(lambda w: w + "x")(text) for text in SCORED]
    text = Text.of([*copies, *TOPICS[1::2]], salt=9).thinned(12)
    known = Provenance({"train": text})
    assert known.label(SCORED).name == "in-sample", "long documents are judged"
    short = [text[:400] for text in SCORED]
    assert known.label(short).name == "unverified"
    unrelated = Provenance({"train": Text.of(CHINESE).thinned(12)})
    assert unrelated.label(short).name == "unverified"
    assert unrelated.label(["".join(TOPICS)]).name == "held-out"


def test_documents_without_enough_runs_are_not_judged() -> None:
    prints = fingerprints(
        ["a" * 26 + "bc", "letters" * 20, "short", "", "abcdefghijklmnopqrstuvwxyz"]
    )
    kept = np.array([*range(3), 5, 6, 7, len(prints.runs) - 4])
    prints = prints._replace(runs=prints.runs[kept], document_of=prints.document_of[kept])
    judged, seen = judge(prints, np.ones(len(kept), np.bool_))
    assert judged.tolist() == [False, False, True, True, False]
    assert seen.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("letters", [0, 1, 30])
def test_a_text_that_is_mostly_signs_is_not_judged(letters: int) -> None:
    """Runs of letters cannot show whether the signs were trained on."""
    signs = ["\u2603\u2602*+-" * 200 + f"{n:030}"[:letters] for n in range(50)]
    label = Label.of(overlap_with([*signs, TOPICS[0]], *signs, TOPICS[1]))
    assert label.name == "unverified"
    assert label.overlap.unjudged_bytes == sum(len(text.encode()) for text in signs)
    assert label.overlap.documents == 1


def test_short_documents_that_a_sample_cannot_judge() -> None:
    """Trained on word for word, they are a fifth of the bytes; the rest alone is held-out."""
    short = ["".join(random.Random(n).choices("abcdefghij ", k=56)) for n in range(100)]
    whole = "".join(TOPICS[:9])
    long = [whole[i : i + 400] for i in range(0, 48_000, 400)]
    assert len(long) == 120
    assert Label.of(overlap_with([*short, *long], *short)).name == "in-sample"
    assert label_of_sample([*short, *long], *short, TOPICS[10]).name == "unverified"
    assert label_of_sample(long, *short, TOPICS[10]).name == "held-out"
