"""JSON files of a run that were changed: one line that names the key, at the reader."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramgolf.errors import UserError
from paramgolf.runtime.files import parse_json, read_json
from paramgolf.runtime.records import read_audit, read_environment, read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.schema import require_schema
from tests.written_runs import write_audit, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(write_run(tmp_path / "run"))
    write_audit(run.path)
    return run


def _change(path: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Set the value at nested keys; "delete" removes it."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "keys", "value", "words"),
    [
        ("results", ("bytes",), "delete", "bytes is missing; expected an object"),
        ("results", ("bytes", "total"), "delete", "bytes.total is missing"),
        ("results", ("bytes", "total"), 0, "bytes.total is 0; expected a whole number, 1 or more"),
        ("results", ("bytes", "total"), True, "bytes.total is True"),
        ("results", ("bytes", "total"), "1", "bytes.total is '1'"),
        ("results", ("stages", "sliding", "bpb"), math.nan, "NaN is not a finite number"),
        ("results", ("stages", "sliding", "bpb"), -1.0, "stages.sliding.bpb is -1.0"),
        ("results", ("stages", "sliding", "label"), "proven", "expected one of held-out"),
        ("results", ("stages", "sliding"), "delete", "stages.sliding is missing"),
        ("results", ("raised_dampings",), [], "raised_dampings is .*; expected an object"),
        ("results", ("seconds", "a phase"), 1.0, "a key of seconds is 'a phase'"),
        ("results", ("seed",), 2**70, "seed is 1180591620717411303424"),
        ("results", ("adaptation",), {}, "adaptation is {}; expected a list"),
        ("results", ("adaptation",), [3], r"adaptation\[0\] is 3; expected an object"),
        ("environment", ("cpu_threads",), 1.5, "cpu_threads is 1.5"),
        ("environment", ("gpu",), 3, "gpu is 3; expected a text"),
        ("audit", ("passed",), "true", "passed is 'true'; expected true or false"),
        ("audit", ("verdict",), [], r"verdict is \[\]; expected a list that is not empty"),
        ("audit", ("checks", 0, "figure"), "delete", r"checks\[0\].figure is missing"),
    ],
)
def test_a_wrong_key_is_named(
    run: RunDir, name: str, keys: tuple[Any, ...], value: Any, words: str
) -> None:
    readers: dict[str, Callable[[RunDir], Any]] = {
        "results": read_results,
        "environment": read_environment,
        "audit": read_audit,
    }
    readers[name](run)
    path = run.path / f"{name}.json"
    _change(path, keys, value)
    with pytest.raises(UserError, match=words) as refused:
        readers[name](run)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_other_keys_are_left_to_the_audit(run: RunDir) -> None:
    _change(run.results_file, ("another",), [None, {}])
    assert read_results(run)["another"] == [None, {}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": Infinity}', "not a finite number"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "Exceeds the limit"),
        (b"\xff\xfe", "cannot read it"),
        (b"", "cannot read it"),
    ],
)
def test_what_is_no_plain_json_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_json(content, "it")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # takes no space on the disk
    with pytest.raises(UserError, match=r"large.json: it has more than 67,108,864 bytes"):
        read_json(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"event": "x"}', "line 3: time is missing"),
        ('{"time": 1e300, "event": "x"}', "line 3: time is 1e"),
        ('{"time": 1.0, "event": "stage_started"}', "line 3: stage is missing"),
        ('{"time": 1.0, "event": "train", "step": 1}', "line 3: elapsed_seconds is missing"),
        ("[]", r"line 3: the content is \[\]; expected an object"),
    ],
)
def test_a_wrong_event_is_named(run: RunDir, line: str, words: str) -> None:
    RunDir.open(run.path)
    with run.events_file.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=words):
        RunDir.open(run.path)


def test_a_wrong_stage_result_is_named_with_what_to_do(run: RunDir) -> None:
    _change(run.stage_file("pack"), ("bytes", "model"), None)
    with pytest.raises(UserError, match=r"bytes.model is None; .*remove it and `paramgolf run --r"):
        RunDir.open(run.path)


def test_schemas() -> None:
    schema = {"a": [{str: (float, None)}, 1], "b?": frozenset("xy"), frozenset("abc"): object}
    require_schema({"a": [{"p": None, "q": 0}], "b": "x"}, schema, "", "")
    for wrong in ({"a": []}, {"a": [{"p": "1"}]}, {"a": [{}], "b": "z"}, {"a": [{}], "d": 1}, []):
        with pytest.raises(UserError, match="expected"):
            require_schema(wrong, schema, "", "")
