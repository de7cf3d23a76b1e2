"""Modules joined to one, shaken and shortened, against Python's own imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from paramgolf.code_builder import build
from paramgolf.codefile.joining import joined
from paramgolf.codefile.shaking import shaken, untyped
from paramgolf.codefile.shortening import shortened
from paramgolf.recipes import RECIPES

MOST_BYTES = 29_600

PACKAGE = {
    "__init__": "",
    "errors": """
        class Wrong(ValueError):
            "Docstring."
    """,
    "low": """
        from __future__ import annotations
        import os
        from dataclasses import asdict, dataclass
        from typing import NamedTuple

        LIMIT = 3
        _count = 0

        def size(items):
            return len(items)

        def _exit(code):
            return "mine", code, callable(os._exit)

        def leave():
            return _exit(2)

        def counted():
            global _count
            _count += 1
            return _count

        @dataclass(frozen=True)
        class Pair:
            first: int
            second: list[int]
            third: int = LIMIT

            def total(self) -> int:
                return self.first + sum(self.second) + self.third

            def unused(self):
                return 1 / 0

        class Row(NamedTuple):
            name: str
            size: int

        def as_json(pair):
            return asdict(pair)
    """,
    "other": """
        from pkg.errors import Wrong

        LIMIT = 30

        def size(LIMIT, *, low=1):
            return [LIMIT for LIMIT in range(LIMIT)] + [low]

        def run(low):
            raise Wrong(f"{low} is wrong")

        class Worker:
            kind = "worker"
            LIMIT = 31

            def __init__(self, low):
                self._low, self._hidden = low, {}
                self._hidden[LIMIT] = low

            def by_name(self, name):
                return getattr(self, name)(self._low)

            def do_it(self, low):
                values = {low: value for low, value in self._hidden.items()}
                return values, [size(n) for n in range(2)], (lambda n, low=low: n * low)(3)

            def forgotten(self):
                return NOWHERE

            @property
            def limit(self):
                return self.LIMIT, LIMIT
    """,
    "main": """
        import json
        import pkg.low
        from pkg import low as lower, other
        from pkg.low import LIMIT, Pair, Row, as_json, counted, leave
        from pkg.other import LIMIT as MORE, Worker, run

        def never():
            return 1 / 0

        def main(file):
            from pkg.errors import Wrong

            work = Worker(5)
            pair = Pair(1, second=[2], third=4)
            found = [LIMIT, MORE, other.LIMIT, lower.size("abc"), other.size(2, low=7), leave()]
            found += [counted(), counted(), as_json(pair), pair.total(), Row("r", size=1)._asdict()]
            found += [work.by_name("do_it"), work.limit, work.kind, file]
            try:
                run(low=3)
            except Wrong as error:
                found.append(str(error))
            nested = [(other, LIMIT) for other in range(LIMIT) if (last := other) or True]

            def inner(LIMIT):
                nonlocal nested
                nested = nested + [LIMIT, last]
                return LIMIT

            inner(9)
            return [repr(found), nested]
    """.replace("        import pkg.low\n", ""),
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pkg"
    folder.mkdir()
    for name, source in PACKAGE.items():
        (folder / f"{name}.py").write_text(dedent(source))
    return folder


def small(package: Path, **kept: str) -> str:
    module, names = joined(package, "pkg.main", {"pkg.none"})
    entry = names["pkg.main"]["main"]
    module.body += ast.parse(f"def main(file): return {entry}(file)").body
    module = shortened(shaken(untyped(module, ()), "main"), {"main"})
    return ast.unparse(ast.fix_missing_locations(module))


def run(folder: Path, code: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_module_does_what_the_modules_do(package: Path) -> None:
    (package.parent / "one.py").write_text(small(package))
    printing = "import json; from {} import main; print(json.dumps(main('file')))"
    expected = run(package.parent, printing.format("pkg.main"))
    assert "mine" in str(expected)
    assert run(package.parent, printing.format("one")) == expected


def test_what_nothing_names_is_gone(package: Path) -> None:
    source = small(package)
    for word in ("1 / 0", "NOWHERE", "Docstring", "import dataclasses", "pkg", "_hidden"):
        assert word not in source


def test_what_a_string_or_a_library_names_stays() -> None:
    module = ast.parse(
        dedent("""
        from torch import nn
        import threading, socket
        def seen(): return 1
        def unseen(): return seen()
        LIMIT = 2
        made = seen()
        class Own:
            def named(self): return 1
            def lost(self): return unseen()
            def told(self): return unseen()
            def __len__(self): return 1
        class Layer(nn.Module):
            def forward(self, x): return x
        class Deeper(Layer):
            def extra_repr(self): return ''
        def main(key):
            print("neither lost nor told")
            return getattr(Own(), 'named' if key else f'named')(), Deeper, threading
        """)
    )
    kept = ast.unparse(shaken(module, "main"))
    for name in ("named", "__len__", "forward", "extra_repr", "def seen", "made = seen()"):
        assert name in kept
    for name in ("unseen", "def lost", "def told", "LIMIT"):
        assert name not in kept


def test_arguments_keep_their_names_where_a_call_may_give_them() -> None:
    """By name, through a variable, through what calls it, or by a constructor; others do not."""
    module = ast.parse(
        dedent("""
        from functools import partial

        def direct(given, other): return given - other
        def passed(given, extra): return given * extra
        def stored(given, chosen): return given + chosen
        def apart(given, extra):
            chosen = given ** extra
            return chosen

        class Own:
            def __init__(self, given, made): self.sum = given + made
            def method(self, given, step): return self.sum - given * step

        def main():
            table = {"stored": stored}
            own = Own(1, made=2)
            return [
                direct(given=5, other=2), partial(passed, extra=3)(4), table["stored"](6, chosen=7),
                apart(2, 3), own.method(2, step=10),
            ]
        """)
    )
    expected: dict[str, Any] = {}
    exec(compile(module, "long", "exec"), expected)
    small = shortened(module, {"main"})
    found: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(small), "short", "exec"), found)
    assert found["main"]() == expected["main"]() == [3, 12, 13, 8, -17]
    functions = [node for node in ast.walk(small) if isinstance(node, ast.FunctionDef)]
    arguments = [[argument.arg for argument in node.args.args] for node in functions]
    assert sorted(arguments) == sorted(
        [["given", "other"], ["A", "extra"], ["A", "chosen"], ["A", "B"], [],
         ["A", "B", "made"], ["A", "B", "step"]]
    )  # fmt: skip


def test_arguments_given_by_two_stars_are_refused() -> None:
    module = ast.parse("def run(low): return low\ndef main(given): return run(**given)")
    with pytest.raises(ValueError, match=r"run\(\*\*given\): \*\* cannot be followed"):
        shortened(module, {"main"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("value = [other]", "the module other is used as a value"),
        ("class Odd:\n    LIMIT = LIMIT + 1", "reads and binds the global name LIMIT"),
        ("from json import dumps as LIMIT", "LIMIT is something else, too"),
        ("try:\n    pass\nexcept OSError:\n    from pkg.low import size", "cannot be followed"),
    ],
)
def test_what_cannot_be_joined_is_refused(package: Path, line: str, message: str) -> None:
    with (package / "main.py").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        small(package)


def test_the_code_file_is_the_same_again_and_small_enough() -> None:
    config = RECIPES["tiny"][1]
    content = build(config)
    assert content == build(config)
    assert len(content) <= MOST_BYTES
    ast.parse(content)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_code_file_of_every_recipe(recipe: str) -> None:
    assert len(build(RECIPES[recipe][1])) <= MOST_BYTES
