"""Alembic's names that are not public and that `steps` and `alembic_command` of the migrator stand on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import HeadMaintainer, MigrationContext, RevisionStep
from alembic.script import ScriptDirectory

from gasket.migrator.apply.steps import downgrade_steps, judge_quickly, upgrade_steps
from gasket.migrator.apply.version_moves import VersionMoves

ENV = """
from alembic import context
from gasket.migrator.alembic_command import running_command

context.config.attributes["seen"].append(running_command(context).writes)
context.configure(dialect_name="postgresql")
context.config.attributes["seen"].append(callable(context.get_context()._migrations_fn))
"""


@pytest.fixture
def project(tmp_path: Path) -> Config:
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n")
    return Config(str(tmp_path / "alembic.ini"), attributes={"seen": []})


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda c: command.upgrade(c, "head"), "upgrade"),
        (lambda c: command.downgrade(c, "base"), "downgrade"),
        (lambda c: command.stamp(c, "head"), "stamp"),
        (lambda c: command.current(c), None),
        (lambda c: command.ensure_version(c), "ensure-version"),
    ],
)
def test_the_command_is_known_and_its_steps_can_be_followed(project: Config, run: object, name: str | None) -> None:
    run(project)  # type: ignore[operator]
    assert project.attributes["seen"] == [name, True]


def test_a_context_has_what_a_recorder_attaches_to() -> None:
    context = MigrationContext.configure(dialect_name="postgresql", opts={"fn": lambda heads, ctx: []})
    assert context._migrations_fn is not None
    assert callable(context.autocommit_block)


@pytest.mark.parametrize(("steps", "target"), [(upgrade_steps, "heads"), (downgrade_steps, "base")])
def test_the_steps_to_a_target_can_be_asked_for(
    project: Config, steps: Callable[[ScriptDirectory, str, tuple[str, ...]], list[RevisionStep]], target: str
) -> None:
    assert steps(ScriptDirectory.from_config(project), target, ()) == []


@pytest.mark.parametrize(
    ("head", "other"), [("e", "e"), ("d", "d"), ("b", "c"), ("b", "b"), ("a", "a"), ("other", "a"), ("other", "b")]
)
def test_a_step_down_is_judged_as_alembic_judges_it(project: Config, head: str, other: str) -> None:
    folder = Path(project.config_file_name or "").parent / "migrations" / "versions"
    parents = {"a": None, "b": "a", "c": "a", "d": ("b", "c"), "e": "d", "other": None}
    functions = "def upgrade(): pass\ndef downgrade(): pass\n"
    for revision, down in parents.items():
        depends = 'depends_on = "other"\n' if revision == "b" else ""
        (folder / f"{revision}.py").write_text(
            f"revision = {revision!r}\ndown_revision = {down!r}\n{depends}{functions}"
        )
    script = ScriptDirectory.from_config(project)
    step: Any = RevisionStep(script.revision_map, script.get_revision(head), False)
    wanted = step.should_delete_branch({head, other})
    judge_quickly(step)
    assert step.should_delete_branch({head, other}) is wanted
    step.revision_map = None  # a walk of the ancestors would need it
    if head == other == "e":
        assert step.should_delete_branch({head}) is False


@pytest.mark.parametrize(("parents", "deferred"), [("a", ("a", "b")), (("a", "other"), None), (None, None)])
def test_the_version_of_a_plain_step_alone_is_deferred(
    project: Config, parents: object, deferred: tuple[str, str] | None
) -> None:
    folder = Path(project.config_file_name or "").parent / "migrations" / "versions"
    for revision, down in {"a": None, "other": None, "b": parents}.items():
        functions = "def upgrade(): pass\ndef downgrade(): pass\n"
        (folder / f"{revision}.py").write_text(f"revision = {revision!r}\ndown_revision = {down!r}\n{functions}")
    script = ScriptDirectory.from_config(project)
    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "literal_binds": True, "output_buffer": buffer}
    )
    moves = VersionMoves()
    moves.watch(context)
    step = RevisionStep(script.revision_map, script.get_revision("b"), True)
    moves.defer(step)
    HeadMaintainer(context, {"a", "other"}).update_to_step(step)
    assert moves.take() == deferred
    assert ("alembic_version" in buffer.getvalue()) is (deferred is None)
    assert moves.take() is None
