"""Changes the files of a run at random, and reads them as commands do that compute little.

    python scripts/fuzz.py RUN [--tokenizers N] [--provenance N] [--json N] [--artifacts N]
                                [--folders N]

Each must be refused in one line, or give what the unchanged file gives, or something else that is
valid. Prints a table, and whatever was unexpected, to standard error; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

from paramgolf.compress.artifact import read
from paramgolf.data.build import build
from paramgolf.data.build_config import BuildConfig
from paramgolf.data.built_folder import built_manifest, require_manifest
from paramgolf.data.claims import tokenizer_claim
from paramgolf.data.describe import describe
from paramgolf.data.provenance import Provenance
from paramgolf.data.streams import encoded
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.report.page import read_run_files, render
from paramgolf.report.passage import passage_section
from paramgolf.report.two_runs import render_two
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import sha256_of_file, write_json
from paramgolf.runtime.records import read_environment
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.compare import compare
from paramgolf.study.listing import list_runs
from paramgolf.verify.books import books
from paramgolf.verify.facts import submitted
from paramgolf.verify.summary import Record, machine, summary
from paramgolf.verify.text_checks import is_fetched

HANG_SECONDS = 30
PROBE = [
    " The  quick\tbrown fox\r\n",
    "e\u0301 \ufb01 \u4e2d\u6587 \U0001f600",
    "x" * 50,
    "0123456789",
]
KINDS = ("provenance", "json", "artifacts", "folders")
OUTCOMES = ("refused", "equal", "different", "unexpected", "hang")
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**40, 2**70, -0.5, 1e-300, 1e300, "", "x", "NaN", "/etc/passwd", [], {},
    [None], {"": None}, "\ud800", "x" * 5000,
]  # fmt: skip
RAW = [b"NaN", b"1e999", b"-Infinity", b"[" * 5000, b"9" * 5000, b"{}{}", b"\xff", b"\x00"]


def changed_bytes(content: bytes, random: Random) -> bytes:
    """Bits and bytes changed, parts cut, doubled, zeroed and exchanged."""
    found = bytearray(content)
    for _ in range(random.randint(1, 3)):
        begin, end = sorted(random.choices(range(len(found) + 1), k=2))
        end = min(end, begin + random.choice((1, 8, 200, len(found))))
        match random.randrange(7):
            case 0 if found:
                found[random.randrange(len(found))] ^= 1 << random.randrange(8)
            case 1 if found:
                found[random.randrange(len(found))] = random.randrange(256)
            case 2:
                del found[begin:end]
            case 3:
                found[begin:begin] = random.randbytes(random.randint(1, 20))
            case 4:
                found[begin:end] = bytes(end - begin)
            case 5:
                found += found[begin:end]
            case _:
                del found[begin:]
    return bytes(found)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, key))


def changed_json(content: bytes, random: Random) -> bytes:
    """A key removed, renamed, added or given another value; or bytes changed."""
    if random.random() < 0.15:
        return changed_bytes(content, random)
    lines = content.splitlines() if b"\n{" in content else [content]
    place = random.randrange(len(lines))
    value = json.loads(lines[place])
    path = random.choice(list(_places(value))[1:])
    outer = value
    for key in path[:-1]:
        outer = outer[key]
    key = path[-1]
    match random.randrange(6):
        case 0:
            del outer[key]
        case 1 if isinstance(outer, dict):
            outer[key + "_"] = outer.pop(key)
        case 2 if isinstance(outer, dict):
            outer[random.choice(("x", ""))] = random.choice(VALUES)
        case 3 if isinstance(outer[key], int | float):
            outer[key] = random.choice((-1, 0.5, 2, 1e6)) * outer[key]
        case 4:
            other = value
            for step in random.choice(list(_places(value))):
                other = other[step]
            outer[key] = copy.deepcopy(other)
        case _:
            outer[key] = random.choice(VALUES)
    text = json.dumps(value).encode()
    if random.random() < 0.1 and b": " in text:
        begin = text.index(b": ", random.randrange(text.rindex(b": ") + 1)) + 2
        text = text[:begin] + random.choice(RAW) + text[begin + 1 :]
    lines[place] = text
    return b"\n".join(lines) + b"\n"


def changed_tensors(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file, its notes within, or its bytes changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if random.random() < 0.3:
        return changed_bytes(content, random)
    notes = header["__metadata__"]
    if random.random() < 0.5 and "notes" in notes:
        changed = changed_json(notes["notes"].encode(), random)
        notes["notes"] = changed.decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        text = changed_json(json.dumps(header).encode(), random)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def changed_artifact(content: bytes, random: Random) -> bytes:
    """Bytes changed, half of the time with a valid checksum."""
    found = changed_bytes(content, random)
    if random.random() < 0.5 and len(found) > 48:
        found = content[:16] + hashlib.sha256(found[48:]).digest() + found[48:]
    return found


class Fuzz:
    """A copy of a run, some of whose files are changed and read again and again."""

    def __init__(self, run: Path, folder: Path) -> None:
        """Copy the run."""
        self.run = RunDir(Path(shutil.copytree(run, folder / "runs" / "run")))
        self.good = RunDir(Path(shutil.copytree(run, folder / "good")))
        results = read_run_files(self.run.path).results
        self._folders = self._other_folders(folder)
        self._passage = passage_section(self.run, results, select_runtime("cpu"))

    def read_tokenizer(self) -> Any:
        """What `score` does before it needs the model."""
        tokenizer = Tokenizer.load(self.run.tokenizer)
        stream = encoded("the text", PROBE, tokenizer)
        return stream.tokens.tolist(), tokenizer.token_bytes(stream.tokens).tolist()

    def read_provenance(self) -> Any:
        """What labels a text."""
        label = Provenance.load(self.run.provenance).label(PROBE)
        return repr(label)

    def read_artifact(self) -> Any:
        """What loads a model."""
        artifact = read(self.run.artifact)
        return [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in artifact.state().values()]

    def read_json(self) -> Any:
        """What reads results without the model."""
        listed = list_runs([self.run.path.parent], "date")
        run, _, config = RunDir.open(self.run.path)
        files = read_run_files(run.path)
        page = render(files, self._passage)
        other = render_two(files, read_run_files(self.good.path))
        verdict = compare(run.path, self.good.path, "", 0.005).to_json()
        checks = list(books(run, config, files.results))
        return [[run[1:8] for run in listed], page, other, repr(verdict), checks]

    def _other_folders(self, folder: Path) -> list[Path]:
        """Build a folder of shards with what `data fetch` writes, and a submission's records."""
        self.shards, self.submission = folder / "shards", folder / "submission"
        texts = folder / "texts"
        texts.mkdir()
        for number in range(40):
            words = Random(number).choices(("some", "words", "of", "a", "text", "\n"), k=200)
            (texts / f"{number}.txt").write_text(" ".join(words) + f" number {number}")
        given = str(self.run.tokenizer)
        build(BuildConfig((str(texts),), tokenizer=given), self.shards, Reporter())
        sha256 = sha256_of_file(self.run.tokenizer)
        origin = {"repo": "a/b", "revision": "0" * 40, "dataset": "c", "complete": True}
        source = {**origin, "files": {"tokenizer.model": {"bytes": 1, "sha256": sha256}}}
        write_json(self.shards / "source.json", source)
        results, environment = read_run_files(self.run.path).results, read_environment(self.run)
        checks = [{"name": "a", "condition": "b", "outcome": "pass", "figure": "1"}]
        audit: dict[str, Any] = {
            "passed": True, "failed": [], "unverified": [], "verdict": ["a"], "checks": checks,
            "files": {"model.bin": "0" * 64},
        }  # fmt: skip
        write_json(self.submission / "results" / "seed-1.json", results)
        write_json(self.submission / "results" / "audit-seed-1.json", audit)
        write_json(self.submission / "environment.json", environment)
        said = {**summary({1: Record(results, audit)}), **machine(environment)}
        more = {"requested_seeds": [1, 2], "complete": False}
        write_json(self.submission / "submission.json", said | more)
        return [
            self.shards / "manifest.json",
            self.shards / "source.json",
            *sorted(self.submission.rglob("*.json")),
        ]

    def read_folders(self) -> Any:
        """What reads the records beside shards, and those of a submission."""
        found = describe(self.shards, None, Reporter())
        built = built_manifest(self.shards, begun=False)
        if built is not None:
            require_manifest(self.shards, built)
        tokenizer = Tokenizer.load(self.shards / "tokenizer.model")
        claim = tokenizer_claim(tokenizer, self.shards / "tokenizer.model", None)
        facts = submitted(self.submission)
        return repr((found, built, claim, is_fetched(claim["origin"]), facts))

    def outcome(self, read: Callable[[], Any], good: Any) -> tuple[str, str]:
        """Return an outcome, and its message or traceback."""
        signal.alarm(HANG_SECONDS)
        try:
            return ("equal" if read() == good else "different"), ""
        except UserError as error:
            if "\n" in str(error).strip():
                return "unexpected", f"more than a line: {error}"
            return "refused", str(error)
        except TimeoutError:
            return "hang", ""
        except BaseException:
            return "unexpected", traceback.format_exc()
        finally:
            signal.alarm(0)

    def kind(self, name: str, count: int, seed: int, show: bool) -> Counter[str]:
        """Change files of a kind, and count the outcomes."""
        json_files = [*sorted(self.run.path.glob("*.json")), self.run.events_file]
        json_files += sorted((self.run.path / "stages").glob("*.json"))
        change, reading, files = {
            "tokenizers": (changed_bytes, self.read_tokenizer, [self.run.tokenizer]),
            "provenance": (changed_tensors, self.read_provenance, [self.run.provenance]),
            "json": (changed_json, self.read_json, json_files),
            "artifacts": (changed_artifact, self.read_artifact, [self.run.artifact]),
            "folders": (changed_json, self.read_folders, self._folders),
        }[name]
        good, found, shown = reading(), Counter[str](), set[str]()
        for number in range(count):
            random = Random(f"{name} {seed} {number}")
            path = random.choice(files)
            before = path.read_bytes()
            swap = random.random() < 0.02
            other = random.choice(json_files).read_bytes() if swap else change(before, random)
            path.write_bytes(other)
            outcome, message = self.outcome(reading, good)
            path.write_bytes(before)
            found[outcome] += 1
            last = message.strip().rpartition("\n")[2]
            if outcome in ("unexpected", "hang") and last not in shown:
                shown.add(last)
                print(f"{name} {number} ({path.name}): {outcome}\n{message}", file=sys.stderr)
            elif show and message:
                print(f"{name} {number}: {message}")
        return found


def _alarm(*_: Any) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished, small run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every refusal")
    counts = {
        "tokenizers": 2000,
        "provenance": 1000,
        "json": 1000,
        "artifacts": 1000,
        "folders": 1000,
    }
    for name, count in counts.items():
        parser.add_argument(
            f"--{name}", type=int, default=count, help=f"how many (default {count})"
        )
    chosen = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _alarm)
    torch.set_num_threads(1)
    bad = 0
    print(
        f"seed {chosen.seed}\n{'':<12}"
        + "".join(f"{name:>12}" for name in OUTCOMES)
        + "     seconds"
    )
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(chosen.run, Path(folder))
        for name in counts:
            start = time.monotonic()
            found = fuzz.kind(name, getattr(chosen, name), chosen.seed, chosen.show)
            figures = "".join(f"{found[outcome]:>12}" for outcome in OUTCOMES)
            print(f"{name:<12}{figures}{time.monotonic() - start:>12.1f}", flush=True)
            bad += found["unexpected"] + found["hang"]
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
