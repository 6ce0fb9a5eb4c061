"""Importing the migration files, which Alembic does before its first step; and which line of which file failed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from gasket.migrator.connection import describe
from gasket.migrator.errors import MigratorError, RevisionFileError


def load_scripts(ini: Path) -> ScriptDirectory:
    """Alembic's view of the files, all of them imported.

    Raises:
        RevisionFileError: one cannot be.
    """
    directory = ScriptDirectory.from_config(Config(str(ini)))
    with naming_the_file():
        list(directory.walk_revisions())
    return directory


@contextmanager
def naming_the_file() -> Iterator[None]:
    """Around what makes Alembic import the files.

    Raises:
        RevisionFileError: one cannot be.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        if refusal := not_loaded(error):
            raise refusal from error
        raise


def not_loaded(error: Exception) -> RevisionFileError | None:
    """The refusal, where the error came of importing a migration file."""
    place = _place(error)
    return RevisionFileError(file=place[0], problem=f"cannot be loaded: {where(error, error)}") if place else None


def where(error: Exception, cause: BaseException) -> str:
    """The error and the notes to it in one line; for one of Python's, also the line of the migration that raised it."""
    if isinstance(error, DBAPIError | asyncpg.PostgresError | MigratorError):
        return "; ".join([describe(cause), *getattr(cause, "__notes__", ())])
    what = error.msg if isinstance(error, SyntaxError) else describe(error)
    place = _place(error)
    return f"{type(error).__name__}: {what}" + (f" ({place[0]}, line {place[1]})" if place else "")


def _place(error: Exception) -> tuple[str, int | None] | None:
    """File and line of the migration that raised it, or that is no Python."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((Path(error.filename), error.lineno))
    found = [(path.name, line) for path, line in places if path.parent.name == "versions"]
    return found[-1] if found else None
