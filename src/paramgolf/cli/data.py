"""The command line of `paramgolf data`: parse, call, print; no logic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from paramgolf.cli.live import standard_error, standard_output
from paramgolf.data.advice import next_commands
from paramgolf.data.build import build
from paramgolf.data.build_config import BuildConfig
from paramgolf.data.describe import SplitSize, describe
from paramgolf.data.fingerprints import RUN_LETTERS
from paramgolf.data.hub.fetch import fetch
from paramgolf.data.noise import val_noise
from paramgolf.data.overlap import Overlap
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError
from paramgolf.runtime.names import choose

USAGE = """\
usage: paramgolf data COMMAND ...

commands:
  build SOURCE... --out DIR        build shards from text files, JSON Lines, Parquet or stdin
  fetch fineweb --variant sp8192   fetch the challenge's shards from the Hugging Face hub
  info DIR                         show what a folder of shards contains

options: --help after any command"""


@dataclass(frozen=True)
class BuildArguments:
    """Build token shards, a tokenizer and a manifest from any text."""

    config: Annotated[BuildConfig, tyro.conf.arg(name="")]
    out: str = ""
    """The folder to build, required. If interrupted, the same command resumes."""
    skip_bad: bool = False
    """Leave out the files that cannot be read (such as binary ones), and say which."""
    overwrite: bool = False
    """Replace the folder, if `data build` built it: from other text, or with other settings."""


@dataclass(frozen=True)
class FetchArguments:
    """Fetch the challenge's token shards and their tokenizer from the Hugging Face hub."""

    dataset: tyro.conf.Positional[str]
    """fineweb."""
    out: str = ""
    """The folder to fill, by default data/DATASET-VARIANT. If interrupted, the same command
    resumes."""
    variant: str = "sp8192"
    """The tokenizer, as in the name of the data set: sp8192, sp1024, ..."""
    train_shards: int = 1
    """Number of training shards to fetch, 100 M tokens each; 0: all."""
    repo: str = ""
    """OWNER/NAME of a data set repository; by default one that has the variant."""
    revision: str = "main"
    """Branch, tag or commit."""


@dataclass(frozen=True)
class InfoArguments:
    """Recount a folder of shards: documents, tokens, bytes, splits, overlap, a sample."""

    folder: tyro.conf.Positional[Path]
    """A folder that contains *_train_*.bin and *_val_*.bin."""
    tokenizer: Path | None = None
    """SentencePiece model of the shards; by default, tokenizer.model in the folder."""


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
    out = Path(parsed.out)
    manifest = build(parsed.config, out, standard_error(), parsed.skip_bad, parsed.overwrite)
    read, overlap = manifest["documents"], manifest["overlap"]
    _print_splits(
        {
            name: SplitSize(
                split["documents"], split["tokens"], split["bytes"], len(split["shards"])
            )
            for name, split in manifest["splits"].items()
        }
    )
    _print_lines(
        documents=f"{read['read']:,} read, {read['duplicates']:,} duplicates and "
        f"{read['empty']:,} empty ones dropped, {read.get('blank', 0):,} blank lines or nulls "
        "skipped",
        overlap=_overlap(Overlap(**overlap)),
    )
    if skipped := manifest.get("skipped"):
        _print_lines(**{"left out": f"{len(skipped):,} files: {', '.join(skipped)}"})
    if "adapt" not in manifest["splits"]:
        _print_lines(adapt="the adapt split is empty: run with --adapt.text none, as below")
    if noise := val_noise(manifest["splits"]["val"]["documents"]):
        _print_lines(warning=noise)
    _print_lines(**next_commands(out, manifest["tokenizer"]["vocab_size"]))


def _fetch(arguments: list[str]) -> None:
    parsed = tyro.cli(FetchArguments, prog="paramgolf data fetch", args=arguments)
    out = Path(parsed.out or f"data/{parsed.dataset}-{parsed.variant}")
    fetched = fetch(
        parsed.dataset,
        parsed.variant,
        parsed.train_shards,
        out,
        standard_error(),
        parsed.repo,
        parsed.revision,
    )
    _print_lines(
        source=f"{fetched.dataset} of {fetched.repo}, commit {fetched.revision}",
        shards=f"{fetched.train_shards:,} of training, {fetched.val_shards:,} of validation",
        bytes=f"{fetched.bytes:,}, of which {fetched.received_bytes:,} were downloaded",
    )
    _print_lines(**next_commands(out, Tokenizer.load(out / "tokenizer.model").vocab_size))


def _info(arguments: list[str]) -> None:
    parsed = tyro.cli(InfoArguments, prog="paramgolf data info", args=arguments)
    found = describe(parsed.folder, parsed.tokenizer, standard_error())
    _print_splits(found.splits)
    _print_lines(
        tokenizer=found.tokenizer,
        overlap=_overlap(found.overlap) if found.overlap else "nothing to compare",
        manifest=found.manifest,
        sidecars=found.sidecars,
        sample=found.sample.replace("\n", "\\n"),
    )


def _print_splits(splits: dict[str, SplitSize]) -> None:
    table = Table()
    table.add_column("split")
    for column in ("documents", "tokens", "bytes", "bytes/token", "shards"):
        table.add_column(column, justify="right")
    for name, split in splits.items():
        table.add_row(
            name,
            f"{split.documents:,}",
            f"{split.tokens:,}",
            f"{split.bytes:,}",
            f"{split.bytes / max(1, split.tokens):.3f}",
            f"{split.shards:,}",
        )
    standard_output().table(table)


def _print_lines(**lines: str) -> None:
    for name, text in lines.items():
        standard_output().line(f"{name:<10} {text}")


def _overlap(overlap: Overlap) -> str:
    return (
        f"{overlap.seen_documents:,} of {overlap.documents:,} validation documents seen in other "
        f"splits, {overlap.share or 0.0:.2%} of all runs of {RUN_LETTERS} letters"
    )
