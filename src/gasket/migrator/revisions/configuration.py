"""Alembic's configuration: the one way to it, and where it says that the migration files are.

The files that Gasket reads have to be those that Alembic runs. A plain `script_location` is read here, because a start
at head does no more than that; as soon as another option decides, Alembic itself is asked for the folders.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError, coerce_resource_to_filename

from gasket.migrator.errors import AlembicConfigurationError
from gasket.migrator.revisions.files import Revisions, read_folders

PYPROJECT = "pyproject.toml"

_SECTION = "alembic"
_DECIDING = ("version_locations", "recursive_version_locations", "sourceless")
"""Options besides `script_location` that decide which files are migrations."""

_MAY_CONFIGURE = re.compile(rb"tool[\s.\"']*alembic|\[\s*tool\s*\]")
"""What a pyproject.toml with a table [tool.alembic] contains, however it is written; TOML itself takes 3 ms to read."""


class Locations(msgspec.Struct, frozen=True):
    """Where things are: `scripts` holds env.py and the template, `versions` the migrations, with what is below them."""

    scripts: Path
    versions: tuple[Path, ...]
    recursive: bool = False


def alembic_config(ini: Path, **attributes: Any) -> Config:
    """Alembic's configuration, of the ini file and of the pyproject.toml beside it. `ini` may be a pyproject.toml."""
    ini_file, pyproject = configuration_files(ini)
    return Config(ini_file, toml_file=pyproject, attributes=attributes)


def configuration_files(ini: Path) -> tuple[Path | None, Path | None]:
    """The ini file and the pyproject.toml that Alembic reads, as far as they are there.

    Raises:
        AlembicConfigurationError: the pyproject.toml cannot be read.
    """
    if ini.name == PYPROJECT:
        return None, ini
    with _in_one_sentence(ini.parent / PYPROJECT):
        return ini, _pyproject(ini)


def script_directory(ini: Path) -> ScriptDirectory:
    """Alembic's view of the files; it imports one when it is asked for it.

    Raises:
        AlembicConfigurationError: the configuration cannot be used.
    """
    with _in_one_sentence(ini):
        config = alembic_config(ini)
        directory = ScriptDirectory.from_config(config)
        if directory.sourceless:
            raise AlembicConfigurationError(
                configuration=ini,
                problem="sets `sourceless`: compiled migrations cannot be checked",
                mend="Remove that option, and ship the .py files",
            )
        return directory


def read_locations(ini: Path) -> Locations:
    """Where the configuration leads.

    Raises:
        AlembicConfigurationError: the configuration cannot be used, or leads nowhere.
    """
    with _in_one_sentence(ini):
        plain = _plain_location(ini)
    if plain is None:
        return _locations_of(script_directory(ini))
    if not plain.is_dir():
        raise AlembicConfigurationError(
            configuration=ini,
            problem=f"says script_location = {plain}, and there is no such folder",
            mend="Correct script_location, or put the folder there",
        )
    return Locations(plain, (plain / "versions",))


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


def configured_revisions(ini: Path) -> Revisions:
    """The migrations that this configuration leads to.

    Raises:
        AlembicConfigurationError: the configuration cannot be used.
        RevisionFileError: a file cannot be read, or does not declare its revision.
    """
    locations = read_locations(ini)
    return read_folders(locations.versions, recursive=locations.recursive)


def _plain_location(ini: Path) -> Path | None:
    """`script_location`, where it alone decides; None where Alembic has to be asked."""
    ini_file, pyproject = configuration_files(ini)
    if ini_file is None or pyproject:
        return None
    parser = ConfigParser({"here": ini.absolute().parent.as_posix()})
    with ini.open(encoding="locale") as file:  # as Alembic opens it
        parser.read_file(file)
    options = parser[_SECTION] if parser.has_section(_SECTION) else {}
    location = options.get("script_location")
    if not location or any(name in options for name in _DECIDING):
        return None
    path = Path(location)
    if ":" in location and not path.is_absolute():  # package:folder
        return None
    return path.absolute()


def _pyproject(ini: Path) -> Path | None:
    """The pyproject.toml beside the ini file, where it configures Alembic, too."""
    path = ini.parent / PYPROJECT
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if not _MAY_CONFIGURE.search(content):
        return None
    return path if _SECTION in tomllib.loads(content.decode()).get("tool", {}) else None


def _resolved(locations: Locations) -> tuple[set[Path], bool]:
    return {folder.resolve() for folder in locations.versions}, locations.recursive


def _folders(locations: Locations) -> str:
    return " and ".join(map(str, locations.versions)) + (" and below" if locations.recursive else "")


@contextmanager
def _in_one_sentence(ini: Path) -> Iterator[None]:
    """Around what reads the configuration, in which people write what they like."""
    try:
        yield
    except AlembicConfigurationError:
        raise
    except (CommandError, IniError, OSError, ImportError, ValueError, TypeError, KeyError) as error:
        # ValueError: TOML, a wrong path_separator, a file that is not text; TypeError, KeyError: %(here)s and the like
        raise AlembicConfigurationError(
            configuration=ini, problem=f"cannot be used: {_first_line(error)}", mend="Correct it"
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})"
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].rstrip(".:")
    return f"{error.args[0]!r} is not known" if isinstance(error, KeyError) else line
