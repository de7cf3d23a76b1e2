"""The names of the parameters: which are matrices, and what each matrix multiplies."""

from __future__ import annotations

MATRIX_NAMES = ("query", "key", "value", "output", "up", "down")
"""The quantized matrices of a block, stored (outputs, inputs)."""

VECTOR_NAMES = ("stream_mix", "query_gain", "attention_scale", "mlp_scale")
"""The other parameters of a block."""

EMBEDDING = "embedding"


def input_of(matrix_name: str) -> str:
    """The name of the Hessian of a parameter: "blocks.3.query" -> "blocks.3.attention"."""
    if matrix_name == EMBEDDING:
        return EMBEDDING
    prefix, name = matrix_name.rsplit(".", 1)
    return f"{prefix}.{'attention' if name in ('query', 'key', 'value') else name}"


def role(name: str) -> str:
    """The role of a parameter, the last part of its name: "blocks.3.query" -> "query"."""
    return name.rsplit(".", 1)[-1]
