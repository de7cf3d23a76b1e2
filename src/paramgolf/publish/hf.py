"""An artifact as a folder for Hugging Face transformers, and its text as a task for lm_eval.

The Python files in `huggingface/` and `lm_eval/` belong to the exported folders, where they run
without paramgolf: they are copied as they are, and nothing here imports them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save

from paramgolf.compress.artifact import Artifact
from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.publish.bundle import without_paths
from paramgolf.publish.rendering import template
from paramgolf.runtime.files import copy_file, sha256_of_file, write_bytes, write_json
from paramgolf.runtime.outputs import require_new_directory
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.bits_per_byte import label_of
from paramgolf.scoring.modes import score_modes
from paramgolf.scoring.predictor import load
from paramgolf.version import __version__

_MODELLING, _TOKENIZATION = "modeling_paramgolf", "tokenization_paramgolf"
_BEHIND = Path(__file__).parent


def export_hf(path: Path, out: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load with remote code.

    Its weights are the artifact's, dequantized to float32. The model card states the scores of the
    results.json beside the artifact, if that is of this artifact.

    Args:
        path: the artifact; its tokenizer is beside it.
        out: a new directory.

    Raises:
        UserError: if the artifact or its tokenizer cannot be read, or `out` is not empty.
    """
    require_new_directory(out)
    predictor = load(path, device="cpu")
    artifact, tokenizer = predictor.artifact, predictor.tokenizer
    record = _record(path, artifact)
    for name in (_MODELLING, _TOKENIZATION):
        copy_file(_BEHIND / "huggingface" / f"{name}.py", out / f"{name}.py")
    write_bytes(out / "tokenizer.model", tokenizer.model)
    state = artifact.state()
    parameters = sum(tensor.numel() for tensor in state.values())
    state["embedding.weight"] = state.pop("embedding")  # a module in transformers
    never = tokenizer.impossible_successors
    if never is None:
        never = np.zeros((tokenizer.vocab_size,) * 2, np.bool_)
    state["impossible"] = torch.from_numpy(np.packbits(never, axis=1, bitorder="little"))
    weights = save({name: state[name].contiguous() for name in state}, metadata={"format": "pt"})
    write_bytes(out / "model.safetensors", weights)
    special = _special_tokens(tokenizer)
    write_json(out / "config.json", _config(artifact, special))
    write_json(out / "generation_config.json", special)
    write_json(out / "tokenizer_config.json", _tokenizer_config(artifact, tokenizer, special))
    card = template("model_card.md.j2").render(
        **record,
        parameters=parameters,
        version=__version__,
        seq_len=artifact.model.seq_len,
        folder=out.name,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    write_bytes(out / "README.md", card.encode())


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the tokens that begin a text, end one and pad it; BOS begins the next document."""
    padding = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model).pad_id()
    pad = padding if padding >= 0 else tokenizer.bos
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.bos, "pad_token_id": pad}


def _config(artifact: Artifact, special: dict[str, int]) -> dict[str, Any]:
    classes = {"AutoConfig": "ParamgolfConfig", "AutoModelForCausalLM": "ParamgolfForCausalLM"}
    return {
        "model_type": "paramgolf",
        "architectures": ["ParamgolfForCausalLM"],
        "auto_map": {auto: f"{_MODELLING}.{own}" for auto, own in classes.items()},
        "dtype": "float32",
        **asdict(artifact.model),
        **special,
    }


def _tokenizer_config(
    artifact: Artifact, tokenizer: Tokenizer, special: dict[str, int]
) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    names = {name[:-3]: processor.id_to_piece(token) for name, token in special.items()}
    return {
        "tokenizer_class": "ParamgolfTokenizer",
        "auto_map": {"AutoTokenizer": [f"{_TOKENIZATION}.ParamgolfTokenizer", None]},
        "case_ops": tokenizer.case_ops,
        "split_at_mark": tokenizer.escaped_mark is not None,
        "model_max_length": artifact.model.seq_len,
        "padding_side": "left",
        **names,
    }


def _record(path: Path, artifact: Artifact) -> dict[str, Any]:
    """Return what the model card says of the artifact and of the run in its folder."""
    digest = sha256_of_file(path)
    run = RunDir(path.parent)
    results = read_results(run) if run.results_file.is_file() else {}
    if results.get("artifact_sha256") != digest:  # of another artifact
        results = {}
    scores = {
        mode.name: {**results["stages"][mode.stage], "label": label_of(results, mode.stage)}
        for mode in score_modes(artifact.stride, artifact.score_first.learns)
        if mode.stage in results.get("stages", {})
    }
    return {
        "artifact_bytes": path.stat().st_size,
        "artifact_sha256": digest,
        "recipe": results.get("recipe"),
        "scores": scores,
        "text": results.get("text"),
        "corpus": without_paths(results["corpus"]["source"]) if results else "",
        "bytes": results.get("bytes"),
    }


def export_lm_eval(path: Path, out: Path) -> int:
    """Write the run's scored text as a task for lm_eval; return the number of documents.

    Args:
        path: the directory of a run.
        out: a new directory.

    Raises:
        UserError: if `path` is not a run with its text, or `out` is not empty.
    """
    require_new_directory(out)
    run, _, _ = RunDir.open(path)
    texts = PreparedText.of(run).scored_text(run.data, Tokenizer.load(run.tokenizer)).texts
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    write_bytes(out / "documents.jsonl", "".join(rows).encode())
    for name in ("paramgolf.yaml", "documents.py"):
        copy_file(_BEHIND / "lm_eval" / name, out / name)
    return len(texts)
