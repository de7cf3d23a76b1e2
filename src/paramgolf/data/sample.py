"""A random sample of documents that does not depend on their order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from paramgolf.data.chunks import exact_key
from paramgolf.data.documents import Document


class Sample:
    """The documents with the smallest hashes, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[tuple[int, str]] = []  # a heap with the largest hash on top
        self._keys: set[int] = set()
        self._bytes = 0

    def add(self, documents: Iterable[Document]) -> None:
        """Take more documents into account."""
        kept, keys = self._kept, self._keys
        for document in documents:
            key, _ = exact_key(document)
            if key in keys or not document.text:
                continue
            heapq.heappush(kept, (-key, document.text))
            keys.add(key)
            self._bytes += len(document.text.encode())
            while self._bytes - (largest := len(kept[0][1].encode())) >= self._max_bytes:
                keys.remove(-heapq.heappop(kept)[0])
                self._bytes -= largest

    def texts(self) -> list[str]:
        """Return the texts of the sample, without duplicates, by hash."""
        return [text for _, text in sorted(self._kept, reverse=True)]
