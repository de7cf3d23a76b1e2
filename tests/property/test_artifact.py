"""The artifact: round trips, rejection of every damage, and its use for scoring and generation."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramgolf.compress.artifact import Artifact, ArtifactError, decode, encode
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import scales_from_exponents
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.data.provenance import Provenance, Text
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import QUANTIZED_ROLES, input_of, role
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.generate import streamed_text
from paramgolf.scoring.predictor import load_on

# The container.

CONFIG = ModelConfig(
    vocab_size=300, num_layers=3, width=16, num_heads=2, num_kv_heads=1, mlp_ratio=2, seq_len=32,
    rotary_dims=4, loop_first=1, loop_last=1, loop_visits=2, parallel_from=2,
)  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 4))
    first = draw(st.integers(0, layers - 1))
    return ModelConfig(
        vocab_size=draw(st.integers(257, 400)),
        num_layers=layers,
        width=heads * draw(st.sampled_from([4, 8])),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        mlp_ratio=draw(st.integers(1, 3)),
        seq_len=draw(st.integers(1, 64)),
        rotary_dims=4,
        rotary_base=draw(st.floats(1.0, 1e6)),
        query_gain=draw(st.floats(-10.0, 10.0)),
        logit_softcap=draw(st.floats(1.0, 100.0)),
        loop_first=first,
        loop_last=draw(st.integers(first, layers - 1)),
        loop_visits=draw(st.integers(1, 3)),
        parallel_from=draw(st.integers(0, layers)),
    )


def random_artifact(
    config: ModelConfig, seed: int = 0, most: int = 31, stride: int = 1
) -> Artifact:
    """An artifact with integers up to the largest and random floats."""
    generator = torch.Generator().manual_seed(seed)
    matrices, vectors, columns = {}, {}, {}
    for name, parameter in GPT(config).named_parameters():
        shape = parameter.shape
        if role(name) in QUANTIZED_ROLES:
            integers = torch.randint(-most, most + 1, shape, generator=generator, dtype=torch.int8)
            integers[0, 0], integers[-1, -1] = -most, most
            rows, drawn = (
                scales_from_exponents(
                    torch.randint(low, low + spread, (size,), generator=generator)
                )
                for low, spread, size in ((-80, 40, shape[0]), (-8, 17, shape[1]))
            )
            shared = columns.setdefault(input_of(name), drawn)
            matrices[name] = Quantized(integers, rows, shared)
        else:
            vectors[name] = torch.randn(shape, generator=generator).bfloat16()
    return Artifact(config, "a" * 64, "b" * 64, stride, ScoreFirstConfig(), matrices, vectors)


def assert_same(one: Artifact, other: Artifact) -> None:
    assert one.model == other.model
    assert one.tokenizer_sha256 == other.tokenizer_sha256
    assert one.provenance_sha256 == other.provenance_sha256
    assert one.stride == other.stride
    assert one.score_first == other.score_first
    assert list(one.matrices) == list(other.matrices)
    for name, matrix in one.matrices.items():
        assert other.matrices[name].integers.dtype == torch.int8
        assert torch.equal(matrix.integers, other.matrices[name].integers)
        for part in ("rows", "columns"):
            scales, found = getattr(matrix, part), getattr(other.matrices[name], part)
            assert found.dtype == torch.float16
            assert torch.equal(scales, found)
    assert list(one.vectors) == list(other.vectors)
    for name, vector in one.vectors.items():
        assert other.vectors[name].dtype == torch.bfloat16
        assert torch.equal(vector, other.vectors[name])


@settings(max_examples=25)
@given(configs(), st.integers(0, 1000), st.integers(1, 127), st.data())
def test_container_round_trip(
    config: ModelConfig, seed: int, most: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, config.seq_len))
    artifact = random_artifact(config, seed, most, stride)
    content, by_part = encode(artifact)
    decoded = decode(content)
    assert_same(artifact, decoded)
    assert sum(by_part.values()) == len(content)
    assert encode(decoded)[0] == content


def test_parts_are_header_roles_scales_and_vectors() -> None:
    content, by_part = encode(random_artifact(CONFIG))
    roles = ["embedding", "query", "key", "value", "output", "up", "down"]
    assert list(by_part) == ["header", *roles, "rows", "columns", "vectors"]
    assert min(by_part.values()) > 0
    assert sum(by_part.values()) == len(content)


def test_layout_names_every_parameter_once() -> None:
    matrices, vectors = layout(CONFIG)
    shapes = {name: parameter.shape for name, parameter in GPT(CONFIG).named_parameters()}
    assert matrices | vectors == shapes
    assert len(matrices) + len(vectors) == len(shapes)
    assert len(matrices) == 1 + 6 * CONFIG.num_layers


def test_state_is_integers_times_scales_and_loads_into_the_model() -> None:
    artifact = random_artifact(CONFIG)
    state = decode(encode(artifact)[0]).state()
    for name, matrix in artifact.matrices.items():
        rows = zip(matrix.integers.tolist(), matrix.rows.tolist(), strict=True)
        columns = matrix.columns.tolist()
        expected = torch.tensor(
            [[row * column * x for x, column in zip(xs, columns, strict=True)] for xs, row in rows]
        )
        torch.testing.assert_close(state[name], expected, rtol=1e-6, atol=0)
    for name, vector in artifact.vectors.items():
        assert state[name].tolist() == vector.tolist()
    GPT(CONFIG).load_state_dict(state)  # strict: all names, all shapes


def test_the_file_follows_its_description() -> None:
    """Read with struct, hashlib and json only; the streams are pinned by golden files."""
    artifact = random_artifact(CONFIG, stride=7)
    content, _ = encode(artifact)
    magic, version, header_bytes, digest, tensors = struct.unpack("<8sII32s32s", content[:80])
    assert (magic, version) == (b"PARAGOLF", 6)
    assert hashlib.sha256(content[48:]).digest() == digest
    header = json.loads(content[80 : 80 + header_bytes])
    assert header["model"] == asdict(CONFIG)
    assert header["stride"] == 7
    assert header["score_first"] is None
    assert 80 + header_bytes + sum(header["sections"].values()) == len(content)
    plain = b""
    for matrix in artifact.matrices.values():
        plain += bytes(x % 256 for x in matrix.integers.flatten().tolist())
        for scales in (matrix.rows, matrix.columns):
            plain += struct.pack(f"<{len(scales)}e", *scales.tolist())
    for vector in artifact.vectors.values():
        floats = vector.flatten().tolist()
        plain += b"".join(struct.pack("<f", x)[2:] for x in floats)
    assert hashlib.sha256(plain).digest() == tensors


# Damage.

GOOD, _ = encode(random_artifact(CONFIG, stride=8))
HEADER_BYTES = struct.unpack_from("<I", GOOD, 12)[0]
TENSORS = GOOD[48:80]
HEADER: dict[str, Any] = json.loads(GOOD[80 : 80 + HEADER_BYTES])
SECTIONS = GOOD[80 + HEADER_BYTES :]


def signed(header: Any, sections: bytes = SECTIONS) -> bytes:
    """A file with a valid checksum; the header is given as JSON values or as text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = TENSORS + text + sections
    digest = hashlib.sha256(body).digest()
    return struct.pack("<8sII32s", b"PARAGOLF", 6, len(text), digest) + body


def assert_rejected(content: bytes, *fragments: str) -> None:
    start = time.process_time()  # independent of the machine's load
    with pytest.raises(ArtifactError) as error:
        decode(content, "some/model.bin")
    message = str(error.value)
    assert time.process_time() - start < 2
    assert message.startswith("some/model.bin")
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_an_untampered_file_with_a_new_checksum_is_accepted() -> None:
    assert_same(decode(signed(HEADER)), decode(GOOD))


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position: int, difference: int) -> None:
    damaged = bytearray(GOOD)
    damaged[position] ^= difference
    assert_rejected(bytes(damaged))


@pytest.mark.parametrize("position", range(48))
def test_a_changed_byte_of_the_prefix_is_noticed(position: int) -> None:
    for difference in (1, 0x20, 0xFF):
        damaged = bytearray(GOOD)
        damaged[position] ^= difference
        assert_rejected(bytes(damaged))


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) - 81), st.integers(1, 255))
def test_a_changed_byte_with_a_valid_checksum(position: int, difference: int) -> None:
    """Rejected, or the same tensors (a hash or the stride changed)."""
    body = bytearray(GOOD[80:])
    body[position] ^= difference
    content = signed(bytes(body[:HEADER_BYTES]), bytes(body[HEADER_BYTES:]))
    try:
        artifact = decode(content, "some/model.bin")
    except ArtifactError:
        assert_rejected(content)
        return
    good = decode(GOOD)
    for name, matrix in artifact.matrices.items():
        assert torch.equal(matrix.integers, good.matrices[name].integers)
        assert torch.equal(matrix.rows, good.matrices[name].rows)
        assert torch.equal(matrix.columns, good.matrices[name].columns)
    GPT(artifact.model).load_state_dict(artifact.state())


@pytest.mark.slow
def test_five_thousand_hostile_files() -> None:
    """Bytes changed, cut, doubled and moved, in half of the files with a valid checksum."""
    rng = np.random.default_rng(20_240_520)
    good = decode(GOOD).state()
    start = time.process_time()
    refused = 0
    for number in range(5000):
        content = bytearray(GOOD)
        for _ in range(int(rng.integers(1, 6))):
            begin, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
            match int(rng.integers(5)):
                case 0 if content:
                    content[int(rng.integers(len(content)))] = int(rng.integers(256))
                case 1:
                    del content[begin:end]
                case 2:
                    content[begin:begin] = rng.bytes(int(rng.integers(1, 100)))
                case 3:
                    content[begin:end] = bytes(end - begin)
                case 4:
                    content += content[begin:end]
        if number % 2 and len(content) > 48:
            content[:16] = GOOD[:16]
            content[16:48] = hashlib.sha256(content[48:]).digest()
        try:
            state = decode(bytes(content)).state()
        except ArtifactError:
            refused += 1
            continue
        assert all(torch.equal(state[name], tensor) for name, tensor in good.items())
    assert refused > 4900
    assert time.process_time() - start < 120


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) - 1))
@example(0)
@example(47)
@example(48)
@example(len(GOOD) - 1)
def test_a_truncated_file_is_rejected(length: int) -> None:
    assert_rejected(GOOD[:length])


@pytest.mark.parametrize(
    "length", [0, 10, HEADER_BYTES - 1, HEADER_BYTES + 1, 2**16 + 1, 2**32 - 1]
)
def test_another_header_length_is_rejected(length: int) -> None:
    """The one field that the checksum does not cover."""
    assert_rejected(GOOD[:12] + struct.pack("<I", length) + GOOD[16:])


def test_foreign_files_are_rejected() -> None:
    for content in (b"", b"PK\x03\x04" + bytes(100), bytes(10_000), b"PARAGOL", b"PARAGOLF"):
        assert_rejected(content, "not a paramgolf artifact")


def test_another_version_is_rejected_by_its_number() -> None:
    assert_rejected(GOOD[:8] + struct.pack("<I", 77) + GOOD[12:], "77", "version 6")


def test_an_extended_file_is_rejected() -> None:
    assert_rejected(GOOD + b"\0", "checksum")
    assert_rejected(signed(HEADER, SECTIONS + b"\0"), "add up")


Tamper = Callable[[dict[str, Any]], Any]


def with_model(**values: Any) -> Tamper:
    return lambda header: header["model"].update(values)


def with_top(**values: Any) -> Tamper:
    return lambda header: header.update(values)


def with_sections(**values: Any) -> Tamper:
    return lambda header: header["sections"].update(values)


def moved_length(header: dict[str, Any]) -> None:
    header["sections"]["query"] += 1
    header["sections"]["key"] -= 1


def negative_length(header: dict[str, Any]) -> None:
    """Lengths add up, but one is negative."""
    header["sections"]["key"] += header["sections"]["query"] + 5
    header["sections"]["query"] = -5


def swapped_sections(header: dict[str, Any]) -> None:
    sections = list(header["sections"].items())
    header["sections"] = dict(reversed(sections))


TAMPERS: dict[str, Tamper] = {
    "huge vocabulary": with_model(vocab_size=10**9),
    "huge width": with_model(width=2**40),
    "width beyond 64 bits": with_model(width=16 * 10**30),
    "huge mlp": with_model(mlp_ratio=10**30),
    "more blocks than stored": with_model(num_layers=50),
    "fewer blocks than stored": with_model(num_layers=2, parallel_from=2),
    "negative layers": with_model(num_layers=-1),
    "no layers": with_model(num_layers=0),
    "zero width": with_model(width=0),
    "zero heads": with_model(num_heads=0),
    "zero key/value heads": with_model(num_kv_heads=0),
    "more visits than stored": with_model(loop_visits=9),
    "no visits": with_model(loop_visits=0),
    "another vocabulary": with_model(vocab_size=301),
    "another width": with_model(width=32),
    "float where int": with_model(width=16.0),
    "bool where int": with_model(num_kv_heads=True),
    "string where int": with_model(width="16"),
    "null where int": with_model(width=None),
    "list where int": with_model(width=[16]),
    "string where float": with_model(rotary_base="10000"),
    "softcap that is not a number": with_model(logit_softcap=math.nan),
    "base that is not a number": with_model(rotary_base=math.nan),
    "negative base": with_model(rotary_base=-1.0),
    "odd rotation": with_model(rotary_dims=3),
    "extra key in the model": with_model(heads=2),
    "missing key in the model": lambda header: header["model"].pop("width"),
    "model is a list": with_top(model=[]),
    "model is null": with_top(model=None),
    "stride 0": with_top(stride=0),
    "negative stride": with_top(stride=-8),
    "stride over the window": with_top(stride=33),
    "float stride": with_top(stride=8.0),
    "bool stride": with_top(stride=True),
    "sections is a list": with_top(sections=list(HEADER["sections"])),
    "sections is empty": with_top(sections={}),
    "sections is a number": with_top(sections=5),
    "extra section": with_sections(more=0),
    "missing section": lambda header: header["sections"].pop("vectors"),
    "sections in another order": swapped_sections,
    "negative length": negative_length,
    "length too large": with_sections(vectors=HEADER["sections"]["vectors"] + 1),
    "length too small": with_sections(vectors=HEADER["sections"]["vectors"] - 1),
    "huge length": with_sections(vectors=2**63),
    "float length": with_sections(vectors=float(HEADER["sections"]["vectors"])),
    "null length": with_sections(vectors=None),
    "a byte moved to the section before": moved_length,
    **{f"missing {key}": lambda header, key=key: header.pop(key) for key in HEADER},
}


@pytest.mark.parametrize("tamper", TAMPERS)
def test_a_wrong_header_with_a_valid_checksum_is_rejected(tamper: str) -> None:
    header = json.loads(json.dumps(HEADER))
    TAMPERS[tamper](header)
    assert json.dumps(header) != json.dumps(HEADER)
    assert_rejected(signed(header))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        b"{}",
        b"\xff\xfe",
        b"[" * 50,
        b"9" * 5000,
        b"{}{}",
    ],
)
def test_a_header_that_is_not_a_header_is_rejected(text: bytes) -> None:
    assert_rejected(signed(text))


def test_streams_of_noise_are_rejected_with_little_memory() -> None:
    noise = np.random.default_rng(0)
    for name in HEADER["sections"]:
        header = json.loads(json.dumps(HEADER))
        streams, begin = {}, 0
        for section, length in HEADER["sections"].items():
            streams[section] = SECTIONS[begin : begin + length]
            begin += length
        for length in (0, 3, 4, 1000, 100_000):
            streams[name] = noise.bytes(length)
            header["sections"][name] = length
            tracemalloc.start()
            try:
                assert_rejected(signed(header, b"".join(streams.values())))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 20_000_000


def test_tensors_that_cannot_be_stored_are_rejected() -> None:
    for part, scale in (("rows", math.nan), ("columns", 0.3)):
        artifact = random_artifact(CONFIG)
        getattr(artifact.matrices["blocks.1.up"], part)[3] = scale
        with pytest.raises(ValueError, match="power of"):
            encode(artifact)
    artifact = random_artifact(CONFIG)
    key = artifact.matrices["blocks.1.key"]
    artifact.matrices["blocks.1.key"] = replace(key, columns=key.columns.flip(0))
    with pytest.raises(ValueError, match=r"column scales of blocks.1.key"):
        encode(artifact)
    artifact = random_artifact(CONFIG)
    artifact.vectors["skip_gate"] = artifact.vectors["skip_gate"].half()
    with pytest.raises(ValueError, match="skip_gate"):
        encode(artifact)
    artifact = random_artifact(CONFIG)
    artifact.matrices["embedding"].integers[5, 5] = -128  # the quantizer never writes it
    with pytest.raises(ValueError, match="-127"):
        encode(artifact)


# The file in use, beside its tokenizer and provenance.

CPU = select_runtime("cpu")


@pytest.fixture
def packed(
    tokenizer: Tokenizer, tokenizer_model: bytes, english: list[str], tmp_path: Path
) -> Path:
    """An artifact beside its tokenizer and provenance."""
    Provenance({"train": Text.of([english[0]])}).save(tmp_path / "provenance.safetensors")
    shape = {**asdict(CONFIG), "vocab_size": tokenizer.vocab_size}
    artifact = random_artifact(ModelConfig(**shape), stride=8)
    beside = (tmp_path / "provenance.safetensors").read_bytes()
    provenance_sha256 = hashlib.sha256(beside).hexdigest()
    artifact = replace(
        artifact, tokenizer_sha256=tokenizer.sha256, provenance_sha256=provenance_sha256
    )
    content, _ = encode(artifact)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model)
    (tmp_path / "model.bin").write_bytes(content)
    return tmp_path / "model.bin"


def test_load_and_score(packed: Path, english: list[str]) -> None:
    predictor = load_on(packed, None, CPU)
    seen = english[0][:3000]
    unseen = " ".join(f"caf\u00e9{i * i % 1009}" for i in range(500))
    for text, label in ((seen, "in-sample"), (unseen, "held-out")):
        for stride in (None, 0, 3):
            score = predictor.score(text, stride)
            assert score.bytes == len(text.encode())
            assert score.label == label
            assert score.bpb * score.bytes * math.log(2) == pytest.approx(
                score.loss_nats * score.tokens, rel=1e-9
            )
    assert predictor.score(unseen) == predictor.score(unseen, 8)
    assert predictor.score(unseen) != predictor.score(unseen, 0)


def test_another_tokenizer_is_rejected(packed: Path, english: list[str]) -> None:
    other = packed.with_name("other.model")
    other.write_bytes(train_tokenizer(english[:10], 450))
    with pytest.raises(ArtifactError) as error:
        load_on(packed, other, CPU)
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)
    packed.with_name("tokenizer.model").write_bytes(other.read_bytes())
    with pytest.raises(ArtifactError, match=re.escape(str(packed))):
        load_on(packed, None, CPU)


def test_missing_files_and_another_provenance_are_user_errors(packed: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.bin"):
        load_on(packed.with_name("nothing.bin"), None, CPU)
    Provenance({"train": Text.of([""])}).save(packed.with_name("provenance.safetensors"))
    with pytest.raises(UserError, match=r"provenance\.safetensors"):
        load_on(packed, None, CPU)
    packed.with_name("provenance.safetensors").unlink()
    assert load_on(packed, None, CPU).label(["any text"]).name == "unverified"
    packed.with_name("tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_on(packed, None, CPU)


# Generation.

PIECES = train_tokenizer(["Once upon a time there was a text. " * 50], 280)


def test_the_likeliest_text_follows_the_losses(packed: Path) -> None:
    predictor = load_on(packed, None, CPU)
    tokens = predictor.tokenizer.encode(["I think"])[0].tolist()
    expected: list[int] = []
    begin = 0
    order = layer_order(predictor.artifact.model, recurrent=True)
    while len(expected) < 60:
        known = tokens + expected
        if len(known) - begin > 32:  # a window is full: its second half begins the next
            begin = len(known) - 16
        window = torch.tensor([known[begin:]])
        state = predictor.model(window, order)[0, -1:]
        alphabet = torch.arange(predictor.tokenizer.vocab_size)
        nats = predictor.model.target_nats(state.expand(len(alphabet), -1), alphabet)
        expected.append(int(nats.argmin()))
        if expected[-1] == predictor.tokenizer.bos:
            expected.pop()
            break
    text = "".join(predictor.generate("I think", max_tokens=60, temperature=0))
    whole = predictor.tokenizer.decode(expected)
    assert text
    assert whole.startswith(text)


@given(st.text(max_size=20))
def test_streamed_text_comes_in_whole_characters(text: str) -> None:
    """Also characters of several byte pieces."""
    tokenizer = Tokenizer(PIECES)
    text = text.replace("\u2581", "").replace("\ufffd", "")
    tokens = [int(token) for token in tokenizer.encode([text])[0][1:]]
    pieces = list(streamed_text(iter([*tokens, tokenizer.bos, *tokens]), tokenizer))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_generation_follows_its_seed_and_its_limits(packed: Path) -> None:
    predictor = load_on(packed, None, CPU)

    def text(**options: Any) -> str:
        return "".join(predictor.generate("The", max_tokens=40, **options))

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(top_p=1e-9, seed=1) == text(temperature=0)
    assert "".join(predictor.generate(max_tokens=0)) == ""
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": math.nan}):
        with pytest.raises(UserError, match="expected"):
            predictor.generate("x", **wrong)
