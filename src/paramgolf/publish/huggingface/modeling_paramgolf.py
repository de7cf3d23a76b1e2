"""The GPT of a paramgolf artifact, for Hugging Face transformers 5.24.

This file needs torch and transformers, not paramgolf. The formulas are those of "The forward pass"
in paramgolf's docs/format.md. What is unusual:

* depth recurrence: the blocks `loop_first` to `loop_last` are visited `loop_visits` times, and the
  cache has one slot per *visit*, not per block;
* skips from the first half of the visits to the second;
* every block mixes the embedding of the tokens into its input;
* each head leaves out the direction of the position's own value (XSA);
* tokens that the tokenizer never writes after the one before have next to no probability.

Shape suffixes: B batch, T new positions, S positions with those in the cache, D width, H query
heads, K key/value heads, d head size, r rotated pairs, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

NORM_EPS = 1e-6


class ParamgolfConfig(PreTrainedConfig):
    """The shape of the model: the keys `model.*` of a recipe."""

    model_type = "paramgolf"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "width",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "seq_len",
    }

    vocab_size: int = 1024
    num_layers: int = 2
    width: int = 64
    num_heads: int = 2
    num_kv_heads: int = 1
    mlp_ratio: int = 4
    seq_len: int = 128
    rotary_dims: int = 16
    rotary_base: float = 10000.0
    query_gain: float = 1.0
    logit_softcap: float = 30.0
    loop_first: int = 0
    loop_last: int = 0
    loop_visits: int = 1
    parallel_from: int = 2
    use_cache: bool = True
    tie_word_embeddings: bool = False  # one tensor, used twice: there is nothing to tie
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 0

    @property
    def visits(self) -> list[int]:
        """The blocks in the order in which they are visited."""
        loop = list(range(self.loop_first, self.loop_last + 1))
        after = range(self.loop_last + 1, self.num_layers)
        return [*range(self.loop_first), *loop * self.loop_visits, *after]

    @property
    def num_hidden_layers(self) -> int:
        """The number of visits, which is the number of slots of a cache."""
        return len(self.visits)


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


class ParamgolfBlock(nn.Module):
    """Attention and MLP, one after the other, or both on the same input in late blocks."""

    def __init__(self, config: ParamgolfConfig, index: int) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.head_dim = width // config.num_heads
        kv_width = config.num_kv_heads * self.head_dim
        self.stream_mix = nn.Parameter(torch.empty(2, width))
        self.query = nn.Parameter(torch.empty(width, width))
        self.key = nn.Parameter(torch.empty(kv_width, width))
        self.value = nn.Parameter(torch.empty(kv_width, width))
        self.output = nn.Parameter(torch.empty(width, width))
        self.query_gain = nn.Parameter(torch.empty(config.num_heads))
        self.attention_scale = nn.Parameter(torch.empty(width))
        self.mlp_scale = nn.Parameter(torch.empty(width))
        self.up = nn.Parameter(torch.empty(hidden, width))
        self.down = nn.Parameter(torch.empty(width, hidden))
        self.depth_scale = (index + 1) ** -0.5
        self.parallel = index >= config.parallel_from

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
        visit: int,
    ) -> Tensor:
        """Return the stream after the block, (B, T, D).

        Args:
            x: the stream, (B, T, D).
            x0: the embeddings of the tokens, (B, T, D).
            angles: cosines and sines of the rotary angles, each (B, T, 1, r).
            mask: (B, 1, T, S), True where a position attends to another.
            cache: keys and values of earlier positions; those of these are appended.
            visit: the number of this visit, 0 for the first.
        """
        x = self.stream_mix[0] * x + self.stream_mix[1] * x0
        attention_in = norm(x) * self.depth_scale
        attended = self.attention_scale * self.attention(attention_in, angles, mask, cache, visit)
        mlp_in = attention_in if self.parallel else norm(x + attended) * self.depth_scale
        hidden = F.leaky_relu(F.linear(mlp_in, self.up), 0.5).square()
        return x + attended + self.mlp_scale * F.linear(hidden, self.down)

    def attention(
        self,
        u: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
        visit: int,
    ) -> Tensor:
        """Return the outputs of all heads, (B, T, D); arguments as in `forward`."""
        q_BTHd = rotated(norm(self.heads(u, self.query)), angles) * self.query_gain[:, None]
        k_BTKd = rotated(norm(self.heads(u, self.key)), angles)
        v_BTKd = self.heads(u, self.value)
        keys, values = k_BTKd.transpose(1, 2), v_BTKd.transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(keys, values, visit)
        group = q_BTHd.size(2) // v_BTKd.size(2)  # query heads per key/value head
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        y_BHTd = F.scaled_dot_product_attention(q_BTHd.transpose(1, 2), keys, values, mask)
        y_BTHd = y_BHTd.transpose(1, 2)
        own = F.normalize(v_BTKd, dim=-1, eps=1e-12).repeat_interleave(group, 2)
        y_BTHd = y_BTHd - (y_BTHd * own).sum(-1, keepdim=True) * own
        return F.linear(y_BTHd.flatten(2), self.output)

    def heads(self, u: Tensor, weight: Tensor) -> Tensor:
        """Return (B, T, heads, d)."""
        return F.linear(u, weight).unflatten(-1, (-1, self.head_dim))


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (p, p + r) of the first 2r dimensions of every head; x is (B, T, heads, d)."""
    cos, sin = angles
    pairs = cos.size(-1)
    first, second, rest = x.split([pairs, pairs, x.size(-1) - 2 * pairs], -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


class ParamgolfForCausalLM(PreTrainedModel, GenerationMixin):
    """The model and its output head, which is the embedding."""

    config_class = ParamgolfConfig
    _no_split_modules = ["ParamgolfBlock"]  # noqa: RUF012

    def __init__(self, config: ParamgolfConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(ParamgolfBlock(config, i) for i in range(config.num_layers))
        skips = len(config.visits) // 2
        self.skip_weight = nn.Parameter(torch.empty(skips, config.width))
        self.skip_gate = nn.Parameter(torch.empty(skips, config.width))
        # A bit for each pair of tokens of which the second never follows the first, (V, V / 8).
        size = config.vocab_size
        self.register_buffer("impossible", torch.zeros(size, -(-size // 8), dtype=torch.uint8))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the file of a packed model has all weights."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the token after each position, (B, T, V).

        Args:
            input_ids: new tokens, (B, T).
            attention_mask: (B, S), 0 for padding, which may be on either side.
            position_ids: (B, T); by default the number of tokens before each, padding left out.
            cache: what earlier calls returned.
            labels: (B, T), as in other models of transformers; -100: no loss.
            use_cache: whether to return a cache.
            logits_to_keep: only those of the last so many positions; 0: of all.
            kwargs: other keywords of transformers.

        Raises:
            ValueError: if a position is at or beyond `seq_len`: the model was trained and scored
                on windows of this length, and neither slides nor extrapolates.
        """
        cache = kwargs.get("past_key_values") if cache is None else cache  # its former name
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        batch, new = input_ids.shape
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past + new)
        real = attention_mask.bool()
        if position_ids is None:
            position_ids = (real.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        self.require_within_window(position_ids, past + new)
        order = torch.arange(past + new, device=input_ids.device)
        causal = order <= order[past:, None]
        # Padding attends to itself, so that its values are finite.
        itself = order == order[past:, None]
        mask = (causal & real[:, None, None, :]) | itself

        hidden = self.stream(input_ids, self.rotary_angles(position_ids), mask, cache)
        # All positions for 0.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        cap = self.config.logit_softcap
        logits = cap * torch.tanh(F.linear(hidden[:, kept], self.embedding.weight).float() / cap)
        logits = self.without_impossible(logits, input_ids[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache if use_cache else None)

    def stream(
        self,
        input_ids: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        """Return the normalised stream after all visits, (B, T, D)."""
        x = x0 = norm(self.embedding(input_ids))
        visits = self.config.visits
        half = len(visits) // 2
        skips: list[Tensor] = []
        for visit, index in enumerate(visits):
            if visit >= half and skips:
                gate = self.skip_gate[visit - half].sigmoid()
                x = gate * x + (1 - gate) * self.skip_weight[visit - half] * skips.pop()
            x = self.blocks[index](x, x0, angles, mask, cache, visit)
            if visit < half:
                skips.append(x)
        return norm(x)

    def without_impossible(self, logits: Tensor, previous: Tensor) -> Tensor:
        """Return logits (B, T, V) with 2^-24 each for tokens that never follow `previous`."""
        places = torch.arange(8, dtype=torch.uint8, device=logits.device)
        bits = (self.impossible[previous][..., None] >> places) & 1
        never = bits.bool().flatten(-2)[..., : logits.size(-1)]
        rest = torch.log1p(-never.sum(-1, keepdim=True) * 2.0**-24)
        normaliser = logits.masked_fill(never, -torch.inf).logsumexp(-1, keepdim=True) - rest
        return torch.where(never, normaliser - 24 * math.log(2), logits)

    def rotary_angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the angles of positions (B, T), each (B, T, 1, r)."""
        dims = self.config.rotary_dims
        pair = torch.arange(dims // 2, dtype=torch.float64, device=position_ids.device)
        angles = position_ids[..., None, None] * self.config.rotary_base ** (-2 * pair / dims)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def require_within_window(self, position_ids: Tensor, length: int) -> None:
        """Refuse positions at or beyond `seq_len`."""
        seq_len = self.config.seq_len
        if length > seq_len and int(position_ids.max()) >= seq_len:
            raise ValueError(
                f"position {int(position_ids.max())} is beyond the window of this model, which has "
                f"{seq_len} positions (config.seq_len): shorten the text or max_new_tokens"
            )
