"""The command line of `paramgolf data`: parse, call, print; no logic."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from paramgolf.cli.common import choose
from paramgolf.data.build import BuildConfig, build
from paramgolf.data.describe import describe
from paramgolf.data.hub.fetch import fetch
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError
from paramgolf.runtime.console import Reporter, standard_output

USAGE = """\
usage: paramgolf data COMMAND ...

commands:
  build SOURCE... --out DIR        text files, folders, JSON Lines, Parquet, stdin to shards
  fetch fineweb --variant sp8192   the challenge's shards from the Hugging Face hub
  info DIR                         what a folder of shards holds

options: --help of any command"""


@dataclass(frozen=True)
class BuildArguments:
    """Make token shards, a tokenizer and a manifest of any text."""

    config: Annotated[BuildConfig, tyro.conf.arg(name="")]
    out: str = ""
    """The folder to build; what an interrupted build left there is gone on with. Required."""


@dataclass(frozen=True)
class FetchArguments:
    """Fetch the challenge's token shards and their tokenizer from the Hugging Face hub."""

    dataset: tyro.conf.Positional[str]
    """fineweb."""
    out: str = ""
    """The folder to fill; what an interrupted fetch left there is gone on with. By default
    data/DATASET-VARIANT."""
    variant: str = "sp8192"
    """The tokenizer, as the data set's name has it: sp8192, sp1024, ..."""
    train_shards: int = 1
    """The first so many training shards, 100 M tokens each; 0: all."""
    repo: str = ""
    """OWNER/NAME of a data set repository; by default one that has the variant."""
    revision: str = "main"
    """Branch, tag or commit."""


@dataclass(frozen=True)
class InfoArguments:
    """Recount a folder of shards: documents, tokens, bytes, splits, overlap, a sample."""

    folder: tyro.conf.Positional[Path]
    """It holds *_train_*.bin and *_val_*.bin."""
    tokenizer: Path | None = None
    """Its SentencePiece model; by default tokenizer.model in the folder."""


def data(arguments: list[str]) -> None:
    """Run `paramgolf data ARGUMENTS`."""
    commands = {"build": _build, "fetch": _fetch, "info": _info}
    if not arguments or arguments[0] in ("--help", "-h"):
        standard_output().line(USAGE)
        return
    choose("data command", arguments[0], commands)(arguments[1:])


def _build(arguments: list[str]) -> None:
    parsed = tyro.cli(
        BuildArguments,
        prog="paramgolf data build",
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    if not parsed.out:
        raise ConfigError("name the folder to build: --out DIR")
    manifest = build(parsed.config, Path(parsed.out), Reporter(sys.stderr))
    reporter = standard_output()
    table = _table("split", "documents", "tokens", "bytes", "bytes/token", "shards")
    for name, split in manifest["splits"].items():
        table.add_row(
            name,
            f"{split['documents']:,}",
            f"{split['tokens']:,}",
            f"{split['bytes']:,}",
            f"{split['bytes'] / split['tokens']:.3f}",
            f"{len(split['shards']):,}",
        )
    reporter.table(table)
    read, overlap = manifest["documents"], manifest["overlap"]
    for name, text in (
        ("documents", f"{read['read']:,} read, {read['duplicates']:,} duplicates and "
         f"{read['empty']:,} empty ones dropped"),
        ("overlap", f"{overlap['shingle_share']:.2%} of the validation text's shingles, "
         f"{overlap['documents']:,} documents"),
        ("next", _next_step(Path(parsed.out), manifest["tokenizer"]["vocab_size"])),
    ):  # fmt: skip
        reporter.line(f"{name:<10} {text}")


def _fetch(arguments: list[str]) -> None:
    parsed = tyro.cli(FetchArguments, prog="paramgolf data fetch", args=arguments)
    out = Path(parsed.out or f"data/{parsed.dataset}-{parsed.variant}")
    fetched = fetch(
        parsed.dataset,
        parsed.variant,
        parsed.train_shards,
        out,
        Reporter(sys.stderr),
        parsed.repo,
        parsed.revision,
    )
    reporter = standard_output()
    vocab_size = Tokenizer.load(out / "tokenizer.model").vocab_size
    for name, text in (
        ("from", f"{fetched.dataset} of {fetched.repo}, commit {fetched.revision}"),
        ("shards", f"{fetched.train_shards:,} of training, {fetched.val_shards:,} of validation"),
        ("bytes", f"{fetched.bytes:,}, of which {fetched.received_bytes:,} were received"),
        ("next", _next_step(out, vocab_size)),
    ):
        reporter.line(f"{name:<10} {text}")


def _next_step(folder: Path, vocab_size: int) -> str:
    return f"paramgolf run RECIPE --data.source {folder} --model.vocab-size {vocab_size}"


def _info(arguments: list[str]) -> None:
    parsed = tyro.cli(InfoArguments, prog="paramgolf data info", args=arguments)
    found = describe(parsed.folder, parsed.tokenizer, Reporter(sys.stderr))
    reporter = standard_output()
    table = _table("split", "documents", "tokens", "bytes", "bytes/token", "shards")
    for name, split in found.splits.items():
        table.add_row(
            name,
            f"{split.documents:,}",
            f"{split.tokens:,}",
            f"{split.bytes:,}",
            f"{split.bytes / max(1, split.tokens):.3f}",
            f"{split.shards:,}",
        )
    reporter.table(table)
    share = found.overlap_share
    overlap = "nothing to compare" if share is None else f"{share:.2%} of the validation text's "
    if share is not None:
        overlap += f"shingles, {found.seen_documents:,} documents"
    for name, text in (
        ("tokenizer", found.tokenizer),
        ("overlap", overlap),
        ("manifest", found.manifest),
        ("sidecars", found.sidecars),
        ("sample", found.sample.replace("\n", "\\n")),
    ):
        reporter.line(f"{name:<10} {text}")


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table
