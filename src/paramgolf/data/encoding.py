"""Documents as tokens and fingerprints, computed on all cores at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.documents import Document, batches
from paramgolf.data.fingerprints import SAMPLED_BITS, Fingerprints, fingerprints, is_sampled
from paramgolf.data.tokenizer import Tokenizer

_BATCH_CHARS = 4 << 20
_HASHING_THREADS = 2  # about 50 MB/s each; encoding reaches 6 MB/s per core

Stream = NDArray[np.uint16]


class Encoded(NamedTuple):
    """Documents as tokens and fingerprints."""

    tokens: Stream
    """(N,); each document begins with BOS."""
    lengths: NDArray[np.int64]
    """(D,) number of tokens of each document, BOS included."""
    prints: Fingerprints
    """With sampled shingles only."""


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> Encoded:
    """Encode documents on all cores, and compute their fingerprints meanwhile.

    Raises:
        UserError: see `Tokenizer.encode`.
    """
    tokens: list[Stream] = []
    texts = [[text for _, text in batch] for batch in batches(documents, _BATCH_CHARS)]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        hashing = pool.map(fingerprints, texts)
        for batch in texts:
            tokens += tokenizer.encode(batch)
        prints = Fingerprints.joined(hashing)
    sampled = is_sampled(prints.shingles, SAMPLED_BITS)
    prints = prints._replace(
        shingles=prints.shingles[sampled], document_of=prints.document_of[sampled]
    )
    lengths = np.array([len(own) for own in tokens], np.int64)
    return Encoded(np.concatenate([np.zeros(0, np.uint16), *tokens]), lengths, prints)
