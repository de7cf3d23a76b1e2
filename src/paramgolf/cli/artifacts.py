"""Commands that use a packed model: score, compress, decompress, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table

from paramgolf.cli.common import printable
from paramgolf.cli.live import standard_error, standard_output
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter, is_main_rank
from paramgolf.runtime.names import find_artifact
from paramgolf.runtime.outputs import require_new_file

if TYPE_CHECKING:
    from paramgolf.data.provenance import Label
    from paramgolf.scoring.bits_per_byte import Score

_Artifact = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ARTIFACT")]]
_File = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]


@dataclass(frozen=True)
class ScoreArguments:
    """Score texts with a packed model: BPB, loss, tokens, bytes and label of each and in total."""

    artifact: _Artifact
    """A packed model (model.bin), or the run or bundle that contains it."""
    files: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[FILE ...]")]]
    """Files, folders, globs, pipes, or - (stdin), as for data build: plain text (one document per
    file), JSON Lines and Parquet (one document per row); or token shards (.bin; all of them form
    one text). Files of a folder that are empty or not text are listed and left out."""
    text_key: str = ""
    """JSON key or Parquet column of the text; by default "text", then "content", then a Parquet
    file's only string column."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    stride: int = -1
    """Stride of sliding windows; 0: consecutive windows; -1: the recipe's stride."""
    rolling: bool = False
    """Score as lm-evaluation-harness does: every document by itself, BOS not predicted, consecutive
    windows of which the last ends with the document, no learning. docs/ecosystem.md compares."""
    fixed: bool = False
    """Do not learn from the text while scoring, even if the recipe does."""
    losses: Path | None = None
    """Also write the loss of every token in nats to this .npy file (for one text)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    overwrite: bool = False
    """Replace the file of --losses if it exists."""


@dataclass(frozen=True)
class CompressArguments:
    """Compress a text with a packed model's predictions; decompress restores it."""

    artifact: _Artifact
    """A packed model (model.bin), or the run or bundle that contains it."""
    file: _File
    """A UTF-8 text file, or a pipe."""
    out: Path
    """The file to write."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute; decompress needs the same kind of processor or GPU."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""


@dataclass(frozen=True)
class DecompressArguments:
    """Restore a text that compress wrote, with the same packed model."""

    artifact: _Artifact
    """The packed model that compressed the text, or the run or bundle that contains it."""
    file: _File
    """A file that compress wrote."""
    out: Path
    """The text file to write."""
    tokenizer: Path | None = None
    """The artifact's tokenizer; by default tokenizer.model beside it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute; the same kind of processor or GPU as for compress."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""


@dataclass(frozen=True)
class GenerateArguments:
    """Generate text with a packed model and print it as it is sampled."""

    artifact: _Artifact
    """A packed model (model.bin), or the run or bundle that contains it."""
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

    from paramgolf.data.texts import read_texts
    from paramgolf.runtime.files import write_array
    from paramgolf.scoring.predictor import load
    from paramgolf.scoring.rolling import rolling_losses

    if not parsed.files:
        raise ConfigError("name at least one text file: paramgolf score RUN FILE...")
    if parsed.stride < -1:
        raise ConfigError(f"invalid --stride = {parsed.stride}: expected at least -1")
    if parsed.rolling and parsed.stride >= 0:
        raise ConfigError("--rolling has windows of its own: leave out --stride")
    if parsed.losses is not None:
        require_new_file(parsed.losses, parsed.overwrite)
    predictor = load(find_artifact(parsed.artifact), parsed.tokenizer, parsed.device)
    streams, left_out = read_texts(parsed.files, parsed.text_key, predictor.tokenizer)
    if parsed.losses is not None and len(streams) > 1:
        raise ConfigError(f"--losses takes one text, not {len(streams)}")
    stride = None if parsed.stride < 0 else parsed.stride
    fixed = parsed.fixed or parsed.rolling
    total = sum(len(stream.tokens) - 1 for stream in streams)
    progress = standard_error().progress("score", total, unit="targets")
    scores: list[tuple[str, Score]] = []
    forms: list[str] = []
    done = 0
    for stream in streams:

        def show(scored: int, _: int = 0, before: int = done) -> None:
            progress.update(before + scored)

        if parsed.rolling:
            losses = rolling_losses(predictor, stream, show)
        else:
            losses = predictor.losses(stream.tokens, stride, progress=show, fixed=fixed)
        done += len(stream.tokens) - 1
        if parsed.losses is not None:
            write_array(parsed.losses, losses.double().cpu().numpy())
        scores.append((stream.name, predictor.score_of(losses, stream, fixed)))
        forms.append(stream.restored(predictor.tokenizer))
    table = _score_table(scores)
    if len(scores) > 1:
        label = predictor.label([text for stream in streams for text in stream.texts])
        if predictor.learning(fixed):
            label = label.adaptive()
        table.add_section()
        _add_score(table, "total", _total([score for _, score in scores], label))
    reporter = standard_output()
    reporter.table(table)
    _print_forms(forms, reporter)
    pairs = sum(predictor.tokenizer.impossible_pairs(stream.tokens) for stream in streams)
    _print_pairs(pairs, reporter)
    for reason in left_out:
        reporter.line(f"left out: {printable(reason)}")


def _print_pairs(pairs: int, reporter: Reporter) -> None:
    """Say how many tokens the tokenizer would not have written there."""
    if pairs:
        reporter.line(
            f"{pairs:,} tokens never follow the one before them where this tokenizer encodes, and "
            "cost 24 bits each: another program encoded the text"
        )


def _print_forms(forms: Sequence[str], reporter: Reporter) -> None:
    """Say which texts do not come back from their tokens as they were."""
    changed = [form for form in forms if form != "original"]
    if changed:
        texts = (
            "the text comes" if len(forms) == 1 else f"{len(changed)} of {len(forms)} texts come"
        )
        reporter.line(f"{texts} back as {changed[0]}: less is predicted than the original")


def _total(scores: Sequence[Score], label: Label) -> Score:
    """Return the score of several texts together."""
    from paramgolf.scoring.bits_per_byte import Score

    overlap = label.overlap
    tokens, size = sum(score.tokens for score in scores), sum(score.bytes for score in scores)
    return Score(
        loss_nats=sum(score.loss_nats * score.tokens for score in scores) / tokens,
        bpb=sum(score.bpb * score.bytes for score in scores) / size,
        tokens=tokens,
        bytes=size,
        bytes_are=min(score.bytes_are for score in scores),  # "as decoded" if one is
        label=label.name,
        overlap_share=overlap.share,
        documents=overlap.documents,
        seen_documents=overlap.seen_documents,
        seen_bytes=overlap.seen_bytes,
    )


def _score_table(scores: Sequence[tuple[str, Score]]) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    for column in ("BPB", "nats per\ntoken", "tokens", "text\nbytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True)
    table.add_column("overlap", justify="right", no_wrap=True)
    for name, score in scores:
        _add_score(table, name, score)
    return table


def _add_score(table: Table, name: str, score: Score) -> None:
    share = score.overlap_share
    table.add_row(
        printable(name),
        f"{score.bpb:.4f}",
        f"{score.loss_nats:.4f}",
        f"{score.tokens:,}",
        f"{score.bytes:,}",
        score.shown_label,
        "" if share is None else f"{share:.1%}",
    )


def compress(arguments: list[str]) -> None:
    """Run `paramgolf compress`."""
    parsed = tyro.cli(CompressArguments, prog="paramgolf compress", args=arguments)
    require_new_file(parsed.out, parsed.overwrite)

    from paramgolf.data.documents import read_text
    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    text = read_text(parsed.file)
    artifact = find_artifact(parsed.artifact)
    coder = TextCoder(artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = standard_error().progress("compress", unit="tokens")
    coded = coder.compress([text], progress=progress.update)
    write_bytes(parsed.out, coded.content)
    size = len(coded.content)
    rate = f", {8 * size / coded.text_bytes:.4f} bits per byte" if coded.text_bytes else ""
    standard_output().line(f"{coded.text_bytes:,} bytes -> {size:,} bytes{rate}: {parsed.out}")


def decompress(arguments: list[str]) -> None:
    """Run `paramgolf decompress`."""
    parsed = tyro.cli(DecompressArguments, prog="paramgolf decompress", args=arguments)
    require_new_file(parsed.out, parsed.overwrite)

    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_bytes
    from paramgolf.scoring.text_coder import TextCoder

    try:
        content = parsed.file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {parsed.file}: {error.strerror}") from error
    artifact = find_artifact(parsed.artifact)
    coder = TextCoder(artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = standard_error().progress("decompress", unit="tokens")
    text = "".join(coder.decompress(content, str(parsed.file), progress.update)).encode()
    write_bytes(parsed.out, text)
    standard_output().line(f"{len(content):,} bytes -> {len(text):,} bytes: {parsed.out}")


def generate(arguments: list[str]) -> None:
    """Run `paramgolf generate`."""
    parsed = tyro.cli(GenerateArguments, prog="paramgolf generate", args=arguments)

    from paramgolf.scoring.predictor import load

    if parsed.max_tokens < 1:
        raise ConfigError(f"invalid --max-tokens = {parsed.max_tokens}: expected at least 1")
    predictor = load(find_artifact(parsed.artifact), parsed.tokenizer, parsed.device)
    pieces = predictor.generate(
        parsed.prompt, parsed.max_tokens, parsed.temperature, parsed.top_p, parsed.seed
    )
    reporter = standard_output()
    for piece in chain([parsed.prompt], pieces, ["\n"]):
        reporter.text(piece)
