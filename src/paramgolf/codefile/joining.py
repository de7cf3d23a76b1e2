"""The modules that a program needs, joined to one: they import nothing from one another.

Every name that a module defines gets a name of its own among all of them; whatever another module
imports from it, or reaches through it, is called by that name.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection
from pathlib import Path

from paramgolf.codefile.scopes import Renamer, bound

Names = dict[str, dict[str, str]]
"""By module: what its names are in the joined one."""

_FAILS = ast.parse("raise ImportError('not in this file')")
"""What stands for the import of a module that is left out."""


def joined(root: Path, entry: str, left_out: Collection[str]) -> tuple[ast.Module, Names]:
    """One module that does what importing `entry` does.

    Args:
        root: the folder of a package.
        entry: the module to begin with, as `package.module`.
        left_out: modules that only functions import, and none that is needed. Importing them fails
            in the joined module; so what follows such an import in its block is left out, too.

    Returns:
        The module, and what the names of each module are there.

    Raises:
        ValueError: if the modules do what cannot be joined.
    """
    joiner = _Joiner(root, left_out)
    joiner.include(entry)
    future = ast.parse("from __future__ import annotations").body
    for node in (node for statement in joiner.body for node in ast.walk(statement)):
        if isinstance(node, ast.ImportFrom) and joiner.is_own(str(node.module)):
            raise ValueError(f"{ast.unparse(node)}: cannot be followed there")
    return ast.Module([*future, *joiner.body], []), joiner.names


class _Joiner:
    def __init__(self, root: Path, left_out: Collection[str]) -> None:
        self.body: list[ast.stmt] = []
        self.names: dict[str, dict[str, str]] = {}
        """By module: what its names are in the joined one."""
        self._root, self._left_out = root, left_out
        self._foreign: dict[str, str] = {}
        """By name: the import from outside that binds it."""

    def include(self, module: str) -> None:
        """Add a module, behind its parents and behind what it imports."""
        if module in self.names:
            return
        names = self.names[module] = {}
        if "." in module:
            self.include(module.rpartition(".")[0])
        path = self._path(module)
        if path is None:
            raise ValueError(f"there is no module {module}")
        tree = ast.parse(path.read_text(), module)
        number = len(self.names)
        own = (node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom))
        names |= {name: f"{name}_{number}" for name in bound(own)}
        imports = _OwnImports(self, names)
        for statement in tree.body:
            resolver = _Resolver(names, imports.modules)
            for kept in imports.followed([statement]):
                if isinstance(kept, ast.Import | ast.ImportFrom):
                    self._keep(kept, names)
                else:
                    self.body.append(resolver.visit(kept))

    def is_left_out(self, module: str) -> bool:
        """Whether its imports shall fail."""
        return module in self._left_out

    def is_own(self, module: str) -> bool:
        """Whether there is such a module in the package."""
        return self._path(module) is not None

    def _path(self, module: str) -> Path | None:
        package, *parts = module.split(".")
        path = self._root.joinpath(*parts)
        candidates = (path.with_suffix(".py"), path / "__init__.py")
        if package != self._root.name:
            return None
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    def _keep(self, statement: ast.Import | ast.ImportFrom, names: dict[str, str]) -> None:
        """Keep an import from outside, once, with the names that it gives."""
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            return
        for alias in statement.names:
            single = copy.copy(statement)
            single.names = [alias]
            name, text = alias.asname or alias.name, ast.unparse(single)
            bound_name = name.split(".")[0]
            if names.setdefault(bound_name, bound_name) != bound_name:
                raise ValueError(f"{text}: {bound_name} is something else, too")
            if name not in self._foreign:
                self._foreign[name] = text
                self.body.append(single)
            elif self._foreign[name] != text:
                raise ValueError(f"{text}: in another module it is {self._foreign[name]}")


class _OwnImports:
    """Takes a module's imports of the package's own modules out, and includes these."""

    def __init__(self, joiner: _Joiner, names: dict[str, str]) -> None:
        self.modules: dict[str, dict[str, str]] = {}
        """By name of an imported module: its names."""
        self._joiner, self._names = joiner, names

    def followed(self, block: list[ast.stmt]) -> list[ast.stmt]:
        """The statements without such imports."""
        kept: list[ast.stmt] = []
        for statement in block:
            if isinstance(statement, ast.ImportFrom) and self._joiner.is_own(str(statement.module)):
                if self._fails(statement):
                    return [*kept, *_FAILS.body]
                self._follow(statement)
                continue
            for field in ("body", "orelse", "finalbody"):
                if inner := getattr(statement, field, None):
                    setattr(statement, field, self.followed(inner) or [ast.Pass()])
            kept.append(statement)
        return kept

    def _fails(self, statement: ast.ImportFrom) -> bool:
        wanted = [statement.module, *(f"{statement.module}.{a.name}" for a in statement.names)]
        return any(self._joiner.is_left_out(str(module)) for module in wanted)

    def _follow(self, statement: ast.ImportFrom) -> None:
        source = str(statement.module)
        self._joiner.include(source)
        for alias in statement.names:
            name, target = alias.asname or alias.name, f"{source}.{alias.name}"
            if self._joiner.is_own(target):
                self._joiner.include(target)
                self.modules[name] = self._joiner.names[target]
                continue
            wanted = self._joiner.names[source][alias.name]
            if self._names.setdefault(name, wanted) != wanted:
                raise ValueError(f"{ast.unparse(statement)}: {name} is something else, too")


class _Resolver(Renamer):
    """Gives a module's global names those of the joined module."""

    def __init__(self, names: dict[str, str], modules: dict[str, dict[str, str]]) -> None:
        super().__init__(names)
        self._globals = names
        self._modules = modules

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self._modules and self.is_global(node.id):
            raise ValueError(f"the module {node.id} is used as a value")
        if (
            node.id in self._globals
            and self.in_class_with(node.id)
            and isinstance(node.ctx, ast.Load)
        ):
            raise ValueError(f"a class reads and binds the global name {node.id}")
        return super().visit_Name(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        module = node.value
        if (
            isinstance(module, ast.Name)
            and module.id in self._modules
            and self.is_global(module.id)
        ):
            name = self._modules[module.id][node.attr]
            return ast.copy_location(ast.Name(name, node.ctx), node)
        return self.generic_visit(node)
