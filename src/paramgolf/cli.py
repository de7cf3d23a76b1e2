"""The command line: parse, call, print; no logic."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro
from rich.table import Table

from paramgolf import signals
from paramgolf.config import RunConfig
from paramgolf.console import Reporter, duration, speaks, standard_output
from paramgolf.errors import ConfigError, UserError
from paramgolf.ledger import account
from paramgolf.version import __version__

_STAGE_TITLES = {
    "ema": "after EMA",
    "adapted": "after adaptation",
    "quantized": "quantized, plain",
    "sliding": "quantized, sliding",
    "score_first": "sliding, score-first",
}


@dataclass(frozen=True)
class RunArguments:
    """Run a recipe from text to a scored artifact."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: str = ""
    """Directory of the run; by default runs/RECIPE-DATE-TIME."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Take text and trained weights over from this run, and run the rest."""


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
class AuditArguments:
    """Recompute what makes a run's score true, a line a check; exit code 1 if one fails."""

    run: tyro.conf.Positional[Path]
    """The directory of a finished run."""
    positions: int = 4
    """Positions at which every token of the alphabet is scored; each costs a window a token."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to score; as the run did."""


@dataclass(frozen=True)
class BundleArguments:
    """Write a run's code, model and tokenizer to a folder that stands alone."""

    run: tyro.conf.Positional[Path]
    """The directory of a finished run."""
    out: Path
    """A new folder."""


@dataclass(frozen=True)
class ExportArguments:
    """Write an artifact's weights as safetensors, with a config."""

    artifact: tyro.conf.Positional[Path]
    """The packed model, model.bin of a run."""
    out: Path
    """A new folder."""


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
class ProveArguments:
    """Prove a score: code the text with the artifact, let another process decode it."""

    path: tyro.conf.Positional[Path]
    """A run's directory, or an artifact (model.bin) with its tokenizer beside it."""
    text: Path | None = None
    """A UTF-8 file; by default the run's validation text."""
    way: Literal["plain", "sliding", "score-first"] = "plain"
    """Windows one after the other; sliding; or sliding, and learning as the recipe says. The last
    two code one token after the other: slow."""
    bytes: int = 100_000
    """Only the first bytes of the text; 0: all of it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where both sides compute."""
    out: Path | None = None
    """Write the result there, too, as JSON."""


def main() -> NoReturn:
    """Entry point of the command `paramgolf`."""
    arguments = sys.argv[1:]
    signals.install()
    if not speaks():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        _dispatch([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # `paramgolf ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(1, "")
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _exit(*signals.explain(error))
    _exit(0, "")


def _exit(code: int, message: str) -> NoReturn:
    # Before the ranks have joined, one on every machine speaks: another may not know.
    if message and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"paramgolf: {message}", file=sys.stderr)
    sys.exit(code)


def _usage() -> str:
    from paramgolf.recipes import RECIPES

    lines = [
        "usage: paramgolf COMMAND ...",
        "",
        "Train, adapt, quantize, pack and score the best language model that fits a byte budget.",
        "",
        "commands:",
        "  run RECIPE [--KEY VALUE ...]     from text to a scored artifact; `run tiny` to begin",
        "  run --resume DIR                 go on after the last finished stage",
        "  score ARTIFACT FILE...           bits per byte of any text",
        "  compress ARTIFACT FILE --out F   a text as a small file; decompress brings it back",
        "  prove RUN                        code the scored text and decode it in another process",
        "  audit RUN                        check everything that makes the score true",
        "  bundle RUN --out DIR             one folder that repeats the run and scores its model",
        "  export ARTIFACT --out DIR        the weights as safetensors",
        "  data build|fetch|info            any text to token shards, with tokenizer and manifest",
        "",
        "recipes:",
        *(f"  {name:<15}  {purpose}" for name, (purpose, _) in RECIPES.items()),
        "",
        "options: --help of any command, --version, --debug (show tracebacks)",
    ]
    return "\n".join(lines)


def _dispatch(arguments: Sequence[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": _run,
        "score": _score,
        "compress": _compress,
        "decompress": _decompress,
        "prove": _prove,
        "audit": _audit,
        "bundle": _bundle,
        "export": _export,
        "data": _data,
    }
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
    elif arguments[0] == "--version":
        print(f"paramgolf {__version__}")
    else:
        _choose("command", arguments[0], commands)(list(arguments[1:]))


def _choose(what: str, name: str, possible: dict[str, Any]) -> Any:
    if name not in possible:
        close = difflib.get_close_matches(name, possible, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"there is no {what} {name!r}{hint} Possible: {', '.join(possible)}")
    return possible[name]


def _run(arguments: list[str]) -> None:
    from paramgolf.recipes import RECIPES

    reporter = standard_output()
    if arguments and arguments[0] == "--resume":
        if len(arguments) != 2:
            raise ConfigError("--resume takes one run's directory and no other option")
        _resume(Path(arguments[1]), reporter)
        return
    if not arguments or arguments[0] in ("--help", "-h"):
        reporter.line(_usage())
        reporter.line("\n`paramgolf run RECIPE --help` lists every key with the recipe's value.")
        return
    recipe = arguments[0]
    _, default = _choose("recipe", recipe, RECIPES)
    parsed = tyro.cli(
        RunArguments,
        prog=f"paramgolf run {recipe}",
        args=arguments[1:],
        default=RunArguments(config=default),
        config=(tyro.conf.FlagConversionOff,),
        console_outputs=speaks(),
    )
    _start(recipe, parsed, reporter)


def _start(recipe: str, parsed: RunArguments, reporter: Reporter) -> None:
    from paramgolf.session import start

    out = Path(parsed.out or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    from_run = Path(parsed.from_run) if parsed.from_run else None
    results = start(recipe, _with_absolute_paths(parsed.config), out, from_run, reporter)
    _print_results(results, out, reporter)


def _resume(path: Path, reporter: Reporter) -> None:
    from paramgolf.session import resume

    _print_results(resume(path, reporter), path, reporter)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Paths as they are seen from here, so that a run can be resumed from anywhere."""
    data = config.data
    source = data.source if data.source == "stdlib" else str(Path(data.source).resolve())
    tokenizer = str(Path(data.tokenizer).resolve()) if data.tokenizer else ""
    return dataclasses.replace(
        config, data=dataclasses.replace(data, source=source, tokenizer=tokenizer)
    )


def _print_results(results: dict[str, Any], path: Path, reporter: Reporter) -> None:
    corpus = results["corpus"]
    table = Table(title=f"{results['recipe']}, seed {results['seed']}", title_justify="left")
    for column in ("", "BPB", "loss (nats)", "tokens", "bytes"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("label")
    for stage, score in results["stages"].items():
        table.add_row(
            _STAGE_TITLES[stage],
            f"{score['bpb']:.4f}",
            f"{score['loss_nats']:.4f}",
            f"{score['tokens']:,}",
            f"{score['bytes']:,}",
            score["label"],
        )
    table.add_row(
        "xz -9, for scale", f"{results['xz']['bpb']:.4f}", "", "", f"{results['xz']['bytes']:,}", ""
    )
    reporter.line("")
    reporter.table(table)
    size = results["bytes"]
    reporter.line(
        f"bytes     {size['total']:,} of {size['budget']:,}: model.bin {size['model']:,}, "
        f"train_gpt.py {size['code']:,}; beside them the tokenizer, {size['tokenizer']:,}"
    )
    reporter.line(f"corpus    {corpus['source']}, sha256 {corpus['sha256'][:16]}")
    seconds = results["seconds"]
    phases = Table(title="seconds by phase", title_justify="left")
    phases.add_column("phase")
    phases.add_column("seconds", justify="right")
    phases.add_column("budget")
    for name, value in seconds.items():
        budget, reason = account(name, results["adapted_on"])
        phases.add_row(name, f"{value:.1f}", budget if not reason else f"none: {reason}")
    phases.add_row("all", f"{sum(seconds.values()):.1f} ({duration(sum(seconds.values()))})")
    for name, value in results["budgets"].items():
        phases.add_row(f"all of budget {name}", f"{value:.1f}")
    reporter.table(phases)
    reporter.line(
        f"labels    the maker's word until rerun; `paramgolf audit {path}` checks the rest"
    )
    reporter.line(f"everything is in {path}: results.json, model.bin, tokenizer.model, ...")


def _score(arguments: list[str]) -> None:
    from paramgolf.data.streams import read_streams
    from paramgolf.rundir import write_array
    from paramgolf.scoring.predictor import load

    if not speaks():
        return  # one process scores
    parsed = tyro.cli(ScoreArguments, prog="paramgolf score", args=arguments)
    if not parsed.files:
        raise ConfigError("name at least one text file: paramgolf score ARTIFACT FILE...")
    if parsed.stride < -1:
        raise ConfigError(f"--stride = {parsed.stride} is not possible: it must be -1, 0 or more")
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
        if score.original_bytes != score.bytes:
            apart = score.original_bpb - score.bpb
            notes.append(
                f"{name}: the tokenizer normalises; over the {score.original_bytes:,} bytes of the "
                f"text as it is, {score.original_bpb:.4f} BPB ({apart:+.4f})"
            )
    reporter.table(table)
    for note in notes:
        reporter.line(note)


def _compress(arguments: list[str]) -> None:
    from paramgolf.data.documents import read_text
    from paramgolf.rundir import write_bytes
    from paramgolf.runtime import select_runtime
    from paramgolf.tools.compress import TextCoder

    parsed = tyro.cli(CompressArguments, prog="paramgolf compress", args=arguments)
    text = read_text(parsed.file)
    coder = TextCoder(parsed.artifact, parsed.tokenizer, select_runtime(parsed.device))
    progress = Reporter(sys.stderr).progress("compress", unit="tokens")
    coded = coder.compress([text], progress=progress.update)
    write_bytes(parsed.out, coded.content)
    size = len(coded.content)
    per_byte = f", {8 * size / coded.text_bytes:.4f} bits a byte" if coded.text_bytes else ""
    standard_output().line(f"{coded.text_bytes:,} bytes -> {size:,} in {parsed.out}{per_byte}")


def _decompress(arguments: list[str]) -> None:
    from paramgolf.rundir import write_bytes
    from paramgolf.runtime import select_runtime
    from paramgolf.tools.compress import TextCoder

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


def _prove(arguments: list[str]) -> None:
    from paramgolf.rundir import write_json
    from paramgolf.runtime import select_runtime
    from paramgolf.tools.prove import prove

    parsed = tyro.cli(ProveArguments, prog="paramgolf prove", args=arguments)
    if parsed.bytes < 0:
        raise ConfigError(f"--bytes = {parsed.bytes} is not possible: it must be 0 or more")
    proof = prove(
        parsed.path,
        parsed.text,
        parsed.way,
        parsed.bytes,
        select_runtime(parsed.device),
        Reporter(sys.stderr),
    )
    if parsed.out is not None:
        write_json(parsed.out, {**dataclasses.asdict(proof), "holds": proof.holds})
    reporter = standard_output()
    size = proof.text_bytes
    for name, value in (
        ("score", f"{proof.claimed_bpb:.4f} BPB ({proof.label}), {proof.way} windows"),
        ("text", f"{size:,} bytes; xz -9: {proof.xz_bytes:,}"),
        ("claimed", f"{proof.claimed_bytes:,.1f} bytes"),
        ("stream", f"{proof.stream_bytes:,} bytes (at most {proof.most_stream_bytes:,.1f})"),
        ("two-part", f"{proof.two_part_bytes:,} bytes with artifact, tokenizer and code"),
        ("encode", f"{proof.encode_seconds:.1f} s, {size / proof.encode_seconds:,.0f} bytes/s"),
        ("decode", f"{proof.decode_seconds:.1f} s, {size / proof.decode_seconds:,.0f} bytes/s"),
        ("decoded", proof.why_not or "bit for bit, by another process"),
        ("verdict", "proven" if proof.holds else "not proven"),
    ):
        reporter.line(f"{name:<9} {value}")
    if not proof.holds:
        raise UserError(f"the score of {parsed.path} is not proven")


def _audit(arguments: list[str]) -> None:
    from paramgolf.runtime import select_runtime
    from paramgolf.tools.audit import audit

    parsed = tyro.cli(AuditArguments, prog="paramgolf audit", args=arguments)
    if parsed.positions < 1:
        raise ConfigError(f"--positions = {parsed.positions} is not possible: it must be 1 or more")
    runtime = select_runtime(parsed.device)
    result = audit(parsed.run, parsed.positions, runtime, Reporter(sys.stderr))
    reporter = standard_output()
    for check in result.checks:
        reporter.line(f"{check.outcome:<14} {check.name:<34} {check.figure}")
    reporter.line("")
    for line in result.summary():
        reporter.line(line)
    if not result.passed:
        raise UserError(f"the audit of {parsed.run} fails: {', '.join(result.failed)}")


def _data(arguments: list[str]) -> None:
    from paramgolf import cli_data

    cli_data.main(arguments, _choose)


def _bundle(arguments: list[str]) -> None:
    from paramgolf.tools.bundle import bundle

    parsed = tyro.cli(BundleArguments, prog="paramgolf bundle", args=arguments)
    sizes = bundle(parsed.run, parsed.out)
    reporter = standard_output()
    for name, size in sizes.items():
        reporter.line(f"{size:>12,}  {name}")
    counted = sizes["train_gpt.py"] + sizes["model.bin"]
    reporter.line(f"{counted:>12,}  bytes count: train_gpt.py and model.bin, in {parsed.out}")


def _export(arguments: list[str]) -> None:
    from paramgolf.tools.export import export

    parsed = tyro.cli(ExportArguments, prog="paramgolf export", args=arguments)
    export(parsed.artifact, parsed.out)
    standard_output().line(f"model.safetensors (float32) and config.json are in {parsed.out}")
