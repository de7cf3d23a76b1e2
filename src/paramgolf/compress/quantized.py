"""A quantized matrix: integers, and scales of its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """One matrix as integers and scales."""

    integers: Tensor
    """(R, C) int8."""
    rows: Tensor
    """Scales of the rows, (R,) float16, powers of 2^(1/8)."""
    columns: Tensor
    """Scales of the columns, (C,) float16, powers of 2^(1/8); the same in all matrices that
    multiply the same input."""

    def scales(self) -> Tensor:
        """Of every weight, (R, C) float32."""
        return self.rows.float()[:, None] * self.columns.float()

    def dequantize(self) -> Tensor:
        """The matrix, (R, C) float32."""
        return self.integers.float() * self.scales()
