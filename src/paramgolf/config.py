"""The configuration of a run: frozen dataclasses, one a stage, validated at the door.

A comment behind a field is its help text on the command line (tyro reads it from here).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from paramgolf.errors import ConfigError

_T = TypeVar("_T")


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise a ConfigError that names key, value and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"invalid {key} = {value!r}: expected {allowed}")


def require_positive(section: str, config: object, *names: str) -> None:
    """Require numbers above 0."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{section}.{name}", value, "greater than 0 and finite")


def require_share(section: str, config: object, *names: str) -> None:
    """Require numbers from 0 to 1."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{section}.{name}", value, "a share between 0 and 1")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    source: str = "stdlib"
    """"stdlib" (the documentation of Python's standard library, nothing to download), or a folder
    that holds train*.jsonl and val*.jsonl (also .gz, .xz, .zst), or token shards *_train_*.bin and
    *_val_*.bin (`paramgolf data build` makes them of any text)."""
    tokenizer: str = ""
    """A SentencePiece model file. Empty: tokenizer.model beside the shards, else one is trained on
    the training split."""
    case_ops: bool = False
    """Train the tokenizer with CaseOps: capitals become operators and lower case, losslessly. A
    tokenizer that is given, or lies beside shards, decides for itself."""
    val_share: float = 0.1
    """Share of the documents (by hash) held out for scoring; source "stdlib" only."""
    adapt_share: float = 0.1
    """Share of the documents (by hash) for adaptation, disjoint from the scored ones; source
    "stdlib" only. Other sources adapt on what `val_targets` leaves of the validation split."""
    val_targets: int = 0
    """Score only the first N targets of the validation split; 0: all of them."""
    shard_tokens: int = 10_000_000
    """Tokens in a shard file."""

    def __post_init__(self) -> None:
        require(bool(self.source), "data.source", self.source, '"stdlib" or a folder')
        require_share("data", self, "val_share", "adapt_share")
        total = self.val_share + self.adapt_share
        require(
            total < 1, "data.val_share + data.adapt_share", total,
            "a sum below 1, to leave training text",
        )  # fmt: skip
        require(self.val_targets >= 0, "data.val_targets", self.val_targets, "0 or more")
        require_positive("data", self, "shard_tokens")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the GPT; the defaults are the record model of PR #1735."""

    vocab_size: int = 8192
    """Pieces of the tokenizer."""
    num_layers: int = 11
    """Physical blocks."""
    width: int = 512
    """Channels of the residual stream."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key/value heads; divides num_heads."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over width."""
    seq_len: int = 2048
    """Tokens of context in training and scoring."""
    rotary_dims: int = 16
    """Leading dimensions of each head that are rotated; even."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies."""
    query_gain: float = 5.25
    """Initial learned gain of each query head."""
    logit_softcap: float = 30.0
    """Logits are softcap * tanh(z / softcap)."""
    loop_first: int = 3
    """First block of depth recurrence."""
    loop_last: int = 5
    """Last block of depth recurrence."""
    loop_visits: int = 3
    """Visits to the looped blocks once recurrence is on; 1: no recurrence."""
    parallel_from: int = 7
    """First block whose attention and MLP read the same input; num_layers: none."""

    def __post_init__(self) -> None:
        require_positive(
            "model", self, "vocab_size", "num_layers", "width", "num_heads", "num_kv_heads",
            "mlp_ratio", "seq_len", "rotary_base", "logit_softcap", "loop_visits",
        )  # fmt: skip
        for name, most in (("num_layers", 256), ("loop_visits", 64), ("seq_len", 1 << 20)):
            value = getattr(self, name)
            require(value <= most, f"model.{name}", value, f"at most {most:,}")
        require(
            256 < self.vocab_size <= 65_536, "model.vocab_size", self.vocab_size,
            "between 257 (every byte is a piece) and 65,536 (tokens are stored as uint16)",
        )  # fmt: skip
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
            f"even, over 2 and at most the head size {self.head_dim}",
        )  # fmt: skip
        require(
            0 <= self.loop_first <= self.loop_last < self.num_layers,
            "model.loop_first, model.loop_last", (self.loop_first, self.loop_last),
            f"0 <= first <= last < model.num_layers = {self.num_layers}",
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
class TrainConfig:
    """Training; budgeted in seconds, or in steps where `max_steps` is given."""

    max_seconds: float = 600.0
    """Wall-clock budget, counted after warm-up."""
    reserve_seconds: float = 12.0
    """Part of max_seconds that is left for what follows the last step."""
    max_steps: int = 0
    """Train exactly N steps and ignore the clock; 0: train by the clock."""
    batch_tokens: int = 786_432
    """Tokens of one optimizer step, over all micro-batches."""
    micro_batch_tokens: int = 98_304
    """Tokens of one forward and backward pass; halved in warm-up while it does not fit."""
    recurrence_from: float = 0.35
    """Share of the budget after which depth recurrence is on."""
    warmdown_share: float = 0.72
    """Last share of the budget, in which the learning rate falls linearly to 0."""
    matrix_lr: float = 0.022
    """Learning rate of MuonEq-R (block matrices)."""
    matrix_weight_decay: float = 0.095
    """Decoupled weight decay of the block matrices."""
    momentum: float = 0.99
    """Nesterov momentum of MuonEq-R after its warm-up."""
    momentum_start: float = 0.92
    """Momentum of the first step."""
    momentum_warmup_steps: int = 1500
    """Steps over which the momentum rises linearly."""
    embedding_lr: float = 0.03
    """AdamW learning rate of the tied embedding."""
    embedding_weight_decay: float = 0.085
    """Decoupled weight decay of the embedding."""
    vector_lr: float = 0.02
    """AdamW learning rate of scalars and vectors."""
    vector_weight_decay: float = 0.02
    """Decoupled weight decay of scalars and vectors."""
    grad_clip: float = 0.3
    """Largest global gradient norm."""
    ema_decay: float = 0.9965
    """Decay of the moving average of all weights, which is what is kept."""
    warmup_steps: int = 2
    """Untimed steps on synthetic tokens, for each layer order, undone afterwards (GPU only)."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints from which a killed run resumes; 0: none."""

    def __post_init__(self) -> None:
        require_positive(
            "train", self, "max_seconds", "batch_tokens", "micro_batch_tokens", "matrix_lr",
            "embedding_lr", "vector_lr", "grad_clip", "warmup_steps",
        )  # fmt: skip
        require(self.max_steps >= 0, "train.max_steps", self.max_steps, "0 (by the clock) or more")
        require(
            0 <= self.reserve_seconds < self.max_seconds, "train.reserve_seconds",
            self.reserve_seconds, f"at least 0 and below train.max_seconds = {self.max_seconds}",
        )  # fmt: skip
        require(
            self.batch_tokens % self.micro_batch_tokens == 0, "train.batch_tokens",
            self.batch_tokens,
            f"a multiple of train.micro_batch_tokens = {self.micro_batch_tokens}",
        )  # fmt: skip
        require_share("train", self, "recurrence_from", "warmdown_share")
        for name in ("momentum", "momentum_start", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.{name}", value, "at least 0 and below 1")
        for name in ("matrix_weight_decay", "embedding_weight_decay", "vector_weight_decay",
                     "momentum_warmup_steps", "checkpoint_seconds"):  # fmt: skip
            value = getattr(self, name)
            require(value >= 0, f"train.{name}", value, "0 or more")


@dataclass(frozen=True)
class AdaptConfig:
    """Adaptation before quantization (pre-quantization test-time training, PR #1735)."""

    text: Literal["none", "adapt", "scored"] = "adapt"
    """"none": skip; "adapt": the split disjoint from the scored text; "scored": the scored text
    itself, the reference's procedure, whose score is labelled in-sample."""
    epochs: int = 21
    """Passes over the adaptation text."""
    lr: float = 5e-4
    """First learning rate of AdamW."""
    final_lr: float = 5e-5
    """Learning rate at the end of the cosine."""
    schedule: Literal["cosine-over-epochs", "restart-every-epoch"] = "cosine-over-epochs"
    """One cosine over all epochs, constant within each; or one over the chunks of every epoch."""
    chunk_tokens: int = 32_768
    """Tokens of one step."""
    frozen_blocks: int = 2
    """First blocks that stay as trained; the embedding always does."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    score_every_epoch: bool = True
    """Score the validation text after every epoch, for the curve; costs time."""

    def __post_init__(self) -> None:
        require_positive("adapt", self, "epochs", "lr", "chunk_tokens", "grad_clip")
        require(
            0 <= self.final_lr <= self.lr, "adapt.final_lr", self.final_lr,
            f"between 0 and adapt.lr = {self.lr}",
        )  # fmt: skip
        require(self.frozen_blocks >= 0, "adapt.frozen_blocks", self.frozen_blocks, "0 or more")


@dataclass(frozen=True)
class PackConfig:
    """Quantization (GPTQ with SDClip, PR #1394) and packing."""

    split: Literal["measured", "uniform"] = "measured"
    """"measured": more bits for columns and matrices whose error costs more; "uniform": the same
    bin width for all columns and all block matrices (SDClip, PR #1394)."""
    matrix_bin_width: float = 0.4145
    """Quantization bins of block matrices, in standard deviations of a row, where the search for
    the budget begins: SDClip's k / (2^(b-1) - 1), k = 12.85 at b = 6 bits. Wider bins take fewer
    bytes."""
    embedding_bin_width: float = 0.1575
    """The same for the embedding: k = 20 at b = 8 bits."""
    calibration_batches: int = 256
    """Batches of training text from which the Hessians are built."""
    calibration_batch_tokens: int = 98_304
    """Tokens of one calibration batch."""
    damping: float = 0.01
    """Added to the diagonal of every Hessian, as a share of its mean."""
    budget_bytes: int = 16_000_000
    """Largest size of model.bin and train_gpt.py together, in bytes."""
    fill_budget: bool = True
    """Choose bin widths that fill the budget; false: take no more bytes than with those given."""

    def __post_init__(self) -> None:
        require_positive(
            "pack", self, "calibration_batches", "calibration_batch_tokens", "damping",
            "budget_bytes",
        )  # fmt: skip
        for name in ("matrix_bin_width", "embedding_bin_width"):
            value = getattr(self, name)
            require(0.02 <= value <= 2, f"pack.{name}", value, "between 0.02 and 2")


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring from the packed file."""

    stride: int = 64
    """Targets that each sliding window scores, with the rest of the window as context."""
    batch_tokens: int = 98_304
    """Tokens of one forward pass in scoring."""

    def __post_init__(self) -> None:
        require_positive("score", self, "stride", "batch_tokens")


@dataclass(frozen=True)
class ScoreFirstConfig:
    """Learning from the text while it is scored, each chunk after its score (PR #1493)."""

    optimizer: Literal["none", "sgd", "adamw"] = "none"
    """"none": a fixed predictor; "sgd": with momentum, as published; "adamw"."""
    lr: float = 0.005
    """First learning rate; it falls to 0 along one cosine over the chunks."""
    momentum: float = 0.9
    """Of "sgd"."""
    epochs: int = 3
    """Steps on every chunk."""
    chunk_tokens: int = 32_768
    """Targets that are scored before they are learned from, all in one step."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        require(
            self.optimizer in ("none", "sgd", "adamw"), "score_first.optimizer", self.optimizer,
            "none, sgd or adamw",
        )  # fmt: skip
        require_positive("score_first", self, "lr", "epochs", "chunk_tokens", "grad_clip")
        require(
            0 <= self.momentum < 1, "score_first.momentum", self.momentum, "at least 0, below 1"
        )

    @property
    def learns(self) -> bool:
        """Whether the predictor is adaptive."""
        return self.optimizer != "none"


@dataclass(frozen=True)
class LimitsConfig:
    """What the audit holds the books against."""

    training_seconds: float = 0.0
    """The training budget: steps, Hessians, quantization, coding; 0: no limit."""
    evaluation_seconds: float = 0.0
    """The evaluation budget: all that reads the scored text; 0: no limit."""

    def __post_init__(self) -> None:
        for name in ("training_seconds", "evaluation_seconds"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"limits.{name}", value, "0 (no limit) or more")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result."""

    seed: int = 1337
    """Root of every random generator of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto": one CUDA GPU where there is one, else the CPU."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    score_first: ScoreFirstConfig = field(default_factory=ScoreFirstConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2^63 - 1")
        seq_len = self.model.seq_len
        for key, value in (
            ("train.micro_batch_tokens", self.train.micro_batch_tokens),
            ("adapt.chunk_tokens", self.adapt.chunk_tokens),
            ("pack.calibration_batch_tokens", self.pack.calibration_batch_tokens),
            ("score.batch_tokens", self.score.batch_tokens),
            ("score_first.chunk_tokens", self.score_first.chunk_tokens),
        ):
            require(
                value % seq_len == 0, key, value, f"a multiple of model.seq_len = {seq_len} tokens"
            )
        require(
            self.score.stride <= seq_len, "score.stride", self.score.stride,
            f"at most model.seq_len = {seq_len}",
        )  # fmt: skip
        require(
            self.adapt.frozen_blocks < self.model.num_layers, "adapt.frozen_blocks",
            self.adapt.frozen_blocks, f"below model.num_layers = {self.model.num_layers}",
        )  # fmt: skip

    def require_work_for(self, num_ranks: int) -> None:
        """Check that every one of several ranks gets work.

        Raises:
            ConfigError: if there are more ranks than sequences in a batch, or calibration batches.
        """
        for key, value, tokens in (
            ("train.batch_tokens", self.train.batch_tokens, self.model.seq_len),
            ("pack.calibration_batches", self.pack.calibration_batches, 1),
        ):
            require(
                value >= num_ranks * tokens, key, value,
                f"at least {num_ranks * tokens}, for {num_ranks} ranks",
            )  # fmt: skip


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values; `from_json` reads it back equal."""
    return dataclasses.asdict(config)


def from_json(cls: type[_T], values: Any, where: str = "") -> _T:
    """Build a configuration from JSON values.

    Raises:
        ConfigError: on an unknown or missing key, or a value of another type, by its full name.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the configuration'} is not a table of keys: {values!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {where}{close[0]}?)" if close else ""
            raise ConfigError(
                f"there is no key {where + str(key)!r}{hint}; possible: {', '.join(names)}"
            )
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"missing key {where}{missing[0]}")
    return cls(**{name: _convert(hints[name], values[name], where + name) for name in names})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, key + ".")
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, key, value, "one of " + ", ".join(map(str, allowed)))
        return value
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    require(type(value) is hint, key, value, f"type {hint.__name__}")
    return value
