"""Builds `train_gpt.py`: the sources of all modules that a run needs, compressed into one file.

The file is Python source in Latin-1: a loader and a string, which is bzip2 of texts with a NUL
between them: the run's configuration as JSON, the names of the modules, and their sources. (All of
it as JSON took 300 bytes more.) Importing a module of `paramgolf` then compiles its source from
there; no other file is read. Sources lose comments, docstrings, annotations, white space and the
names of local variables, and otherwise stay as written. Thus the bytes of the file do not depend on
the Python version that builds it, and it runs on all versions that the package supports.
"""

from __future__ import annotations

import ast
import bz2
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from paramgolf.checked import from_json, to_json
from paramgolf.codefile.stripping import stripped
from paramgolf.config import DataConfig, RunConfig

ENTRY = "paramgolf.cli.standalone"
INSTALLED_ONLY = {
    "paramgolf.codefile.build",
    "paramgolf.data.corpus",
    "paramgolf.data.kept",
    "paramgolf.data.processes",
    "paramgolf.data.tokenizer_check",
    "paramgolf.data.tokenizer_training",
    "paramgolf.interface",
    "paramgolf.pipeline.estimate",
    "paramgolf.pipeline.preflight",
    "paramgolf.pipeline.takeover",
    "paramgolf.runtime.records",
    "paramgolf.runtime.schema",
    "paramgolf.scoring.generate",
}
"""Modules that only the installed package needs: the file is given its text and tokenizer, copies
itself as the code file, repeats a run that succeeded, with all stages, reads only what it wrote
itself, and generates no text; programs import the package, not the file."""

_ROOT = Path(__file__).parents[1]

_LOADER = """#coding:latin-1
import bz2,json,sys,time
from importlib import abc,util
STARTED=time.monotonic()
CONFIG,NAMES,*SOURCES=bz2.decompress('''{content}'''.encode('latin-1')).decode().split('\\0')
CONFIG=json.loads(CONFIG)
SOURCES=dict(zip(NAMES.split(),SOURCES))
class Finder(abc.MetaPathFinder,abc.InspectLoader):
 def find_spec(self,name,*_):
  if name in SOURCES:return util.spec_from_file_location(name,__file__+'/'+name,loader=self)
 def is_package(self,name):return any(other.startswith(name+'.')for other in SOURCES)
 def get_source(self,name):return SOURCES[name]
 def get_code(self,name):return compile(SOURCES[name],__file__+'/'+name,'exec')
sys.meta_path.insert(0,Finder())
if __name__=='__main__':
 from {entry} import main
 main(CONFIG,__file__)
"""
# Tracebacks, and whatever compiles a function from its source, find it by `get_source` and by the
# `__file__` of its module, which is a path inside of the file.


def build(config: RunConfig) -> bytes:
    """Return the content of the `train_gpt.py` that repeats a run of `config`."""
    return code_file(portable(config), stripped_sources())


def code_file(values: dict[str, Any], sources: dict[str, str]) -> bytes:
    """Return the content of a code file: the configuration as JSON values, sources by module."""
    texts = [json.dumps(values, separators=(",", ":")), " ".join(sources), *sources.values()]
    content = _quoted(bz2.compress("\0".join(texts).encode()))
    return _LOADER.format(content=content, entry=ENTRY).encode("latin-1")


def portable(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values that do not depend on the machine.

    The paths of text and tokenizer and the device are left out.
    """
    data = replace(config.data, source=DataConfig().source, tokenizer="")
    values = to_json(replace(config, device="auto", data=data))
    # Read once, as from config.json: a number that a recipe writes as 0 becomes 0.0.
    return to_json(from_json(RunConfig, values))


@cache
def stripped_sources() -> dict[str, str]:
    """Return the stripped sources of the modules that the functions of `ENTRY` need, by name."""
    found: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in found or name in INSTALLED_ONLY:
            continue
        # The package itself offers its interface, which is not in the file.
        found[name] = stripped(path.read_text()) if name != _ROOT.name else ""
        waiting += [name.rpartition(".")[0], *_imported(found[name])]
    return dict(sorted(found.items()))


def _path(name: str) -> Path | None:
    """Return the source file of a module of this package; None for any other name."""
    package, *parts = name.split(".")
    if package != _ROOT.name:
        return None
    path = _ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported(source: str) -> Iterator[str]:
    """Yield all names, of modules or not, that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _quoted(content: bytes) -> str:
    """Return bytes as the inside of a triple-quoted string of a file in Latin-1."""
    text = content.decode("latin-1").replace("\\", r"\\").replace("\r", r"\r")
    text = re.sub("\0(?=[0-7])", r"\\000", text).replace("\0", r"\0")
    return re.sub(r"'(?='|\Z)", r"\'", text)
