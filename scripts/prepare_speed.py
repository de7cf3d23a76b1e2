"""Measure the preparation of a folder of shards, twice: the second time it is known.

    taskset -c 0-1 python scripts/prepare_speed.py data/stand-in

Prints seconds, tokens/s and peak memory (of this process, and of the largest of the others). Shards
of any size come from `scripts/stand_in.py`.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from paramgolf.data.shards import find_shards, open_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import prepare
from paramgolf.stages.job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    tokens = sum(len(open_shard(path)) for path in find_shards(folder, "train"))
    record = RECIPES["record"][1]
    vocab = Tokenizer.load(folder / "tokenizer.model").vocab_size
    config = replace(
        record,
        device="cpu",
        data=replace(record.data, source=str(folder), tokenizer=""),
        model=replace(record.model, vocab_size=vocab),
    )
    cores = len(os.sched_getaffinity(0))
    for turn in ("first", "second"):
        with tempfile.TemporaryDirectory() as out:
            job = Job(
                config, RunDir.create(Path(out) / "run", "record", config), select_runtime("cpu")
            )
            began, worked = time.perf_counter(), sum(os.times()[:4])
            job.run.finish_stage("prepare", prepare.run(job))
            seconds = time.perf_counter() - began
            worked = sum(os.times()[:4]) - worked
        own, other = (
            resource.getrusage(who).ru_maxrss / 1e6
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        phases = ", ".join(f"{name} {spent:.1f}" for name, spent in job.ledger.seconds().items())
        print(
            f"{cores} cores, {turn} time: {tokens:,} training tokens in {seconds:.1f} s "
            f"({tokens / seconds / 1e6:.1f} M/s), {worked:.1f} s of all cores, "
            f"peak {own:.2f} GB, others {other:.2f} GB each [{phases}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
