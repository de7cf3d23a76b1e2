"""The command line of `train_gpt.py`, the one file that repeats a run and scores its model."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig, from_json
from paramgolf.runtime import signals
from paramgolf.runtime.console import Reporter, is_main_rank, standard_output

_MAX_BPB_DIFFERENCE = 0.02
"""Between a run and its repetition on other hardware or by the clock: what seeds of `tiny` differ
by (docs/experiments/tiny-seeds.md); two machines differed by 0.013."""


def main(values: dict[str, Any], file: str) -> None:
    """Parse the command line and run the command.

    Args:
        values: the configuration of the run that wrote the file, as JSON values.
        file: the path of train_gpt.py.
    """
    config = from_json(RunConfig, values)
    signals.install(f"python {file} run")
    parser = argparse.ArgumentParser(prog=Path(file).name)
    commands = parser.add_subparsers(required=True, dest="command")
    score = commands.add_parser("score", help="score texts with model.bin, which lies beside")
    score.add_argument("--text", nargs="+", type=Path, required=True, help=".txt, .jsonl or .bin")
    score.add_argument("--stride", type=int, help="of sliding windows; 0: consecutive windows")
    run = commands.add_parser("run", help="repeat the run; on several ranks with torchrun")
    run.add_argument("--out", default=time.strftime("runs/%Y%m%d-%H%M%S"))
    run.add_argument("--resume", help="run directory of an interrupted run")
    run.add_argument("--source", help="folder of token shards or of train*.jsonl and val*.jsonl")
    beside = Path(file).with_name("tokenizer.model")
    run.add_argument("--tokenizer", default=str(beside), help="SentencePiece model")
    for command in (score, run):
        command.add_argument("--device", default=config.device, choices=("auto", "cpu", "cuda"))
    chosen = parser.parse_args()
    if chosen.command == "run" and not chosen.source and not chosen.resume:
        run.error("--source is required: a folder with the text, e.g. data/ of the first run")
    try:
        if chosen.command == "score":
            _score(chosen, config, Path(file))
        else:
            data = dataclasses.replace(
                config.data,
                source=str(Path(chosen.source or ".").resolve()),
                tokenizer=str(Path(chosen.tokenizer).resolve()),
            )
            config = dataclasses.replace(config, data=data, device=chosen.device)
            _run(chosen, config, Path(file))
    except (Exception, KeyboardInterrupt) as error:
        code, message = signals.explain(error)
        parser.exit(code, f"{message}\n" if message and is_main_rank() else None)


def _score(chosen: argparse.Namespace, config: RunConfig, file: Path) -> None:
    from paramgolf.data.streams import read_streams
    from paramgolf.scoring.predictor import load

    predictor = load(file.with_name("model.bin"), device=chosen.device)
    for name, stream, texts in read_streams(chosen.text, predictor.tokenizer):
        score = predictor.score_stream(stream, texts, chosen.stride, config.score.batch_tokens)
        print(name, *(f"{key} {value}" for key, value in dataclasses.asdict(score).items()))


def _run(chosen: argparse.Namespace, config: RunConfig, file: Path) -> None:
    from paramgolf.pipeline.session import resume, start

    reporter = standard_output()
    if chosen.resume:
        results = resume(Path(chosen.resume), reporter)
    else:
        results = start("train_gpt.py", config, Path(chosen.out), None, reporter)
    for stage, score in results["stages"].items():
        reporter.line(f"{stage:<10} {score['bpb']!r} BPB  {score['label']}")
    reporter.line(f"bytes      {results['bytes']}")
    _compare(results, config, file, reporter)


def _compare(results: dict[str, Any], config: RunConfig, file: Path, reporter: Reporter) -> None:
    """Report whether the run reproduced the model.bin and the results.json beside the file."""
    from paramgolf.runtime.files import read_json, sha256_of_file

    model, recorded = file.with_name("model.bin"), file.with_name("results.json")
    digest = results["artifact_sha256"]
    if model.exists() and sha256_of_file(model) == digest:
        reporter.line(f"reproduced: yes (same artifact, SHA-256 {digest})")
    elif recorded.exists():
        stage, score = list(results["stages"].items())[-1]
        first = read_json(recorded)["stages"][stage]
        if any(score[key] != first[key] for key in ("tokens", "bytes")):
            reporter.line("reproduced: no (another text was scored)")
            return
        close = abs(score["bpb"] - first["bpb"]) <= _MAX_BPB_DIFFERENCE
        how = "with other hardware, threads or libraries"
        if not config.train.max_steps:
            how = "always when training ends by the clock"
        reporter.line(
            f"reproduced: {'yes' if close else 'no'} ({score['bpb']:.4f} BPB, {first['bpb']:.4f} "
            f"recorded, tolerance {_MAX_BPB_DIFFERENCE}; another artifact, as {how})"
        )
