"""GPTQ of all matrices of a model, batched by shape and distributed over ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from paramgolf.compress.fit import Spread
from paramgolf.compress.gptq import Factor, factor_hessians, pivots, solve
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import column_scales, row_scales
from paramgolf.model.roles import input_of
from paramgolf.runtime.ranks import Ranks


class _Batch(NamedTuple):
    """Matrices of one shape."""

    names: list[str]
    matrices_MRC: Tensor
    factor: Factor
    columns_MC: Tensor


class Quantizer:
    """Quantizes this rank's share of the matrices, any number of times.

    Attributes:
        dampings: damping of each matrix's Hessian, by name.
        spreads: how far each matrix's weights spread, by name.
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        hessians: Mapping[str, Tensor],
        damping: float,
        split_columns: bool,
        ranks: Ranks | None = None,
    ) -> None:
        """Factor the Hessians; each of W ranks takes every W-th matrix of a shape.

        Args:
            matrices: (R, C) weights by name, on the device to solve on.
            hessians: (C, C) by input (`input_of`).
            damping: share of a Hessian's mean diagonal that is added to its diagonal.
            split_columns: scale the columns by `column_scales`; otherwise all by 1.
            ranks: the ranks that share the work; None: only this process.

        Raises:
            ValueError: see `factor_hessians`.
        """
        ranks = ranks or Ranks()
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, matrix in matrices.items():
            by_shape[matrix.shape].append(name)
        self._batches: list[_Batch] = []
        self.dampings: dict[str, float] = {}
        self.spreads: dict[str, Spread] = {}
        for group in by_shape.values():
            names = ranks.mine(group)
            if not names:
                continue
            stacked = torch.stack([matrices[name] for name in names]).float()
            factor = factor_hessians(torch.stack([hessians[input_of(n)] for n in names]), damping)
            columns = pivots(factor)
            columns = column_scales(columns if split_columns else torch.ones_like(columns))
            self._batches.append(_Batch(names, stacked, factor, columns))
            self.dampings |= dict(zip(names, factor.damping_M.tolist(), strict=True))
            own_units = (stacked / columns.float()[:, None, :]).double()
            self.spreads |= dict(zip(names, map(_spread, own_units), strict=True))

    def solve(self, bin_widths: Mapping[str, float]) -> dict[str, Quantized]:
        """Quantize this rank's matrices.

        Args:
            bin_widths: by name of the matrix, in standard deviations of a row.

        Returns:
            Integers and scales by name, on the CPU.

        Raises:
            ValueError: if the weights are not finite.
        """
        quantized = {}
        for names, matrices, factor, columns in self._batches:
            widths = torch.tensor([bin_widths[name] for name in names], device=matrices.device)
            rows = row_scales(matrices / columns.float()[:, None, :], widths)
            integers = solve(matrices, factor, rows, columns)
            for name, *tensors in zip(names, integers, rows, columns, strict=True):
                quantized[name] = Quantized(*(tensor.cpu() for tensor in tensors))
        return quantized


def _spread(matrix_RC: Tensor) -> Spread:
    deviations = matrix_RC.std(dim=-1, correction=0)
    used = deviations > 0  # rows of zeros take no bits
    columns = (matrix_RC[used] / deviations[used, None]).square().mean(dim=0).sqrt().nan_to_num()
    return Spread(deviations[used].cpu(), columns.cpu())
