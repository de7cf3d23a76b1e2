"""The packed model: a container of header, sections and checksum; no pickle, no code.

Layout (integers little-endian; see docs/format.md):

    8 bytes   magic "PARAGOLF"
    4 bytes   uint32 version
    4 bytes   uint32 length of the header
    32 bytes  SHA-256 of all that follows
    header    JSON: model shape, bits, hashes of tokenizer and provenance, lengths of sections
    sections  one a matrix role, then all scales, then all vectors, each coded by `entropy`
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramgolf.compress import entropy
from paramgolf.compress.clip import largest_integer
from paramgolf.config import ModelConfig, from_json
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT, MATRIX_NAMES
from paramgolf.model.order import num_skips

MAGIC = b"PARAGOLF"
VERSION = 1
_HEADER_KEYS = {
    "model",
    "matrix_bits",
    "embedding_bits",
    "tokenizer_sha256",
    "provenance_sha256",
    "stride",
    "sections",
}
_PREFIX = struct.Struct("<8sII32s")
_MOST_HEADER_BYTES = 1 << 16
_MOST_PARAMETERS = 1 << 28


class ArtifactError(UserError):
    """The file is no artifact of this version, or it is damaged."""


@dataclass(frozen=True)
class Quantized:
    """One matrix as integers and row scales."""

    integers: Tensor
    """(R, C) int8."""
    scales: Tensor
    """(R,) float16."""

    def dequantize(self) -> Tensor:
        """The matrix, (R, C) float32."""
        return self.integers.float() * self.scales.float()[:, None]


@dataclass(frozen=True)
class Artifact:
    """Everything the file holds, decoded."""

    model: ModelConfig
    matrix_bits: int
    embedding_bits: int
    tokenizer_sha256: str
    provenance_sha256: str
    stride: int
    """Stride of sliding windows that the recipe scores with."""
    matrices: dict[str, Quantized]
    vectors: dict[str, Tensor]
    """float16 tensors by name."""

    def state(self) -> dict[str, Tensor]:
        """All parameters in float32, by name."""
        state = {name: matrix.dequantize() for name, matrix in self.matrices.items()}
        return state | {name: vector.float() for name, vector in self.vectors.items()}


def role(name: str) -> str:
    """The role of a parameter, the last part of its name: "blocks.3.query" -> "query"."""
    return name.rsplit(".", 1)[-1]


def layout(config: ModelConfig) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Shapes of all quantized matrices and of all vectors by name, in the model's order."""
    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    quantized_roles = {"embedding", *MATRIX_NAMES}
    matrices = {name: shape for name, shape in shapes.items() if role(name) in quantized_roles}
    return matrices, {name: shape for name, shape in shapes.items() if name not in matrices}


def encode(
    artifact: Artifact, progress: Callable[[int, int], None] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The file's content, and its bytes by part (they add up to its length).

    Args:
        artifact: what to store.
        progress: called with the plain bytes coded and all.
    """
    contents = _contents(artifact)
    total, done = sum(map(len, contents.values())), 0
    with ThreadPoolExecutor() as pool:  # Brotli releases the interpreter lock
        coding = {pool.submit(entropy.encode, plain): len(plain) for plain in contents.values()}
        for finished in as_completed(coding):
            done += coding[finished]
            if progress is not None:
                progress(done, total)
    stored = {name: future.result() for name, future in zip(contents, coding, strict=True)}
    header = {
        "model": asdict(artifact.model),
        "matrix_bits": artifact.matrix_bits,
        "embedding_bits": artifact.embedding_bits,
        "tokenizer_sha256": artifact.tokenizer_sha256,
        "provenance_sha256": artifact.provenance_sha256,
        "stride": artifact.stride,
        "sections": {name: len(content) for name, content in stored.items()},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = text + b"".join(stored.values())
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(body).digest())
    by_part = {"header": len(prefix) + len(text), **header["sections"]}
    return prefix + body, by_part


def _contents(artifact: Artifact) -> dict[str, bytes]:
    """Plain bytes of every section."""
    sections: dict[str, list[Tensor]] = {}
    for name, matrix in artifact.matrices.items():
        sections.setdefault(role(name), []).append(matrix.integers)
    sections["scales"] = [matrix.scales for matrix in artifact.matrices.values()]
    sections["vectors"] = list(artifact.vectors.values())
    return {
        name: b"".join(_plain(tensor) for tensor in tensors) for name, tensors in sections.items()
    }


def _plain(tensor: Tensor) -> bytes:
    array = tensor.cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def decode(content: bytes, name: str = "artifact") -> Artifact:
    """Read an artifact; `name` stands for the file in errors.

    Raises:
        ArtifactError: one line saying whether the file is foreign, of another version, truncated
            or damaged.
    """
    if len(content) < _PREFIX.size or not content.startswith(MAGIC):
        raise ArtifactError(f"{name} is not a paramgolf artifact (it does not begin with {MAGIC})")
    _, version, header_bytes, digest = _PREFIX.unpack_from(content)
    if version != VERSION:
        raise ArtifactError(
            f"{name} is an artifact of version {version}; this program reads version {VERSION}"
        )
    body = memoryview(content)[_PREFIX.size :]
    if hashlib.sha256(body).digest() != digest:
        raise ArtifactError(f"{name} is truncated or damaged (its checksum does not match)")
    if header_bytes > min(len(body), _MOST_HEADER_BYTES):
        raise ArtifactError(f"{name} has a damaged header")
    try:
        header = json.loads(bytes(body[:header_bytes]))
        return _decode_sections(header, body[header_bytes:])
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {' '.join(str(error).split())}") from error


def _decode_sections(header: dict[str, Any], body: memoryview) -> Artifact:
    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        raise ValueError(f"its header does not hold exactly {', '.join(sorted(_HEADER_KEYS))}")
    if not all(isinstance(header[key], str) for key in ("tokenizer_sha256", "provenance_sha256")):
        raise ValueError("a hash in its header is no string")
    config = from_json(ModelConfig, header["model"], "model.")
    if _num_parameters(config) > _MOST_PARAMETERS:
        raise ValueError("the header describes a model of more than 2^28 parameters")
    bits = {"matrix_bits": header["matrix_bits"], "embedding_bits": header["embedding_bits"]}
    if any(type(value) is not int or not 2 <= value <= 8 for value in bits.values()):
        raise ValueError(f"bits out of range: {bits}")
    if type(header["stride"]) is not int or not 0 < header["stride"] <= config.seq_len:
        raise ValueError(f"stride out of range: {header['stride']!r}")
    matrix_shapes, vector_shapes = layout(config)
    sizes: dict[str, int] = {}
    for name, shape in matrix_shapes.items():
        sizes[role(name)] = sizes.get(role(name), 0) + shape.numel()
    sizes["scales"] = 2 * sum(shape[0] for shape in matrix_shapes.values())
    sizes["vectors"] = 2 * sum(shape.numel() for shape in vector_shapes.values())
    lengths = header["sections"]
    if list(lengths) != list(sizes):
        raise ValueError(f"sections {list(lengths)} instead of {list(sizes)}")
    if not all(type(length) is int and length >= 0 for length in lengths.values()):
        raise ValueError("a section's length is not a count of bytes")
    if sum(lengths.values()) != len(body):
        raise ValueError("the sections' lengths do not add up to the file's")

    readers: dict[str, _Reader] = {}
    begin = 0
    for name, length in lengths.items():
        plain = entropy.decode(bytes(body[begin : begin + length]), sizes[name])
        readers[name] = _Reader(plain)
        begin += length
    matrices = {}
    for name, shape in matrix_shapes.items():
        most = largest_integer(bits["embedding_bits" if name == "embedding" else "matrix_bits"])
        integers = readers[role(name)].take(shape, np.dtype("i1"))
        if int(integers.min()) < -most or int(integers.max()) > most:
            raise ValueError(f"integers of {name} are out of range")
        scales = readers["scales"].take(shape[:1], np.dtype("<f2"))
        if not bool(scales.isfinite().all()):
            raise ValueError(f"scales of {name} are not finite")
        matrices[name] = Quantized(integers, scales)
    vectors = {}
    for name, shape in vector_shapes.items():
        vectors[name] = readers["vectors"].take(shape, np.dtype("<f2"))
        if not bool(vectors[name].isfinite().all()):
            raise ValueError(f"{name} is not finite")
    return Artifact(
        config,
        bits["matrix_bits"],
        bits["embedding_bits"],
        header["tokenizer_sha256"],
        header["provenance_sha256"],
        header["stride"],
        matrices,
        vectors,
    )


def _num_parameters(config: ModelConfig) -> int:
    """An upper bound, without building anything."""
    blocks = config.num_layers * config.width * (
        (4 + 2 * config.mlp_ratio) * config.width + 8
    )  # fmt: skip
    return config.vocab_size * config.width + blocks + 2 * num_skips(config) * config.width


class _Reader:
    """Takes one tensor after the other from a section."""

    def __init__(self, content: bytes) -> None:
        self._content, self._begin = content, 0

    def take(self, shape: torch.Size, dtype: np.dtype[Any]) -> Tensor:
        count = prod(shape)
        array = np.frombuffer(self._content, dtype, count, self._begin).reshape(shape)
        self._begin += count * dtype.itemsize
        return torch.from_numpy(array.astype(dtype.newbyteorder("=")))
