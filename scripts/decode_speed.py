"""Time one-token decoding with a recipe's model and random weights: recorded steps and plain ones.

Every step ends with the probabilities of the next tokens in the memory of the CPU, as a coder needs
them. The cache is half full. Cost: a minute on one GPU; half a minute with --lanes 1 on a CPU,
where nothing is recorded. Needs no text. Expected on a GPU: recorded steps take a fraction of plain
ones, which wait for Python.

    python scripts/decode_speed.py
    python scripts/decode_speed.py --device cpu --recipe tiny --lanes 1 16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder, layer_order
from paramgolf.model.past import Past
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import reproducible, select_runtime
from paramgolf.scoring.next_token import NextToken

STEPS = 100
WARM_UP = 5


def plain_reader(model: GPT, order: LayerOrder, rows: int) -> Callable[[Tensor], Tensor]:
    """Return a function that computes what `NextToken.read` returns, without recording."""
    past = Past(model.config, order, rows, model.embedding)

    @torch.no_grad()
    def read(tokens_BT: Tensor) -> Tensor:
        hidden = model(tokens_BT.to(model.embedding.device), order, past=past, last=1)
        return model.logits(hidden[:, -1])

    return read


def recorded_reader(model: GPT, order: LayerOrder, rows: int) -> Callable[[Tensor], Tensor]:
    next_token = NextToken(model, order)
    next_token.begin(rows)
    return next_token.read


def step_seconds(read: Callable[[Tensor], Tensor], tokens_BT: Tensor) -> float:
    """Read a context, then single tokens; return the mean seconds of the latter."""
    read(tokens_BT)
    began = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began = time.perf_counter()
        read(tokens_BT[:, step : step + 1]).double().softmax(-1).cpu()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="h200", choices=RECIPES)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    runtime = select_runtime(arguments.device)
    config = RECIPES[arguments.recipe][1].model
    model = GPT(config, runtime.dtype)
    model.init_weights(torch.Generator().manual_seed(1337))
    model.to(runtime.device)
    order = layer_order(config, recurrent=True)
    readers = {"plain": plain_reader}
    if runtime.on_gpu:
        readers["recorded"] = recorded_reader
    print(torch.cuda.get_device_name() if runtime.on_gpu else "CPU", torch.__version__)
    print("| lanes | step | ms | steps/s | tokens/s |\n|---:|---|---:|---:|---:|")
    for lanes in arguments.lanes:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(config.vocab_size, (lanes, config.seq_len // 2), generator=generator)
        for name, reader in readers.items():
            with reproducible():  # as coding does
                seconds = step_seconds(reader(model, order, lanes), tokens)
            figures = f"{seconds * 1e3:.2f} | {1 / seconds:,.0f} | {lanes / seconds:,.0f}"
            print(f"| {lanes} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
