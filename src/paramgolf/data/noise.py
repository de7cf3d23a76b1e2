"""How far a score depends on the choice of documents."""

from __future__ import annotations

import math

MIN_VAL_DOCUMENTS = 30
_SPREAD = 0.4
"""BPB of one document, about: 0.047 was measured by the jackknife over 73 documents of `tiny`."""


def val_noise(documents: int) -> str:
    """Return a warning about a validation split of few documents; "" if it has enough."""
    if documents >= MIN_VAL_DOCUMENTS:
        return ""
    return (
        f"scores will have a noise of about {_SPREAD / math.sqrt(max(1, documents)):.2f} BPB: the "
        f"validation split has {documents:,} of at least {MIN_VAL_DOCUMENTS} documents"
    )
