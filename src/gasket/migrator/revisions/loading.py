"""Importing the migration files, which Alembic does before its first step; and which line of which file failed."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import asyncpg
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, to_tuple
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError, SQLAlchemyError, StatementError

from gasket.migrator.errors import MigratorError, NotForRevisionsError, RevisionFileError
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.scripts import script_directory
from gasket.postgres.errors import describe
from gasket.postgres.messages import withhold

_IN_OTHER_WORDS = (
    DBAPIError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    MigratorError,
    NotForRevisionsError,
)
"""Errors of the database and of the migrator: where they were raised says nothing to the reader."""

_NO_VALUE_OF_PARAMETER = "cd3x"  # SQLAlchemy's manual, "Error Messages": "A value is required for bind parameter"


def load_scripts(ini: Path) -> ScriptDirectory:
    """Alembic's view of the files, all of them imported.

    Raises:
        RevisionFileError: one cannot be.
    """
    directory = script_directory(ini)
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
    except (CommandError, MigratorError):
        raise
    except (Exception, SystemExit) as error:  # a file that calls sys.exit() would end a command with "all is well"
        if refusal := not_loaded(error):
            raise refusal from error
        raise


def require_as_read(scripts: Iterable[Script], revisions: Revisions) -> None:
    """Refuse a file that is another revision once it is imported than its text says: no check has seen that one.

    Raises:
        RevisionFileError: a file declares its revision in a condition, say.
    """
    for script in scripts:
        file = revisions.get(script.revision)
        if file is None or file.down_revisions != to_tuple(script.down_revision, ()):
            raise RevisionFileError(
                file=Path(script.path).name,
                problem=f"is revision {script.revision} once it is imported, and its text says otherwise",
                mend="Write `revision = ...` and `down_revision = ...` once, and neither in a condition.",
            )


def not_loaded(error: BaseException) -> RevisionFileError | None:
    """The refusal, where the error came of importing a migration file."""
    place = _place(error)
    return RevisionFileError(file=place[0], problem=f"cannot be loaded: {where(error, error)}") if place else None


def where(error: BaseException, cause: BaseException) -> str:
    """The error and the notes to it in one line; for one of Python's, also the line of the migration that raised it.

    No value of a row is in it. So of Python's errors it has the text only where the migration itself has written it, in
    a `raise` of its own, or where the kind of error tells of names alone.
    """
    if isinstance(error, _IN_OTHER_WORDS):
        return "; ".join([describe(cause), *getattr(cause, "__notes__", ())])
    if isinstance(error, SyntaxError):
        what = error.msg
    elif isinstance(error, StatementError) and _lacks_value_of_parameter(error.orig):
        withhold(str(error))  # in JSON such as {"pin":4711}, the parameter's name is a value
        what = (
            "a parameter in its SQL has no value; a colon that begins no parameter, as in JSON, is written \\\\: or, "
            "in a raw string, \\:"
        )
    elif _tells_names_alone(error) or _is_raised_by_migration(error):
        what = describe(error)
    else:
        withhold(str(error))
        what = "its text is left out, for it may have values of rows"
    place = _place(error)
    return f"{type(error).__name__}: {what}" + (f" ({place[0]}, line {place[1]})" if place else "")


def _tells_names_alone(error: BaseException) -> bool:
    told = isinstance(error, NameError | AttributeError | ImportError | TypeError | OSError | CommandError | SystemExit)
    return told or (isinstance(error, SQLAlchemyError) and not isinstance(error, StatementError | ArgumentError))


def _lacks_value_of_parameter(error: BaseException | None) -> bool:
    return isinstance(error, InvalidRequestError) and error.code == _NO_VALUE_OF_PARAMETER


def _is_raised_by_migration(error: BaseException) -> bool:
    """Whether the innermost line is a `raise` or an `assert` of the migration, and not a call that has failed."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not _is_migration(trace.tb_frame):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """File and line of the migration that raised it, or that is no Python."""
    frames = traceback.walk_tb(error.__traceback__)
    places: list[tuple[str, int | None]] = [(f.f_code.co_filename, line) for f, line in frames if _is_migration(f)]
    if isinstance(error, SyntaxError) and error.filename and not places:  # of the file itself, which has no frame yet
        places = [(error.filename, error.lineno)]
    return (Path(places[-1][0]).name, places[-1][1]) if places else None


def _is_migration(frame: FrameType) -> bool:
    """Alembic calls the module of `2026_one.py` `2026_one_py`, and that of env.py in the same way."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.endswith("_py") and name != "env_py"
