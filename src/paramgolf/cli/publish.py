"""Commands that write a result for others: a bundle, exported weights, a submission folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from paramgolf.cli.live import standard_error, standard_output
from paramgolf.errors import ConfigError
from paramgolf.runtime.names import find_artifact


@dataclass(frozen=True)
class BundleArguments:
    """Write a run's code, model and tokenizer to a self-contained directory."""

    run: tyro.conf.Positional[Path]
    """Directory of a packed run."""
    out: Path
    """A new directory."""


@dataclass(frozen=True)
class ExportArguments:
    """Write a packed model, or the text that it scored, for other programs."""

    artifact: tyro.conf.Positional[Path]
    """A packed model (model.bin), or the run or bundle that contains it; for lm-eval, a run."""
    out: Path
    """A new directory."""
    format: Literal["safetensors", "hf", "lm-eval"] = "safetensors"
    """safetensors: the weights in float32, and their shape (docs/format.md says what they compute).
    hf: a folder that Hugging Face transformers loads with trust_remote_code=True: weights, code,
    tokenizer, model card. lm-eval: the scored text as a task for lm-evaluation-harness."""


@dataclass(frozen=True)
class SubmissionArguments:
    """Audit runs that differ only in their seed, and write a submission folder."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders of seeds."""
    out: Path
    """A new directory."""
    author: str = ""
    """Name of the submitter."""
    name: str = ""
    """Name of the submission; by default that of the recipe."""
    incomplete: bool = False
    """Submit although requested seeds have no score; the README says so first."""


def bundle(arguments: list[str]) -> None:
    """`paramgolf bundle`: one self-contained directory."""
    parsed = tyro.cli(BundleArguments, prog="paramgolf bundle", args=arguments)

    from paramgolf.publish.bundle import bundle

    sizes = bundle(parsed.run, parsed.out)
    reporter = standard_output()
    for name, size in sizes.items():
        reporter.line(f"{size:>12,}  {name}")
    counted = sizes["train_gpt.py"] + sizes["model.bin"]
    reporter.line(
        f"{counted:>12,}  bytes of train_gpt.py and model.bin count, and a given tokenizer"
    )
    reporter.line(f"wrote {parsed.out}")


def export(arguments: list[str]) -> None:
    """`paramgolf export`: a model or its text for other programs."""
    parsed = tyro.cli(ExportArguments, prog="paramgolf export", args=arguments)

    from paramgolf.publish.export import export
    from paramgolf.publish.hf import export_hf, export_lm_eval

    out = parsed.out
    if parsed.format == "hf":
        export_hf(find_artifact(parsed.artifact), out)
        written = f"the model, its code, its tokenizer and its card to {out}"
    elif parsed.format == "lm-eval":
        documents = export_lm_eval(parsed.artifact, out)
        written = f"{documents:,} documents and the task paramgolf to {out}"
    else:
        export(find_artifact(parsed.artifact), out)
        written = f"model.safetensors (float32) and config.json to {out}"
    standard_output().line(f"wrote {written}")


def submission(arguments: list[str]) -> None:
    """`paramgolf submission`: a submission folder."""
    parsed = tyro.cli(SubmissionArguments, prog="paramgolf submission", args=arguments)

    from paramgolf.publish.submission import write_submission

    if not parsed.runs:
        raise ConfigError("name at least one run or folder of seeds: paramgolf submission SEEDS...")
    written = write_submission(
        parsed.runs,
        parsed.out,
        parsed.author,
        parsed.name,
        parsed.incomplete,
        standard_error(),
    )
    reporter = standard_output()
    for seed, one in written["seeds"].items():
        passes = "passes" if one["audit_passed"] else "FAILS"
        reporter.line(f"seed {seed:<10} {one['val_bpb']:.4f} BPB  {one['label']}  audit {passes}")
    for seed, reason in written["left_out"].items():
        reporter.line(f"seed {seed:<10} left out: {reason}")
    reporter.line(f"mean            {written['val_bpb']:.4f} BPB  {written['label']}")
    reporter.line(f"verdict         {written['verdict']}")
    complete = "" if written["complete"] else " (NOT complete: see above)"
    reporter.line(
        f"wrote {parsed.out}{complete}, with the model of seed {written['model_of_seed']}"
    )
