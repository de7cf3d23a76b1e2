"""Commands that check a run: audit its score, prove it by decoding."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table

from paramgolf.cli.live import LiveReporter, standard_error, standard_output
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.names import find_artifact
from paramgolf.runtime.outputs import require_new_file

if TYPE_CHECKING:
    from paramgolf.verify.prove import Proof
    from paramgolf.verify.rerun import Fact

_COLUMNS = 80
_OUTCOMES = {"not applicable": "n/a", "not verified": "gone"}
"""Short words for outcomes; gone is what a check would be recomputed from."""


@dataclass(frozen=True)
class AuditArguments:
    """Recheck everything behind a run's score; exit code 1 if a check fails."""

    run: tyro.conf.Positional[Path]
    """Directory of a finished run."""
    positions: int = 4
    """Positions at which every token of the vocabulary is scored: one window per token each."""
    seed: int | None = None
    """Of the sampled positions, to repeat an audit; by default a random one, which is printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to score: the same kind of device as the run's."""


@dataclass(frozen=True)
class VerifyArguments:
    """Make a run again and compare what only a rerun can check; exit code 1 if a fact disagrees."""

    folder: tyro.conf.Positional[Path]
    """A finished run, a bundle or a submission."""
    source: Path | None = None
    """Folder with the text, if it is not where the run found it."""
    out: str = ""
    """Directory of the rerun; by default runs/verify-NAME-DATE-TIME. An interrupted or finished
    rerun there is used."""


@dataclass(frozen=True)
class ProveArguments:
    """Prove a score: encode the text with the artifact, and decode it in another process."""

    path: tyro.conf.Positional[Path]
    """A run directory or bundle, or an artifact (model.bin) with its tokenizer beside it."""
    text: Path | None = None
    """A UTF-8 file, whose score is computed here; by default the validation text of the run, with
    the losses that the run reports."""
    mode: Literal["plain", "sliding", "score-first"] = "plain"
    """Consecutive windows; sliding windows; or sliding windows and learning as the recipe does. The
    last two code one token at a time, which is slow."""
    bytes: int = 100_000
    """Only the beginning of the text, of a run's text in whole documents and at least one; 0: all
    of it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where both sides compute."""
    out: Path | None = None
    """Also write the result to this file, as JSON."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""


def audit(arguments: list[str]) -> None:
    """`paramgolf audit`: recheck everything behind a score."""
    parsed = tyro.cli(AuditArguments, prog="paramgolf audit", args=arguments)

    from paramgolf.report.page import refresh
    from paramgolf.runtime.device import select_runtime
    from paramgolf.verify.audit import audit
    from paramgolf.verify.audited_run import fresh_seed

    if parsed.positions < 1:
        raise ConfigError(f"invalid --positions = {parsed.positions}: expected 1 or more")
    if parsed.seed is not None and parsed.seed < 0:
        raise ConfigError(f"invalid --seed = {parsed.seed}: expected 0 or more")
    runtime = select_runtime(parsed.device)
    seed = fresh_seed() if parsed.seed is None else parsed.seed
    result = audit(parsed.run, parsed.positions, seed, runtime, standard_error())
    reporter = standard_output()
    for check in result.checks:
        outcome = _OUTCOMES.get(check.outcome, check.outcome)
        reporter.line(f"{outcome:<5} {check.kind:<13}  {check.name}")
        _print_wrapped(f"      {check.figure}", reporter)
    reporter.line("")
    for line in result.summary():
        _print_wrapped(line, reporter)
    try:
        result.save(parsed.run)
    except UserError as error:
        reporter.line(f"not recorded: {error}")
    else:
        refresh(parsed.run, reporter)
    if result.failed:
        raise UserError(f"the audit of {parsed.run} fails: {', '.join(result.failed)}")
    if not result.passed:
        names = ", ".join(result.unverified)
        raise UserError(f"the audit of {parsed.run} could not recompute: {names}")


def _print_wrapped(text: str, reporter: Reporter) -> None:
    """Print a text in lines of at most 80 columns, indented like its second column."""
    indent = re.match(r"\w* +", text)
    width = len(indent[0]) if indent else 0
    for line in textwrap.wrap(text, _COLUMNS, subsequent_indent=" " * width):
        reporter.line(line)


def verify(arguments: list[str]) -> None:
    """`paramgolf verify`: make a run again and compare."""
    parsed = tyro.cli(VerifyArguments, prog="paramgolf verify", args=arguments)

    from paramgolf.runtime.console import is_main_rank
    from paramgolf.runtime.files import write_json
    from paramgolf.verify.rerun import verify

    name = parsed.folder.resolve().name
    out = Path(parsed.out or f"runs/verify-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    found = verify(parsed.folder, parsed.source, out, standard_error())
    if not is_main_rank():
        return
    reporter = standard_output()
    _print_facts(found.facts, reporter)
    reporter.line(f"verdict   {found.verdict()}")
    reporter.line(f"rerun     {out}")
    try:
        write_json(parsed.folder / "verify.json", found.to_json())
    except UserError as error:  # the verdict stands, and is printed
        standard_error().line(f"warning: {error}")
    if found.failed:
        raise UserError(f"{parsed.folder} is not verified: {', '.join(found.failed)}")


def _print_facts(facts: Sequence[Fact], reporter: LiveReporter) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("fact", "claimed", "found", "agrees"):
        table.add_column(column, overflow="fold")
    for fact in facts:
        table.add_row(*fact)
    reporter.table(table)


def prove(arguments: list[str]) -> None:
    """`paramgolf prove`: prove a score by coding and decoding the text."""
    parsed = tyro.cli(ProveArguments, prog="paramgolf prove", args=arguments)

    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.files import write_json
    from paramgolf.verify.prove import prove

    if parsed.bytes < 0:
        raise ConfigError(f"invalid --bytes = {parsed.bytes}: expected 0 or more")
    if parsed.out is not None:
        require_new_file(parsed.out, parsed.overwrite)
    proof = prove(
        find_artifact(parsed.path),
        parsed.text,
        parsed.mode,
        parsed.bytes,
        select_runtime(parsed.device),
        standard_error(),
    )
    _print_proof(proof, standard_output())
    if parsed.out is not None:
        write_json(parsed.out, proof.to_json())
    if not proof.holds:
        raise UserError(f"the score of {parsed.path} is not proven: {proof.objection()}")


def _print_proof(proof: Proof, reporter: Reporter) -> None:
    """Print what was coded, what was claimed, what it took, and the verdict."""
    claim, size = proof.claim, proof.text_bytes
    if claim is None:
        scored = f"{proof.claimed_bpb:.4f} BPB ({proof.label}), computed here"
        covered, whose = f"{size:,} bytes", "the score"
        verdict = "proven" if proof.holds else "not proven"
    else:
        scored = f"{claim.bpb:.4f} BPB ({claim.label}), reported for {claim.stage}"
        covered = (
            f"the first {proof.documents:,} of {claim.total_documents:,} documents, {size:,} of "
            f"{claim.total_bytes:,} bytes, {size / claim.total_bytes:.1%}"
        )
        whose = f"the reported losses of these documents: {proof.claimed_bpb:.4f} BPB"
        verdict = "not proven"
        if proof.holds:
            rest = "; the rest is for the audit to check" * (size < claim.total_bytes)
            verdict = f"proven: {claim.stage}, for these documents{rest}"
            if claim.last[0] != claim.stage:
                verdict += f". The run's last score is another: {claim.last[0]}"
                verdict += f", {claim.last[1]:.4f} BPB"
    normalised = "" if proof.decoded_bytes == size else ", as the tokenizer normalises it"
    for name, value in (
        ("score", f"{scored}, {proof.mode} windows"),
        ("text", covered),
        ("claimed", f"{proof.claimed_bytes:,.1f} bytes by {whose}"),
        ("stream", f"{proof.stream_bytes:,} bytes; xz -9: {proof.xz_bytes:,}"),
        (
            "allowed",
            f"{proof.max_stream_bytes:,.1f} bytes: claimed {proof.lane_bytes:+.1f} for "
            f"{proof.lanes} lanes +{proof.slack_bytes:.1f} of slack, {proof.slack_bpb:.4f} BPB",
        ),
        ("two-part", f"{proof.two_part_bytes:,} bytes with artifact, tokenizer, a run's code"),
        ("encode", f"{proof.encode_seconds:.1f} s, {size / proof.encode_seconds:,.0f} bytes/s"),
        ("decode", f"{proof.decode_seconds:.1f} s, {size / proof.decode_seconds:,.0f} bytes/s"),
        ("decoded", proof.failure or f"bit for bit, by another process{normalised}"),
        ("verdict", verdict),
    ):
        reporter.line(f"{name:<9} {value}")
