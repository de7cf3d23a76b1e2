"""Quantization and packing: Hessians, GPTQ, code and model that fill the byte budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paramgolf.code import code_file
from paramgolf.compress import artifact, fit
from paramgolf.compress.artifact import Artifact, Quantized
from paramgolf.compress.gptq import report
from paramgolf.compress.hessian import collect_hessians, input_of
from paramgolf.compress.quantize import precision, quantize
from paramgolf.config import PackConfig
from paramgolf.data.batches import SequenceSampler
from paramgolf.data.provenance import Provenance
from paramgolf.distributed import wait
from paramgolf.errors import UserError
from paramgolf.job import Job
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.rundir import read_tensors, sha256_of_file, write_bytes, write_json


def run(job: Job) -> dict[str, Any]:
    """Quantize the final weights, fill the budget, write artifact, provenance and code file.

    Returns:
        The stage's record.
    """
    pack, run, ledger, ranks = job.config.pack, job.run, job.ledger, job.runtime.ranks
    with ledger.phase("pack: Hessians"):
        weights, _ = read_tensors(run.adapted if job.adapted_on else run.trained)
        hessians = _hessians(job, weights)
        job.runtime.synchronize()
    with ledger.phase("pack: build code file"):
        code = code_file(job.config) if ranks.main else b""
        if ranks.main:
            known = Provenance.load(run.data / "shingles.safetensors").of("train", *job.adapted_on)
            known.save(run.provenance)
    # In whole kilobytes, so that a digit more in the configuration does not change the weights.
    packed = _fill(job, weights, hessians, pack.budget_bytes - -(-len(code) // 1024) * 1024)
    if packed is None:
        return {}
    raised = {name: d for name, d in packed.dampings.items() if d > pack.damping}
    for name, damping in raised.items():
        run.event("damping_raised", matrix=name, damping=damping)
    with ledger.phase("pack: measure"):
        _write_reports(job, weights, hessians, packed)
    with ledger.phase("pack: write"):
        write_bytes(run.artifact, packed.content)
        write_bytes(run.code, code)
    model_bytes, code_bytes = run.artifact.stat().st_size, run.code.stat().st_size
    return {
        "bytes": {
            "total": model_bytes + code_bytes,
            "budget": pack.budget_bytes,
            "model": model_bytes,
            "code": code_bytes,
            "tokenizer": run.tokenizer.stat().st_size,
            "by_part": packed.by_part,
        },
        "clip": {"matrix": packed.pack.matrix_clip, "embedding": packed.pack.embedding_clip},
        "artifact_sha256": sha256_of_file(run.artifact),
        "raised_dampings": raised,
    }


class _Packed(NamedTuple):
    """What one solve gave."""

    pack: PackConfig
    """With the clips that were used."""
    quantized: dict[str, Quantized]
    dampings: dict[str, float]
    content: bytes
    by_part: dict[str, int]


def _fill(
    job: Job, weights: dict[str, Tensor], hessians: dict[str, Tensor], limit: int
) -> _Packed | None:
    """Quantize with the clips that fill `limit` bytes; gives nothing on ranks other than 0.

    Raises:
        UserError: if not even the widest clips come under the limit.
    """
    ranks, pack = job.runtime.ranks, job.config.pack
    names = artifact.layout(job.config.model)[0]
    matrices = {name: weights[name].to(job.runtime.device) for name in names}
    num_weights = sum(matrix.numel() for matrix in matrices.values())
    tried: list[fit.Solve] = []
    best: _Packed | None = None
    clip = pack.matrix_clip
    for _ in range(fit.MOST_SOLVES):
        packed = _packed(job, weights, matrices, hessians, clip)
        again = False
        if packed is not None:
            tried.append(fit.Solve(clip, len(packed.content)))
            job.run.event("packed", clip=clip, model_bytes=tried[-1].size, limit_bytes=limit)
            job.reporter.line(f"  pack      clip {clip:.3f}  {tried[-1].size:,} of {limit:,} bytes")
            if tried[-1].size <= limit and (best is None or tried[-1].size > len(best.content)):
                best = packed
            clip = fit.next_clip(tried, limit, num_weights)
            again = not fit.fills(tried[-1].size, limit) and clip != tried[-1].clip
            again = again and (pack.fill_budget or best is None)
        again, clip = ranks.from_main((again, clip))
        if not again:
            break
    if ranks.main and best is None:
        nearest = min(tried, key=lambda solve: solve.size)
        raise UserError(
            f"pack.budget_bytes = {pack.budget_bytes:,} cannot be met: the nearest size possible "
            f"is {pack.budget_bytes - limit + nearest.size:,} bytes (clip {nearest.clip:.2f}); go "
            f"on from the trained weights with --from {job.run.path} --pack.budget-bytes"
        )
    return best


def _packed(
    job: Job,
    weights: dict[str, Tensor],
    matrices: dict[str, Tensor],
    hessians: dict[str, Tensor],
    clip: float,
) -> _Packed | None:
    """One solve with a clip for the matrices and its share for the embedding, coded."""
    config, run = job.config, job.run
    share = config.pack.embedding_clip / config.pack.matrix_clip
    pack = replace(config.pack, matrix_clip=clip, embedding_clip=clip * share)
    with job.ledger.phase("pack: GPTQ"):
        try:
            quantized, dampings = quantize(matrices, hessians, pack, job.runtime.ranks)
        except ValueError as error:
            raise UserError(f"cannot quantize: {error}; see the training loss") from error
        job.runtime.synchronize()
    if not job.runtime.ranks.main:
        return None
    with job.ledger.phase("pack: code weights"):
        content, by_part = artifact.encode(
            Artifact(
                model=config.model,
                matrix_bits=pack.matrix_bits,
                embedding_bits=pack.embedding_bits,
                tokenizer_sha256=job.text.tokenizer_sha256,
                provenance_sha256=sha256_of_file(run.provenance),
                stride=config.score.stride,
                matrices=quantized,
                vectors={
                    name: _short(name, weights[name]) for name in artifact.layout(config.model)[1]
                },
            ),
            job.reporter.progress("pack", unit="weights").update,
        )
    return _Packed(pack, quantized, dampings, content, by_part)


def _write_reports(
    job: Job, weights: dict[str, Tensor], hessians: dict[str, Tensor], packed: _Packed
) -> None:
    reports = {}
    for name, quantized in packed.quantized.items():
        bits, clip = precision(name, packed.pack)
        hessian = hessians[input_of(name)]
        matrix, integers, scales = (
            tensor.to(hessian.device)
            for tensor in (weights[name], quantized.integers, quantized.scales)
        )
        measured = report(matrix, hessian, integers, scales, bits, packed.dampings[name])
        reports[name] = {"bits": bits, "clip": clip, **measured._asdict()}
    write_json(job.run.quantization_file, reports)


def _short(name: str, vector: Tensor) -> Tensor:
    """A vector as the model computes with it on a GPU."""
    short = vector.to(torch.bfloat16)
    if not bool(short.isfinite().all()):
        raise UserError(f"{name} is not finite: the weights have diverged")
    return short


def _hessians(job: Job, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hessians over batches of training text, drawn in an order of their own.

    Every rank sees its share of the batches; then all have the sum.
    """
    config, runtime = job.config, job.runtime
    seq_len = config.model.seq_len
    model = GPT(config.model, runtime.dtype)
    model.load_state_dict(weights)
    model.to(runtime.device)
    if runtime.compiled:
        model.compile_parts()
    shards = job.text.shards("train", job.run.data)
    sampler = SequenceSampler(shards, seq_len, config.seed, "calibration")
    rows = config.pack.calibration_batch_tokens // seq_len

    numbers = runtime.ranks.mine(range(config.pack.calibration_batches))

    def batches() -> Iterator[Tensor]:
        for number in numbers:
            sequences = sampler.sequences(number * rows, rows)[:, :-1]
            yield sequences.to(runtime.device, non_blocking=True)

    progress = job.reporter.progress("hessians", len(numbers), "batches")
    order = layer_order(config.model, recurrent=True)
    hessians = collect_hessians(model, order, batches(), progress.update)
    sums = [runtime.ranks.start_sum_(hessian) for hessian in hessians.values()]
    for work in sums:
        wait(work)
    return hessians
