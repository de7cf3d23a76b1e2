"""The size of an artifact's integers under several compressors, and under ours for every role.

Cost: two minutes on two cores for 36 M weights (most of it for Brotli and LZMA). Needs brotli and
zstandard (the extra `dev`). Expected: the table of docs/experiments/coding.md.

    python scripts/coding_table.py runs/tiny-.../model.bin
"""

from __future__ import annotations

import argparse
import lzma
import time
from pathlib import Path

import brotli
import numpy as np
import zstandard

from paramgolf.compress.artifact import Artifact, decode, encode
from paramgolf.model.roles import role


def order0_bytes(values: np.ndarray) -> float:
    counts = np.bincount(values.ravel().astype(np.int64) + 128)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def shuffled(content: bytes) -> bytes:
    return content[0::2] + content[1::2]


def by_role(packed: Artifact) -> dict[str, list[np.ndarray]]:
    roles: dict[str, list[np.ndarray]] = {}
    for name, matrix in packed.matrices.items():
        roles.setdefault(role(name), []).append(matrix.integers.numpy())
    return roles


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("artifact", type=Path)
    arguments = parser.parse_args()
    content = arguments.artifact.read_bytes()
    begin = time.monotonic()
    packed = decode(content)
    decode_seconds = time.monotonic() - begin
    begin = time.monotonic()
    again, parts = encode(packed)
    encode_seconds = time.monotonic() - begin
    assert again == content

    roles = by_role(packed)
    print("| role | weights | bits per weight | order 0, per matrix | Brotli | ours / Brotli |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, matrices in roles.items():
        plain = b"".join(matrix.tobytes() for matrix in matrices)
        order0 = sum(map(order0_bytes, matrices))
        baseline = len(brotli.compress(shuffled(plain), quality=11, lgwin=24))
        bits = 8 * parts[name] / len(plain)
        print(
            f"| {name} | {len(plain):,} | {bits:.4f} | {8 * order0 / len(plain):.4f} | "
            f"{8 * baseline / len(plain):.4f} | {parts[name] / baseline - 1:+.2%} |"
        )

    plain = b"".join(matrix.tobytes() for matrices in roles.values() for matrix in matrices)
    coded = sum(parts[name] for name in roles)
    rows = {
        "order-0 entropy, per matrix": sum(order0_bytes(m) for ms in roles.values() for m in ms),
        "byte shuffle + Brotli-11": len(brotli.compress(shuffled(plain), quality=11, lgwin=24)),
        "LZMA": len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        "zstd-22": len(zstandard.ZstdCompressor(level=22).compress(plain)),
        "ours": coded,
    }
    reference = rows["byte shuffle + Brotli-11"]
    print("\n| integers alone | bytes | against Brotli |\n|---|---:|---:|")
    for name, size in rows.items():
        print(f"| {name} | {size:,.0f} | {size / reference - 1:+.2%} |")
    print(
        f"\nrows: {parts['rows']:,}, columns: {parts['columns']:,}, vectors: {parts['vectors']:,}"
    )
    print(f"whole file: {len(content):,} bytes")
    print(f"encode {encode_seconds:.2f} s, decode {decode_seconds:.2f} s")


if __name__ == "__main__":
    main()
