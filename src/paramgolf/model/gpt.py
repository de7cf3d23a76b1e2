"""The GPT: one forward pass for training, adaptation, calibration, scoring and decoding.

Shape suffixes: B batch, T time, D width, H query heads, K key/value heads, d head size, V
vocabulary, N tokens.

The forward pass is compiled by the block, not as a whole: all blocks of one kind share one
compiled graph, and so do both layer orders, which limits compilation to seconds. Between blocks
there is nothing to fuse but the residual stream, which must be written to memory anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from paramgolf.config import ModelConfig
from paramgolf.model.attention import (
    causal_attention,
    exclude_self_value,
    rotary_tables,
    rotate,
)
from paramgolf.model.losses import predicted, predicted_nats, softcapped, target_nats
from paramgolf.model.order import LayerOrder, num_skips
from paramgolf.model.past import Past
from paramgolf.model.roles import BLOCK_MATRICES, BlockInputs

Adapt = Callable[[int, Tensor], Tensor]
"""What `GPT.forward` calls `adapt`."""

_EMBEDDING_STD = 0.005
_NORM_EPS = 1e-6
_LEAKY_SLOPE = 0.5  # leaky_relu(x)^2: -0.002 to -0.003 BPB against relu(x)^2 in the challenge


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=_NORM_EPS)


class Block(nn.Module):
    """Attention and MLP, in sequence or, in late blocks, in parallel."""

    depth_scale: Tensor

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        """Create the block at physical index `layer`, with uninitialised parameters.

        Matrices and vectors are stored in float32 (float64 where the model computes in it) and
        cast to `dtype` when they are used.
        """
        super().__init__()
        D, hidden = config.width, config.width * config.mlp_ratio
        key_width = config.num_kv_heads * config.head_dim
        master = torch.promote_types(dtype, torch.float32)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=master))

        self.query = parameter(D, D)
        self.key = parameter(key_width, D)
        self.value = parameter(key_width, D)
        self.output = parameter(D, D)
        self.up = parameter(hidden, D)
        self.down = parameter(D, hidden)
        self.stream_mix = parameter(2, D)  # rows: weight of the stream, weight of the embedding
        self.query_gain = parameter(config.num_heads)
        self.attention_scale = parameter(D)
        self.mlp_scale = parameter(D)
        # A tensor: the compiler would specialise on a float, one graph per block.
        scale = torch.tensor((layer + 1) ** -0.5, dtype=master)
        self.register_buffer("depth_scale", scale, persistent=False)
        self.parallel = layer >= config.parallel_from
        self.head_dim = config.head_dim
        self.num_kv_heads = config.num_kv_heads
        self.fused = False
        """Whether the kernels of `model.kernels` are used."""

    def forward(
        self,
        x_BTD: Tensor,
        x0_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        with_inputs: bool = False,
        past: Past | None = None,
        last: int = 0,
    ) -> Tensor | tuple[Tensor, BlockInputs]:
        """Return the new stream (B, T, D) and, on request, what the block's matrices multiplied.

        With `last`, only that of the last so many positions: (B, last, D).
        """
        dtype = x_BTD.dtype
        mix = self.stream_mix.to(dtype)
        x = mix[0] * x_BTD + mix[1] * x0_BTD
        scale = self.depth_scale.to(dtype)
        attention_in = _norm(x) * scale
        fused = self.fused and past is None and not last
        attended, output_in = self._attention(attention_in, cos, sin, past, last, fused)
        if last:
            x, attention_in = x[:, -last:], attention_in[:, -last:]
        if self.parallel:
            up_in = attention_in
        else:
            x = x + attended
            up_in = _norm(x) * scale
        mlp_out, down_in = self._mlp(up_in, fused)
        x = x + mlp_out
        if self.parallel:
            x = x + attended
        if with_inputs:
            return x, BlockInputs(attention_in, output_in, up_in, down_in)
        return x

    def _attention(
        self, x_BTD: Tensor, cos: Tensor, sin: Tensor, past: Past | None, last: int, fused: bool
    ) -> tuple[Tensor, Tensor]:
        B, T, _ = x_BTD.shape
        dtype, K = x_BTD.dtype, self.num_kv_heads
        output = _with_scaled_outputs(self.output, self.attention_scale).to(dtype)
        if fused:
            from paramgolf.model.kernels import Heads, Xsa

            heads = self._heads(x_BTD, self.query, self.key, self.value)
            q, k, v, own = Heads.apply(heads, cos, sin, self.query_gain, K, _NORM_EPS)  # pyright: ignore[reportGeneralTypeIssues]
            y_BTHd = causal_attention(q, k, v).contiguous()
            y_BTD = Xsa.apply(y_BTHd, own).reshape(B, T, -1)  # pyright: ignore[reportOptionalMemberAccess]
            return F.linear(y_BTD, output), y_BTD
        if last:
            q = self._heads(x_BTD[:, -last:], self.query)
            k, v = self._heads(x_BTD, self.key, self.value).split(K, dim=2)
        else:
            heads = self._heads(x_BTD, self.query, self.key, self.value)
            q, k, v = heads.split([heads.size(2) - 2 * K, K, K], dim=2)
        q = rotate(_norm(q), cos[-last:], sin[-last:]) * self.query_gain.to(dtype)[:, None]
        k = rotate(_norm(k), cos, sin)
        keys, values, seen = (k, v, None) if past is None else past.extended(k, v)
        y_BTHd = causal_attention(q, keys, values, seen)
        y_BTD = exclude_self_value(y_BTHd, v[:, -last:]).flatten(2)  # all values for 0
        return F.linear(y_BTD, output), y_BTD

    def _heads(self, x_BTD: Tensor, *weights: Tensor) -> Tensor:
        heads = F.linear(x_BTD, torch.cat(weights).to(x_BTD.dtype))
        return heads.view(*x_BTD.shape[:2], -1, self.head_dim)

    def _mlp(self, x_BTD: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
        """Return the MLP's output (B, T, D), and what its second matrix multiplied."""
        up = self.up.to(x_BTD.dtype)
        down = _with_scaled_outputs(self.down, self.mlp_scale).to(x_BTD.dtype)
        if fused:
            from paramgolf.model.kernels import SquaredMlp

            return SquaredMlp.apply(x_BTD, up, down, _LEAKY_SLOPE)  # pyright: ignore[reportReturnType]
        squared = F.leaky_relu(F.linear(x_BTD, up), _LEAKY_SLOPE).square()
        return F.linear(squared, down), squared


def _with_scaled_outputs(matrix_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Return the matrix that gives the scaled outputs.

    Scaling the outputs themselves, and in the backward pass their gradients, would move all
    activations through memory again.
    """
    return scale_O[:, None] * matrix_OI


def embed(tokens_BT: Tensor, embedding_VD: Tensor) -> Tensor:
    """Return the normalised embeddings of the tokens, (B, T, D)."""
    return _norm(F.embedding(tokens_BT, embedding_VD))


def merge_skip(x_BTD: Tensor, skip_BTD: Tensor, weight_D: Tensor, gate_D: Tensor) -> Tensor:
    """Merge a U-Net skip: lerp(weight * skip, x, sigmoid(gate)), learned per channel."""
    dtype = x_BTD.dtype
    return torch.lerp(weight_D.to(dtype) * skip_BTD, x_BTD, gate_D.sigmoid().to(dtype))


def final_norm(x_BTD: Tensor) -> Tensor:
    """Return the normalised stream, which the output head multiplies."""
    return _norm(x_BTD)


class _Shared(torch.autograd.Function):
    """A tensor for several readers, whose gradients are added in one pass, not pair by pair."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, readers: int, call: Callable[..., Any]) -> tuple[Tensor, ...]:
        """Return the tensor once for each reader; `call` runs the addition."""
        ctx.call = call
        return tuple(x.view_as(x) for _ in range(readers))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        """Return the sum of the readers' gradients."""
        return ctx.call(_sum, *grads), None, None


def _sum(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _uncompiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


class GPT(nn.Module):
    """The model: its weights, and the one forward pass (docs/method.md)."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        """Create the model, which computes in `dtype`, with uninitialised parameters."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        # Stored in the compute dtype, as are its Adam moments (so does the reference): a float32
        # master copy changed no score and cost 1.4 % of the training speed:
        # docs/experiments/float32-embedding.md.
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.width, dtype=dtype))
        self.blocks = nn.ModuleList(Block(config, i, dtype) for i in range(config.num_layers))
        master = torch.promote_types(dtype, torch.float32)
        skips = (num_skips(config), config.width)
        self.skip_weight = nn.Parameter(torch.empty(skips, dtype=master))
        self.skip_gate = nn.Parameter(torch.empty(skips, dtype=master))
        self._impossible_VV: Tensor | None = None
        self._call = _uncompiled
        self.compiled = False
        self._rotary: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def block_list(self) -> list[Block]:
        """Return the physical blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def compile_parts(self) -> None:
        """Run blocks, skips, embedding and loss compiled from now on (GPUs)."""
        # Static shapes and several stages, each with its own gradient mode, compile more variants
        # of the one block than PyTorch allows by default (8).
        torch._dynamo.config.recompile_limit = 64
        self.use_kernels()
        for block in self.block_list():
            block.compile(fullgraph=True, dynamic=False)
        self._call = lambda function, *args: _compiled(function)(*args)
        self.compiled = True

    def use_kernels(self) -> None:
        """Use the kernels of `model.kernels` from now on, in bfloat16 on a GPU; compiled or not."""
        if self.dtype is torch.bfloat16 and self.embedding.is_cuda:
            from paramgolf.model.kernels import support

            for block in self.block_list():
                block.fused = support(self.config)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise every parameter from a CPU generator: the same values on any device."""
        for parameter in self.parameters():
            parameter.fill_(torch.nan)  # so that a parameter forgotten below is noticed
        normal = torch.empty(self.embedding.shape).normal_(std=_EMBEDDING_STD, generator=generator)
        self.embedding.copy_(normal)
        for block in self.block_list():
            for role in BLOCK_MATRICES:
                matrix = getattr(block, role.name)
                if role.starts_at_zero:
                    matrix.zero_()
                else:
                    values = torch.empty(matrix.shape)
                    matrix.copy_(nn.init.orthogonal_(values, generator=generator))
            block.stream_mix.copy_(torch.tensor([[1.0], [0.0]]))
            block.query_gain.fill_(self.config.query_gain)
            block.attention_scale.fill_(1)
            block.mlp_scale.fill_(1)
        self.skip_weight.fill_(1)
        self.skip_gate.fill_(0)

    def forward(
        self,
        tokens_BT: Tensor,
        order: LayerOrder,
        observe: Callable[[int, BlockInputs], None] | None = None,
        past: Past | None = None,
        last: int = 0,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """Return the final normalised stream (B, T, D) in the compute dtype.

        Args:
            tokens_BT: token ids, any integer dtype.
            order: the layer order, from `layer_order`.
            observe: called with a block's index and inputs at every visit (calibration).
            past: the cache of the positions before these tokens, which are appended to it
                (decoding). A sequence may be fed in chunks of any length, up to seq_len positions
                in all. Nothing runs compiled then, since the shapes differ from call to call.
            last: return only the last so many positions, (B, last, D); 0, T or more: all. The last
                block visit then computes no more than these need. It does not run compiled: one
                more variant of the block would take seconds to compile.
            adapt: called with how many visits are still to come and the normalised input of a
                visit, (B, T or `last`, D); returns what to add to the visit's output. At last with
                -1 and the final normalised stream.
        """
        call = self._call if past is None else _uncompiled
        length = tokens_BT.size(1)
        last = 0 if last >= length else last
        cos, sin = self._rotary_tables(length if past is None else self.config.seq_len)
        if past is not None:
            places = past.places(length)
            cos, sin = cos[places], sin[places]
        embedded = call(embed, tokens_BT.long(), self.embedding)
        visits = len(order.encoder) + len(order.decoder)
        x, *x0s = _Shared.apply(embedded, 1 + visits, call)  # pyright: ignore[reportGeneralTypeIssues]
        skips: list[Tensor] = []

        def run_block(layer: int, x: Tensor, last: int = 0) -> Tensor:
            x0 = x0s.pop()
            if past is not None or last:
                y = self.blocks[layer].forward(x, x0, cos, sin, past=past, last=last)
            elif observe is None:
                y = self.blocks[layer](x, x0, cos, sin)
            else:
                y, inputs = self.blocks[layer](x, x0, cos, sin, with_inputs=True)
                observe(layer, inputs)
            return y if adapt is None else y + adapt(len(x0s), _norm(x[:, -y.size(1) :]))

        for layer in order.encoder:
            x = run_block(layer, x)
            skips.append(x)
        for position, layer in enumerate(order.decoder):
            if skips:
                weight, gate = self.skip_weight[position], self.skip_gate[position]
                x = call(merge_skip, x, skips.pop(), weight, gate)
            x = run_block(layer, x, last if position == len(order.decoder) - 1 else 0)
        if past is not None:
            past.advance(length)
        x = final_norm(x) if last else call(final_norm, x)
        return x if adapt is None else x + adapt(-1, x)

    def target_nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return every target's loss in nats, float32, shape of `targets`; hidden is (..., D)."""
        flat = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1).long()
        nats = self._call(target_nats, flat[0], self.embedding, flat[1], self.config.logit_softcap)
        return nats.view(targets.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of all tokens, float32, (..., V), from `hidden` (..., D)."""
        return softcapped(hidden @ self.embedding.T, self.config.logit_softcap)

    def leave_out(self, impossible_VV: NDArray[np.bool_] | None) -> None:
        """Leave the successors that `data.successors` found out of predictions from now on.

        They stay in the loss that `target_nats` returns, by which the model is trained.
        """
        self._impossible_VV = None
        if impossible_VV is not None:
            self._impossible_VV = torch.from_numpy(impossible_VV).to(self.embedding.device)

    def predicted_nats(self, hidden: Tensor, previous: Tensor, targets: Tensor) -> Tensor:
        """Return what every target costs when a text is scored, in nats, float32.

        Args:
            hidden: (..., D).
            previous: the token before every target.
            targets: tokens, of the shape of `previous` and of what is returned.
        """
        if self._impossible_VV is None:
            return self.target_nats(hidden, targets)
        flat = hidden.reshape(-1, hidden.size(-1)), self.embedding, self._impossible_VV
        tokens = previous.reshape(-1).long(), targets.reshape(-1).long()
        nats = self._call(predicted_nats, *flat, *tokens, self.config.logit_softcap)
        return nats.view(targets.shape)

    def predicted_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Return the logits of all tokens when a text is scored, float32, (N, V).

        `hidden` is (N, D), `previous` the token before each, (N,).
        """
        if self._impossible_VV is None:
            return self.logits(hidden)
        impossible_NV = self._impossible_VV[previous.long()]
        return predicted(hidden @ self.embedding.T, impossible_NV, self.config.logit_softcap)[0]

    def mean_nats(self, tokens_BT1: Tensor, order: LayerOrder) -> Tensor:
        """Return the mean loss in nats of tokens 1..T, predicted from 0..T-1, of (B, T + 1)."""
        hidden = self(tokens_BT1[:, :-1], order)
        return self.target_nats(hidden, tokens_BT1[:, 1:]).mean()

    def _rotary_tables(self, length: int) -> tuple[Tensor, Tensor]:
        key = (length, self.embedding.device)
        if key not in self._rotary:
            config = self.config
            self._rotary[key] = rotary_tables(
                length,
                config.rotary_dims,
                config.rotary_base,
                config.seq_len,
                self.embedding.device,
                self.dtype,
            )
        return self._rotary[key]


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers all parameters have together."""
    return sum(parameter.numel() for parameter in model.parameters())
