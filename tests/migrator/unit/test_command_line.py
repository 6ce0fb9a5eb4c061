"""Sentences name the command line that is in use."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import click
import pytest
from advanced_alchemy.config.asyncio import AlembicAsyncConfig
from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig
from click.testing import CliRunner

from gasket.migrator.command_line import called_as, database_command
from gasket.migrator.commands.advanced_alchemy import _HELP, _OPTIONS
from gasket.migrator.commands.cli import _OWN, DatabaseCommands
from tests.migrator.project import ENV, Project


@pytest.mark.parametrize("name", ["gasket db", "gasket database", "litestar database"])
def test_a_remedy_names_the_command_line_that_was_typed(name: str) -> None:
    config: Any = None  # drop-all refuses without looking at it
    group = DatabaseCommands(lambda: config, list)
    refused = CliRunner().invoke(group, ["drop-all"], prog_name=name)
    assert refused.exit_code == 1
    assert f"Run: {name} downgrade base" in refused.output


def test_a_start_and_the_api_name_the_default() -> None:
    with called_as("gasket db"):
        assert database_command("status") == "gasket db status"
    assert database_command("status") == "gasket database status"


def test_every_command_that_advanced_alchemy_brings_has_gaskets_help() -> None:
    config: Any = None
    group = DatabaseCommands(lambda: config, list)
    brought = pkgutil.resolve_name("advanced_alchemy.extensions.litestar.cli:database_group").commands
    assert brought.keys() - _OWN.keys() == _HELP.keys()
    used = set()
    for name in _HELP:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.help == _HELP[name]
        if not command.hidden:
            used |= {option.name for option in command.params if isinstance(option, click.Option) and not option.hidden}
    assert used == _OPTIONS.keys()


def test_commands_of_no_use_are_not_listed() -> None:
    config: Any = None
    listed = CliRunner().invoke(DatabaseCommands(lambda: config, list), ["--help"]).output
    assert "make-migrations" in listed
    for name in ("init", "list-templates", "drop-all"):
        assert f"  {name}" not in listed


@pytest.mark.parametrize(
    "typed",
    ["history", "heads", "branches", "show head", "merge r1 r2", "upgrade --sql head", "downgrade --sql r1:base"],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, typed: str) -> None:
    project = Project(tmp_path)
    project.add()
    (project.versions / "odd.py").symlink_to("/nowhere/x.py")
    env = project.versions.parent / "env.py"
    made = f'MigratorConfig(database_url="postgresql://", release="1.0", ini=Path({str(project.ini)!r}))'
    imports = "from pathlib import Path\nfrom gasket.migrator.config import MigratorConfig\n"
    env.write_text(imports + ENV.replace('context.config.attributes.get("read_config")', f"lambda: {made}"))
    alembic = AlembicAsyncConfig(script_config=str(project.ini), script_location=str(env.parent))
    others = SQLAlchemyAsyncConfig(connection_string="postgresql+asyncpg://", alembic_config=alembic)
    group = DatabaseCommands(lambda: project.config("postgresql://"), lambda: [others])
    done = CliRunner().invoke(group, typed.split())
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    [sentence] = done.stderr.splitlines()
    assert "odd.py cannot be read (No such file or directory, a link to /nowhere/x.py)" in sentence
