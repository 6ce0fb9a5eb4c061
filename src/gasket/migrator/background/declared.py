"""What a revision's module declares of background work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.background import Backfill, Declaration, IndexBuild
from gasket.migrator.background.backfills import may_pass
from gasket.migrator.background.walk import PRIMARY_KEY
from gasket.migrator.errors import NotAppliedError, RevisionFileError
from gasket.postgres.errors import describe, is_lost


def declared_works(module: ModuleType) -> Sequence[Declaration]:
    """The revision's `background`; empty where it has none.

    Raises:
        RevisionFileError: it is something else than a list of Backfill and IndexBuild.
    """
    declared = getattr(module, "background", ())
    if isinstance(declared, list | tuple) and all(isinstance(one, Backfill | IndexBuild) for one in declared):
        return declared
    raise RevisionFileError(
        file=Path(module.__file__ or module.__name__).name,
        problem="declares a `background` that is not a list of Backfill and IndexBuild",
    )


def needed_revisions(module: ModuleType) -> Sequence[str]:
    """Those whose work has to be complete before the revision is applied: its `needs_background`."""
    return getattr(module, "needs_background", ())


def check_backfills(connection: Connection, revision: str, declared: Sequence[Declaration]) -> None:
    """In the revision's transaction, after its statements: whether the SQL of its backfills fits the tables.

    Once the revision is committed, a mistake there could be mended by another revision only. Nothing is changed, and no
    lock is kept.

    Raises:
        NotAppliedError: it does not fit.
        sqlalchemy.exc.DBAPIError: a lock was not granted, for example; another try may succeed.
    """
    for one in declared:
        if isinstance(one, Backfill) and (problem := _problem(connection, one)):
            what = f"Revision {revision} declares a backfill of {one.table} that cannot be done: {problem}"
            raise NotAppliedError(what=what, mend="Correct its file")


def _problem(connection: Connection, backfill: Backfill) -> str | None:
    # In brackets, `where` cannot close a parenthesis that it has not opened.
    condition = f"(ARRAY[{backfill.where}\n]::boolean[])[1]"
    savepoint = connection.begin_nested()
    try:
        if not connection.exec_driver_sql(PRIMARY_KEY, (backfill.table,)).all():
            return "the table is not there, or has no primary key to walk along"
        connection.exec_driver_sql(f"EXPLAIN SELECT FROM {backfill.table} WHERE {condition}")
        connection.exec_driver_sql(f"EXPLAIN UPDATE {backfill.table} SET {backfill.set}\nWHERE {condition} RETURNING 1")
    except DBAPIError as error:
        if error.orig is None or is_lost(error) or may_pass(error.orig):
            raise
        return describe(error)
    finally:
        savepoint.rollback()
    return None
