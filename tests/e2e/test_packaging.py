"""The sdist, the wheel that is built from it, and the command as installed from that."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import paramgolf
from paramgolf.recipes import RECIPES
from tests.e2e.command import ENVIRONMENT, TIMEOUT

ROOT = Path(__file__).parents[2]


def output(*words: str | Path, cwd: Path) -> str:
    """Return what a program prints, with nothing of this repository on its path."""
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.slow
def test_what_is_built_works_where_it_is_installed(libraries: Path, tmp_path: Path) -> None:
    # Builds the sdist, unpacks it, and builds the wheel from that.
    output(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    name = f"paramgolf-{paramgolf.__version__}"
    wheel, sdist = tmp_path / f"{name}-py3-none-any.whl", tmp_path / f"{name}.tar.gz"
    with tarfile.open(sdist) as archive:
        top = {Path(member).parts[1] for member in archive.getnames() if "/" in member}
    assert top >= {"LICENSE", "README.md", "pyproject.toml", "src"}
    assert not top & {"runs", "corpus", "build", ".venv"}

    output(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    output(*pip, wheel, cwd=tmp_path)
    assert files(site / "paramgolf") == files(Path(paramgolf.__file__).parent)

    command = tmp_path / "env" / "bin" / "paramgolf"
    assert output(command, "--version", cwd=tmp_path) == f"paramgolf {paramgolf.__version__}\n"
    usage = output(command, "--help", cwd=tmp_path)
    assert all(f"  {recipe} " in usage for recipe in RECIPES)
    where = "import os, paramgolf; print(os.path.realpath(paramgolf.load.__code__.co_filename))"
    assert output(python, "-c", where, cwd=tmp_path).startswith(os.path.realpath(site))
