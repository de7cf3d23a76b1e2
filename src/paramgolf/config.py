"""The configuration of a run: frozen dataclasses, one per stage, checked when they are created.

The docstring of a field is its help text on the command line (tyro reads it from this file).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from paramgolf.checked import (
    Checked,
    Decay,
    Horizon,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    require,
    up_to,
)

BinWidth = Annotated[float, Range("between 0.02 and 2", lambda x: 0.02 <= x <= 2)]
Limit = Annotated[float, Range("0 (no limit) or more", lambda x: 0 <= x < math.inf)]
_VOCABULARY = "between 257 (every byte is a piece) and 65,536 (tokens are stored as uint16)"
VocabSize = Annotated[int, Range(_VOCABULARY, lambda x: 256 < x <= 65_536)]
PassTokens = Annotated[int, up_to(1 << 20)]
"""Of one forward pass: more needs memory, and is not faster."""
Epochs = Annotated[int, up_to(1000)]


@dataclass(frozen=True)
class DataConfig(Checked):
    """The text: its source, its splits, its tokenizer."""

    prefix: ClassVar[str] = "data."
    source: str = "stdlib"
    """"stdlib" (documentation of Python's standard library; needs no download), or a directory that
    contains train*.jsonl and val*.jsonl (also .gz, .xz, .zst) or the token shards *_train_*.bin and
    *_val_*.bin (`paramgolf data build` writes shards from any text)."""
    tokenizer: str = ""
    """SentencePiece model file. If empty: tokenizer.model in the directory of the shards; for other
    sources, a tokenizer is trained on the training split."""
    case_ops: bool = False
    """Train the tokenizer with CaseOps: capitals become operators and lower case, without loss. Has
    no effect on an existing tokenizer."""
    val_share: Share = 0.1
    """Share of the documents (chosen by hash) held out for scoring; only with source "stdlib"."""
    adapt_share: Share = 0.1
    """Share of the documents (chosen by hash) for adaptation, disjoint from the scored documents;
    only with source "stdlib". With other sources, adaptation uses the whole documents behind the
    part of the validation split that `val_bytes` or `val_targets` selects."""
    val_bytes: NonNegativeInt = 0
    """Score only the first N bytes of the validation documents, with any tokenizer; 0: all."""
    val_targets: NonNegativeInt = 0
    """Score only the first N targets of the validation split; 0: all."""
    val_part: Literal["first", "rest"] = "first"
    """"first": score what `val_bytes` or `val_targets` selects; "rest": the whole documents behind
    it, to tune without looking at the part that is reported."""
    shard_tokens: PositiveInt = 10_000_000
    """Maximum number of tokens per shard file."""

    def check_combinations(self) -> None:
        """Check that there are a source and training text, and at most one cut."""
        require(bool(self.source), "data.source", self.source, '"stdlib" or a directory')
        require(
            not (self.val_bytes and self.val_targets), "data.val_bytes", self.val_bytes,
            f"0, as data.val_targets = {self.val_targets} cuts the same text",
        )  # fmt: skip
        require(
            self.val_part == "first" or self.cuts, "data.val_part", self.val_part,
            "first, or a cut by data.val_bytes",
        )  # fmt: skip
        total = self.val_share + self.adapt_share
        require(
            total < 1, "data.val_share + data.adapt_share", total,
            "a sum below 1, to leave training text",
        )  # fmt: skip

    @property
    def cuts(self) -> bool:
        """Whether a part of the validation split is selected."""
        return self.val_bytes + self.val_targets > 0


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The shape of the GPT; the defaults are the record model of PR #1735."""

    prefix: ClassVar[str] = "model."
    vocab_size: VocabSize = 8192
    """Number of pieces of the tokenizer."""
    num_layers: Annotated[int, up_to(256)] = 11
    """Number of physical blocks."""
    width: PositiveInt = 512
    """Channels of the residual stream."""
    num_heads: PositiveInt = 8
    """Query heads."""
    num_kv_heads: PositiveInt = 4
    """Key/value heads; divides num_heads."""
    mlp_ratio: PositiveInt = 4
    """Hidden width of the MLP divided by width."""
    seq_len: Annotated[int, up_to(1 << 16)] = 2048
    """Context length in tokens, in training and scoring."""
    rotary_dims: int = 16
    """Number of leading dimensions of each head that are rotated; even."""
    rotary_base: PositiveFloat = 10_000.0
    """Base of the rotary frequencies."""
    query_gain: float = 5.25
    """Initial value of the learned gain of each query head."""
    logit_softcap: PositiveFloat = 30.0
    """Logits are softcap * tanh(z / softcap)."""
    loop_first: int = 3
    """First block of depth recurrence."""
    loop_last: int = 5
    """Last block of depth recurrence."""
    loop_visits: Annotated[int, up_to(64)] = 3
    """How often the looped blocks are visited once recurrence is on; 1: no recurrence."""
    parallel_from: int = 7
    """First block whose attention and MLP read the same input; num_layers: none."""

    def check_combinations(self) -> None:
        """Check that heads, rotary dimensions and loops fit the width and the blocks."""
        require(
            self.width % self.num_heads == 0, "model.width", self.width,
            f"a multiple of model.num_heads = {self.num_heads}",
        )  # fmt: skip
        require(
            self.num_heads % self.num_kv_heads == 0, "model.num_kv_heads", self.num_kv_heads,
            f"a divisor of model.num_heads = {self.num_heads}",
        )  # fmt: skip
        require(
            self.rotary_dims % 2 == 0 and 2 < self.rotary_dims <= self.head_dim,
            "model.rotary_dims", self.rotary_dims,
            f"an even number over 2 and at most the head size {self.head_dim}",
        )  # fmt: skip
        require(
            0 <= self.loop_first <= self.loop_last < self.num_layers,
            "model.loop_first, model.loop_last", (self.loop_first, self.loop_last),
            f"0 <= first <= last < model.num_layers = {self.num_layers}",
        )  # fmt: skip
        visits = self.num_layers + (self.loop_visits - 1) * (self.loop_last - self.loop_first + 1)
        require(
            visits <= 512, "model.loop_visits", self.loop_visits,
            f"at most 512 visits to blocks in all, not {visits}",
        )  # fmt: skip
        require(
            0 <= self.parallel_from <= self.num_layers, "model.parallel_from", self.parallel_from,
            f"between 0 and model.num_layers = {self.num_layers}",
        )  # fmt: skip

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Training, with a budget in seconds, or in steps if `max_steps` is set."""

    prefix: ClassVar[str] = "train."
    max_seconds: PositiveFloat = 600.0
    """Wall-clock budget, counted from the end of warm-up."""
    reserve_seconds: float = 12.0
    """Part of max_seconds reserved for the work after the last step."""
    max_steps: Annotated[int, Range("0 (by the clock) or more", lambda x: x >= 0)] = 0
    """Train exactly N steps, without a time limit; 0: train for max_seconds."""
    batch_tokens: Annotated[int, up_to(1 << 26)] = 786_432
    """Tokens of one optimizer step, in all its micro-batches."""
    micro_batch_tokens: PassTokens = 98_304
    """Tokens of one forward and backward pass; warm-up halves it if GPU memory is insufficient."""
    recurrence_from: Share = 0.35
    """Share of the budget after which depth recurrence is on."""
    short_until: Share = 0.0
    """Share of the budget, at its start, in which sequences are half as long: attention is cheaper,
    and early on it learns little from afar."""
    warmdown_share: Share = 0.72
    """Share of the budget, at its end, in which the learning rate falls linearly to 0."""
    matrix_lr: PositiveFloat = 0.022
    """Learning rate of MuonEq-R (block matrices)."""
    matrix_weight_decay: NonNegativeFloat = 0.095
    """Decoupled weight decay of the block matrices."""
    momentum: Decay = 0.99
    """Nesterov momentum of MuonEq-R after the momentum warm-up."""
    momentum_start: Decay = 0.92
    """Momentum of the first step."""
    momentum_warmup_share: Share = 0.324
    """Share of the budget, at its start, in which the momentum rises linearly."""
    embedding_lr: PositiveFloat = 0.03
    """AdamW learning rate of the tied embedding."""
    embedding_weight_decay: NonNegativeFloat = 0.085
    """Decoupled weight decay of the embedding."""
    vector_lr: PositiveFloat = 0.02
    """AdamW learning rate of scalars and vectors."""
    vector_weight_decay: NonNegativeFloat = 0.02
    """Decoupled weight decay of scalars and vectors."""
    grad_clip: PositiveFloat = 0.3
    """Maximum global gradient norm."""
    ema_share: Horizon = 0.06
    """Horizon of the exponential moving average (EMA) of all weights, as a share of the budget: a
    step counts 1/e as much as one that came that much later. The average is the result."""
    warmup_steps: PositiveInt = 2
    """Untimed steps on synthetic tokens for each layer order, undone afterwards (GPU only)."""
    checkpoint_seconds: NonNegativeFloat = 30.0
    """Seconds between the checkpoints from which an interrupted run resumes; 0: no checkpoints."""

    def check_combinations(self) -> None:
        """Check that the reserve and the micro-batches fit."""
        require(
            0 <= self.reserve_seconds < self.max_seconds, "train.reserve_seconds",
            self.reserve_seconds, f"at least 0 and below train.max_seconds = {self.max_seconds}",
        )  # fmt: skip
        require(
            self.batch_tokens % self.micro_batch_tokens == 0, "train.batch_tokens",
            self.batch_tokens,
            f"a multiple of train.micro_batch_tokens = {self.micro_batch_tokens}",
        )  # fmt: skip


@dataclass(frozen=True)
class AdaptConfig(Checked):
    """Adaptation before quantization (pre-quantization test-time training, PR #1735)."""

    prefix: ClassVar[str] = "adapt."
    text: Literal["none", "adapt", "scored"] = "adapt"
    """"none": no adaptation; "adapt": on the split that is disjoint from the scored text; "scored":
    on the scored text itself, as the reference does; the score is then labelled in-sample."""
    epochs: Epochs = 21
    """Passes over the adaptation text."""
    lr: PositiveFloat = 5e-4
    """Initial learning rate of AdamW."""
    final_lr: float = 5e-5
    """Learning rate at the end of the cosine."""
    schedule: Literal["cosine-over-epochs", "restart-every-epoch"] = "cosine-over-epochs"
    """One cosine over all epochs, constant within each; or one cosine over the chunks of every
    epoch."""
    chunk_tokens: PassTokens = 32_768
    """Tokens of one step."""
    frozen_blocks: NonNegativeInt = 2
    """Number of first blocks that are not adapted; the embedding never is."""
    grad_clip: PositiveFloat = 1.0
    """Maximum global gradient norm."""
    score_every_epoch: bool = True
    """Score the validation text after every epoch, for the curve in the report; takes time."""

    @property
    def splits(self) -> list[str]:
        """The split that the weights are adapted on, as a list of one name or none."""
        return {"none": [], "adapt": ["adapt"], "scored": ["val"]}[self.text]

    def check_combinations(self) -> None:
        """Check that the learning rate falls."""
        require(
            0 <= self.final_lr <= self.lr, "adapt.final_lr", self.final_lr,
            f"between 0 and adapt.lr = {self.lr}",
        )  # fmt: skip


@dataclass(frozen=True)
class PackConfig(Checked):
    """Quantization (GPTQ with SDClip, PR #1394) and packing."""

    prefix: ClassVar[str] = "pack."
    split: Literal["measured", "uniform"] = "measured"
    """"measured": more bits for columns and matrices whose error costs more; "uniform": the same
    bin width for all columns and all block matrices (SDClip, PR #1394)."""
    matrix_bin_width: BinWidth = 0.4145
    """Quantization bins of block matrices, in standard deviations of a row, where the search for
    the budget begins: SDClip's k / (2^(b-1) - 1), k = 12.85 at b = 6 bits. Wider bins take fewer
    bytes."""
    embedding_bin_width: BinWidth = 0.1575
    """The same for the embedding: k = 20 at b = 8 bits."""
    calibration_batches: PositiveInt = 256
    """Batches of training text from which the Hessians are built."""
    calibration_batch_tokens: PassTokens = 98_304
    """Tokens of one calibration batch."""
    damping: PositiveFloat = 0.01
    """Added to the diagonal of every Hessian, as a share of its mean."""
    budget_bytes: PositiveInt = 16_000_000
    """Largest size of model.bin and train_gpt.py together, in bytes."""
    fill_budget: bool = True
    """Choose bin widths that fill the budget; false: take no more bytes than with those given."""


@dataclass(frozen=True)
class ScoreConfig(Checked):
    """Scoring of the packed model."""

    prefix: ClassVar[str] = "score."
    stride: PositiveInt = 64
    """Targets that each sliding window scores; the rest of the window is context."""
    batch_tokens: PassTokens = 98_304
    """Tokens of one forward pass in scoring."""


@dataclass(frozen=True)
class ScoreFirstConfig(Checked):
    """Score-first adaptation: learn from each chunk of the text after scoring it (PR #1493)."""

    prefix: ClassVar[str] = "score_first."
    optimizer: Literal["none", "adamw"] = "none"
    """"none": a fixed predictor; "adamw": AdamW, one step on every chunk."""
    lr: PositiveFloat = 1e-4
    """Initial learning rate; it falls to 0 along one cosine over all chunks."""
    chunk_tokens: PassTokens = 32_768
    """Targets of a chunk: all are scored before one step learns from all of them."""
    grad_clip: PositiveFloat = 1.0
    """Maximum global gradient norm."""
    adapter_rank: Annotated[int, Range("between 0 and 1,024", lambda x: 0 <= x <= 1024)] = 0
    """Rank of the matrices that every document learns for itself; 0: none."""
    adapter_lr: PositiveFloat = 0.001
    """Learning rate of these matrices."""
    adapter_tokens: PassTokens = 64
    """Targets of a document that are scored before its matrices learn from them."""

    @property
    def learns(self) -> bool:
        """Whether the predictor is adaptive."""
        return self.optimizer != "none" or self.adapter_rank > 0


@dataclass(frozen=True)
class LimitsConfig(Checked):
    """Limits of the time budgets, which the audit checks."""

    prefix: ClassVar[str] = "limits."
    training_seconds: Limit = 0.0
    """Training budget (steps, Hessians, quantization, coding) in seconds; 0: no limit."""
    evaluation_seconds: Limit = 0.0
    """Evaluation budget (everything that reads the scored text) in seconds; 0: no limit."""


@dataclass(frozen=True)
class RunConfig(Checked):
    """Everything that determines the result of a run."""

    seed: Annotated[int, Range("between 0 and 2^63 - 1", lambda x: 0 <= x < 2**63)] = 1337
    """Seed from which all random generators of the run are derived."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto": a CUDA GPU if there is one, else the CPU."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    score_first: ScoreFirstConfig = field(default_factory=ScoreFirstConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def check_combinations(self) -> None:
        """Check what the stages require of the model."""
        seq_len = self.model.seq_len
        for key, value in (
            ("train.micro_batch_tokens", self.train.micro_batch_tokens),
            ("adapt.chunk_tokens", self.adapt.chunk_tokens),
            ("pack.calibration_batch_tokens", self.pack.calibration_batch_tokens),
            ("score.batch_tokens", self.score.batch_tokens),
            ("score_first.chunk_tokens", self.score_first.chunk_tokens),
        ):
            expected = f"a multiple of model.seq_len = {seq_len} tokens"
            require(value % seq_len == 0, key, value, expected)
        require(
            seq_len % 2 == 0 or not self.train.short_until, "train.short_until",
            self.train.short_until, f"0, as model.seq_len = {seq_len} has no halves",
        )  # fmt: skip
        learning = self.score_first
        for key, value in (
            ("score.stride", self.score.stride),
            ("score_first.adapter_tokens", learning.adapter_tokens * (learning.adapter_rank > 0)),
        ):
            require(value <= seq_len, key, value, f"at most model.seq_len = {seq_len}")
        require(
            self.adapt.frozen_blocks < self.model.num_layers, "adapt.frozen_blocks",
            self.adapt.frozen_blocks, f"below model.num_layers = {self.model.num_layers}",
        )  # fmt: skip

    def require_work_for(self, num_ranks: int) -> None:
        """Check that each of several ranks gets work.

        Raises:
            ConfigError: if a batch has fewer sequences than there are ranks, or calibration fewer
                batches.
        """
        for key, value, tokens in (
            ("train.batch_tokens", self.train.batch_tokens, self.model.seq_len),
            ("pack.calibration_batches", self.pack.calibration_batches, 1),
        ):
            minimum = num_ranks * tokens
            require(value >= minimum, key, value, f"at least {minimum}, for {num_ranks} ranks")
