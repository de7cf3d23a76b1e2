"""The code file: what is stripped from sources, which modules are in it, how large it is."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import hashlib
import json
import shutil
import subprocess
import symtable
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

import paramgolf
from paramgolf.checked import from_json, to_json
from paramgolf.codefile import stripping
from paramgolf.codefile.build import INSTALLED_ONLY, _quoted, build, stripped_sources
from paramgolf.codefile.stripping import stripped
from paramgolf.config import DataConfig, RunConfig
from paramgolf.recipes import RECIPES

MAX_BYTES = 65_000  # 3,200 of them are kernels that replace a compiler, 700 impossible successors

SOURCE = '''
    """The module's docstring."""

    from __future__ import annotations
    import functools  # a comment
    from collections.abc import Sequence
    from typing import Any as A, Literal

    TEXT = """kept: # no comment

      two spaces"""
    "A string that documents TEXT."
    WORDS: Sequence[str] = (
        "a" 'b' f"c {1 + 1}",  # a comment
        r"""d" """,
        "e" f'{TEXT!r:>{3}}')

    class Empty(Exception):
        """Only a docstring."""

    class Pair:
        first: int = 1
        """A field's docstring."""
        second: dict[str, A]

        def total(self, extra: int = 2, *rest: int, name: str = "# no comment") -> int:
            """Docstring."""
            amount: Literal[1] = self.first + extra
            return amount if rest else -1  # -> a comment

    @functools.cache
    def decorated(x: int) -> int:
        y: int = x
        return y

    def f(a: "int", /, b: int = 3, **more: dict[str, "int"]) -> "tuple[int, int]":

        # a comment
        return a, f"{b}" '-> x'
'''
STRIPPED = '''
    from __future__ import annotations
    import functools
    from typing import Any as A
    TEXT="""kept: # no comment

      two spaces"""
    WORDS=("a" 'b'f"c {1 + 1}",r"""d" ""","e"f'{TEXT!r:>{3}}')
    class Empty(Exception):
     0
    class Pair:
     first:int=1
     second:dict[str,A]
     def total(self,extra=2,*rest,name="# no comment"):
      c=self.first+extra
      return c if rest else-1
    @functools.cache
    def decorated(x:int)->int:
     y:int=x
     return y
    def f(a,/,b=3,**more):
     return a,f"{b}" '-> x'
'''


def test_what_is_stripped() -> None:
    assert stripped(dedent(SOURCE)) == dedent(STRIPPED).removeprefix("\n")


class Bare(ast.NodeTransformer):
    """An independent implementation on the syntax tree: no docstrings, annotations and imports."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # pyright: ignore[reportAttributeAccessIssue]
                s
                for s in body
                if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                and not (isinstance(node, ast.Module) and isinstance(s, ast.ImportFrom))
            ]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            return ast.Assign([node.target], node.value)
        return node


@pytest.mark.parametrize("path", sorted(Path(paramgolf.__file__).parent.rglob("*.py")), ids=str)
def test_stripping_keeps_the_program_of_every_module(path: Path) -> None:
    source = path.read_text()
    trees = [Bare().visit(ast.parse(text)) for text in (source, stripped(source))]
    functions = map(outermost_functions, [ast.parse(source), *trees])
    for written, function, short in zip(*functions, strict=True):
        tables = symtable.symtable(ast.unparse(written), "function", "exec").get_children()
        undo_short_names(function, short, tables)
    assert ast.dump(trees[0]) == ast.dump(trees[1])


def outermost_functions(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    found = [child for child in node.body if isinstance(child, ast.FunctionDef)]
    classes = [child for child in node.body if isinstance(child, ast.ClassDef)]
    return [*found, *(function for each in classes for function in outermost_functions(each))]


def undo_short_names(
    function: ast.FunctionDef, short: ast.FunctionDef, tables: list[symtable.SymbolTable]
) -> None:
    """Give the variables of `short` the names that they have in `function`.

    Two variables must not have got the same name, and only local variables may have got one.
    """
    pairs = set()
    for node, changed in zip(ast.walk(function), ast.walk(short), strict=True):
        if isinstance(node, ast.Name):
            assert isinstance(changed, ast.Name)
            pairs.add((node.id, changed.id))
            changed.id = node.id
        if isinstance(node, ast.arg | ast.FunctionDef | ast.alias | ast.ExceptHandler):
            kept = [getattr(node, field, None) for field in ("arg", "name", "asname")]
            pairs |= {(name, name) for name in kept if name}
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    for table in tables:
        tables += table.get_children()
        for old, new in pairs:
            if old != new and old in table.get_identifiers():
                assert not table.lookup(old).is_global(), old


def test_every_name_that_a_module_needs_is_there() -> None:
    """Imports that are left out are those that nothing in the file uses."""
    sources = stripped_sources()
    for name, source in sources.items():
        unknown = set(symtable_globals(source)) - set(dir(builtins))
        assert unknown <= {"__file__", "__name__"}, (name, unknown)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "") in sources:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    known = symtable.symtable(sources[str(node.module)], "x", "exec")
                    assert whole in {*sources, *INSTALLED_ONLY} or known.lookup(alias.name)


def symtable_globals(source: str) -> Iterator[str]:
    """Names that functions take from the module and that the module does not bind."""
    module = symtable.symtable(source, "x", "exec")
    bound = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    bound |= {child.get_name() for child in module.get_children()}
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        yield from (
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_global() and symbol.get_name() not in bound
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"'", b"''", b", b'x'", b"\\'", b"\0", b"\0007\0\0", b"\r\n\r", bytes(range(256)) * 3],
)
def test_any_bytes_can_be_quoted(content: bytes) -> None:
    source = f"#coding:latin-1\nx = '''{_quoted(content)}'''".encode("latin-1")
    names: dict[str, str] = {}
    exec(compile(source, "x", "exec"), names)
    assert names["x"].encode("latin-1") == content


def test_the_modules_in_it() -> None:
    names = stripped_sources().keys()
    assert not names & INSTALLED_ONLY
    assert all(find_spec(name) for name in INSTALLED_ONLY)
    assert {"paramgolf", "paramgolf.model.gpt", "paramgolf.stages.train"} <= names
    assert not any(name.startswith(("paramgolf.report", "paramgolf.study")) for name in names)


@pytest.mark.parametrize("recipe", RECIPES)
def test_size(recipe: str) -> None:
    assert len(build(RECIPES[recipe][1])) <= MAX_BYTES


def test_it_names_no_path_of_this_machine() -> None:
    _, config = RECIPES["tiny"]
    there = dataclasses.replace(config, data=dataclasses.replace(config.data, source="/home/me"))
    with_tokenizer = dataclasses.replace(there.data, tokenizer="/home/me/t.model")
    there = dataclasses.replace(there, data=with_tokenizer, device="cuda")
    assert build(there) == build(config)
    assert DataConfig().source == "stdlib"


PROBE = """
import inspect, json, runpy, sys, torch
sys.path = [entry for entry in sys.path if "paramgolf" not in entry]
values = runpy.run_path({file!r})
from paramgolf import config
from paramgolf.model import gpt, order
model = config.ModelConfig(vocab_size=300, num_layers=2, width=16, num_heads=2, num_kv_heads=1,
                           seq_len=4, rotary_dims=4, loop_first=0, loop_last=0, parallel_from=1)
built, visits = gpt.GPT(model, torch.float32), order.layer_order(model, recurrent=True)
built.init_weights(torch.Generator().manual_seed(1))
compiled = torch.compile(lambda tokens: built(tokens, visits), backend="eager")
tokens = torch.arange(4)[None]
same = torch.allclose(compiled(tokens), built(tokens, visits))
print(json.dumps([config.__file__, values["CONFIG"], inspect.getsource(gpt.GPT)[:9],
                  inspect.getsource(order.layer_order)[:15], same]))
"""


def test_it_serves_its_own_modules_and_configuration(tmp_path: Path) -> None:
    """In another process, although the package is installed; their source is found there, too."""
    _, config = RECIPES["tiny"]
    file = tmp_path / "train_gpt.py"
    file.write_bytes(build(config))
    code = PROBE.format(file=str(file))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    origin, values, *source, same = json.loads(ended.stdout)
    assert origin == f"{file}/paramgolf.config"
    assert source == ["class GPT", "def layer_order"]
    assert same
    expected = to_json(dataclasses.replace(config, data=config.data, device="auto"))
    assert values == json.loads(json.dumps(expected))


RAISING = """
import runpy, traceback
runpy.run_path({file!r})
from paramgolf.checked import require
try:
    require(False, "key", 1, "another")
except Exception:
    traceback.print_exc()
"""


def test_a_traceback_shows_the_source(tmp_path: Path) -> None:
    file = tmp_path / "train_gpt.py"
    file.write_bytes(build(RECIPES["tiny"][1]))
    command = [sys.executable, "-c", RAISING.format(file=str(file))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "raise ConfigError" in ended.stderr


UNDER_ANOTHER_PYTHON = """
import hashlib, json, runpy, sys
stripped = runpy.run_path(sys.argv[1])["stripped"]
hashes = {}
for path in sys.argv[2:]:
    text = stripped(open(path).read())
    compile(text, path, "exec")
    hashes[path] = hashlib.sha256(text.encode()).hexdigest()
print(json.dumps(hashes))
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_other_python_versions_strip_to_the_same_bytes_and_compile_them(version: str) -> None:
    found = shutil.which(f"python{version}")
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not found and not pyenv:
        pytest.skip(f"no Python {version} here")
    specs = map(find_spec, stripped_sources())
    paths = [spec.origin for spec in specs if spec and spec.origin]
    python = str(pyenv[-1]) if pyenv else found
    command = [str(python), "-c", UNDER_ANOTHER_PYTHON, stripping.__file__, *paths]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = {path: hashlib.sha256(stripped(Path(path).read_text()).encode()) for path in paths}
    assert json.loads(ended.stdout) == {path: digest.hexdigest() for path, digest in ours.items()}


def test_equal_configurations_give_equal_files() -> None:
    hashes = {hashlib.sha256(build(RECIPES["tiny"][1])).hexdigest() for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stored_configuration_builds_the_same_file(recipe: str) -> None:
    """Numbers that a recipe writes without a point come back with one."""
    config = RECIPES[recipe][1]
    stored = from_json(RunConfig, json.loads(json.dumps(to_json(config))))
    assert build(stored) == build(config)
