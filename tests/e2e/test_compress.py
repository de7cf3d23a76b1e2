"""Text is compressed and decompressed, and damaged files are reported."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

import paramgolf
from paramgolf.errors import UserError
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.text_coder import TextCoder
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun

TEXT = "The \u2581lambda\u2581 has.\r\n\ttabs, caf\u00e9 \u65e5\u672c\u8a9e \U0001f600, end \n"


def resealed(content: bytes) -> bytes:
    """Return the content with its checksum recomputed."""
    header, stream = content[:104], content[108:]
    return header + zlib.crc32(header + stream).to_bytes(4, "little") + stream


@pytest.fixture(scope="module")
def coded(cli: Cli, mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    (folder / "text").write_bytes(TEXT.encode() * 20)
    model = mini_run.path / "model.bin"
    result = cli("compress", model, folder / "text", "--out", folder / "small")
    assert (result.code, result.stdout.split()[0]) == (0, f"{len(TEXT.encode() * 20):,}")
    return folder / "small"


def test_the_text_is_restored(cli: Cli, mini_run: FinishedRun, coded: Path, tmp_path: Path) -> None:
    result = cli("decompress", mini_run.path / "model.bin", coded, "--out", tmp_path / "back")
    assert (result.code, (tmp_path / "back").read_bytes()) == (0, TEXT.encode() * 20)


@pytest.mark.parametrize("text", ["", "x", TEXT])
@pytest.mark.parametrize("stride", [0, 16])
def test_any_text(mini_run: FinishedRun, text: str, stride: int) -> None:
    model = mini_run.path / "model.bin"
    sides = [TextCoder(model, None, select_runtime("cpu")) for _ in range(2)]
    coded = sides[0].compress([text], stride)
    assert sides[1].decompress(coded.content, "it") == [text]


def test_the_stream_is_as_long_as_the_score_says(mini_run: FinishedRun) -> None:
    """Within 0.1 % and 64 bytes, without the header."""
    predictor = paramgolf.load(mini_run.path / "model.bin", device="cpu")
    text = (TEXT.replace("\r\n", " ") + "and so it goes on and on. ") * 60
    score = predictor.score(text, stride=0)
    coder = TextCoder(mini_run.path / "model.bin", None, select_runtime("cpu"))
    size = coder.compress([text]).stream_bytes
    assert abs(size - score.bpb * score.bytes / 8) < 0.001 * size + 64


def test_errors_are_one_line(cli: Cli, mini_run: FinishedRun, coded: Path, tmp_path: Path) -> None:
    model, out = mini_run.path / "model.bin", tmp_path / "out"
    content = coded.read_bytes()
    other = content[:42] + bytes([content[42] ^ 1]) + content[43:]  # the artifact's hash
    differs = content[:82] + bytes([content[82] ^ 1]) + content[83:]  # the text's
    wrong = {
        "not a text compressed by paramgolf": b"some other file",
        "version 7": content[:8] + b"\7" + content[9:],
        "another artifact": resealed(other),
        "computes differently": resealed(differs),
        "is damaged": content[:-3],
    }
    for message, changed in wrong.items():
        (tmp_path / "file").write_bytes(changed)
        result = cli("decompress", model, tmp_path / "file", "--out", out)
        assert message in one_line_error(result)
    assert not out.exists()


def test_every_changed_byte_is_noticed(mini_run: FinishedRun, coded: Path) -> None:
    coder = TextCoder(mini_run.path / "model.bin", None, select_runtime("cpu"))
    content = coded.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        with pytest.raises(UserError):
            coder.decompress(bytes(changed), "it")
