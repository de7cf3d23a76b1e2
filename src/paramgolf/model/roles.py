"""What every parameter is: which are matrices, and which input of its block each multiplies.

The optimizers, calibration, quantization and the artifact all take it from here.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BlockInputs(NamedTuple):
    """What a block's matrices multiply, each (B, T, inputs): the calibration data of GPTQ."""

    attention: Tensor
    output: Tensor
    up: Tensor
    down: Tensor


class MatrixRole(NamedTuple):
    """One matrix of a block, stored (outputs, inputs): trained by Muon, quantized by GPTQ."""

    name: str
    input: str
    """The field of `BlockInputs` that it multiplies."""
    starts_at_zero: bool = False
    """Zero in a new model, so that a new block passes its input through; else orthogonal."""


BLOCK_MATRICES = (
    MatrixRole("query", input="attention"),
    MatrixRole("key", input="attention"),
    MatrixRole("value", input="attention"),
    MatrixRole("output", input="output", starts_at_zero=True),
    MatrixRole("up", input="up"),
    MatrixRole("down", input="down", starts_at_zero=True),
)
"""The matrices of a block, in the order of its definition."""

MATRIX_NAMES = tuple(matrix.name for matrix in BLOCK_MATRICES)

VECTOR_NAMES = ("stream_mix", "query_gain", "attention_scale", "mlp_scale")
"""The other parameters of a block: trained by AdamW, stored in bfloat16."""

EMBEDDING = "embedding"
"""The tied embedding: trained by AdamW and quantized; as the output head it multiplies the final
stream."""

QUANTIZED_ROLES = (EMBEDDING, *MATRIX_NAMES)

_INPUTS = {matrix.name: matrix.input for matrix in BLOCK_MATRICES}


def role(name: str) -> str:
    """Return the role of a parameter, the last part of its name: "blocks.3.query" -> "query"."""
    return name.rsplit(".", 1)[-1]


def input_of(matrix_name: str) -> str:
    """Return the name of a matrix's input: "blocks.3.query" -> "blocks.3.attention"."""
    if matrix_name == EMBEDDING:
        return EMBEDDING
    block, name = matrix_name.rsplit(".", 1)
    return f"{block}.{_INPUTS[name]}"
