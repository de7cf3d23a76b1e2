"""Making a run again, to compare what no audit can recompute: time, steps, what shaped the weights.

The job is made from the configuration by the installed package: whoever checks a stranger's run
trusts that one, and not the code in the folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.checked import from_json
from paramgolf.codefile.reading import configuration_in
from paramgolf.config import RunConfig
from paramgolf.data.claims import KNOWN, is_self_reported
from paramgolf.data.hub.repository import Unreachable
from paramgolf.data.hub.selection import fetched_tokenizer
from paramgolf.data.provenance import Provenance
from paramgolf.data.text_source import kind_of_text
from paramgolf.errors import ConfigError, UserError
from paramgolf.pipeline.session import resume, start
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.records import read_environment, read_results
from paramgolf.runtime.rundir import CODE_NAME, RunDir
from paramgolf.scoring.bits_per_byte import shown_label
from paramgolf.verify.audit import AUDITED_POSITIONS, audit
from paramgolf.verify.audited_run import fresh_seed
from paramgolf.verify.facts import Agreement, Fact, equal, submitted
from paramgolf.verify.text_checks import is_fetched

MAX_BPB_DIFFERENCE = 0.02
"""Between two artifacts of one job: what seeds of `tiny` differ by
(docs/experiments/tiny-seeds.md); two machines differed by 0.013."""
_MAX_SAME_ARTIFACT = 1e-3  # rounding on another machine
MAX_RATIO = 3.0
"""How much faster than the rerun a run on the same hardware may claim to have been: the rerun may
share its machine with other work."""
_MIN_SECONDS = 5.0  # of a difference between two times, below which it is noise


@dataclass(frozen=True)
class Claims:
    """What the folder of a run, bundle or submission claims."""

    recipe: str
    config: RunConfig
    results: dict[str, Any]
    hardware: tuple[Any, ...] | None
    """Platform, GPU, threads and ranks; None: not recorded."""
    texts: dict[str, str]
    """SHA-256 of every text that shaped the weights, by its name in the provenance."""
    artifact_sha256: str
    """Of the file."""
    tokenizer: Path
    """The file in the folder."""
    trains_tokenizer: bool
    """Whether the run says that it trained its tokenizer on its text."""

    @classmethod
    def read(cls, folder: Path) -> Claims:
        """Read a folder; nothing in it is executed.

        Raises:
            UserError: if it is not that of a finished run, a bundle or a submission.
        """
        run = RunDir(folder)
        if not run.results_file.is_file() or not run.artifact.is_file():
            raise UserError(
                f"{folder} is neither a finished run nor a bundle nor a submission: it has no "
                "results.json and model.bin"
            )
        results = read_results(run)
        try:
            if run.config_file.is_file():
                _, recipe, config = RunDir.open(folder)
            else:
                recipe, config = (
                    results["recipe"],
                    from_json(RunConfig, configuration_in(folder / CODE_NAME)),
                )
                source = results["corpus"]["source"]
                config = dataclasses.replace(
                    config, data=dataclasses.replace(config.data, source=source)
                )
            hardware = None
            if (folder / "environment.json").is_file():
                environment = read_environment(run)
                parts = (environment[key] for key in ("platform", "gpu", "cpu_threads"))
                hardware = (*parts, results["num_ranks"]["train"])
            trains = results["tokenizer"]["claim"] == "trained"
            if run.config_file.is_file():
                trains = not config.data.tokenizer
            provenance = Provenance.load(run.provenance)
            texts = {name: text.sha256 for name, text in provenance.texts.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the files in {folder} are not those of a run: {error!r}") from error
        tokenizer = run.tokenizer.resolve()
        artifact = sha256_of_file(run.artifact)
        return cls(recipe, config, results, hardware, texts, artifact, tokenizer, trains)


@dataclass(frozen=True)
class Verification:
    """All facts, and the run that was made again."""

    facts: list[Fact]
    same_artifact: bool
    rerun: Path
    seed: int

    @property
    def failed(self) -> list[str]:
        """Names of the facts that do not agree."""
        return [fact.name for fact in self.facts if fact.agrees == "NO"]

    def verdict(self) -> str:
        """Return the outcome in one sentence."""
        if self.failed:
            return f"NOT verified: {', '.join(self.failed)} not confirmed by the rerun"
        shown = [fact.name for fact in self.facts if fact.agrees == "shown"]
        rest = f"; not comparable here: {', '.join(shown)}" if shown else ""
        if self.same_artifact:
            return f"verified for seed {self.seed}: the rerun made the same artifact{rest}"
        return (
            f"verified for seed {self.seed} within limits: the rerun made another artifact, whose "
            f"scores are within {MAX_BPB_DIFFERENCE} BPB{rest}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "verified": not self.failed,
            "verdict": self.verdict(),
            "seed": self.seed,
            "same_artifact": self.same_artifact,
            "facts": [fact._asdict() for fact in self.facts],
            "rerun": str(self.rerun),
        }


def verify(folder: Path, source: Path | None, out: Path, reporter: Reporter) -> Verification:
    """Make the run of a folder again in `out`, and compare.

    Args:
        folder: a finished run, a bundle or a submission (its run is that of the submitted model).
        source: the folder with the text; None: as configured.
        out: a new directory, or that of an earlier, perhaps interrupted, run of the same job.
        reporter: the console.

    Raises:
        UserError: if the folder is none of these, the text is not at hand, or the run fails.
    """
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out} is the run to verify: name another directory")
    claims = Claims.read(folder)
    facts, is_compliant = [], False
    if (folder / "submission.json").exists():
        facts, is_compliant = submitted(folder)
    config = job(claims, folder, source)
    if RunDir(out).config_file.exists():
        if dataclasses.replace(RunDir.open(out)[2], device=config.device) != config:
            raise UserError(f"{out} contains another run: name a new directory with --out")
        resume(out, reporter)
    else:
        start(claims.recipe, config, out, None, reporter)
    again = Claims.read(out)
    same = again.artifact_sha256 == claims.artifact_sha256
    facts += compare_claims(claims, again)
    tokenizer = claims.results["tokenizer"]
    if is_self_reported(tokenizer):
        facts.append(_fetched_again(tokenizer))
    if is_compliant:
        facts.append(_audited_again(out, config, reporter))
    return Verification(facts, same, out, config.seed)


def _audited_again(rerun: Path, config: RunConfig, reporter: Reporter) -> Fact:
    """Audit the rerun of a submission that is said to be compliant: its audits may be forged."""
    reporter.line("audit of the rerun")
    runtime = select_runtime(config.device)
    found = audit(rerun, AUDITED_POSITIONS, fresh_seed(), runtime, reporter)
    said = "passes" if found.passed else ", ".join(found.failed or found.unverified)
    return Fact("audit of the rerun", "passes", said, "yes" if found.passed else "NO")


def _fetched_again(tokenizer: dict[str, Any], endpoint: str | None = None) -> Fact:
    """Fetch a tokenizer from where a run says that `data fetch` fetched it, and compare.

    Args:
        tokenizer: its entry in results.json.
        endpoint: address of the hub; None: the usual one.
    """
    name, origin = "origin of tokenizer", tokenizer["origin"] or {}
    if not is_fetched(origin):
        return Fact(name, "known", "not on the list, and not fetched", "NO")
    claimed = f"{tokenizer['sha256'][:16]} in {origin['repo']} at {origin['revision'][:12]}"
    try:
        digest = fetched_tokenizer(origin["repo"], origin["revision"], origin["dataset"], endpoint)
    except Unreachable as error:
        return Fact(name, claimed, f"could not be verified: {error}", "shown")
    except UserError as error:
        return Fact(name, claimed, str(error), "NO")
    return Fact(name, claimed, digest[:16], "yes" if digest == tokenizer["sha256"] else "NO")


def job(claims: Claims, folder: Path, source: Path | None) -> RunConfig:
    """Return the configuration with the text and tokenizer that are at hand.

    A tokenizer that the run claims to have trained on its text is trained again.

    Raises:
        UserError: if the text is not at hand.
    """
    data = claims.config.data
    name = str(source.resolve()) if source else data.source
    if not source and name != "stdlib" and not (Path(name).is_absolute() and Path(name).is_dir()):
        raise UserError(f"the text of {folder}, {name!r}, is not here: name its folder by --source")
    tokenizer = str(claims.tokenizer)
    if data.tokenizer and Path(data.tokenizer).is_file():
        tokenizer = data.tokenizer
    elif kind_of_text(name) == "shards":
        if (Path(name) / "tokenizer.model").is_file():
            tokenizer = ""
    elif claims.trains_tokenizer:
        tokenizer = ""
    return dataclasses.replace(
        claims.config, data=dataclasses.replace(data, source=name, tokenizer=tokenizer)
    )


def compare_claims(claims: Claims, again: Claims) -> list[Fact]:
    """Compare what a run claims with what its rerun measured.

    Raises:
        UserError: if the results lack a key.
    """
    try:
        return [*_content(claims, again), *_scores(claims, again), *_pace(claims, again)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the results to verify are not those of a run: {error!r}") from error


def _content(claims: Claims, again: Claims) -> list[Fact]:
    """Compare hashes: of the texts, the tokenizer and the artifact."""
    ours, theirs = claims.results, again.results
    facts = [
        equal("scored text", ours["text"]["sha256"], theirs["text"]["sha256"]),
        equal("corpus", ours["corpus"]["sha256"], theirs["corpus"]["sha256"]),
        equal("tokenizer", ours["tokenizer"]["sha256"], theirs["tokenizer"]["sha256"]),
        _tokenizer_claim(claims, again),
        equal("text restored as", ours["tokenizer"]["restores"], theirs["tokenizer"]["restores"]),
    ]
    facts += [
        equal(f"provenance: {name}", claims.texts.get(name), again.texts.get(name))
        for name in sorted(claims.texts.keys() | again.texts.keys())
    ]
    artifact = equal("artifact", claims.artifact_sha256, again.artifact_sha256)
    if ours["artifact_sha256"] != claims.artifact_sha256:
        artifact = equal("artifact", ours["artifact_sha256"], claims.artifact_sha256)
    elif artifact.agrees == "NO":  # the scores decide
        artifact = artifact._replace(agrees="shown")
    facts.append(artifact)
    facts.append(equal("parameters", ours["parameters"], theirs["parameters"]))
    return facts


def _tokenizer_claim(claims: Claims, again: Claims) -> Fact:
    """Compare where the tokenizer comes from.

    A rerun that was given the folder's own tokenizer repeats what the results beside it say.
    """
    ours, theirs = claims.results["tokenizer"], again.results["tokenizer"]
    fact = equal("tokenizer is", ours["claim"], theirs["claim"])
    repeated = again.config.data.tokenizer == str(claims.tokenizer)
    if repeated and ours["claim"] != "given" and theirs["sha256"] not in KNOWN:
        return fact._replace(agrees="shown")
    return fact


def _scores(claims: Claims, again: Claims) -> list[Fact]:
    """Compare every score and its label."""
    ours, theirs = claims.results["stages"], again.results["stages"]
    same = claims.artifact_sha256 == again.artifact_sha256
    limit = _MAX_SAME_ARTIFACT if same else MAX_BPB_DIFFERENCE
    facts = []
    for stage in dict.fromkeys([*ours, *theirs]):
        name, one, other = f"BPB, {stage}", ours.get(stage), theirs.get(stage)
        if one is None or other is None:
            facts.append(Fact(name, _described(one), _described(other), "NO"))
            continue
        close = abs(one["bpb"] - other["bpb"]) <= limit  # no NaN is
        alike = all(one[key] == other[key] for key in ("label", "tokens", "bytes", "bytes_are"))
        good = close and alike
        facts.append(Fact(name, _described(one), _described(other), "yes" if good else "NO"))
    return facts


def _described(score: dict[str, Any] | None) -> str:
    if score is None:
        return "none"
    label = shown_label(score["label"], score["bytes_are"])
    return f"{score['bpb']:.4f} {label}, {score['tokens']:,} tokens, {score['bytes']:,} bytes"


def _pace(claims: Claims, again: Claims) -> list[Fact]:
    """Compare steps, speed and seconds: on the same hardware, no run is much faster than another.

    A run that claims more time than its rerun took is slower, on a busy machine perhaps, and gains
    nothing by that.
    """
    ours, theirs = claims.results, again.results
    comparable = claims.hardware is not None and claims.hardware == again.hardware
    if claims.config.train.max_steps:
        facts = [equal("steps", ours["steps"], theirs["steps"])]
    else:
        facts = [_not_above("steps", ours["steps"], theirs["steps"], comparable)]
    for name in theirs["tokens_per_second"]:
        one, other = (results["tokens_per_second"][name] for results in (ours, theirs))
        # That they follow from tokens and seconds is the audit's matter; a short phase is noise.
        facts.append(Fact(f"tokens/s, {name}", _rate(one), _rate(other), "not judged"))
    for budget in ("training", "evaluation"):
        one, other = (results["budgets"][budget] for results in (ours, theirs))
        agrees: Agreement = "shown"
        if comparable:
            agrees = "yes" if one >= min(other / MAX_RATIO, other - _MIN_SECONDS) else "NO"
        facts.append(Fact(f"seconds, {budget}", f"{one:,.1f}", f"{other:,.1f}", agrees))
    return facts


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _not_above(name: str, claimed: float, found: float, comparable: bool) -> Fact:
    """Return a fact that disagrees if the claim is much above what the rerun reached."""
    agrees: Agreement = "shown"
    if comparable:
        agrees = "yes" if claimed <= found * MAX_RATIO else "NO"
    return Fact(name, f"{claimed:,.0f}", f"{found:,.0f}", agrees)
