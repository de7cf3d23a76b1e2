"""The code as one counted file: the modules that a run needs, minified and compressed.

`train_gpt.py` is a Python file in Latin-1 whose one long string is a bzip2 stream of all modules
and of the run's configuration (LZMA takes 3 % more). An import hook serves them as the package
`paramgolf`; nothing is read from any other file.
"""

from __future__ import annotations

import ast
import bz2
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import python_minifier

from paramgolf.config import DataConfig, RunConfig, to_json

_ENTRY = "standalone"
_LEFT_OUT = {
    "__main__",
    "recipes",
    "code_builder",
    "data.chunks",
    "data.corpus",
    "data.sources",
    "data.tokenizer_training",
    "scoring.coded_text",
}
"""Modules that only the installed command uses; a bundle starts from documents or shards."""

_ANNOTATIONS = python_minifier.RemoveAnnotationsOptions(
    remove_variable_annotations=True,
    remove_return_annotations=True,
    remove_argument_annotations=True,
    remove_class_attribute_annotations=False,  # dataclasses and named tuples are made of them
)

_LOADER = """#coding:l1
import sys,bz2,json
from importlib import abc,util
M=json.loads(bz2.decompress('{payload}'.encode('l1')))
class L(abc.MetaPathFinder,abc.InspectLoader):
 def find_spec(s,n,*_):
  return util.spec_from_loader(n,s,origin=__file__,is_package=M['p'].get(n))if n in M['m']else None
 def get_source(s,n):return M['m'][n]
 def is_package(s,n):return M['p'].get(n)
 def get_code(s,n):return compile(M['m'][n],f'{{__file__}}/{{n}}','exec')
sys.meta_path.insert(0,L())
from paramgolf.{entry} import main
if __name__=='__main__':main(M['c'],__file__)
"""


def build(config: RunConfig) -> bytes:
    """The content of `train_gpt.py` that repeats a run of `config`.

    It does not say where the text and the tokenizer were, nor on which device.
    """
    data = replace(config.data, source=DataConfig().source, tokenizer="")
    config = replace(config, device="auto", data=data)
    modules = _modules()
    trees = {name: ast.parse(source) for name, (source, _) in modules.items()}
    renamed = _Renamed(_private_names(trees.values()))
    sources = {name: ast.unparse(renamed.visit(tree)) for name, tree in trees.items()}
    payload = {
        "m": {name: _minified(source, name) for name, source in sources.items()},
        "p": {name: 1 for name, (_, is_package) in modules.items() if is_package},
        "c": to_json(config),
    }
    plain = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    text = _LOADER.format(payload=_quoted(bz2.compress(plain)), entry=_ENTRY)
    return text.encode("latin-1")


def _modules() -> dict[str, tuple[str, bool]]:
    """Sources by module name, and whether the module is a package."""
    root = Path(__file__).parent
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        if name not in _LEFT_OUT and not name.startswith(("tools", "cli")):
            full = f"paramgolf.{name}" if name else "paramgolf"
            modules[full] = path.read_text(), is_package
    return modules


def _private_names(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Short names for everything of our own that begins with _; `_asdict`, say, is not ours."""
    defined: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                defined.add(name)
    private = sorted(name for name in defined if name.startswith("_") and name.strip("_"))
    own = [name for name in private if not name.startswith("__")]
    return {name: f"_{number:x}" for number, name in enumerate(own)}


class _Renamed(ast.NodeTransformer):
    """Gives private names their short ones, in all modules alike."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("name", "id", "attr"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                setattr(node, field, self._names.get(name, name))
        return self.generic_visit(node)


def _minified(source: str, name: str) -> str:
    return python_minifier.minify(
        source,
        name,
        remove_literal_statements=True,
        remove_annotations=_ANNOTATIONS,
        rename_locals=True,
        hoist_literals=False,
    )


def _quoted(content: bytes) -> str:
    """Bytes as the inside of a string in single quotes, in a file in Latin-1."""
    escapes = {0: "\\0", 10: "\\n", 13: "\\r", 39: "\\'", 92: "\\\\"}
    parts = []
    for position, byte in enumerate(content):
        escape = escapes.get(byte, chr(byte))
        if byte == 0 and content[position + 1 : position + 2].isdigit():
            escape = "\\000"  # a digit after \0 would belong to it
        parts.append(escape)
    return "".join(parts)
