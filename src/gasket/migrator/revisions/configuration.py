"""Where Alembic's configuration says that the migration files are.

The files that Gasket reads have to be those that Alembic runs. A plain `script_location` is read here, without Alembic,
because a start at head does no more than that; as soon as another option decides, Alembic itself is asked.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gasket.migrator.errors import AlembicConfigurationError
from gasket.migrator.revisions.files import Revisions, read_folders

PYPROJECT = "pyproject.toml"

_ASK_ALEMBIC = "gasket.migrator.revisions.scripts:ask_for_locations"
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


def configuration_files(ini: Path) -> tuple[Path | None, Path | None]:
    """The ini file and the pyproject.toml that Alembic reads, as far as they are there.

    Raises:
        AlembicConfigurationError: the pyproject.toml cannot be read.
    """
    if ini.name == PYPROJECT:
        return None, ini
    with in_one_sentence(ini.parent / PYPROJECT):
        return ini, _pyproject(ini)


def read_locations(ini: Path) -> Locations:
    """Where the configuration leads.

    Raises:
        AlembicConfigurationError: the configuration cannot be used, or leads nowhere.
    """
    with in_one_sentence(ini):
        plain = _plain_location(ini)
    if plain is None:
        ask_for_locations: Callable[[Path], Locations] = pkgutil.resolve_name(_ASK_ALEMBIC)
        return ask_for_locations(ini)
    if not plain.is_dir():
        raise AlembicConfigurationError(
            configuration=ini,
            problem=f"says script_location = {plain}, and there is no such folder",
            mend="Correct script_location, or put the folder there",
        )
    return Locations(plain, (plain / "versions",))


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


@contextmanager
def in_one_sentence(ini: Path, *more: type[Exception]) -> Iterator[None]:
    """Around what reads the configuration, in which people write what they like. `more` are errors of Alembic's."""
    # ValueError: TOML, a wrong path_separator, a file that is not text; TypeError, KeyError: %(here)s and the like
    theirs: tuple[type[Exception], ...] = (*more, IniError, OSError, ImportError, ValueError, TypeError, KeyError)
    try:
        yield
    except AlembicConfigurationError:  # it is a sentence, and `more` may include it
        raise
    except theirs as error:
        raise AlembicConfigurationError(
            configuration=ini, problem=f"cannot be used: {_first_line(error)}", mend="Correct it"
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})"
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].rstrip(".:")
    return f"{error.args[0]!r} is not known" if isinstance(error, KeyError) else line
