"""Chromium for these tests; if it is missing, they are skipped, except in CI."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import command
from tests.e2e.mini import mini_options, write_source

_FLAGS = (
    "headless",
    "hide-scrollbars", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync",
)  # fmt: skip
HOSTILE = """</script><img src=x onerror="alert(1)"><svg onload=alert(2)>{{ 7 * 7 }}<!-- """
NEEDS = "Debian's chromium and chromium-driver, and the Python package selenium"


def _missing() -> list[str]:
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return programs + ([] if importlib.util.find_spec("selenium") else ["selenium"])


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own, driven by Selenium."""
    if missing := _missing():
        message = f"no {', '.join(missing)}; these tests need {NEEDS} (.ci/run installs them)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in _FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    chromium = webdriver.Chrome(options=options, service=service)
    chromium.set_page_load_timeout(300)
    yield chromium
    chromium.quit()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose text contains markup, long enough for a loss curve."""
    folder = tmp_path_factory.mktemp("browser")
    source, run = folder / "source", folder / "run"
    source.mkdir()
    write_source(source)
    file = source / "val.jsonl"
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps(d | {"text": HOSTILE + d["text"]}) for d in documents]
    file.write_text("\n".join(lines) + "\n")
    result = command.run(
        "run", "tiny", *mini_options(source), "--train.max-steps", "150", "--out", run
    )
    assert result.code == 0, result.stderr
    return run
