"""The public names, and the floors of the house behind them."""

from __future__ import annotations

import ast
import inspect
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import replikv
from replikv import errors, recipes

PACKAGE = Path(replikv.__file__).parent
CONTRACTS: list[dict[str, Any]] = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["tool"][
    "importlinter"
]["contracts"]


# -- names -------------------------------------------------------------------------------------------------------------


def test_public_names_are_exactly_those_that_are_there() -> None:
    """``__all__`` is sorted, and is what the package has but for its modules: nothing leaks, nothing is missing."""
    present = {
        name
        for name, value in vars(replikv).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(present) == replikv.__all__


def test_recipes_are_exactly_those_that_are_there() -> None:
    """As for the package itself."""
    present = {
        name
        for name, value in vars(recipes).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(present) == recipes.__all__


def test_every_error_is_public() -> None:
    """Whatever is raised on purpose can be caught by a public name, and by the root of all."""
    assert set(errors.__all__) <= set(replikv.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(replikv, name), replikv.ReplikvError)


def own_members(value: object) -> dict[str, object]:
    """The public methods and properties of a class, inherited ones as well, but for what errors have from Exception."""
    if not inspect.isclass(value) or issubclass(value, Exception):
        return {}
    members = {name: inspect.getattr_static(value, name) for name in dir(value) if not name.startswith("_")}
    return {
        name: member
        for name, member in members.items()
        if callable(member) or isinstance(member, property | classmethod | staticmethod)
    }


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in (replikv, recipes) for name in package.__all__]
)
def test_a_public_name_is_documented(package: types.ModuleType, name: str) -> None:
    """Every public class and constant says what it is, and so do the methods and properties of the classes."""
    value = getattr(package, name)
    assert inspect.getdoc(value)
    assert [] == [member for member, found in own_members(value).items() if not inspect.getdoc(found)]


# -- floors ------------------------------------------------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """The modules that a module imports at run time, wherever in it, by full name."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        pending += ast.iter_child_nodes(node)
    return found


MODULES = {path.relative_to(PACKAGE).as_posix(): imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}
"""Module, as a path in the package -> what it imports."""


def floors() -> dict[str, int]:
    """Room -> the number of its floor, from below, as pyproject.toml has it."""
    contract = next(contract for contract in CONTRACTS if contract["type"] == "layers")
    return {
        room.strip(" ()"): number
        for number, layer in enumerate(reversed(contract["layers"]))
        for room in layer.split("|")
    }


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    """Or from its own room. This is the quick half of lint-imports, which .ci/run runs as well."""
    floor_of = floors()
    room = module.split("/", maxsplit=1)[0].removesuffix(".py")
    rooms = {name.split(".")[1] for name in MODULES[module] if name.startswith("replikv.")} & set(floor_of)
    assert set() == {other for other in rooms - {room} if floor_of[other] >= floor_of[room]}
    assert "replikv" not in MODULES[module] or floor_of[room] > floor_of["cluster"], "the public face is above it"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("recipes/")])
def test_a_recipe_has_no_private_door(module: str) -> None:
    """It imports the public names of ``replikv`` and other recipes: whoever builds his own has what it has."""
    own = {name for name in MODULES[module] if name.split(".")[0] == "replikv"}
    assert set() == {name for name in own if not name.startswith("replikv.recipes.") and name != "replikv"} - {
        f"replikv.{name}" for name in replikv.__all__
    }


@pytest.mark.parametrize("module", MODULES)
def test_52_nothing_that_is_read_is_run(module: str) -> None:
    """No module unpickles, and none makes code of text: bytes of a disk or of a stranger are never code."""
    dangerous = {
        "pickle",
        "_pickle",
        "cPickle",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
        "jsonpickle",
        "yaml",
        "ctypes",
    }
    assert set() == {name.split(".")[0] for name in MODULES[module]} & dangerous
    called = {
        node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        for node in ast.walk(ast.parse((PACKAGE / module).read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    assert set() == called & {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}
