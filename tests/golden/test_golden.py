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
ARTIFACT_FILE = HERE / "artifact_v4.bin"
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
HEADER_SHA256 = "ce7a8f126cba1db409df44d2957b2d46a4ecb17159013d4ae3824e02380a369a"
SECTION_SHA256 = {
    "embedding": "aa7f021730e45761143b6757250274c9098cc0180edca2755051974b75bbb825",
    "query": "9848c410935255725294e765d422ad2502c3e62c211682e3d4c929cf538c0cc9",
    "key": "0625f0b7ea188eb777200acfc2a887558769d5832da32193a678827e85973e40",
    "value": "ce73d38113d4a2dc8c9f100baa6dc8565c2c2e39d3449ba36776fa9d24a879cb",
    "output": "a527644e6c883539465f15003b0821b563b8ffc023107679020832d6f0b3a567",
    "up": "83866f78fe8cf22f31e92bdfc6ac89b8902276a2593ebefea0e9ffca46dff3ac",
    "down": "96d1900604bac12c4306d0c64036746107cd245e22e1dfff184e7e387661b88f",
    "rows": "0edbb480e61b19ae637b9c8af73b836155050ef65932fa936bb2c28f7a58f8c8",
    "columns": "2d2e2ed3aa86774df97b6214618cb81375bca8da7596540612a713bd42ca02cb",
    "vectors": "368447627da4a5e9ac49003d07698e7daf233fe4e40e7a5739056fd7c47051a0",
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
        score_first=ScoreFirstConfig("sgd", chunk_tokens=64),
        matrices={name: matrices[name] for name in matrix_shapes},
        vectors={name: vectors[name] for name in vector_shapes},
    )


def header_and_sections(content: bytes) -> tuple[dict[str, object], dict[str, bytes]]:
    """Take an artifact apart by docs/format.md, without the package."""
    magic, version, header_bytes, digest = struct.unpack_from("<8sII32s", content)
    assert (magic, version) == (b"PARAGOLF", 4)
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


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_old_version_is_rejected_by_its_number(version: int) -> None:
    wanted = f"version {version}; this program reads version 4"
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
