"""Documents encoded and hashed in batches give the same as each document alone."""

from __future__ import annotations

import numpy as np
import pytest

from paramgolf.data import encoding
from paramgolf.data.documents import Document
from paramgolf.data.encoding import encode_documents
from paramgolf.data.fingerprints import Sampling, fingerprints
from paramgolf.data.tokenizer import Tokenizer


@pytest.mark.parametrize("chars", [1, 300, 1 << 20])
def test_batches_do_not_change_the_result(
    chars: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = np.random.default_rng(5).integers(0, 40, 4000)
    texts = [" ".join(f"Word{word}" for word in part) for part in np.array_split(words, 9)]
    texts[3:3] = ["", "short"]
    monkeypatch.setattr(encoding, "_BATCH_CHARS", chars)
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    got = encode_documents(documents, tokenizer, salt=3)
    alone = [tokenizer.encode([text])[0] for text in texts]
    assert np.array_equal(got.tokens, np.concatenate(alone))
    assert got.lengths.tolist() == [len(tokens) for tokens in alone]
    prints = [fingerprints([text]) for text in texts]
    assert np.array_equal(got.prints.documents, np.concatenate([p.documents for p in prints]))
    kept = [p.sampled(Sampling(3)).runs for p in prints]
    assert np.array_equal(got.prints.runs, np.concatenate(kept))
    numbers = np.repeat(np.arange(len(texts)), [len(own) for own in kept])
    assert np.array_equal(got.prints.document_of, numbers)
    assert len(numbers) > 100
