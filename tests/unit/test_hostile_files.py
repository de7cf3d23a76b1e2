"""Hostile files are refused with one line, within limits of memory and time."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import lzma
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.compress import artifact as artifacts
from paramgolf.compress.artifact import Artifact, ArtifactError, decode, encode
from paramgolf.compress.quantized import Quantized
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.data import documents
from paramgolf.data.documents import read_jsonl
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.shards import open_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import input_of
from paramgolf.runtime.files import read_json, read_tensors, sha256_of_file
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import windows_of

SMALL = ModelConfig(
    vocab_size=300, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_ratio=1, seq_len=32,
    rotary_dims=4, loop_first=0, loop_last=0, loop_visits=1, parallel_from=2,
)  # fmt: skip


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def _zeros(config: ModelConfig) -> Artifact:
    """An artifact whose numbers are all zero."""
    shapes, vectors = layout(config)
    columns: dict[str, torch.Tensor] = {}
    matrices = {}
    for name, shape in shapes.items():
        shared = columns.setdefault(input_of(name), torch.ones(shape[1], dtype=torch.float16))
        integers = torch.zeros(shape, dtype=torch.int8)
        matrices[name] = Quantized(integers, torch.ones(shape[0], dtype=torch.float16), shared)
    zeros = {n: torch.zeros(shape, dtype=torch.bfloat16) for n, shape in vectors.items()}
    return Artifact(config, "0" * 64, "0" * 64, 16, ScoreFirstConfig(), matrices, zeros)


def test_a_small_file_does_not_hold_a_large_model() -> None:
    wide = dataclasses.replace(SMALL, width=512, vocab_size=8192)
    content, _ = encode(_zeros(wide))
    assert len(content) < 40_000
    with at_most(1), pytest.raises(ArtifactError, match=r"do not hold .* parameters"):
        decode(content)
    small, _ = encode(_zeros(SMALL))
    decode(small)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seq_len": 1 << 20}, "model.seq_len"),
        ({"num_layers": 256, "loop_last": 255, "loop_visits": 64}, "visits"),
    ],
)
def test_an_artifact_names_no_model_that_takes_minutes(values: dict[str, int], words: str) -> None:
    content, _ = encode(_zeros(SMALL))
    begin = artifacts._PREFIX.size + artifacts._DIGEST_BYTES
    (length,) = struct.unpack_from("<I", content, 12)
    header = json.loads(content[begin : begin + length])
    header["model"] |= values
    text = json.dumps(header).encode()
    body = content[begin - artifacts._DIGEST_BYTES : begin] + text + content[begin + length :]
    sha256 = artifacts.hashlib.sha256(body).digest()
    changed = artifacts._PREFIX.pack(artifacts.MAGIC, artifacts.VERSION, len(text), sha256) + body
    with at_most(1), pytest.raises(ArtifactError, match=words):
        decode(changed)
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **values)


@pytest.mark.parametrize("stride", [0, 64])
def test_a_short_text_does_not_cost_a_whole_window(stride: int) -> None:
    """168 bytes with the longest window: seconds, not minutes, and the same losses."""
    tokens = torch.randint(300, (169,), generator=torch.Generator().manual_seed(1)).numpy()
    found = []
    for seq_len in (256, 1 << 16):
        model = GPT(dataclasses.replace(SMALL, seq_len=seq_len), torch.float32)
        with torch.no_grad():
            model.init_weights(torch.Generator().manual_seed(3))
        windows = windows_of(168, seq_len, stride)
        order = layer_order(model.config, recurrent=True)
        with at_most(5):
            found.append(window_losses(model, order, tokens.astype("uint16"), windows, 8192))
    torch.testing.assert_close(*found)


# Compressed texts.


def _zst(content: Iterator[bytes]) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    stored = io.BytesIO()
    with zstandard.ZstdCompressor(level=3).stream_writer(stored, closefd=False) as file:
        for block in content:
            file.write(block)
    return stored.getvalue()


def _gz(content: Iterator[bytes]) -> bytes:
    stored = io.BytesIO()
    with gzip.GzipFile(fileobj=stored, mode="wb", compresslevel=1) as file:
        for block in content:
            file.write(block)
    return stored.getvalue()


def _xz(content: Iterator[bytes]) -> bytes:
    return lzma.compress(b"".join(content), preset=0)


_MEMORY = """
import resource, sys
from pathlib import Path
from paramgolf.data.documents import read_jsonl
from paramgolf.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for _ in read_jsonl(Path(sys.argv[1])): pass
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", _gz), (".xz", _xz), (".zst", _zst)])
def test_a_line_that_never_ends_is_refused_with_little_memory(
    suffix: str, pack: Callable[[Iterator[bytes]], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"train.jsonl{suffix}"
    block = b" " * (1 << 20)
    path.write_bytes(pack(iter([b'{"text": "a"}\n', *[block] * 300])))
    assert path.stat().st_size < 2_000_000
    with at_most(20):
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True
        )
    message, kilobytes = done.stdout.splitlines()
    assert message == f"cannot read {path} after line 1: a line has more than 67,108,864 bytes"
    assert int(kilobytes) < 220_000


@pytest.mark.parametrize(("suffix", "pack"), [("", b"".join), (".gz", _gz), (".zst", _zst)])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_are_the_same_in_every_packing(
    suffix: str, pack: Callable[[Iterator[bytes]], bytes], end: bytes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    texts = ["", "a" * 30, "b", "\u4e2d" * 50, "c"]
    content = b"\n".join(json.dumps({"text": text}).encode() for text in texts) + end
    path = tmp_path / f"train.jsonl{suffix}"
    path.write_bytes(pack(iter([content])))
    monkeypatch.setattr(documents, "_BLOCK_BYTES", 7)
    assert [text for _, text in read_jsonl(path)] == texts


# What is no regular file.


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


_READERS: dict[str, Callable[[Path], Any]] = {
    "shard": open_shard,
    "tokenizer": Tokenizer.load,
    "artifact": artifacts.read,
    "JSON": read_json,
    "tensors": read_tensors,
    "hash": sha256_of_file,
    "text": lambda path: list(read_jsonl(path)),
}


@pytest.mark.parametrize("make", [_pipe, _socket, _device, Path.mkdir])
@pytest.mark.parametrize("reader", _READERS)
def test_what_is_no_file_is_refused(
    make: Callable[[Path], None], reader: str, tmp_path: Path
) -> None:
    path = tmp_path / "it.jsonl"
    make(path)
    with at_most(2), pytest.raises(UserError, match=r"cannot read .*it\.jsonl") as refused:
        _READERS[reader](path)
    assert "\n" not in str(refused.value)


# Shards elsewhere.


def test_shards_are_in_the_run_or_in_the_source(tmp_path: Path) -> None:
    source, data = tmp_path / "source", tmp_path / "run" / "data"
    source.mkdir()
    own = source / "text_train_000000.bin"
    own.write_bytes(b"")

    def shards(name: str, source: Path = source) -> list[Path]:
        split = Split([name], 1, 1, "", 1, "original")
        return PreparedText(str(source), "", "", {"train": split}).shards("train", data)

    assert shards("text_train_000000.bin") == [data / "text_train_000000.bin"]
    assert shards(str(own.resolve())) == [own.resolve()]
    assert shards("/elsewhere/text_train_000000.bin", tmp_path / "not here")
    for name in (
        "../secret.bin",
        "/etc/passwd",
        "a/../../b",
        "..",
        "/elsewhere/x_train_000000.bin",
    ):
        with pytest.raises(UserError, match=r"is neither in .* nor in the source"):
            shards(name)
    with pytest.raises(UserError, match="neither"):
        shards("/etc/passwd", tmp_path / "not here")
