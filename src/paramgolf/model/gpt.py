"""The GPT: one forward pass for training, adaptation, calibration, scoring and decoding.

Shape suffixes: B batch, T time, D width, H query heads, K key/value heads, d head size, V
vocabulary, N tokens.

Nothing is compiled by PyTorch. In bfloat16 on a GPU the passes over the activations are the kernels
of `model.kernels`, which take a second to compile, and callers record whole steps as CUDA graphs
(`runtime.graphs`); everywhere else the same is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from paramgolf.config import ModelConfig
from paramgolf.model.attention import (
    causal_attention,
    exclude_self_value,
    flash_attention,
    rotary_tables,
    rotate,
)
from paramgolf.model.losses import (
    predicted,
    predicted_nats,
    softcapped,
    target_nats,
)
from paramgolf.model.order import LayerOrder, num_skips
from paramgolf.model.past import Past
from paramgolf.model.roles import BLOCK_MATRICES, BlockInputs

Adapt = Callable[[int, Tensor], Tensor]
"""What `GPT.forward` calls `adapt`."""

_EMBEDDING_STD = 0.005
_NORM_EPS = 1e-6
Skip = tuple[Tensor, Tensor, Tensor]
"""An earlier block's output (B, T, D), its weight and its gate (D,): see `merge_skip`."""

_LEAKY_SLOPE = 0.5  # leaky_relu(x)^2: -0.002 to -0.003 BPB against relu(x)^2 in the challenge


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=_NORM_EPS)


class BlockMatrices(NamedTuple):
    """A block's matrices as they are multiplied: in the compute dtype, their outputs scaled.

    They are made once for all visits of a block. Scaling the outputs themselves, and in the
    backward pass their gradients, would move all activations through memory again.
    """

    heads: Tensor
    """Queries, keys and values, ((H + 2K) d, D)."""
    output: Tensor
    up: Tensor
    down: Tensor


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
        # A tensor, which kernels read from memory.
        scale = torch.tensor((layer + 1) ** -0.5, dtype=master)
        self.register_buffer("depth_scale", scale, persistent=False)
        self.parallel = layer >= config.parallel_from
        self.head_dim = config.head_dim
        self.num_kv_heads = config.num_kv_heads

    def forward(
        self,
        x_BTD: Tensor,
        x0_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        matrices: BlockMatrices,
        with_inputs: bool = False,
        skip: Skip | None = None,
        past: Past | None = None,
        last: int = 0,
        fused: bool = False,
    ) -> Tensor | tuple[Tensor, BlockInputs]:
        """Return the new stream (B, T, D) and, on request, what the block's matrices multiplied.

        With `last`, only that of the last so many positions: (B, last, D). `skip` is merged into
        the stream first. `matrices` are from `prepared`. `fused`: by the kernels of
        `model.kernels`, without `past` and `last`.
        """
        x, attention_in = self._enter(x_BTD, x0_BTD, skip, fused)
        attended, output_in = self._attention(attention_in, cos, sin, matrices, past, last, fused)
        if last:
            x, attention_in = x[:, -last:], attention_in[:, -last:]
        up_in = attention_in
        if not self.parallel:
            x, up_in = self._join(x, attended, fused)
        mlp_out, down_in = _mlp(up_in, matrices, fused)
        x = _added([x, mlp_out, attended] if self.parallel else [x, mlp_out], fused)
        if with_inputs:
            return x, BlockInputs(attention_in, output_in, up_in, down_in)
        return x

    def _enter(
        self, x_BTD: Tensor, x0_BTD: Tensor, skip: Skip | None, fused: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the stream mixed with the embedding, and what attention reads."""
        if fused:
            from paramgolf.model.kernels.stream import Enter

            parts = (x_BTD, x0_BTD, *(skip or (None, None, None)), self.stream_mix)
            return Enter.apply(*parts, self.depth_scale, _NORM_EPS)  # pyright: ignore[reportReturnType]
        x = x_BTD if skip is None else merge_skip(x_BTD, *skip)
        mix = self.stream_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0_BTD
        return x, _norm(x) * self.depth_scale.to(x.dtype)

    def _join(self, x_BTD: Tensor, attended_BTD: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
        """Return the stream with attention's output added, and what the MLP reads."""
        if fused:
            from paramgolf.model.kernels.stream import Join

            return Join.apply(x_BTD, attended_BTD, self.depth_scale, _NORM_EPS)  # pyright: ignore[reportReturnType]
        x = x_BTD + attended_BTD
        return x, _norm(x) * self.depth_scale.to(x.dtype)

    def _attention(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        matrices: BlockMatrices,
        past: Past | None,
        last: int,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return attention's output (B, T, D), and what its last matrix multiplied."""
        dtype, K = x_BTD.dtype, self.num_kv_heads
        if fused:
            from paramgolf.model.kernels.heads import Heads, Xsa

            heads = self._heads(x_BTD, matrices.heads)
            q, k, v, own = Heads.apply(heads, cos, sin, self.query_gain, K, _NORM_EPS)  # pyright: ignore[reportGeneralTypeIssues]
            y_BTHd = causal_attention(q, k, v).contiguous()
            y_BTD = Xsa.apply(y_BTHd, own).flatten(2)  # pyright: ignore[reportOptionalMemberAccess]
            return F.linear(y_BTD, matrices.output), y_BTD
        if last:
            queries = self.query_gain.numel() * self.head_dim
            q = self._heads(x_BTD[:, -last:], matrices.heads[:queries])
            k, v = self._heads(x_BTD, matrices.heads[queries:]).split(K, dim=2)
        else:
            heads = self._heads(x_BTD, matrices.heads)
            q, k, v = heads.split([heads.size(2) - 2 * K, K, K], dim=2)
        q = rotate(_norm(q), cos[-last:], sin[-last:]) * self.query_gain.to(dtype)[:, None]
        k = rotate(_norm(k), cos, sin)
        keys, values, seen = (k, v, None) if past is None else past.extended(k, v)
        y_BTHd = causal_attention(q, keys, values, seen)
        y_BTD = exclude_self_value(y_BTHd, v[:, -last:]).flatten(2)  # all values for 0
        return F.linear(y_BTD, matrices.output), y_BTD

    def _heads(self, x_BTD: Tensor, matrix: Tensor) -> Tensor:
        heads = F.linear(x_BTD, matrix)
        return heads.view(*x_BTD.shape[:2], -1, self.head_dim)

    def prepared(self, dtype: torch.dtype) -> BlockMatrices:
        """Return the block's matrices as its visits multiply them."""
        heads = torch.cat([self.query, self.key, self.value])
        output = self.attention_scale[:, None] * self.output
        down = self.mlp_scale[:, None] * self.down
        return BlockMatrices(*(m.to(dtype) for m in (heads, output, self.up, down)))


def _mlp(x_BTD: Tensor, matrices: BlockMatrices, fused: bool) -> tuple[Tensor, Tensor]:
    """Return the MLP's output (B, T, D), and what its second matrix multiplied."""
    if fused:
        from paramgolf.model.kernels.mlp import SquaredMlp

        return SquaredMlp.apply(x_BTD, matrices.up, matrices.down, _LEAKY_SLOPE)  # pyright: ignore[reportReturnType]
    squared = F.leaky_relu(F.linear(x_BTD, matrices.up), _LEAKY_SLOPE).square()
    return F.linear(squared, matrices.down), squared


def _added(tensors: list[Tensor], fused: bool) -> Tensor:
    if fused:
        from paramgolf.model.kernels.stream import Sum

        return Sum.apply(*tensors)  # pyright: ignore[reportReturnType]
    return sum(tensors[1:], start=tensors[0])


def embed(tokens_BT: Tensor, embedding_VD: Tensor) -> Tensor:
    """Return the normalised embeddings of the tokens, (B, T, D)."""
    return _norm(F.embedding(tokens_BT, embedding_VD))


def merge_skip(x_BTD: Tensor, skip_BTD: Tensor, weight_D: Tensor, gate_D: Tensor) -> Tensor:
    """Merge a U-Net skip: lerp(weight * skip, x, sigmoid(gate)), learned per channel."""
    dtype = x_BTD.dtype
    return torch.lerp(weight_D.to(dtype) * skip_BTD, x_BTD, gate_D.sigmoid().to(dtype))


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
        self.accelerated = False
        self.fused = False
        """Whether the kernels of `model.kernels` are used."""
        self._rotary: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def block_list(self) -> list[Block]:
        """Return the physical blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def accelerate(self) -> None:
        """Use the kernels from now on, in bfloat16 on a GPU if they support the model's shape.

        Callers see `accelerated`, and record steps: these have one shape, so that batches that are
        not full are padded.
        """
        self.accelerated = True
        if self.dtype is torch.bfloat16 and self.embedding.is_cuda:
            from paramgolf.model.kernels import support

            self.fused = support(self.config)

    def uses_flash_attention(self) -> bool:
        """Return whether training uses FlashAttention-4: see `causal_attention`."""
        on_gpu = self.dtype is torch.bfloat16 and self.embedding.is_cuda
        return on_gpu and flash_attention(self.config.head_dim) is not None

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
                in all.
            last: return only the last so many positions, (B, last, D); 0, T or more: all. The last
                block visit then computes no more than these need.
            adapt: called with how many visits are still to come and the normalised input of a
                visit, (B, T or `last`, D); returns what to add to the visit's output. At last with
                -1 and the final normalised stream.
        """
        length = tokens_BT.size(1)
        last = 0 if last >= length else last
        cos, sin = self._rotary_tables(length if past is None else self.config.seq_len)
        if past is not None:
            places = past.places(length)
            cos, sin = cos[places], sin[places]
        x, *x0s = self._embedded(tokens_BT, 1 + len(order.encoder) + len(order.decoder))
        matrices = [block.prepared(self.dtype) for block in self.block_list()]
        # Whoever adapts needs no gradients of the weights, which the kernels compute, too.
        fused = self.fused and past is None and adapt is None
        skips: list[Tensor] = []

        def run_block(layer: int, x: Tensor, skip: Skip | None = None, last: int = 0) -> Tensor:
            x0 = x0s.pop()
            if adapt is not None and skip is not None:
                x, skip = merge_skip(x, *skip), None
            read = x, x0, cos, sin, matrices[layer]
            how = {"skip": skip, "past": past, "last": last, "fused": fused and not last}
            if observe is None:
                y = self.blocks[layer](*read, **how)
            else:
                y, inputs = self.blocks[layer](*read, **how, with_inputs=True)
                observe(layer, inputs)
            return y if adapt is None else y + adapt(len(x0s), _norm(x[:, -y.size(1) :]))

        for layer in order.encoder:
            x = run_block(layer, x)
            skips.append(x)
        for position, layer in enumerate(order.decoder):
            skip = None
            if skips:
                skip = skips.pop(), self.skip_weight[position], self.skip_gate[position]
            x = run_block(layer, x, skip, last if position == len(order.decoder) - 1 else 0)
        if past is not None:
            past.advance(length)
        x = _norm(x)
        return x if adapt is None else x + adapt(-1, x)

    def _embedded(self, tokens_BT: Tensor, readers: int) -> Sequence[Tensor]:
        """Return the normalised embeddings of the tokens (B, T, D), once for each reader."""
        embedded = embed(tokens_BT.long(), self.embedding)
        if not self.fused:
            return [embedded] * readers
        from paramgolf.model.kernels.stream import Share

        return Share.apply(embedded, readers)  # pyright: ignore[reportReturnType]

    def target_nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return every target's loss in nats, float32, shape of `targets`; hidden is (..., D)."""
        flat = hidden.reshape(-1, hidden.size(-1)), self.embedding, targets.reshape(-1).long()
        return target_nats(*flat, self.config.logit_softcap).view(targets.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of all tokens, float32, (..., V), from `hidden` (..., D)."""
        return softcapped(hidden @ self.embedding.T, self.config.logit_softcap)

    def leave_out(self, impossible_VV: NDArray[np.bool_] | None) -> None:
        """Leave the successors that `data.successors` found out of predictions from now on.

        They stay in the loss by which the model is trained.
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
        flat = hidden.reshape(-1, hidden.size(-1)), self.embedding
        tokens = previous.reshape(-1).long(), targets.reshape(-1).long(), self.config.logit_softcap
        if self.fused and not hidden.requires_grad:  # the kernel has no backward pass
            from paramgolf.model.kernels.loss import nats

            found = nats(*flat, self._impossible_VV, *tokens)
        elif self._impossible_VV is None:
            return self.target_nats(hidden, targets)
        else:
            found = predicted_nats(*flat, self._impossible_VV, *tokens)
        return found.view(targets.shape)

    def predicted_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Return the logits of all tokens when a text is scored, float32, (N, V).

        `hidden` is (N, D), `previous` the token before each, (N,).
        """
        if self._impossible_VV is None:
            return self.logits(hidden)
        impossible_NV = self._impossible_VV[previous.long()]
        return predicted(hidden @ self.embedding.T, impossible_NV, self.config.logit_softcap)[0]

    def mean_nats(
        self, tokens_BT1: Tensor, order: LayerOrder, weights_B: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss in nats of tokens 1..T, predicted from 0..T-1, of (B, T + 1).

        With weights: the sum of every sequence's mean times its weight.
        """
        hidden, targets = self(tokens_BT1[:, :-1], order), tokens_BT1[:, 1:]
        if not self.fused:
            means_B = self.target_nats(hidden, targets).mean(1)
            return means_B.mean() if weights_B is None else means_B @ weights_B.to(means_B)
        from paramgolf.model.kernels.loss import WeightedLoss

        B, T = targets.shape
        if weights_B is None:
            weights_B = torch.full((B,), 1 / B, device=targets.device)
        weights_N = (weights_B / T)[:, None].expand(B, T).flatten()
        flat = targets.flatten().long(), weights_N, self.config.logit_softcap
        return WeightedLoss.apply(hidden.flatten(0, 1), self.embedding, *flat)  # pyright: ignore[reportReturnType]

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
