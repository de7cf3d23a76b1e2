"""Quantization and packing: a code file and a model that fill the byte budget together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from paramgolf.codefile.running import code_file
from paramgolf.compress import artifact, fit
from paramgolf.compress.artifact import Artifact
from paramgolf.compress.gptq import report
from paramgolf.compress.hessian import collect_hessians
from paramgolf.compress.quantize import Quantizer
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.sensitivity import divergences
from paramgolf.data.batches import SequenceSampler
from paramgolf.data.claims import counted_bytes
from paramgolf.data.provenance import Provenance
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import EMBEDDING, input_of
from paramgolf.runtime.files import read_tensors, sha256_of_file, write_bytes, write_json
from paramgolf.runtime.ranks import SERIAL_SECONDS, wait
from paramgolf.stages.job import Job

_T = TypeVar("_T")
_CODE_UNIT = 256
_DIVERGENCE_TOKENS = 16_384


def run(job: Job) -> dict[str, Any]:
    """Quantize the final weights to fill the budget; write artifact, provenance and code file.

    Returns:
        The stage result.
    """
    pack, run, ledger, ranks = job.config.pack, job.run, job.ledger, job.runtime.ranks
    with ledger.phase("pack: Hessians"):
        weights, _ = read_tensors(run.adapted if job.adapted_on else run.trained)
        calibration = _Calibration(job, weights)
        hessians = calibration.hessians()
        job.runtime.synchronize()
    with ledger.phase("pack: build code file"):
        code = code_file(job.config) if ranks.main else b""
        if ranks.main:
            known = Provenance.load(run.data / "provenance.safetensors")
            adaptation = ", ".join(job.adapted_on) or "none"
            uses = known.uses | {"adaptation": adaptation}
            replace(known.of("train", *job.adapted_on), uses=uses).save(run.provenance)
    counted = counted_bytes((run.stage_result("prepare") or {})["tokenizer"])
    # In whole units, so that one digit more in the configuration does not change the weights.
    reserved_bytes = -(-len(code) // _CODE_UNIT) * _CODE_UNIT
    with ledger.phase("pack: GPTQ"):
        packer = _Packer(job, weights, hessians, pack.budget_bytes - reserved_bytes - counted)
        job.runtime.synchronize()
    packed = _fill(job, packer, calibration)
    if packed is None:
        return {}
    raised = {name: d for name, d in packer.dampings.items() if d > pack.damping}
    for name, damping in raised.items():
        run.event("damping_raised", matrix=name, damping=damping)
    with ledger.phase("pack: measure"):
        _write_reports(job, weights, hessians, packer.dampings, packed)
    with ledger.phase("pack: write"):
        write_bytes(run.artifact, packed.content)
        write_bytes(run.code, code)
    model_bytes, code_bytes = run.artifact.stat().st_size, run.code.stat().st_size
    return {
        "bytes": {
            "total": model_bytes + code_bytes + counted,
            "budget": pack.budget_bytes,
            "model": model_bytes,
            "code": code_bytes,
            "tokenizer": run.tokenizer.stat().st_size,
            "by_part": packed.by_part,
        },
        "artifact_sha256": sha256_of_file(run.artifact),
        "raised_dampings": raised,
    }


class _Packed(NamedTuple):
    """The model as one solve quantized it."""

    bin_widths: dict[str, float]
    quantized: dict[str, Quantized]
    content: bytes
    by_part: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of the artifact."""
        return len(self.content)


class _Packer:
    """Quantizes and codes the weights with any bin widths: all ranks solve, rank 0 codes.

    Attributes:
        limit: bytes that the artifact may take.
        own: the matrices that this rank quantized last.
        sizes: weights of every matrix.
        spreads, dampings: see `Quantizer`; of all matrices on rank 0.
    """

    def __init__(
        self, job: Job, weights: dict[str, Tensor], hessians: dict[str, Tensor], limit: int
    ) -> None:
        self._job, self._ranks = job, job.runtime.ranks
        self.limit, self._solves = limit, 0
        shapes, vectors = layout(job.config.model)
        self._vectors = {name: _short(name, weights[name]) for name in vectors}
        matrices = {name: weights[name].to(job.runtime.device) for name in shapes}
        self.sizes = {name: matrix.numel() for name, matrix in matrices.items()}
        pack = job.config.pack
        try:
            self._quantizer = Quantizer(
                matrices, hessians, pack.damping, pack.split == "measured", self._ranks
            )
        except ValueError as error:
            raise UserError(f"cannot quantize: {error}; see the training loss") from error
        self.own: dict[str, Quantized] = {}
        self.spreads = self._gathered(self._quantizer.spreads)
        self.dampings = self._gathered(self._quantizer.dampings)

    def first_bin_widths(self) -> dict[str, float]:
        """Return those of the configuration."""
        pack = self._job.config.pack
        bin_widths = dict.fromkeys(self.sizes, pack.matrix_bin_width)
        return bin_widths | {EMBEDDING: pack.embedding_bin_width}

    def pack(self, bin_widths: dict[str, float]) -> _Packed | None:
        """Quantize and code with the bin widths given; None on ranks other than 0."""
        job = self._job
        with job.ledger.phase("pack: GPTQ"):
            try:
                self.own = self._quantizer.solve(bin_widths)
            except ValueError as error:
                raise UserError(f"cannot quantize: {error}; see the training loss") from error
            quantized = self._gathered(self.own)
            job.runtime.synchronize()
        if not self._ranks.main:
            return None
        with job.ledger.phase("pack: code weights"):
            content, by_part = artifact.encode(
                Artifact(
                    model=job.config.model,
                    tokenizer_sha256=job.text.tokenizer_sha256,
                    provenance_sha256=sha256_of_file(job.run.provenance),
                    stride=job.config.score.stride,
                    score_first=job.config.score_first,
                    matrices=quantized,
                    vectors=self._vectors,
                )
            )
        packed = _Packed(bin_widths, quantized, content, by_part)
        self._solves += 1
        job.run.event(
            "packed", model_bytes=packed.size, limit_bytes=self.limit, bin_widths=bin_widths
        )
        job.reporter.detail(
            f"  pack      solve {self._solves}  {packed.size:,} of {self.limit:,} bytes"
        )
        return packed

    def _gathered(self, own: dict[str, _T]) -> dict[str, _T]:
        """Collect the matrices of all ranks in the model's order; empty on ranks other than 0."""
        parts = self._ranks.gather_to_main(own, SERIAL_SECONDS)
        everything = {name: value for part in parts for name, value in part.items()}
        return {name: everything[name] for name in self.sizes} if self._ranks.main else {}


def _fill(job: Job, packer: _Packer, calibration: _Calibration) -> _Packed | None:
    """Quantize with the bin widths that fill the limit; None on ranks other than 0.

    Measures a solve with the configured bin widths, balances these by what quantizing each matrix
    costs, and corrects their common factor until the size fits.

    Raises:
        UserError: if not even the widest bins fit.
    """
    first = packer.pack(packer.first_bin_widths())
    balance = job.config.pack.split == "measured"
    divergences = calibration.divergences(packer.own) if balance else {}
    search, solves = None, []
    if first is not None:
        target = packer.limit if job.config.pack.fill_budget else min(packer.limit, first.size)
        rate = fit.RateModel(packer.spreads)
        if balance:
            rate.learn(first.bin_widths, first.size)
            job.run.event("divergences", nats=divergences)
            balanced = fit.balanced(first.bin_widths, divergences, packer.sizes)
            search = fit.Search(balanced, rate, target)
        else:
            search = fit.Search(first.bin_widths, rate, target)
            search.add(first.bin_widths, first.size)
            solves.append(first)
    while True:
        with job.ledger.phase("pack: fill the budget"):
            bin_widths = search.next_widths() if search else None
            bin_widths = job.runtime.ranks.from_main(bin_widths, SERIAL_SECONDS)
        if bin_widths is None:
            return _best(job, solves, search.target, packer.limit) if search else None
        packed = packer.pack(bin_widths)
        if packed and search:
            search.add(packed.bin_widths, packed.size)
            solves.append(packed)


def _best(job: Job, solves: list[_Packed], target: int, limit: int) -> _Packed:
    """Choose the largest solve within the target; report a budget that is not filled.

    Raises:
        UserError: if none is.
    """
    fitting = [packed for packed in solves if packed.size <= target]
    if not fitting:
        budget = job.config.pack.budget_bytes
        # Another budget is another number in the code file, which may take one more unit.
        least = budget - limit + min(packed.size for packed in solves) + _CODE_UNIT
        raise UserError(
            f"pack.budget_bytes = {budget:,} cannot be met: with the widest bins the files take "
            f"{least:,} bytes; start from the trained weights with "
            f"--from {job.run.path} --pack.budget-bytes {least}"
        )
    best = max(fitting, key=lambda packed: packed.size)
    left = limit - best.size
    if job.config.pack.fill_budget and left >= fit.SLACK_BYTES:
        finest = max(best.bin_widths.values()) <= fit.MIN_BIN_WIDTH
        reason = "all bins are at their narrowest" if finest else "no other solve came closer"
        job.run.event("budget_not_filled", model_bytes=best.size, limit_bytes=limit)
        job.reporter.line(f"  pack      {left:,} bytes of the budget are left: {reason}")
    return best


def _write_reports(
    job: Job,
    weights: dict[str, Tensor],
    hessians: dict[str, Tensor],
    dampings: dict[str, float],
    packed: _Packed,
) -> None:
    reports = {}
    for name, quantized in packed.quantized.items():
        hessian = hessians[input_of(name)]
        matrix, integers, scales = (
            tensor.to(hessian.device)
            for tensor in (weights[name], quantized.integers, quantized.scales())
        )
        measured = report(matrix, hessian, integers, scales, dampings[name])
        reports[name] = {"bin_width": packed.bin_widths[name], **measured._asdict()}
    write_json(job.run.quantization_file, reports)


def _short(name: str, vector: Tensor) -> Tensor:
    """Return a vector in bfloat16, in which GPUs compute with it."""
    short = vector.to(torch.bfloat16)
    if not bool(short.isfinite().all()):
        raise UserError(f"{name} is not finite: the weights have diverged")
    return short


class _Calibration:
    """The model in full precision, and batches of training text drawn by a separate generator."""

    def __init__(self, job: Job, weights: dict[str, Tensor]) -> None:
        config, runtime = job.config, job.runtime
        self._config, self._runtime, self._reporter = config, runtime, job.reporter
        self._ledger = job.ledger
        self._order = layer_order(config.model, recurrent=True)
        self._weights = weights
        shards = job.text.shards("train", job.run.data)
        self._sampler = SequenceSampler(shards, config.model.seq_len, config.seed, "calibration")

    def hessians(self) -> dict[str, Tensor]:
        """See `collect_hessians`; every rank takes a share of the batches, and all get the sum."""
        numbers = self._runtime.ranks.mine(range(self._config.pack.calibration_batches))
        progress = self._reporter.progress("hessians", len(numbers), "batches")
        batches = (self._batch(number) for number in numbers)
        model = self._model(self._runtime.dtype)
        model.accelerate()
        hessians = collect_hessians(model, self._order, batches, progress.update)
        sums = [self._runtime.ranks.start_sum_(hessian) for hessian in hessians.values()]
        for work in sums:
            wait(work)
        return hessians

    def divergences(self, own: dict[str, Quantized]) -> dict[str, float]:
        """Measure the nats per token that quantizing each of this rank's matrices costs.

        In float32: the rounding of bfloat16 alone makes two runs differ by more than quantizing a
        small matrix does (1.7e-4 against 2.4e-5 nats on the recipe tiny).

        Returns:
            All ranks' measurements by name; empty on ranks other than 0.
        """
        with self._ledger.phase("pack: sensitivities"):
            model = self._model(torch.promote_types(self._runtime.dtype, torch.float32))
            rows = max(1, _DIVERGENCE_TOKENS // self._config.model.seq_len)
            progress = self._reporter.progress("measure", len(own), "matrices")
            replacements = {name: matrix.dequantize() for name, matrix in own.items()}
            measured = divergences(
                model, self._order, self._batch(0)[:rows], replacements, progress.update
            )
            everyone = self._runtime.ranks.gather_to_main(measured)
        return {name: nats for part in everyone for name, nats in part.items()}

    def _model(self, dtype: torch.dtype) -> GPT:
        model = GPT(self._config.model, dtype)
        model.load_state_dict(self._weights)
        return model.to(self._runtime.device)

    def _batch(self, number: int) -> Tensor:
        rows = self._config.pack.calibration_batch_tokens // self._config.model.seq_len
        sequences = self._sampler.sequences(number * rows, rows)[:, :-1]
        return sequences.to(self._runtime.device, non_blocking=True)
