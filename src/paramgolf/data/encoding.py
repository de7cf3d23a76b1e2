"""Documents as tokens and fingerprints, computed on all cores at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.documents import Document, batches
from paramgolf.data.fingerprints import Fingerprints, Sampling, fingerprints
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
    """With sampled runs only."""


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer, salt: int = 0) -> Encoded:
    """Encode documents on all cores, and compute their fingerprints meanwhile.

    Args:
        documents: the documents.
        tokenizer: the tokenizer.
        salt: decides with their hashes which runs are kept.

    Raises:
        UserError: see `Tokenizer.encode`.
    """
    tokens: list[Stream] = []
    texts = [[text for _, text in batch] for batch in batches(documents, _BATCH_CHARS)]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        hashing = pool.map(lambda batch: fingerprints(batch, Sampling(salt)), texts)
        for batch in texts:
            tokens += tokenizer.encode(batch)
        prints = Fingerprints.joined(hashing)
    lengths = np.array([len(own) for own in tokens], np.int64)
    return Encoded(np.concatenate([np.zeros(0, np.uint16), *tokens]), lengths, prints)
