"""Pinned formats and numbers: earlier files must be read, and scored, as they were.

If a test fails here, earlier files would be misread: either the change is wrong, or the format
needs a new version.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from paramgolf.compress import artifact
from paramgolf.compress.artifact import Artifact
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import scales_from_exponents
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.data.fingerprints import Sampling, fingerprints
from paramgolf.data.shards import open_shard, read_stream, write_shard
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import input_of
from tests.helpers import random_model, random_tokens, small_config

HERE = Path(__file__).parent
ARTIFACT_FILE = HERE / "artifact_v6.bin"
SHARD_FILE = HERE / "shard_v1.bin"

# The artifact.

MODEL = ModelConfig(
    vocab_size=300,
    num_layers=4,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_ratio=2,
    seq_len=32,
    rotary_dims=4,
    rotary_base=10_000.0,
    query_gain=5.25,
    logit_softcap=30.0,
    loop_first=1,
    loop_last=2,
    loop_visits=2,
    parallel_from=3,
)
HEADER_SHA256 = "788a8b4286071df435231dd0120bd7807458273f623ac50b66ed09290bdda613"
SECTION_SHA256 = {
    "embedding": "10077cea275ec6b0ad4c93c08393a4cc83b0d97ae0625cf19247dc87003bd18c",
    "query": "969f9c1223ce3c1c2004eb4861b662d5ed18758b2c464b971747873ac49ad0b3",
    "key": "6502b4ffcf95d1ebbb296d9298f4ae74cae99a2ab773ce95ddd1b7b97c7ac975",
    "value": "43a9887addcc15b82f6226e0319653dfd4d63edc23d6f1084438a1997d82973d",
    "output": "bfaa9a2d523bc13901ef18587992e3c6a39093d2f558b8f69ede0e6dbd740aba",
    "up": "628ba70916975f2d212131207196366431107b9651f43f88dad7d2629a96458b",
    "down": "55496dea091ba05be8d14b5335527120c7d91cd662a8cd7933fe36446aa3f004",
    "rows": "5dfca14211b3cc03638da4c0d1109fe53015a2791e72989591c37c56932d4608",
    "columns": "622d5001f3d87a493f2abb443de3caa2d6e0a0a84d3e0062ca029c0d40d93a88",
    "vectors": "11fe5c1f1be6266ec09e7f14107a8acf955d784e5f4f03825eed046dff5e578d",
}


def fixed_artifact() -> Artifact:
    """Every tensor from one generator, in the order of the names."""
    generator = np.random.Generator(np.random.PCG64(20_240_520))
    matrices, vectors, columns = {}, {}, {}
    matrix_shapes, vector_shapes = layout(MODEL)
    for name, shape in sorted(matrix_shapes.items()):
        most = 127 if name == "embedding" else 15
        integers = generator.integers(-most, most, size=tuple(shape), endpoint=True, dtype=np.int8)
        rows, drawn = (
            scales_from_exponents(torch.from_numpy(generator.integers(low, low + 80, size=size)))
            for low, size in ((-104, shape[0]), (-40, shape[1]))
        )
        shared = columns.setdefault(input_of(name), drawn)
        matrices[name] = Quantized(torch.from_numpy(integers), rows, shared)
    for name, shape in sorted(vector_shapes.items()):
        values = generator.integers(-(2**7), 2**7, size=tuple(shape)) / 2**6
        vectors[name] = torch.from_numpy(values).bfloat16()
    return Artifact(
        model=MODEL,
        tokenizer_sha256="ab" * 32,
        provenance_sha256="cd" * 32,
        stride=8,
        score_first=ScoreFirstConfig("adamw", chunk_tokens=64),
        matrices={name: matrices[name] for name in matrix_shapes},
        vectors={name: vectors[name] for name in vector_shapes},
    )


def header_and_sections(content: bytes) -> tuple[dict[str, object], dict[str, bytes]]:
    """Take an artifact apart by docs/format.md, without the package."""
    magic, version, header_bytes, digest = struct.unpack_from("<8sII32s", content)
    assert (magic, version) == (b"PARAGOLF", 6)
    assert hashlib.sha256(content[48:]).digest() == digest
    header = json.loads(content[80 : 80 + header_bytes])
    sections = {}
    begin = 80 + header_bytes
    for name, length in header["sections"].items():
        sections[name] = content[begin : begin + length]
        begin += length
    assert begin == len(content)
    return header, sections


def check_pinned(content: bytes) -> None:
    header, sections = header_and_sections(content)
    lengths = header.pop("sections")
    assert isinstance(lengths, dict)
    assert list(lengths) == list(SECTION_SHA256)
    assert hashlib.sha256(json.dumps(header).encode()).hexdigest() == HEADER_SHA256
    digests = {name: hashlib.sha256(plain).hexdigest() for name, plain in sections.items()}
    assert digests == SECTION_SHA256


def test_the_encoding_is_as_pinned() -> None:
    content, by_part = artifact.encode(fixed_artifact())
    check_pinned(content)
    assert sum(by_part.values()) == len(content)
    assert list(by_part) == ["header", *SECTION_SHA256]


def test_the_golden_file_is_as_pinned() -> None:
    check_pinned(ARTIFACT_FILE.read_bytes())


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_a_file_of_an_old_version_is_rejected_by_its_number(version: int) -> None:
    wanted = f"version {version}; this program reads version 6"
    with pytest.raises(artifact.ArtifactError, match=wanted):
        artifact.decode((HERE / f"artifact_v{version}.bin").read_bytes())


def test_the_golden_file_decodes_to_the_same_tensors() -> None:
    decoded, expected = artifact.decode(ARTIFACT_FILE.read_bytes()), fixed_artifact()
    assert decoded.model == MODEL
    assert decoded.tokenizer_sha256 == "ab" * 32
    assert decoded.provenance_sha256 == "cd" * 32
    assert decoded.stride == 8
    assert list(decoded.matrices) == list(expected.matrices)
    assert list(decoded.vectors) == list(expected.vectors)
    for name, matrix in expected.matrices.items():
        assert torch.equal(decoded.matrices[name].integers, matrix.integers), name
        assert torch.equal(decoded.matrices[name].rows, matrix.rows), name
        assert torch.equal(decoded.matrices[name].columns, matrix.columns), name
        assert decoded.matrices[name].integers.dtype == torch.int8
        assert decoded.matrices[name].rows.dtype == torch.float16
    for name, vector in expected.vectors.items():
        assert torch.equal(decoded.vectors[name], vector), name
        assert decoded.vectors[name].dtype == torch.bfloat16


# Losses.

ARTIFACT_NATS = [
    38.93153781808911,
    30.28176891999869,
    31.733004280966867,
    26.39499470377931,
    30.998828545807978,
    31.169807299932643,
    30.22548018083559,
    31.572523163566345,
]
NATS = {
    True: [
        4.113229311117095,
        16.64602648910831,
        5.177524099046307,
        11.551586784245211,
        5.790711050914775,
        6.890767914924344,
        4.624225394590067,
        14.525728684494826,
    ],
    False: [
        5.580592401752097,
        17.036565461518144,
        3.8795218875289263,
        13.797967306068223,
        4.314565571598243,
        8.34022549734282,
        4.696569594508509,
        14.228681965069473,
    ],
}


@torch.no_grad()
def nats_of(model: GPT, tokens: torch.Tensor, recurrent: bool) -> list[float]:
    order = layer_order(model.config, recurrent)
    return model.target_nats(model(tokens[:, :-1], order), tokens[:, 1:])[0].tolist()


def test_losses_of_the_golden_file() -> None:
    """From the file to the loss of every token, in float64."""
    decoded = artifact.decode(ARTIFACT_FILE.read_bytes())
    model = GPT(decoded.model, torch.float64)
    model.load_state_dict({name: value.double() for name, value in decoded.state().items()})
    tokens = torch.tensor([[1, 20, 299, 0, 257, 3, 3, 128, 64]])
    assert nats_of(model, tokens, recurrent=True) == pytest.approx(ARTIFACT_NATS, rel=0, abs=1e-9)


@pytest.mark.parametrize("recurrent", [True, False])
def test_losses_of_a_random_model(recurrent: bool) -> None:
    config = small_config()
    model = random_model(config, seed=1, dtype=torch.float64)
    tokens = random_tokens(config, rows=1, columns=9, seed=2)
    assert nats_of(model, tokens, recurrent) == pytest.approx(NATS[recurrent], rel=0, abs=1e-9)


# Shards.

SHARD_TOKENS = [1, 0, 65_535, 256, 255, 20_240]


def test_a_shard_is_written_as_pinned(tmp_path: Path) -> None:
    write_shard(tmp_path / "now.bin", np.array(SHARD_TOKENS, dtype=np.uint16))
    assert (tmp_path / "now.bin").read_bytes() == SHARD_FILE.read_bytes()


def test_the_golden_shard_follows_the_fields_format() -> None:
    """256 int32 (magic, version, count, zeros), then uint16, all little-endian."""
    content = SHARD_FILE.read_bytes()
    assert content[:12] == bytes.fromhex("88d83401 01000000 06000000")
    assert content[12:1024] == bytes(1012)
    assert content[1024:] == bytes.fromhex("0100 0000 ffff 0001 ff00 104f")


def test_the_golden_shard_is_read() -> None:
    assert open_shard(SHARD_FILE).tolist() == SHARD_TOKENS
    assert read_stream([SHARD_FILE, SHARD_FILE], limit=8).tolist() == (SHARD_TOKENS * 2)[:8]


# Runs of letters: labels compare those of an artifact with those of a text, possibly years later.

TEXT = """Fourscore and seven years ago our fathers brought forth, on this continent, a new nation,
conceived in Liberty, and dedicated to the proposition that all men are created equal. Now we are
engaged in a great civil war, testing whether that nation, or any nation so conceived and so
dedicated, can long endure. Na\u00efve, \u00c9CLAIR: 1863! \u041f\u0440\u0438
\u0432\u0435\u0442 \u4e2d\u6587"""
FIRST_RUNS = [14089395207073491936, 416780243632480982]
SAMPLED = [416780243632480982, 412230941022758392, 15533679791611927353]
SHORT = 5118645957762867795


def test_runs_of_letters_are_hashed_as_pinned() -> None:
    prints = fingerprints([TEXT, "Short."])
    assert prints.counts.tolist() == [247, 1]
    assert prints.runs[:2].tolist() == FIRST_RUNS
    assert prints.runs[-1] == SHORT
    assert prints.sampled(Sampling(7)).runs[:3].tolist() == SAMPLED
