"""What can be known to fail is found before anything is trained or written.

Every run passes through `preflight`, and `--dry-run` shows what it found. It reads names and
headers of files, never the whole text.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from paramgolf.codefile.running import code_file
from paramgolf.config import ModelConfig, RunConfig
from paramgolf.data import shards
from paramgolf.data.claims import counted_bytes, tokenizer_claim
from paramgolf.data.documents import JSONL_NAMES, find_jsonl, read_jsonl
from paramgolf.data.manifest import require_tokenizer
from paramgolf.data.noise import MIN_VAL_DOCUMENTS, val_noise
from paramgolf.data.prepared import PreparedText
from paramgolf.data.text_source import kind_of_text, load_tokenizer, tokenizer_of_shards
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.runtime.device import wants_gpu
from paramgolf.runtime.rundir import RunDir

_MIN_BITS = 0.5
"""Per weight: fewer than the widest bins have ever taken."""


class Finding(NamedTuple):
    """One line of the preflight."""

    name: str
    text: str
    warning: bool = False


def preflight(
    config: RunConfig, out: Path, num_ranks: int = 1, from_run: Path | None = None
) -> list[Finding]:
    """Check that a run of `config` can succeed, as far as that can be known before it starts.

    Args:
        config: of the run.
        out: its run directory, which need not exist.
        num_ranks: how many processes share the work.
        from_run: a run whose prepared text and trained weights are used.

    Returns:
        What was found, with warnings among it.

    Raises:
        ConfigError: if a setting cannot work: it names the key and a value that would.
        UserError: if the text, the tokenizer, the memory or the disk is not sufficient.
    """
    from paramgolf.pipeline.estimate import expected_seconds  # which imports this module

    config.require_work_for(num_ranks)
    text = _Text(config, from_run)
    findings = [
        Finding("text", text.description()),
        *text.warnings(),
        _bytes(config, _given_tokenizer(config, from_run)),
        _memory(config),
        _disk(config, out, text),
    ]
    return [*findings, *expected_seconds(config, text.tokens, num_ranks)]


class _Text:
    """Sizes of the splits as far as they are known without reading them.

    Attributes:
        tokens: by split; estimated where the text is not encoded yet.
        documents: by split; at least so many where counting all of them would take long.
    """

    def __init__(self, config: RunConfig, from_run: Path | None) -> None:
        self._config = config
        self.tokens: dict[str, int] = {}
        self.documents: dict[str, int] = {}
        self.encoded = from_run is not None
        if from_run is not None:
            splits = PreparedText.of(RunDir(from_run)).splits
            self.tokens = {name: split.tokens for name, split in splits.items()}
            self.documents = {name: split.documents for name, split in splits.items()}
            self._require_adaptation_text(from_run)
            return
        folder = Path(config.data.source)
        match kind_of_text(config.data.source):
            case "stdlib":
                self._check_tokenizer()
            case "jsonl":
                self._check_tokenizer()
                self._jsonl(folder)
            case "shards":
                self._shards(folder)

    def description(self) -> str:
        data = self._config.data
        if not self.tokens:
            return "documentation of Python's standard library"
        parts = (f"{name} {count:,}" for name, count in self.tokens.items())
        about = "" if self.encoded else "about "
        return f"{data.source}: {about}{', '.join(parts)} tokens"

    def warnings(self) -> Iterator[Finding]:
        if warning := val_noise(self.documents.get("val", MIN_VAL_DOCUMENTS)):
            yield Finding("text", warning, warning=True)

    def _check_tokenizer(self) -> None:
        if file := self._config.data.tokenizer:
            load_tokenizer(Path(file), self._config.model.vocab_size)

    def _jsonl(self, folder: Path) -> None:
        for split in ("train", "val"):
            files = find_jsonl(folder, split)
            if not files:
                raise UserError(f"{folder} contains no {split}*.{JSONL_NAMES}")
            documents = (document for path in files for document in read_jsonl(path))
            self.documents[split] = sum(1 for _ in islice(documents, MIN_VAL_DOCUMENTS))
            if not self.documents[split]:
                raise UserError(f"{files[0]} contains no document")
            ratio = {".jsonl": 1}.get(files[0].suffix, 3)  # of compression, roughly
            size = ratio * sum(path.stat().st_size for path in files)
            self.tokens[split] = int(size / 3.5)
        data = self._config.data
        if self._config.adapt.text == "adapt" and not (data.cuts and data.val_part == "first"):
            raise ConfigError(
                f"adapt.text = 'adapt' needs text to adapt on, and {folder} has none: set "
                "--data.val-bytes N (the documents behind the first N bytes of the validation text "
                "are adapted on) and --data.val-part first, or --adapt.text none"
            )

    def _shards(self, folder: Path) -> None:
        self.encoded = True
        file = tokenizer_of_shards(self._config.data)
        tokenizer = load_tokenizer(file, self._config.model.vocab_size)
        require_tokenizer(folder, tokenizer.sha256)
        for split in ("train", "val", "adapt"):
            files = shards.find_shards(folder, split)
            if not files and split == "val":
                raise UserError(f"{folder} contains no *_val_*.bin")
            if files:
                self.tokens[split] = sum(len(shards.open_shard(path)) for path in files)
        stream = shards.read_stream(shards.find_shards(folder, "val"))
        data = self._config.data
        first = data.val_targets + 1 if data.val_targets else len(stream)
        if data.val_bytes:
            first = 2 + int(tokenizer.token_bytes(stream).cumsum().searchsorted(data.val_bytes))
        starts = shards.document_starts(stream, tokenizer.bos)
        behind = starts[starts >= first]
        rest = len(stream) - int(behind[0]) if len(behind) else 0
        self.tokens["val"] = min(len(stream), first)
        self.documents["val"] = len(starts) - len(behind)
        if data.val_part == "rest":
            self.tokens["val"], self.documents["val"] = rest, len(behind)
        elif rest:
            self.tokens.setdefault("adapt", rest)
        self._require_adaptation_text(folder)

    def _require_adaptation_text(self, folder: Path) -> None:
        config, seq_len = self._config, self._config.model.seq_len
        if config.adapt.text != "adapt" or self.tokens.get("adapt", 0) > seq_len:
            return
        found = self.tokens.get("adapt", 0)
        what = f"an 'adapt' split of {found:,} tokens" if found else "no 'adapt' split"
        raise ConfigError(
            f"adapt.text = 'adapt' needs more than {seq_len:,} tokens to adapt on, and {folder} "
            f"has {what}: set --adapt.text none, or --data.val-bytes below the size of the "
            "validation text (the rest is then adapted on)"
        )


def _bytes(config: RunConfig, given: int) -> Finding:
    """The budget against code file, given tokenizer and smallest and usual size of the weights."""
    matrices, vectors = layout(config.model)
    weights = sum(shape.numel() for shape in matrices.values())
    code = len(code_file(config))
    rest = code + given + sum(shape.numel() for shape in vectors.values())
    budget, smallest = config.pack.budget_bytes, rest + int(weights * _MIN_BITS / 8)
    embedding = config.model.vocab_size * config.model.width
    usual = rest + int(
        (
            embedding * _entropy_bits(config.pack.embedding_bin_width)
            + (weights - embedding) * _entropy_bits(config.pack.matrix_bin_width)
        )
        / 8
    )
    if budget < smallest:
        enough = smallest + 1000 - smallest % 500  # the code file contains this number, too
        raise ConfigError(
            f"invalid pack.budget_bytes = {budget:,}: train_gpt.py takes {code:,}, the tokenizer "
            f"{given:,} and {weights:,} weights at least {smallest - code - given:,}; expected "
            f"{enough:,} or more, usually about {usual:,}"
        )
    text = f"budget {budget:,}, of which code {code:,}, tokenizer {given:,}; {weights:,} weights"
    tight = budget < 0.6 * usual
    if tight:
        text += f" usually take {usual - code - given:,} bytes: expect a large loss by quantization"
    return Finding("bytes", text, tight)


def _given_tokenizer(config: RunConfig, from_run: Path | None) -> int:
    """Return how many bytes of the budget the tokenizer takes, as far as can be known yet."""
    data = config.data
    if from_run is not None:
        return counted_bytes((RunDir(from_run).stage_result("prepare") or {})["tokenizer"])
    if kind_of_text(data.source) == "shards":
        file = tokenizer_of_shards(data)
    elif data.tokenizer:
        file = Path(data.tokenizer)
    else:
        return 0
    return counted_bytes(tokenizer_claim(Tokenizer.load(file), file, None))


def _entropy_bits(bin_width: float) -> float:
    """Bits per number of a normal distribution in bins of so many standard deviations."""
    return max(0.3, 0.5 * math.log2(2 * math.pi * math.e) - math.log2(bin_width))


def _memory(config: RunConfig) -> Finding:
    """Bytes of a training step on a CPU; on a GPU warm-up finds the micro-batch that fits."""
    if wants_gpu(config.device):
        return Finding("memory", "warm-up halves the micro-batch until it fits the GPU")
    need, total = _training_bytes(config), _total_memory()
    text = f"about {need / 1e9:.1f} GB of {total / 1e9:.1f} GB"
    if need > total:
        raise ConfigError(
            f"training needs {text}: lower --train.micro-batch-tokens (now "
            f"{config.train.micro_batch_tokens:,}), or use a GPU"
        )
    return Finding("memory", text)


def _training_bytes(config: RunConfig) -> int:
    model = config.model
    per_visit = 16 * model.width + 3 * model.mlp_ratio * model.width
    per_token = 4 * (num_visits(model, True) * per_visit + 3 * model.vocab_size)
    return 20 * num_weights(model) + per_token * config.train.micro_batch_tokens


def num_weights(model: ModelConfig) -> int:
    """Return the number of all parameters."""
    return sum(shape.numel() for shapes in layout(model) for shape in shapes.values())


def num_visits(model: ModelConfig, recurrent: bool) -> int:
    """Return how many blocks a forward pass runs, repeated visits counted."""
    order = layer_order(model, recurrent)
    return len(order.encoder) + len(order.decoder)


def _total_memory() -> int:
    """Of the machine or, in a container, of the container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _disk(config: RunConfig, out: Path, text: _Text) -> Finding:
    """Shards, checkpoints and artifact against the free space where they are written."""
    new_tokens = sum(
        count for name, count in text.tokens.items() if name != "train" or not text.encoded
    )
    need = 2 * new_tokens + 24 * num_weights(config.model) + 2 * config.pack.budget_bytes
    path = out.absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    described = f"about {need / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free"
    if need > free:
        raise UserError(f"{existing} has too little space: {described}; name another --out")
    return Finding("disk", described)
