"""Seconds of the parts of packing: coding and decoding, sensitivities, Hessians.

Works on random weights, and on random integers whose entropies are those of the bench's artifact
(docs/experiments/coding.md). With a GPU: the model of the recipe h200; without: of tiny, and coding
of both. Cost: one to three minutes on two cores. Expected on two idle cores, OMP_NUM_THREADS=1:
h200's 36 M weights are coded in 2.1 s and decoded in 1.6 s, and two threads decode no faster.

    python scripts/pack_speed.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from paramgolf.compress.artifact import Artifact, decode, encode
from paramgolf.compress.entropy import Decoder, Encoder
from paramgolf.compress.hessian import collect_hessians
from paramgolf.compress.matrices import code_matrices
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import scales_from_exponents
from paramgolf.compress.sensitivity import divergences
from paramgolf.config import ModelConfig, RunConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import input_of, role
from paramgolf.recipes import RECIPES

BITS = {
    "embedding": 4.72, "query": 2.95, "key": 3.56, "value": 4.17, "output": 3.58, "up": 3.49,
    "down": 3.22,
}  # fmt: skip
"""Bits per weight on the bench, by role."""
SENSITIVITY_TOKENS = 16_384
BATCHES = 16


def synthetic(config: ModelConfig, seed: int = 0) -> Artifact:
    """Return an artifact of Gaussian integers whose spread differs between matrices and columns."""
    rng = np.random.default_rng(seed)
    shapes, vectors = layout(config)
    matrices, columns = {}, {}

    def scales(middle: int, count: int) -> torch.Tensor:
        return scales_from_exponents(torch.from_numpy(middle + rng.integers(-4, 5, count)))

    for name, (rows, width) in shapes.items():
        deviation = 2 ** (BITS[role(name)] - np.log2(2 * np.pi * np.e) / 2)
        spreads = deviation * rng.lognormal(0, 0.15) * rng.lognormal(0, 0.25, width)
        values = rng.standard_normal((rows, width)) * spreads
        integers = torch.from_numpy(np.rint(values).clip(-127, 127).astype(np.int8))
        shared = columns.setdefault(input_of(name), scales(0, width))
        matrices[name] = Quantized(integers, scales(-56, rows), shared)
    kept = {name: torch.randn(shape).bfloat16() for name, shape in vectors.items()}
    learning = RunConfig().score_first
    return Artifact(config, "0" * 64, "0" * 64, 64, learning, matrices, kept)


def seconds(function: Callable[[], object]) -> float:
    """Return the seconds of a call, with all work that it starts on the GPU."""
    begin = time.monotonic()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - begin


def row(what: str, *values: object) -> None:
    """Print a row of the table."""
    print("| " + " | ".join([what, *map(str, values)]) + " |", flush=True)


def coding(name: str, artifact: Artifact) -> None:
    """Time the container, and its integers with a thread for every role."""
    content, _ = encode(artifact)
    row(f"{name}: encode", f"{seconds(lambda: encode(artifact)):.2f}", f"{len(content):,} bytes")
    row(f"{name}: decode", f"{seconds(lambda: decode(content)):.2f}", "")
    roles: dict[str, list[np.ndarray]] = {}
    for matrix, quantized in artifact.matrices.items():
        roles.setdefault(role(matrix), []).append(quantized.integers.numpy())
    streams = []
    for matrices in roles.values():
        encoder, shapes = Encoder(), [matrix.shape for matrix in matrices]
        code_matrices(encoder, shapes, matrices)
        streams.append((encoder.content(), shapes))
    for threads in sorted({1, 2, os.cpu_count() or 1}):
        with ThreadPoolExecutor(threads) as pool:
            work = (lambda stream: code_matrices(Decoder(stream[0]), stream[1])), streams
            taken = seconds(lambda pool=pool, work=work: list(pool.map(*work)))
        row(f"{name}: decode integers, {threads} threads", f"{taken:.2f}", "")


def random_model(config: ModelConfig, dtype: torch.dtype, device: str) -> GPT:
    """Return a model in which no matrix is zero."""
    model, generator = GPT(config, dtype), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for name in layout(config)[0]:
            parameter = model.get_parameter(name)
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.to(device)


def sensitivities(config: ModelConfig, device: str) -> None:
    """Time the divergences of all matrices, in float32 and with TF32 products."""
    model = random_model(config, torch.float32, device)
    order = layer_order(config, recurrent=True)
    rows = SENSITIVITY_TOKENS // config.seq_len
    tokens = torch.randint(config.vocab_size, (rows, config.seq_len), device=device)
    replacements = {}
    for name in layout(config)[0]:
        weight = model.get_parameter(name).detach()
        step = 0.4 * weight.std()
        replacements[name] = (weight / step).round() * step
    found = {}
    for precision in ("highest", "high") if device == "cuda" else ("highest",):
        torch.set_float32_matmul_precision(precision)
        divergences(model, order, tokens[:1], dict(list(replacements.items())[:2]))

        def measure(precision: str = precision) -> None:
            found[precision] = divergences(model, order, tokens, replacements)

        row(
            f"sensitivities, {len(replacements)} matrices, {precision}",
            f"{seconds(measure):.2f}",
            "",
        )
    torch.set_float32_matmul_precision("highest")
    if len(found) == 2:
        errors = [abs(found["high"][n] / value - 1) for n, value in found["highest"].items()]
        row("TF32 against float32", "", f"largest error {max(errors):.2%}")


def hessians(config: ModelConfig, batch_tokens: int, device: str) -> None:
    """Time the Hessians in plain PyTorch and with the kernels."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    order, rows = layer_order(config, recurrent=True), batch_tokens // config.seq_len
    batches = [
        torch.randint(config.vocab_size, (rows, config.seq_len), device=device)
        for _ in range(BATCHES)
    ]
    for how in ("kernels", "eager") if device == "cuda" else ("eager",):
        model = random_model(config, dtype, device)
        if how == "kernels":
            model.accelerate()
        first = seconds(lambda model=model: collect_hessians(model, order, batches[:1]))
        rest = seconds(lambda model=model: collect_hessians(model, order, batches)) / BATCHES
        plain = seconds(lambda model=model: [_forward(model, order, batch) for batch in batches])
        note = f"first batch {first:.2f}, of a batch the forward pass {plain / BATCHES:.4f}"
        row(f"Hessians of a batch, {how}", f"{rest:.4f}", note)
        del model


@torch.no_grad()
def _forward(model: GPT, order: object, batch: torch.Tensor) -> None:
    model(batch, order)


def grams(tokens: int) -> None:
    """Time X^T X of one batch, as one product and as the sum of eight."""
    for columns in (512, 2048):
        x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
        parts = x.view(8, -1, columns)
        for what, function in {
            "one": lambda x=x: torch.mm(x.T, x, out_dtype=torch.float32),
            "eight": lambda p=parts: torch.bmm(p.mT, p, out_dtype=torch.float32).sum(0),
        }.items():
            function()
            taken = seconds(lambda function=function: [function() for _ in range(20)]) / 20
            row(f"gram of {columns} columns, {what}", f"{taken:.5f}", "")


def main() -> None:
    """Print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("| what | seconds | |\n|---|---:|---|")
    for name in ("tiny", "h200"):
        coding(name, synthetic(RECIPES[name][1].model))
    recipe = RECIPES["h200" if device == "cuda" else "tiny"][1]
    sensitivities(recipe.model, device)
    hessians(recipe.model, recipe.pack.calibration_batch_tokens, device)
    if device == "cuda":
        grams(recipe.pack.calibration_batch_tokens)


if __name__ == "__main__":
    main()
