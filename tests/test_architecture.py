"""The rules of the house that a syntax tree can show."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gasket"

# Imports go down or stay on the floor, never up. A part that is not listed here has not been given its place.
FLOORS = {
    "app": 5,
    "__main__": 5,
    "commands": 5,
    "run": 5,
    "startup": 5,
    "unready": 5,
    "shutdown": 5,
    "installation": 5,
    "schema_commands": 5,
    "recorded_commands": 5,
    "models": 4,
    "metrics": 4,
    "proxy": 4,
    "ui": 4,
    "access": 3,
    "audit": 3,
    "keys": 3,
    "backends": 3,
    "limits": 3,
    "usage": 3,
    "users": 3,
    "db": 2,
    "origin": 2,
    "http": 2,
    "inputs": 2,
    "server": 2,
    "upstream": 2,
    "notices": 2,
    "embedded": 2,
    "migrator": 1,
    "postgres": 0,
    "logs": 0,
    "log_lines": 0,
    "settings": 0,
    "environment": 0,
    "release": 0,
    "deadlines": 0,
    "networks": 0,
    "issuers": 0,
    "peers": 0,
    "forwarded": 0,
    "request_ids": 0,
    "cors": 0,
    "errors": 0,
}
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "lib", "misc"}

# Their values need what a struct lacks: a field left out of repr or comparison, a cached property, metadata of fields.
NEED_DATACLASSES = {
    "gasket.settings",
    "gasket.migrator.config",
    "gasket.migrator.sql.render",
}

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


@pytest.mark.parametrize(
    ("room", "needs"),
    [("migrator", {"migrator", "postgres", "logs", "log_lines"}), ("postgres", {"postgres", "errors"})],
)
def test_the_rooms_that_stand_alone(room: str, needs: set[str]) -> None:
    for module, imported in EDGES.items():
        if part_of(module) == room:
            assert {part_of(other) for other in imported} <= needs, module


def test_the_rooms_keep_their_models_to_themselves() -> None:
    for module, imported in EDGES.items():
        if (part := part_of(module)) in ("keys", "backends", "limits", "usage", "users", "proxy"):
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


def test_a_start_at_head_does_without_what_applies_revisions() -> None:
    program = "import sys, gasket.app; print(*(name for name in sys.modules if name.startswith('gasket.migrator')))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    assert "gasket.migrator.head" in loaded
    not_needed = {
        f"gasket.migrator.{name}"
        for name in (
            *("runner", "apply.steps", "archive.restore", "background.working", "catalog.read", "catalog.drift"),
            *("revisions.rules.check", "sql.reader", "sql.render"),
        )
    }
    assert all(find_spec(name) for name in not_needed), "one of them has another name by now"
    assert not not_needed & {*loaded}


def test_a_start_at_head_does_without_alembic_and_advanced_alchemys_plugin() -> None:
    """Alembic brings Mako and Pygments, the plugin's package brings Litestar's command line: 150 ms and 16 MB."""
    program = "import sys, gasket.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    assert not {"alembic", "mako", "pygments", "advanced_alchemy.extensions.litestar", "litestar.cli"} & {*loaded}


def test_a_start_does_without_the_pages_and_a_command_without_their_room() -> None:
    program = "import sys, {}; print(*(name for name in sys.modules if name.startswith(('gasket.ui', 'jinja2'))))"
    for module, needed in (
        ("gasket.app", {"gasket.ui", "gasket.ui.assets", "gasket.ui.door", "gasket.ui.headers"}),
        ("gasket.schema_commands, gasket.migrator.runner, gasket.installation", set()),
    ):
        command = [sys.executable, "-c", program.format(module)]
        loaded = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        assert {*loaded} == needed, module


def test_plain_values_are_no_dataclasses() -> None:
    """Each takes half a millisecond of every process that imports it; a msgspec struct takes 0.01 ms."""
    wanted = {
        name_of(path)
        for path, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
        if "dataclass" in {alias.name for alias in node.names}
    }
    assert wanted <= NEED_DATACLASSES, "use msgspec.Struct"


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
    assert {part_of(module) for module in imports(tree)} <= {"installation", "migrator"}


def test_names_say_what_is_inside() -> None:
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "migrations").glob("*.py")]:
        parts = {*path.relative_to(ROOT).parts[:-1], path.stem}
        assert not parts & NO_NAMES, path


NAMED = sorted(
    {
        str(node.value)
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"gasket(\.\w+)+:\w+", node.value)
    }
)


@pytest.mark.parametrize("name", NAMED)
def test_what_a_string_names_is_there(name: str) -> None:
    """What is imported at its first use, by a string, no type checker follows."""
    pkgutil.resolve_name(name)
