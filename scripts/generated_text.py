"""Write text of any size whose documents hardly overlap, to measure what `data build` needs.

Cost: a minute per gigabyte. Expected: the figures of docs/experiments/data-build.md.

    python scripts/generated_text.py --out /tmp/big/text.jsonl --bytes 2000000000
    /usr/bin/time -v paramgolf data build /tmp/big/text.jsonl --out /tmp/big/out --max-overlap 1
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from pydoc_data.topics import topics

_WORDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    arguments = parser.parse_args()
    rng = random.Random(1337)
    # Phrases of real words in a random order; two gigabytes repeat some of their runs of letters.
    words = " ".join(topics.values()).split()
    phrases = [" ".join(rng.choices(words, k=_WORDS)) for _ in range(20_000)]
    written = 0
    with arguments.out.open("w") as file:
        while written < arguments.bytes:
            count = min(400, 1 + int(rng.paretovariate(1.1)))
            text = " ".join(f"{rng.choice(phrases)} {rng.getrandbits(40)}." for _ in range(count))
            written += file.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main()
