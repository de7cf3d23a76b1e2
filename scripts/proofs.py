"""Prove scores of a finished run by coding its validation text, beside other compressors.

Cost: on one NVIDIA H200 some minutes each for 300,000 bytes in plain windows and for 30,000 in
sliding windows; on two cores, for the recipes tiny and tiny-score-first, seconds for plain windows
and minutes for the other modes. Needs brotli and zstandard (the extra `dev`). Expected: the table
of docs/experiments/proofs.md.

    python scripts/proofs.py --run runs/h200-score-first-... plain=300000 sliding=30000
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import brotli
import zstandard

from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.rundir import RunDir

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz -9": lambda content: lzma.compress(content, preset=9),
    "zstd -22": lambda content: zstandard.ZstdCompressor(level=22).compress(content),
    "brotli -11": lambda content: brotli.compress(content, quality=11),
}


def prove(run: Path, mode: str, size: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "proof.json"
        command = [sys.executable, "-m", "paramgolf", "prove", str(run), "--device", "auto"]
        command += ["--mode", mode, "--bytes", str(size), "--out", str(out)]
        subprocess.run(command, check=False)
        return json.loads(out.read_text())


def beginning_of_the_text(run: Path, documents: int) -> bytes:
    opened, _, _ = RunDir.open(run)
    stream = PreparedText.of(opened).stream("val", opened.data)
    texts = Tokenizer.load(opened.tokenizer).decode_documents(stream)
    return "".join(texts[:documents]).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("proofs", nargs="+", help="MODE=BYTES, e.g. plain=300000")
    arguments = parser.parse_args()
    header = ["windows", "bytes", "BPB", "claimed bytes", "stream", "over", "proven"]
    header += ["encode, decode bytes/s", *COMPRESSORS, "two-part total"]
    print(f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}", sep="\n")
    for named in arguments.proofs:
        mode, size = named.split("=")
        proof = prove(arguments.run, mode, int(size))
        content = beginning_of_the_text(arguments.run, proof["documents"])
        length, claimed, stream = (
            proof[name] for name in ("text_bytes", "claimed_bytes", "stream_bytes")
        )
        assert length == len(content)
        cells = [
            mode,
            f"{length:,}",
            f"{proof['claimed_bpb']:.4f} ({proof['label']})",
            f"{claimed:,.1f}",
            f"{stream:,}",
            f"{stream / claimed - 1:+.3%}",
            "yes" if proof["holds"] else f"NO {proof['failure']}",
            f"{length / proof['encode_seconds']:,.0f}, {length / proof['decode_seconds']:,.0f}",
            *(f"{len(compress(content)):,}" for compress in COMPRESSORS.values()),
            f"{proof['two_part_bytes']:,}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
