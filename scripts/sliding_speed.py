"""Time sliding windows: the last block of all positions, or only of those that are scored.

Also shows which kinds of kernels take the time. The model is a recipe's, with random weights. Cost:
a minute or two on one GPU. Needs no text. Expected: scored positions alone save about 5 % of the
recipe h200's time at stride 64.

    python scripts/sliding_speed.py
    python scripts/sliding_speed.py --device cpu --recipe tiny --count 5    # by operation
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import Runtime, select_runtime
from paramgolf.runtime.graphs import Recorded

KINDS = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "_product_kernel", "aten::mm", "addmm"),
    "queries, keys, values, XSA (Triton)": ("_heads_kernel", "_xsa_kernel"),
    "copies": ("memcpy", "copy"),
}
"""Parts of kernels' names by kind; the first kind that fits counts."""


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "other")


def seconds_by_kind(call: Callable[[], object], runtime: Runtime, count: int) -> Counter[str]:
    activity = ProfilerActivity.CUDA if runtime.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(count):
            call()
        runtime.synchronize()
    found: Counter[str] = Counter()
    for row in profiler.key_averages():
        microseconds = row.self_device_time_total if runtime.on_gpu else row.self_cpu_time_total
        found[kind_of(row.key)] += microseconds / 1e6 / count
    return found


def median_seconds(
    calls: dict[str, Callable[[], object]], runtime: Runtime, count: int
) -> dict[str, float]:
    """Call them in turn, so that other load on the machine slows them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count + 1):
        for name, call in calls.items():
            runtime.synchronize()
            began = time.perf_counter()
            call()
            runtime.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: sorted(found[1:])[count // 2] for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="h200", choices=RECIPES)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--count", type=int, default=20, help="batches")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    runtime, stride = select_runtime(arguments.device), arguments.stride
    config = RECIPES[arguments.recipe][1].model
    model = GPT(config, runtime.dtype)
    model.init_weights(torch.Generator().manual_seed(1337))
    model.to(runtime.device)
    if runtime.accelerated:
        model.accelerate()
    order = layer_order(config, recurrent=True)
    batch_tokens = 98_304 if runtime.on_gpu else 8192
    shape = batch_tokens // config.seq_len, config.seq_len
    tokens = torch.randint(config.vocab_size, shape, dtype=torch.int32).to(runtime.device)

    @torch.no_grad()
    def whole(tokens: Tensor) -> Tensor:
        return model.target_nats(model(tokens, order)[:, -stride:], tokens[:, -stride:])

    @torch.no_grad()
    def scored_only(tokens: Tensor) -> Tensor:
        return model.target_nats(model(tokens, order, last=stride), tokens[:, -stride:])

    print(torch.cuda.get_device_name() if runtime.on_gpu else "CPU", torch.__version__)
    print("| last block | ms per batch | scored tokens/s |", "|---|---:|---:|", sep="\n")
    calls: dict[str, Callable[[], object]] = {}
    for name, score in {"whole windows": whole, "only what is scored": scored_only}.items():
        ready = Recorded(score, tokens) if runtime.accelerated else score
        calls[name] = lambda ready=ready: ready(tokens)
    for name, seconds in median_seconds(calls, runtime, arguments.count).items():
        print(f"| {name} | {seconds * 1e3:.2f} | {shape[0] * stride / seconds:,.0f} |", flush=True)
    for name, call in calls.items():
        found = seconds_by_kind(call, runtime, 5)
        print(f"\n| {name}: kernels | ms per batch | share |\n|---|---:|---:|")
        for kind, seconds in found.most_common():
            print(f"| {kind} | {seconds * 1e3:.2f} | {seconds / found.total():.1%} |")


if __name__ == "__main__":
    main()
