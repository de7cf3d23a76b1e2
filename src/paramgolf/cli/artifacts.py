"""Commands over an artifact: what it makes of a text, and what it is."""

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
    """Score any text with an artifact: BPB, tokens, bytes, label."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """UTF-8 text (one document a file), .jsonl[.gz|.xz] (documents), or token shards (.bin, all
    together one text)."""
    tokenizer: Path | None = None
    """Its tokenizer; by default tokenizer.model beside the artifact."""
    stride: int = -1
    """Stride of sliding windows; 0: consecutive windows; -1: as the recipe."""
    fixed: bool = False
    """Do not learn while scoring, whatever the recipe says."""
    losses: Path | None = None
    """Write the loss of every token in nats to this .npy file, too (one text)."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True)
class CompressArguments:
    """Compress a text with an artifact's predictions, or (decompress) bring it back."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run; the same brings the text back."""
    file: tyro.conf.Positional[Path]
    """UTF-8 text; for decompress, what compress wrote."""
    out: Path
    """The file to write."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """What compressed it has to bring it back: the same kind of processor or GPU."""


@dataclass(frozen=True)
class GenerateArguments:
    """Let an artifact write: text streams to standard output as it is sampled."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run."""
    prompt: str = ""
    """What the text begins with; empty: the model begins a document."""
    max_tokens: int = 300
    """The most that is generated; a document may end before."""
    temperature: float = 0.8
    """Of the distribution; 0: always the likeliest token."""
    top_p: float = 0.95
    """Sample from the fewest tokens that together have this probability."""
    seed: int = 0
    """The same seed gives the same text on the same machine."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute: token by token, a small model is no faster on a GPU."""


def score(arguments: list[str]) -> None:
    """`paramgolf score`: bits per byte of any text."""
    from paramgolf.data.streams import read_streams
    from paramgolf.runtime.files import write_array
    from paramgolf.scoring.predictor import load

    if not is_main_rank():
        return  # one process scores
    parsed = tyro.cli(ScoreArguments, prog="paramgolf score", args=arguments)
    if not parsed.files:
        raise ConfigError("name at least one text file: paramgolf score ARTIFACT FILE...")
    if parsed.stride < -1:
        raise ConfigError(f"invalid --stride = {parsed.stride}: expected -1, 0 or more")
    predictor = load(parsed.artifact, parsed.tokenizer, parsed.device)
    table = Table()
    table.add_column("file", overflow="fold")
    for column in ("BPB", "loss (nats)", "tokens", "bytes"):
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
            score.label if share is None else f"{score.label} ({share:.1%} seen)",
        )
        if note := over_original_bytes(score):
            notes.append(f"{name}: {note}")
    reporter.table(table)
    for note in notes:
        reporter.line(note)


def compress(arguments: list[str]) -> None:
    """`paramgolf compress`: a text as a small file."""
    from paramgolf.data.documents import read_text
    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    parsed = tyro.cli(CompressArguments, prog="paramgolf compress", args=arguments)
    text = read_text(parsed.file)
    coder = TextCoder(parsed.artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = Reporter(sys.stderr).progress("compress", unit="tokens")
    coded = coder.compress([text], progress=progress.update)
    write_bytes(parsed.out, coded.content)
    size = len(coded.content)
    per_byte = f", {8 * size / coded.text_bytes:.4f} bits a byte" if coded.text_bytes else ""
    standard_output().line(f"{coded.text_bytes:,} bytes -> {size:,} in {parsed.out}{per_byte}")


def decompress(arguments: list[str]) -> None:
    """`paramgolf decompress`: bring a compressed text back."""
    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    parsed = tyro.cli(CompressArguments, prog="paramgolf decompress", args=arguments)
    try:
        content = parsed.file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {parsed.file}: {error.strerror}") from error
    coder = TextCoder(parsed.artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = Reporter(sys.stderr).progress("decompress", unit="tokens")
    text = "".join(coder.decompress(content, str(parsed.file), progress.update)).encode()
    write_bytes(parsed.out, text)
    standard_output().line(f"{len(content):,} bytes -> {len(text):,} in {parsed.out}")


def generate(arguments: list[str]) -> None:
    """`paramgolf generate`: text from the packed model, as it comes."""
    from paramgolf.scoring.predictor import load

    parsed = tyro.cli(GenerateArguments, prog="paramgolf generate", args=arguments)
    if parsed.max_tokens < 1:
        raise ConfigError(f"invalid --max-tokens = {parsed.max_tokens}: expected over 0")
    predictor = load(parsed.artifact, parsed.tokenizer, parsed.device)
    pieces = predictor.generate(
        parsed.prompt, parsed.max_tokens, parsed.temperature, parsed.top_p, parsed.seed
    )
    reporter = standard_output()
    for piece in chain([parsed.prompt], pieces, ["\n"]):
        reporter.text(piece)
