"""A quantized matrix: integers, and scales of its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """One matrix: a weight is its integer times the scales of its row and its column."""

    integers: Tensor
    """(R, C) int8."""
    rows: Tensor
    """Scales of the rows, (R,) float16, powers of 2^(1/8)."""
    columns: Tensor
    """Scales of the columns, (C,) float16, powers of 2^(1/8); the same for all matrices of one
    input."""

    def scales(self) -> Tensor:
        """Return the scale of every weight, (R, C) float32."""
        return self.rows.float()[:, None] * self.columns.float()

    def dequantize(self) -> Tensor:
        """Return the matrix, (R, C) float32."""
        return self.integers.float() * self.scales()
