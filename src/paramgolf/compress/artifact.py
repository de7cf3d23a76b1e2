"""The artifact: a container of header, sections and checksums for a packed model; no pickle.

Layout (integers little-endian; see docs/format.md):

    8 bytes   magic "PARAGOLF"
    4 bytes   uint32 version
    4 bytes   uint32 length of the header
    32 bytes  SHA-256 of everything that follows
    32 bytes  SHA-256 of the decoded tensors
    header    JSON: model shape, hashes of tokenizer and provenance, lengths of sections
    sections  one per matrix role, then scales, then vectors, each a range-coded stream
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from paramgolf.checked import from_json
from paramgolf.compress.entropy import Decoder, Encoder, ScaleModel, VectorModel
from paramgolf.compress.matrices import code_matrices
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import MAX_INTEGER, scale_exponents, scales_from_exponents
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.errors import UserError
from paramgolf.model.layout import layout
from paramgolf.model.order import num_skips
from paramgolf.model.roles import input_of, role
from paramgolf.runtime.files import read_file

MAGIC = b"PARAGOLF"
VERSION = 6
_HEADER_KEYS = {
    "model",
    "tokenizer_sha256",
    "provenance_sha256",
    "stride",
    "score_first",
    "sections",
}
_PREFIX = struct.Struct("<8sII32s")
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 1 << 16
_MAX_PARAMETERS = 1 << 28
_MAX_PARAMETERS_PER_BYTE = 64
_FREE_PARAMETERS = 1 << 20
"""A file may have this many, however small it is: a model of zeros takes next to no bytes."""


class ArtifactError(UserError):
    """The file is not an artifact of this version, or it is damaged."""


@dataclass(frozen=True)
class Artifact:
    """The decoded content of the file."""

    model: ModelConfig
    tokenizer_sha256: str
    provenance_sha256: str
    stride: int
    """Stride of the recipe's sliding windows."""
    score_first: ScoreFirstConfig
    """How the recipe learns during scoring."""
    matrices: dict[str, Quantized]
    vectors: dict[str, Tensor]
    """bfloat16 tensors by name."""

    def state(self) -> dict[str, Tensor]:
        """Return all parameters in float32, by name."""
        state = {name: matrix.dequantize() for name, matrix in self.matrices.items()}
        return state | {name: vector.float() for name, vector in self.vectors.items()}


def encode(artifact: Artifact) -> tuple[bytes, dict[str, int]]:
    """Return the file's content, and the bytes of its parts, which add up to its length.

    Raises:
        ValueError: for a scale that is not a power of 2^(1/8), scales of columns that differ
            between matrices of one input, an integer of -128, or a vector that is not bfloat16.
    """
    tensors = _tensors(artifact)
    sections = _sections(artifact.model).items()
    stored = {name: _encoded(section, tensors[name]) for name, section in sections}
    header = {
        "model": asdict(artifact.model),
        "tokenizer_sha256": artifact.tokenizer_sha256,
        "provenance_sha256": artifact.provenance_sha256,
        "stride": artifact.stride,
        "score_first": asdict(artifact.score_first) if artifact.score_first.learns else None,
        "sections": {name: len(content) for name, content in stored.items()},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = _digest(artifact) + text + b"".join(stored.values())
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(body).digest())
    content = prefix + body
    by_part = {"header": len(content) - sum(map(len, stored.values())), **header["sections"]}
    return content, by_part


def _digest(artifact: Artifact) -> bytes:
    """Return the SHA-256 of all tensors: decoding must reproduce them exactly."""
    digest = hashlib.sha256()
    for matrix in artifact.matrices.values():
        digest.update(matrix.integers.cpu().contiguous().numpy().tobytes())
        for scales in (matrix.rows, matrix.columns):
            digest.update(scales.cpu().contiguous().numpy().astype("<f2").tobytes())
    for vector in artifact.vectors.values():
        bits = vector.cpu().contiguous().view(torch.int16).numpy()
        digest.update(bits.astype("<i2").tobytes())
    return digest.digest()


@dataclass(frozen=True)
class _Section:
    """Tensors coded as one stream."""

    kind: Literal["integers", "scales", "vectors"]
    shapes: dict[str, torch.Size]


def _sections(config: ModelConfig) -> dict[str, _Section]:
    """Return all sections in order: integers by role, scales of rows and of columns, vectors."""
    matrices, vectors = layout(config)
    by_role: dict[str, dict[str, torch.Size]] = {}
    columns: dict[str, torch.Size] = {}
    for name, shape in matrices.items():
        by_role.setdefault(role(name), {})[name] = shape
        columns.setdefault(input_of(name), shape[1:])
    sections = {name: _Section("integers", shapes) for name, shapes in by_role.items()}
    sections["rows"] = _Section("scales", {n: shape[:1] for n, shape in matrices.items()})
    sections["columns"] = _Section("scales", columns)
    sections["vectors"] = _Section("vectors", vectors)
    return sections


def _encoded(section: _Section, tensors: dict[str, Tensor]) -> bytes:
    encoder = Encoder()
    parts = [tensors[name].cpu().contiguous() for name in section.shapes]
    if section.kind == "integers":
        known = [part.numpy() for part in parts]
        if min(int(matrix.min()) for matrix in known) < -MAX_INTEGER:
            raise ValueError(f"an integer is below {-MAX_INTEGER}")
        code_matrices(encoder, list(section.shapes.values()), known)
    elif section.kind == "scales":
        model = ScaleModel()
        for scales in parts:
            model.code(encoder, len(scales), scale_exponents(scales).numpy())
    else:
        model = VectorModel()
        for name, vector in zip(section.shapes, parts, strict=True):
            if vector.dtype is not torch.bfloat16:
                raise ValueError(f"{name} is {vector.dtype}, not bfloat16")
            patterns = vector.view(torch.int16).numpy().ravel()
            model.code(encoder, len(patterns), patterns.astype(np.int32) & 0xFFFF)
    return encoder.content()


def _tensors(artifact: Artifact) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each section.

    Raises:
        ValueError: if matrices of one input differ in the scales of their columns.
    """
    matrices = artifact.matrices
    columns: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        if not torch.equal(columns.setdefault(input_of(name), matrix.columns), matrix.columns):
            raise ValueError(f"the column scales of {name} differ from those of its input")
    integers = {name: matrix.integers for name, matrix in matrices.items()}
    rows = {name: matrix.rows for name, matrix in matrices.items()}
    known = {"rows": rows, "columns": columns, "vectors": artifact.vectors}
    return {name: known.get(name, integers) for name in _sections(artifact.model)}


def _decoded(section: _Section, content: bytes) -> dict[str, Tensor]:
    """Decode a section: the inverse of `_encoded`.

    Raises:
        ValueError: if the stream is damaged, or longer than the section.
    """
    decoder = Decoder(content)
    if section.kind == "integers":
        matrices = code_matrices(decoder, list(section.shapes.values()))
        tensors = {n: torch.from_numpy(m) for n, m in zip(section.shapes, matrices, strict=True)}
    elif section.kind == "scales":
        model = ScaleModel()
        tensors = {
            name: scales_from_exponents(torch.from_numpy(model.code(decoder, shape[0])))
            for name, shape in section.shapes.items()
        }
    else:
        model = VectorModel()
        tensors = {}
        for name, shape in section.shapes.items():
            patterns = model.code(decoder, shape.numel()).astype(np.uint16)
            vector = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)
            tensors[name] = vector.view(shape)
    decoder.finish()
    return tensors


def decode(content: bytes, name: str = "artifact") -> Artifact:
    """Decode an artifact; errors call it `name`.

    Raises:
        ArtifactError: if the content is not an artifact, of another version, truncated or damaged.
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
    tensors_digest, body = bytes(body[:_DIGEST_BYTES]), body[_DIGEST_BYTES:]
    if header_bytes > min(len(body), _MAX_HEADER_BYTES):
        raise ArtifactError(f"{name} has a damaged header")
    try:
        header = json.loads(bytes(body[:header_bytes]))
        artifact = _decode_sections(header, body[header_bytes:])
    except (
        UserError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ArtifactError(f"{name} is damaged: {' '.join(str(error).split())}") from error
    if _digest(artifact) != tensors_digest:
        raise ArtifactError(
            f"{name} does not decode to the tensors that were packed: it is damaged, or this "
            "machine computes differently"
        )
    return artifact


def bytes_by_part(content: bytes) -> dict[str, int]:
    """Return the bytes of the parts of a file that `decode` accepts, as `encode` does."""
    header_bytes = _PREFIX.unpack_from(content)[2]
    begin = _PREFIX.size + _DIGEST_BYTES
    sections: dict[str, int] = json.loads(content[begin : begin + header_bytes])["sections"]
    return {"header": len(content) - sum(sections.values()), **sections}


def read(path: Path) -> Artifact:
    """Read the artifact at `path`.

    Raises:
        UserError: if the file cannot be read or decoded.
    """
    return decode(read_file(path, "the artifact"), str(path))


def _decode_sections(header: dict[str, Any], body: memoryview) -> Artifact:
    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        raise ValueError(f"the keys of its header are not {', '.join(sorted(_HEADER_KEYS))}")
    if not all(isinstance(header[key], str) for key in ("tokenizer_sha256", "provenance_sha256")):
        raise ValueError("a hash in its header is not a string")
    config = from_json(ModelConfig, header["model"], "model.")
    if _num_parameters(config) > _MAX_PARAMETERS:
        raise ValueError("the header describes a model of more than 2^28 parameters")
    if _num_parameters(config) > _FREE_PARAMETERS + _MAX_PARAMETERS_PER_BYTE * len(body):
        raise ValueError(
            f"{len(body):,} bytes do not hold {_num_parameters(config):,} parameters (limit "
            f"{_MAX_PARAMETERS_PER_BYTE} a byte)"
        )
    if type(header["stride"]) is not int or not 0 < header["stride"] <= config.seq_len:
        raise ValueError(f"its stride is out of range: {header['stride']!r}")
    learning = ScoreFirstConfig()
    if header["score_first"] is not None:
        learning = from_json(ScoreFirstConfig, header["score_first"], learning.prefix)
    if learning.chunk_tokens % config.seq_len and learning.learns:
        raise ValueError("chunks of score-first learning are not whole sequences")
    if learning.adapter_rank and learning.adapter_tokens > config.seq_len:
        raise ValueError("chunks of documents are longer than a sequence")
    sections = _sections(config)
    lengths = header["sections"]
    if list(lengths) != list(sections):
        raise ValueError(f"sections {list(lengths)} instead of {list(sections)}")
    if not all(type(length) is int and length >= 0 for length in lengths.values()):
        raise ValueError("a section's length is not a count of bytes")
    if sum(lengths.values()) != len(body):
        raise ValueError("the sections' lengths do not add up to the file's")
    tensors = {}
    for name, section in sections.items():
        tensors[name] = _decoded(section, bytes(body[: lengths[name]]))
        body = body[lengths[name] :]
    rows, columns, vectors = (tensors.pop(name) for name in ("rows", "columns", "vectors"))
    for name, tensor in (rows | columns | vectors).items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    integers = {name: tensor for section in tensors.values() for name, tensor in section.items()}
    matrices = {n: Quantized(integers[n], rows[n], columns[input_of(n)]) for n in rows}
    return Artifact(
        config,
        header["tokenizer_sha256"],
        header["provenance_sha256"],
        header["stride"],
        learning,
        matrices,
        vectors,
    )


def _num_parameters(config: ModelConfig) -> int:
    """Return an upper bound, without building the model."""
    blocks = config.num_layers * config.width * (
        (4 + 2 * config.mlp_ratio) * config.width + 8
    )  # fmt: skip
    return config.vocab_size * config.width + blocks + 2 * num_skips(config) * config.width
