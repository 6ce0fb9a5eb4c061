"""The rules of the house that a syntax tree can show."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gasket"

# Imports go down or stay on the floor, never up. A part that is not listed here has not been given its place.
FLOORS = {
    "app": 4,
    "__main__": 4,
    "commands": 4,
    "startup": 4,
    "shutdown": 4,
    "server": 4,
    "models": 3,
    "metrics": 3,
    "proxy": 3,
    "keys": 2,
    "backends": 2,
    "limits": 2,
    "usage": 2,
    "db": 1,
    "http": 1,
    "inputs": 1,
    "upstream": 1,
    "embedded": 1,
    "postgres_programs": 1,
    "settings": 0,
    "deadlines": 0,
    "errors": 0,
    "migrator": 0,
}
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "lib", "misc"}

MODULES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    """`gasket.keys.models` of the file's path."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """`keys` of `gasket.keys.models`; nothing of `gasket` itself."""
    return module.split(".")[1] if "." in module else ""


NAMES = {name_of(path) for path in MODULES}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of Gasket that are imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if part_of(alias.name) and alias.name.startswith("gasket."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            if (node.module or "").split(".")[0] == "gasket":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in NAMES else str(node.module)


EDGES = {name_of(path): set(imports(tree)) for path, tree in MODULES.items()}


def test_every_part_has_its_floor() -> None:
    parts = {part_of(name) for name in NAMES} - {""}
    assert parts <= FLOORS.keys()


@pytest.mark.parametrize("module", sorted(EDGES))
def test_imports_never_go_up(module: str) -> None:
    floor = FLOORS.get(part_of(module), 0)
    up = {other for other in EDGES[module] if part_of(other) and FLOORS[part_of(other)] > floor}
    assert not up, f"{module}, on floor {floor}, imports what lies above it"


def test_the_migrator_stands_alone() -> None:
    for module, imported in EDGES.items():
        if part_of(module) == "migrator":
            assert {part_of(other) for other in imported} <= {"migrator"}, module


def test_the_rooms_keep_their_models_to_themselves() -> None:
    for module, imported in EDGES.items():
        if (part := part_of(module)) in ("keys", "backends", "limits", "usage", "proxy"):
            foreign = {other for other in imported if other.endswith(".models") and part_of(other) != part}
            assert not foreign, f"{module} imports another room's models; refer to tables by name"


def test_nothing_is_imported_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in EDGES.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in EDGES:
        visit(module, ())


def test_imports_stand_at_the_top_of_the_file() -> None:
    """A function that imports from Gasket dodges a circle, and a circle means a wrong floor."""
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert not list(imports(node)), f"{path.name}: {node.name} imports from gasket"


def test_requests_are_committed_in_one_place() -> None:
    """`db.session_provider` commits when its `begin()` ends. Once a service did it by itself, and with a handler
    that swallowed a failing COMMIT the client was told 201 for a row that was not there.

    The migrator commits its own ledger, on its own connection.
    """
    for path, tree in MODULES.items():
        if "migrator" not in path.parts:
            calls = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            assert "commit" not in calls, f"{path.name} commits"


def test_env_py_only_asks_the_migrator() -> None:
    tree = ast.parse((ROOT / "migrations" / "env.py").read_text(encoding="utf-8"))
    assert {part_of(module) for module in imports(tree)} <= {"app", "migrator"}


def test_names_say_what_is_inside() -> None:
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "migrations").glob("*.py")]:
        parts = {*path.relative_to(ROOT).parts[:-1], path.stem}
        assert not parts & NO_NAMES, path
