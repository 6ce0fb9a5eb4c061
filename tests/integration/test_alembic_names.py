"""Alembic's names that are not public and that `steps` and `alembic_command` of the migrator stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from gasket.migrator.steps import downgrade_steps

ENV = """
from alembic import context
from gasket.migrator.alembic_command import command_that_writes

context.config.attributes["seen"].append(command_that_writes(context))
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


def test_the_steps_of_a_downgrade_can_be_asked_for(project: Config) -> None:
    assert downgrade_steps(ScriptDirectory.from_config(project), "base", ()) == []
