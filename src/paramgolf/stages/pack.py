"""Quantization and packing: Hessians, GPTQ, one file under the byte budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from paramgolf.compress import artifact
from paramgolf.compress.artifact import Artifact, Quantized
from paramgolf.compress.clip import row_scales
from paramgolf.compress.gptq import factor_hessians, report, solve
from paramgolf.compress.hessian import EMBEDDING, collect_hessians, input_of
from paramgolf.config import PackConfig
from paramgolf.data.batches import SequenceSampler
from paramgolf.data.provenance import Provenance
from paramgolf.distributed import Ranks, wait
from paramgolf.errors import UserError
from paramgolf.job import Job
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.rundir import read_tensors, sha256_of_file, write_bytes, write_json


def run(job: Job) -> dict[str, Any]:
    """Quantize the final weights and write artifact and provenance; returns the stage's record."""
    pack, run, ledger, ranks = job.config.pack, job.run, job.ledger, job.runtime.ranks
    with ledger.phase("pack: Hessians"):
        weights, _ = read_tensors(run.adapted if job.adapted_on else run.trained)
        hessians = _hessians(job, weights)
        job.runtime.synchronize()
    with ledger.phase("pack: GPTQ"):
        matrix_shapes, vector_shapes = artifact.layout(job.config.model)
        matrices = {name: weights[name].to(job.runtime.device) for name in matrix_shapes}
        try:
            quantized, dampings = quantize(matrices, hessians, pack, ranks)
        except ValueError as error:
            raise UserError(f"cannot quantize: {error}; see the training loss") from error
        job.runtime.synchronize()
    if not ranks.main:
        return {}
    raised = {name: damping for name, damping in dampings.items() if damping > pack.damping}
    for name, damping in raised.items():
        run.event("damping_raised", matrix=name, damping=damping)
    with ledger.phase("pack: measure"):
        _write_reports(job, matrices, hessians, quantized, dampings)
    with ledger.phase("pack: code and write"):
        vectors = {name: _short(name, weights[name]) for name in vector_shapes}
        by_part = _write_artifact(job, quantized, vectors)
    size = run.artifact.stat().st_size
    if size > pack.budget_bytes:
        raise UserError(
            f"{run.artifact} takes {size:,} bytes, over pack.budget_bytes = "
            f"{pack.budget_bytes:,}; go on from the trained weights with a larger clip: "
            f"--from {run.path} --pack.matrix-clip {pack.matrix_clip * 1.02:.2f}"
        )
    return {
        "artifact_bytes": size,
        "budget_bytes": pack.budget_bytes,
        "bytes_by_part": by_part,
        "artifact_sha256": sha256_of_file(run.artifact),
        "raised_dampings": raised,
    }


def _write_reports(
    job: Job,
    matrices: dict[str, Tensor],
    hessians: dict[str, Tensor],
    quantized: dict[str, Quantized],
    dampings: dict[str, float],
) -> None:
    reports = {}
    for name, matrix in matrices.items():
        bits, clip = _precision(name, job.config.pack)
        integers = quantized[name].integers.to(matrix.device)
        scales = quantized[name].scales.to(matrix.device)
        measured = report(matrix, hessians[input_of(name)], integers, scales, bits, dampings[name])
        reports[name] = {"bits": bits, "clip": clip, **measured._asdict()}
    write_json(job.run.quantization_file, reports)


def _write_artifact(
    job: Job, quantized: dict[str, Quantized], vectors: dict[str, Tensor]
) -> dict[str, int]:
    """Write artifact and provenance; gives the artifact's bytes by part."""
    config, run = job.config, job.run
    known = Provenance.load(run.data / "shingles.safetensors").of("train", *job.adapted_on)
    known.save(run.provenance)
    content, by_part = artifact.encode(
        Artifact(
            model=config.model,
            matrix_bits=config.pack.matrix_bits,
            embedding_bits=config.pack.embedding_bits,
            tokenizer_sha256=job.text.tokenizer_sha256,
            provenance_sha256=sha256_of_file(run.provenance),
            stride=config.score.stride,
            matrices=quantized,
            vectors=vectors,
        ),
        job.reporter.progress("pack", unit="bytes").update,
    )
    write_bytes(run.artifact, content)
    return by_part


def _precision(name: str, config: PackConfig) -> tuple[int, float]:
    """Bits and clip of a matrix."""
    if name == EMBEDDING:
        return config.embedding_bits, config.embedding_clip
    return config.matrix_bits, config.matrix_clip


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


def quantize(
    matrices: dict[str, Tensor],
    hessians: dict[str, Tensor],
    config: PackConfig,
    ranks: Ranks | None = None,
) -> tuple[dict[str, Quantized], dict[str, float]]:
    """GPTQ with SDClip of all matrices, those of one shape and precision in one batch.

    Of several ranks, each takes every W-th matrix of a batch.

    Returns:
        Integers and scales on the CPU, and the damping that each Hessian took, by name in the order
        given; of all matrices on rank 0, of none elsewhere.
    """
    ranks = ranks or Ranks()
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        groups[matrix.shape, _precision(name, config)].append(name)
    quantized: dict[str, Quantized] = {}
    dampings: dict[str, float] = {}
    for (_, (bits, clip)), group in groups.items():
        names = ranks.mine(group)
        if not names:
            continue
        stacked = torch.stack([matrices[name] for name in names])
        factor = factor_hessians(
            torch.stack([hessians[input_of(name)] for name in names]), config.damping
        )
        scales = row_scales(stacked, bits, clip)
        integers = solve(stacked, factor, scales, bits)
        for name, q, s, damping in zip(
            names, integers, scales, factor.damping_M.tolist(), strict=True
        ):
            quantized[name] = Quantized(q.cpu(), s.cpu())
            dampings[name] = damping
    for theirs, their_dampings in ranks.gather_to_main((quantized, dampings)):
        quantized, dampings = quantized | theirs, dampings | their_dampings
    if not ranks.main:
        return {}, {}
    return {name: quantized[name] for name in matrices}, dampings
