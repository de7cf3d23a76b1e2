"""The code as one counted file: what a run needs of the package, in as few bytes as we know how.

`train_gpt.py` is a Python file in Latin-1: a decoder, a string that it decodes to one module (all
modules, joined; the run's configuration is in it), and an import hook that serves this as the
package `paramgolf`. Nothing is read from any other file.
"""

from __future__ import annotations

import ast
import dataclasses
import zlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import python_minifier

from paramgolf.codefile import mixing
from paramgolf.codefile.joining import joined
from paramgolf.codefile.shaking import shaken, untyped
from paramgolf.codefile.shortening import shortened
from paramgolf.config import (
    AdaptConfig,
    DataConfig,
    LimitsConfig,
    PackConfig,
    RunConfig,
    ScoreConfig,
    TrainConfig,
)

ENTRY = "paramgolf.standalone"
_CONFIG = "paramgolf.config"
LEFT_OUT = {
    "paramgolf.code_builder",
    "paramgolf.data.corpus",
    "paramgolf.data.tokenizer_training",
    "paramgolf.takeover",
}
"""What only the installed command does: a bundle starts from documents or shards, as it is, and
from the beginning."""

_CHECKED = (AdaptConfig, DataConfig, LimitsConfig, PackConfig, RunConfig, ScoreConfig, TrainConfig)
"""Values are checked when the file is made; the other classes are read from artifacts as well."""

_LOADER = """#coding:l1
import sys,time,zlib
from importlib import abc,util
STARTED=time.monotonic()
exec(zlib.decompress('{decoder}'.encode('l1')))
M=decode('{coded}'.encode('l1'),{length}).decode()
class L(abc.MetaPathFinder,abc.InspectLoader):
 def find_spec(s,n,*_):
  if n=='paramgolf':return util.spec_from_loader(n,s,origin=__file__)
 def get_source(s,n):return M
 def get_code(s,n):return compile(M,__file__+'/'+n,'exec')
sys.meta_path.insert(0,L())
from paramgolf import main
if __name__=='__main__':main(__file__)
"""
"""`get_source` is for tracebacks."""


def build(config: RunConfig) -> bytes:
    """The content of `train_gpt.py` that repeats a run of `config`.

    It does not say where the text and the tokenizer were, nor on which device.
    """
    data = replace(config.data, source=DataConfig().source, tokenizer="")
    text = program(replace(config, device="auto", data=data))
    decoder = ast.parse(Path(mixing.__file__).read_text())
    file = _LOADER.format(
        decoder=_quoted(zlib.compress(_small(decoder, "decode").encode(), 9)),
        coded=mixing.encode(text).decode("latin-1"),
        length=len(text),
    )
    return file.encode("latin-1")


def program(config: RunConfig) -> bytes:
    """One module, in ASCII, whose `main`, given the file's path, is the command line."""
    module, names = joined(Path(__file__).parent, ENTRY, LEFT_OUT)
    entry, classes = names[ENTRY]["main"], names[_CONFIG]
    unchecked = {classes[cls.__name__] for cls in _CHECKED}
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name in unchecked:
            node.body = [n for n in node.body if getattr(n, "name", "") != "__post_init__"]
    main = f"def main(file): {entry}({_expression(config, classes)}, file)"
    module.body += ast.parse(main).body
    return _small(module, "main", classes.values()).encode("ascii", "backslashreplace")


def _small(module: ast.Module, entry: str, typed: Collection[str] = ()) -> str:
    """Source of what `entry` needs of a module; classes of `typed` keep their annotations."""
    module = shortened(shaken(untyped(module, typed), entry), {entry})
    return python_minifier.unparse(ast.fix_missing_locations(module))


def _expression(config: Any, names: dict[str, str]) -> str:
    """Python's expression for a configuration, with what is not the default."""
    values = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        default = type(value)() if nested else field.default
        if value != default:
            values.append(f"{field.name}={_expression(value, names) if nested else repr(value)}")
    return f"{names[type(config).__name__]}({', '.join(values)})"


def _quoted(content: bytes) -> str:
    """Bytes as the inside of a string in single quotes, in a file in Latin-1."""
    escapes = {0: "\\000", 10: "\\n", 13: "\\r", 39: "\\'", 92: "\\\\"}
    return "".join(escapes.get(byte, chr(byte)) for byte in content)
