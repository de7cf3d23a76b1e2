"""Entropy coding of sections: byte shuffle and Brotli, as the reference does."""

from __future__ import annotations

import brotli
import numpy as np

_STRIDE = 2
_QUALITY = 11
_WINDOW_BITS = 24


def shuffle(content: bytes, stride: int = _STRIDE) -> bytes:
    """All bytes at positions 0 modulo `stride`, then those at 1, and so on."""
    return b"".join(content[offset::stride] for offset in range(stride))


def unshuffle(content: bytes, stride: int = _STRIDE) -> bytes:
    """The reverse of `shuffle`."""
    result = np.empty(len(content), dtype=np.uint8)
    begin = 0
    for offset in range(stride):
        length = len(range(offset, len(content), stride))
        result[offset::stride] = np.frombuffer(content, np.uint8, length, begin)
        begin += length
    return result.tobytes()


def encode(content: bytes) -> bytes:
    """Shuffle and compress."""
    return brotli.compress(shuffle(content), quality=_QUALITY, lgwin=_WINDOW_BITS)


def decode(stored: bytes, size: int) -> bytes:
    """The reverse of `encode` for content of exactly `size` bytes.

    Raises:
        ValueError: if the stream is damaged or holds any other number of bytes; never decodes
            much more than `size` bytes.
    """
    decompressor = brotli.Decompressor()
    parts: list[bytes] = []
    decoded = 0
    try:
        data = stored
        while decoded <= size and not decompressor.is_finished():
            part = decompressor.process(data, output_buffer_limit=size + 1 - decoded)
            if not part and decompressor.can_accept_more_data() and not data:
                break
            data = b""
            parts.append(part)
            decoded += len(part)
    except brotli.error as error:
        raise ValueError(f"damaged Brotli stream: {error}") from error
    if decoded != size or not decompressor.is_finished():
        raise ValueError(f"a section of {size} bytes decodes to another size")
    return unshuffle(b"".join(parts))
