"""Alembic's own view of its configuration and of the migration files. A start at head does without this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError, coerce_resource_to_filename

from gasket.migrator.errors import AlembicConfigurationError
from gasket.migrator.revisions.configuration import Locations, configuration_files, in_one_sentence, read_locations


def alembic_config(ini: Path, **attributes: Any) -> Config:
    """Alembic's configuration, of the ini file and of the pyproject.toml beside it. `ini` may be a pyproject.toml."""
    ini_file, pyproject = configuration_files(ini)
    return Config(ini_file, toml_file=pyproject, attributes=attributes)


def script_directory(ini: Path) -> ScriptDirectory:
    """Alembic's view of the files; it imports one when it is asked for it.

    Raises:
        AlembicConfigurationError: the configuration cannot be used.
    """
    with in_one_sentence(ini, Exception):  # importing the package of a script_location may raise anything
        config = alembic_config(ini)
        directory = ScriptDirectory.from_config(config)
        if directory.sourceless:
            raise AlembicConfigurationError(
                configuration=ini,
                problem="sets `sourceless`: compiled migrations cannot be checked",
                mend="Remove that option, and ship the .py files",
            )
        return directory


def has_branch(ini: Path, name: str) -> bool:
    """Whether Alembic finds a revision by the name of a branch."""
    try:
        script_directory(ini).get_revision(name)
    except (CommandError, AlembicConfigurationError):
        return False
    return True


def ask_for_locations(ini: Path) -> Locations:
    """Where Alembic looks for files.

    Raises:
        AlembicConfigurationError: the configuration cannot be used.
    """
    return _locations_of(script_directory(ini))


def _locations_of(directory: ScriptDirectory) -> Locations:
    """Where Alembic looks for files."""
    folders = [coerce_resource_to_filename(location) for location in directory.version_locations]
    scripts = Path(directory.dir).absolute()
    return Locations(
        scripts,
        tuple(folder.absolute() for folder in folders) or (scripts / "versions",),
        directory.recursive_version_locations,
    )


def require_same_files(ini: Path, directory: ScriptDirectory, configuration: str) -> None:
    """Refuse to run files that Gasket does not read. `directory` is Alembic's, of the `configuration` it was given.

    Raises:
        AlembicConfigurationError: `alembic` was given another configuration, and that leads to other files.
    """
    read, run = read_locations(ini), _locations_of(directory)
    if _resolved(read) != _resolved(run):
        raise AlembicConfigurationError(
            configuration=Path(configuration),
            problem=f"leads to the migrations in {_folders(run)}, and Gasket reads {ini}, which leads to those in "
            f"{_folders(read)}",
            mend=f"Give alembic the same one (alembic -c {ini}), or set ALEMBIC_CONFIG for Gasket",
        )


def _resolved(locations: Locations) -> tuple[set[Path], bool]:
    return {folder.resolve() for folder in locations.versions}, locations.recursive


def _folders(locations: Locations) -> str:
    return " and ".join(map(str, locations.versions)) + (" and below" if locations.recursive else "")
