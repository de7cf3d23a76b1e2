"""MuonEq-R: row-normalised, orthogonalised momentum, for many matrices at once.

Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/). Row normalisation before
the orthogonalisation ("MuonEq-R") comes from the challenge: -0.001 BPB.

Shape suffixes: M matrices, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.optim.bank import Bank
from paramgolf.runtime.ranks import Ranks, wait

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the quintic a*s + b*s^3 + c*s^5 applied to every singular value per iteration."""

NUM_ITERATIONS = 5


def orthogonalize(matrices_MRC: Tensor) -> Tensor:
    """Move every singular value towards 1 (Newton-Schulz); same shape and dtype.

    Each matrix is first divided by its Frobenius norm, which bounds its singular values by 1.
    """
    a, b, c = COEFFICIENTS
    tall = matrices_MRC.size(-2) > matrices_MRC.size(-1)
    x = matrices_MRC.mT if tall else matrices_MRC  # the smaller side makes the smaller product
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def normalize_rows(matrices_MRC: Tensor) -> Tensor:
    """Divide every row by its Euclidean norm."""
    return matrices_MRC / matrices_MRC.norm(dim=-1, keepdim=True).clamp(min=1e-7)


class MuonEqR:
    """The optimizer of the block matrices; matrices of one shape are updated in one batch.

    Attributes:
        banks: the matrices, one bank for each shape.
        momentum_MRC: of all matrices of a shape.
    """

    def __init__(
        self, matrices: Iterable[Tensor], dtype: torch.dtype, ranks: Ranks | None = None
    ) -> None:
        """Take the matrices (2-D); `dtype` is that of the Newton-Schulz iteration.

        Every rank stores all momentum (its update is cheap, and one rank can then write the
        checkpoint) and orthogonalises its share of each shape.

        Raises:
            ValueError: for a parameter that is not a matrix.
        """
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"Muon takes matrices, not a tensor of shape {matrix.shape}")
            by_shape[matrix.shape].append(matrix)
        self.banks = [Bank(group) for group in by_shape.values()]
        self._dtype = dtype
        self._ranks = ranks or Ranks()
        self.momentum_MRC = [
            torch.zeros_like(bank.flat).view(-1, *shape)
            for shape, bank in zip(by_shape, self.banks, strict=True)
        ]

    @torch.no_grad()
    def step(self, lr: float | Tensor, momentum: float | Tensor, weight_decay: float) -> None:
        """Update every matrix from its gradient; tensors are scalars on the device.

        Nesterov momentum; rows normalised; orthogonalised; times sqrt(max(1, R / C)); decoupled
        weight decay. Ranks exchange the updates of one shape while they compute the next.
        """
        shares = [
            self._ranks.start_gather(self._share(bank, momentum_MRC, momentum))
            for bank, momentum_MRC in zip(self.banks, self.momentum_MRC, strict=True)
        ]
        for bank, momentum_MRC, (gathered, work) in zip(
            self.banks, self.momentum_MRC, shares, strict=True
        ):
            wait(work)
            weights = bank.flat.view_as(momentum_MRC)
            # Matrix i is number i // ranks of rank i % ranks; the rest is padding.
            update = gathered.transpose(0, 1).flatten(0, 1)[: len(weights)].to(weights.dtype)
            rows, columns = update.shape[-2:]
            weights.mul_(1 - lr * weight_decay)
            weights.add_(update * (-lr * max(1.0, rows / columns) ** 0.5))

    def _share(self, bank: Bank, momentum_MRC: Tensor, momentum: float | Tensor) -> Tensor:
        """Return this rank's orthogonalised updates, padded to the size of the largest share."""
        grads_MRC = bank.gradients.view_as(momentum_MRC)
        momentum_MRC.lerp_(grads_MRC, 1 - momentum)
        update = self._ranks.mine(grads_MRC).lerp(self._ranks.mine(momentum_MRC), momentum)
        padding = -(-len(grads_MRC) // self._ranks.size) - len(update)
        update = orthogonalize(normalize_rows(update).to(self._dtype))
        return F.pad(update, (0, 0, 0, 0, 0, padding)) if padding else update
