"""The notebook of examples/: as committed, and executed anew."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import TIMEOUT
from tests.e2e.mini import read_results

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_model.ipynb"
MAX_BYTES = 100_000


def texts(cells: list[Any], kind: str) -> list[str]:
    """Return all outputs of a type: "stream", "text/plain" or "text/html"."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    found = [
        output["text"] if kind == "stream" else output["data"].get(kind)
        for output in outputs
        if (output["output_type"] == "stream") == (kind == "stream")
    ]
    return ["".join(text) for text in found if text]


def check(cells: list[Any]) -> None:
    """Check that every cell of code has printed what the text around it says."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    printed = "".join(texts(cells, "stream"))
    assert "text that it has not seen (held-out)" in printed
    assert printed.endswith("\nTrue\n")  # the compressed text is restored
    (page,) = texts(cells, "text/html")
    assert page.startswith("<div style=")
    assert page.count(" bits") > 50
    assert any(text.startswith("Score(") for text in texts(cells, "text/plain"))


def test_the_notebook_is_committed_with_its_outputs() -> None:
    content = NOTEBOOK.read_text()
    assert len(content.encode()) < MAX_BYTES
    assert "/tmp/" not in content
    assert "/home/" not in content
    check(json.loads(content)["cells"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    if importlib.util.find_spec("nbclient") is None and not os.environ.get("CI"):
        pytest.skip("needs paramgolf[ecosystem] (make test-slow)")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    check(notebook.cells)
    (run,) = (tmp_path / "runs").iterdir()
    printed = "".join(texts(notebook.cells, "stream"))
    assert f"{read_results(run)['stages']['sliding']['bpb']:.4f} bits per byte" in printed
