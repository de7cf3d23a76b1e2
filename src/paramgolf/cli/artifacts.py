"""Commands that use a packed model: score, compress, decompress, generate."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from paramgolf.cli.common import over_original_bytes
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter, is_main_rank, standard_output


@dataclass(frozen=True)
class ScoreArguments:
    """Score any text with a packed model: BPB, loss, tokens, bytes, label."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """UTF-8 text files (one document per file), .jsonl[.gz|.xz] files (one document per line), or
    token shards (.bin; all of them form one text)."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    stride: int = -1
    """Stride of sliding windows; 0: consecutive windows; -1: the recipe's stride."""
    fixed: bool = False
    """Do not learn from the text while scoring, even if the recipe does."""
    losses: Path | None = None
    """Also write the loss of every token in nats to this .npy file (for one text)."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True)
class CompressArguments:
    """Compress a text with a packed model's predictions."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run; decompress needs the same one."""
    file: tyro.conf.Positional[Path]
    """A UTF-8 text file."""
    out: Path
    """The file to write."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute; decompress needs the same kind of processor or GPU as compress."""


@dataclass(frozen=True)
class DecompressArguments:
    """Restore a text that `paramgolf compress` compressed."""

    artifact: tyro.conf.Positional[Path]
    """The packed model that compressed the text."""
    file: tyro.conf.Positional[Path]
    """The compressed file."""
    out: Path
    """The text file to write."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute: on the same kind of processor or GPU as compress did."""


@dataclass(frozen=True)
class GenerateArguments:
    """Generate text with a packed model and print it as it is sampled."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run."""
    prompt: str = ""
    """Text to continue; empty: start a new document."""
    max_tokens: int = 300
    """Maximum number of tokens to generate; a document may end earlier."""
    temperature: float = 0.8
    """Sampling temperature; 0: always take the most likely token."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens that together have this probability."""
    seed: int = 0
    """Random seed; the same seed produces the same text on the same machine."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute. A small model that generates token by token is no faster on a GPU."""


def score(arguments: list[str]) -> None:
    """Run `paramgolf score`."""
    if not is_main_rank():
        return  # one process scores
    parsed = tyro.cli(ScoreArguments, prog="paramgolf score", args=arguments)

    from paramgolf.data.streams import read_streams
    from paramgolf.runtime.files import write_array
    from paramgolf.scoring.predictor import load

    if not parsed.files:
        raise ConfigError("name at least one text file: paramgolf score ARTIFACT FILE...")
    if parsed.stride < -1:
        raise ConfigError(f"invalid --stride = {parsed.stride}: expected at least -1")
    predictor = load(parsed.artifact, parsed.tokenizer, parsed.device)
    table = Table()
    table.add_column("file", overflow="fold")
    for column in ("BPB", "nats per\ntoken", "tokens", "text\nbytes"):
        table.add_column(column, justify="right")
    table.add_column("label")
    reporter = standard_output()
    stride = None if parsed.stride < 0 else parsed.stride
    notes: list[str] = []
    for name, tokens, texts in read_streams(parsed.files, predictor.tokenizer):
        progress = Reporter(sys.stderr).progress("score", unit="targets")
        losses = predictor.losses(tokens, stride, progress=progress.update, fixed=parsed.fixed)
        if parsed.losses is not None:
            write_array(parsed.losses, losses.double().cpu().numpy())
        score = predictor.score_of(losses, tokens, texts, parsed.fixed)
        share = score.overlap_share
        table.add_row(
            name,
            f"{score.bpb:.4f}",
            f"{score.loss_nats:.4f}",
            f"{score.tokens:,}",
            f"{score.bytes:,}",
            score.label if share is None else f"{score.label} ({share:.1%} overlap)",
        )
        if note := over_original_bytes(score):
            notes.append(f"{name}: {note}")
    reporter.table(table)
    for note in notes:
        reporter.line(note)


def compress(arguments: list[str]) -> None:
    """Run `paramgolf compress`."""
    parsed = tyro.cli(CompressArguments, prog="paramgolf compress", args=arguments)

    from paramgolf.data.documents import read_text
    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    text = read_text(parsed.file)
    coder = TextCoder(parsed.artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = Reporter(sys.stderr).progress("compress", unit="tokens")
    coded = coder.compress([text], progress=progress.update)
    write_bytes(parsed.out, coded.content)
    size = len(coded.content)
    rate = f", {8 * size / coded.text_bytes:.4f} bits per byte" if coded.text_bytes else ""
    standard_output().line(f"{coded.text_bytes:,} bytes -> {size:,} bytes{rate}: {parsed.out}")


def decompress(arguments: list[str]) -> None:
    """Run `paramgolf decompress`."""
    parsed = tyro.cli(DecompressArguments, prog="paramgolf decompress", args=arguments)

    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    try:
        content = parsed.file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {parsed.file}: {error.strerror}") from error
    coder = TextCoder(parsed.artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = Reporter(sys.stderr).progress("decompress", unit="tokens")
    text = "".join(coder.decompress(content, str(parsed.file), progress.update)).encode()
    write_bytes(parsed.out, text)
    standard_output().line(f"{len(content):,} bytes -> {len(text):,} bytes: {parsed.out}")


def generate(arguments: list[str]) -> None:
    """Run `paramgolf generate`."""
    parsed = tyro.cli(GenerateArguments, prog="paramgolf generate", args=arguments)

    from paramgolf.scoring.predictor import load

    if parsed.max_tokens < 1:
        raise ConfigError(f"invalid --max-tokens = {parsed.max_tokens}: expected at least 1")
    predictor = load(parsed.artifact, parsed.tokenizer, parsed.device)
    pieces = predictor.generate(
        parsed.prompt, parsed.max_tokens, parsed.temperature, parsed.top_p, parsed.seed
    )
    reporter = standard_output()
    for piece in chain([parsed.prompt], pieces, ["\n"]):
        reporter.text(piece)
