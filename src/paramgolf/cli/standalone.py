"""The command line of `train_gpt.py`, the one file that repeats a run and scores its model."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from pathlib import Path
from typing import Any

from paramgolf.checked import from_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError
from paramgolf.runtime import signals
from paramgolf.runtime.console import Reporter, guard_output, is_main_rank, standard_output

_MAX_BPB_DIFFERENCE = 0.02
"""Between a run and its repetition on other hardware or by the clock: what seeds of `tiny` differ
by (docs/experiments/tiny-seeds.md); two machines differed by 0.013."""


def main(values: dict[str, Any], file: str) -> None:
    """Parse the command line and run the command.

    Args:
        values: the configuration of the run that wrote the file, as JSON values.
        file: the path of train_gpt.py.
    """
    signals.install(f"python {file} run")
    guard_output()
    try:
        try:
            _dispatch(from_json(RunConfig, values), file)
        finally:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            raise
        code, message = signals.explain(error)
        # Messages name the options of the package.
        message = re.sub("paramgolf run( tiny)?", f"python {file} run", message)
        message = message.replace("--data.tokenizer", "--tokenizer")
        if re.search(r"--\w+\.", message):
            message += " (options of paramgolf; this file repeats one run)"
        if message and is_main_rank():
            print(message, file=sys.stderr)
        sys.exit(code)


def _dispatch(config: RunConfig, file: str) -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog=Path(file).name)
    commands = parser.add_subparsers(required=True, dest="command")
    score = commands.add_parser("score", help="score texts with the model.bin beside this file")
    score.add_argument(
        "--text", nargs="+", type=Path, required=True, help="text, JSON Lines, or shards (.bin)"
    )
    score.add_argument("--stride", type=int, help="of sliding windows; 0: consecutive windows")
    score.add_argument("--fixed", action="store_true", help="do not learn")
    score.add_argument("--losses", type=Path, help="write losses of .bin files as .npy instead")
    run = commands.add_parser("run", help="train, pack and score again; several GPUs: by torchrun")
    run.add_argument("--out", default=time.strftime("runs/%Y%m%d-%H%M%S"), help="a new directory")
    run.add_argument("--resume", help="directory of an interrupted run")
    run.add_argument("--source", help="folder of token shards or of train*.jsonl and val*.jsonl")
    beside = Path(file).with_name("tokenizer.model")
    run.add_argument("--tokenizer", default=str(beside), help="by default the one beside this file")
    for command in (score, run):
        command.add_argument("--device", default=config.device, choices=("auto", "cpu", "cuda"))
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    chosen = parser.parse_args()
    if chosen.command == "run" and not chosen.resume:
        if not chosen.source:
            raise ConfigError("--source is required: a folder with the text, e.g. data/")
        if not Path(chosen.tokenizer).exists():
            raise ConfigError(f"{chosen.tokenizer} does not exist: name it with --tokenizer")
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


def _score(chosen: argparse.Namespace, config: RunConfig, file: Path) -> None:
    from paramgolf.data.shards import read_stream
    from paramgolf.data.streams import read_streams
    from paramgolf.runtime.files import write_array
    from paramgolf.scoring.predictor import load

    predictor = load(file.with_name("model.bin"), device=chosen.device)
    how = (chosen.stride, config.score.batch_tokens, None, chosen.fixed)
    if chosen.losses:
        losses = predictor.losses(read_stream(chosen.text), *how)
        write_array(chosen.losses, losses.double().cpu().numpy())
        return
    for stream in read_streams(chosen.text, predictor.tokenizer):
        score = predictor.score_stream(stream, *how)
        print(stream.name)
        for key, value in dataclasses.asdict(score).items():
            print(f"  {key:<15} {value}")


def _run(chosen: argparse.Namespace, config: RunConfig, file: Path) -> None:
    from paramgolf.pipeline.session import resume, start
    from paramgolf.scoring.bits_per_byte import label_of

    reporter = standard_output()
    if chosen.resume:
        results = resume(Path(chosen.resume), reporter)
    else:
        results = start("train_gpt.py", config, Path(chosen.out), None, reporter)
    reporter.line("stage              BPB      tokens  text bytes  label")
    for stage, score in results["stages"].items():
        sizes = f"{score['tokens']:>11,} {score['bytes']:>11,}"
        reporter.line(f"{stage:<11} {score['bpb']:>10.6f} {sizes}  {label_of(results, stage)}")
    size = results["bytes"]
    parts = f"model.bin {size['model']:,}, train_gpt.py {size['code']:,}"
    if results["tokenizer"]["claim"] == "given":
        parts += f", given tokenizer {size['tokenizer']:,}"
    reporter.line(f"bytes       {size['total']:,} of {size['budget']:,}: {parts}")
    _compare(results, config, file, reporter)


def _compare(results: dict[str, Any], config: RunConfig, file: Path, reporter: Reporter) -> None:
    """Report whether the run reproduced the model.bin and the results.json beside the file."""
    from paramgolf.runtime.files import read_key, sha256_of_file

    model, recorded = file.with_name("model.bin"), file.with_name("results.json")
    digest = results["artifact_sha256"]
    if model.exists() and sha256_of_file(model) == digest:
        reporter.line(f"reproduced: yes (same artifact, SHA-256 {digest})")
    elif recorded.exists():
        stage, score = list(results["stages"].items())[-1]
        bpb, *size = (
            read_key(recorded, "stages", stage, key) for key in ("bpb", "tokens", "bytes")
        )
        if size != [score["tokens"], score["bytes"]] or not isinstance(bpb, float):
            reporter.line("reproduced: no (another text was scored)")
            return
        close = abs(score["bpb"] - bpb) <= _MAX_BPB_DIFFERENCE
        how = "with other hardware, threads or libraries"
        if not config.train.max_steps:
            how = "always when training ends by the clock"
        reporter.line(
            f"reproduced: {'yes' if close else 'no'} ({score['bpb']:.4f} BPB, {bpb:.4f} "
            f"recorded, tolerance {_MAX_BPB_DIFFERENCE}; another artifact, as {how})"
        )
