"""Which optimizer updates which parameter: every parameter is in exactly one group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from paramgolf.config import TrainConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.roles import MATRIX_NAMES, VECTOR_NAMES
from paramgolf.optim.bank import Bank
from paramgolf.optim.muon import MuonEqR
from paramgolf.runtime.ranks import Ranks


class ParameterGroups(NamedTuple):
    """A partition of the model's parameters."""

    matrices: list[nn.Parameter]
    embedding: list[nn.Parameter]
    vectors: list[nn.Parameter]


def partition(model: GPT) -> ParameterGroups:
    """Split the parameters into block matrices, tied embedding, and scalars and vectors.

    Raises:
        RuntimeError: if a parameter would be in no group or in two, such as a new parameter that
            is missing in `model.roles`.
    """
    matrices = [getattr(block, name) for block in model.block_list() for name in MATRIX_NAMES]
    vectors = [getattr(block, name) for block in model.block_list() for name in VECTOR_NAMES]
    vectors += [model.skip_weight, model.skip_gate]
    groups = ParameterGroups(matrices, [model.embedding], vectors)
    covered = [id(parameter) for group in groups for parameter in group]
    wanted = {id(parameter): name for name, parameter in model.named_parameters()}
    if sorted(covered) != sorted(wanted):
        names = [name for key, name in wanted.items() if covered.count(key) != 1]
        raise RuntimeError(f"not in exactly one optimizer group: {names or 'foreign parameters'}")
    return groups


class Optimizers:
    """MuonEq-R for the matrices and AdamW for the rest, stepped together."""

    def __init__(
        self,
        model: GPT,
        config: TrainConfig,
        newton_schulz_dtype: torch.dtype,
        ranks: Ranks | None = None,
    ) -> None:
        """Create both optimizers with empty state."""
        groups = partition(model)
        self._config = config
        self.muon = MuonEqR(groups.matrices, newton_schulz_dtype, ranks)
        embedding, vectors = Bank(groups.embedding), Bank(groups.vectors)
        self._banks = [*self.muon.banks, embedding, vectors]
        self.adamw = torch.optim.AdamW(
            [
                {
                    "params": [embedding.flat],
                    "base_lr": config.embedding_lr,
                    "weight_decay": config.embedding_weight_decay,
                },
                {
                    "params": [vectors.flat],
                    "base_lr": config.vector_lr,
                    "weight_decay": config.vector_weight_decay,
                },
            ],
            lr=0.0,  # set at every step
            betas=(0.9, 0.95),
            eps=1e-8,
            fused=True,
            capturable=model.embedding.is_cuda,
        )

    def step(self, lr_factor: float | Tensor, momentum: float | Tensor) -> None:
        """Clip the gradients, update all parameters, and clear the gradients.

        Tensors are scalars on the device: a recorded step reads them at every repetition.
        """
        everything = [bank.flat for bank in self._banks]
        torch.nn.utils.clip_grad_norm_(everything, self._config.grad_clip, foreach=True)
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        self.adamw.step()
        self.muon.step(
            self._config.matrix_lr * lr_factor, momentum, self._config.matrix_weight_decay
        )
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for bank in self._banks:
            bank.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all state as named tensors (live, not copies)."""
        tensors = {f"muon.{i}": momentum for i, momentum in enumerate(self.muon.momentum_MRC)}
        for index, state in self.adamw.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{key}": value for key, value in state.items()}
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state from `state_tensors`."""
        here = self.state_tensors()
        if here.keys() == tensors.keys():  # after a warm-up: a recorded step knows this memory
            for name, tensor in tensors.items():
                here[name].copy_(tensor)
            return
        adamw_state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, index, *key = name.split(".")
            if kind == "muon":
                self.muon.momentum_MRC[int(index)].copy_(tensor)
            else:
                adamw_state.setdefault(int(index), {})[key[0]] = tensor.clone()
        state_dict = self.adamw.state_dict()
        self.adamw.load_state_dict({**state_dict, "state": adamw_state})

    def reset(self) -> None:
        """Return to the initial state, in the same memory."""
        for tensor in self.state_tensors().values():
            tensor.zero_()
