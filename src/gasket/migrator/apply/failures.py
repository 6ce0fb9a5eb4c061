"""What is said of an error that ended a run."""

from __future__ import annotations

from contextlib import suppress

import asyncpg
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.steps import StepRecorder
from gasket.migrator.archive.faults import lagging_own_table
from gasket.migrator.errors import (
    LedgerSequenceError,
    LockLostError,
    LocksNotGrantedError,
    MigrationFailedError,
    MigratorError,
    MissingPrivilegeError,
    NotArchivedError,
)
from gasket.migrator.ledger.sequences import set_sequence
from gasket.migrator.ledger.tables import BACKGROUND, FAILURES, LEDGER, PROGRESS, VERSION_TABLE
from gasket.migrator.revisions.loading import not_loaded, where
from gasket.postgres.errors import DRIVER_ERRORS, describe, is_lost
from gasket.postgres.quoting import quote_identifier

# PostgreSQL manual, "PostgreSQL Error Codes": no memory or disk is left, the system failed, the server itself did.
_SERVER_FAULTS = ("08", "53", "58", "XX")  # 08: of a server that this one asks (dblink, postgres_fdw)


async def refusal_of(
    error: BaseException, steps: StepRecorder, connection: asyncpg.Connection, schema: str
) -> BaseException:
    """The error in our words, or that error itself. A connection that is lost is ended."""
    committed = False
    with suppress(*DRIVER_ERRORS):  # what it lost with the connection is said below
        committed = not steps.partly and await steps.has_committed_by_itself()
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(error, NotArchivedError):
        error.without_archive = steps.options.without_archive
    if isinstance(error, MigratorError):
        return error
    if connection.is_closed() or is_lost(error):
        connection.terminate()
        return LockLostError(
            reason=describe(_first(error)),
            applied=steps.applied,
            partly=steps.current is not None and steps.leaves_a_part,
        )
    if steps.current is not None:
        if lagging := lagging_sequence(cause, schema, steps.current, steps):
            return lagging
        if _denies_own_tables(cause) and steps.sets_a_role():
            cause.add_note("the revision sets another role and leaves it on; end it with RESET ROLE")
        return MigrationFailedError(
            revision=steps.current,
            direction=steps.direction,
            error=where(error, cause),
            applied=steps.applied,
            partly=steps.leaves_a_part,
            still_at=steps.still_at,
            committed=committed,
            server_fault=(getattr(cause, "sqlstate", None) or "").startswith(_SERVER_FAULTS),
        )
    if getattr(cause, "sqlstate", None) == "55P03":  # in the moment since they were free
        return LocksNotGrantedError(revision=None, waited=0, tries=1, blockers=())
    return not_loaded(error) or error  # Alembic loads all files before the first step


def lagging_sequence(
    error: BaseException, schema: str, revision: str, steps: StepRecorder
) -> LedgerSequenceError | None:
    """The refusal where the id of a row of the migrator's own is taken; None of another error."""
    table = lagging_own_table(error, schema)
    if table is None:
        return None
    return LedgerSequenceError(
        table=table,
        mend=set_sequence(table),
        revision=revision,
        applied=steps.applied,
        partly=steps.leaves_a_part,
    )


async def not_our_books(connection: asyncpg.Connection, schema_name: str, error: Exception) -> MissingPrivilegeError:
    """The refusal of a role that may not keep the migrator's own tables, with the statements that mend it."""
    books = "relnamespace = to_regnamespace(quote_ident($1)) AND relname = ANY ($2)"
    [(name, tables)] = await connection.fetch(
        f"SELECT current_user, ARRAY(SELECT relname::text FROM pg_catalog.pg_class WHERE {books} ORDER BY 1)",
        schema_name,
        [VERSION_TABLE, LEDGER, FAILURES, PROGRESS, BACKGROUND],
    )
    schema, role = quote_identifier(schema_name), quote_identifier(name)
    statements = [f"ALTER TABLE {schema}.{table} OWNER TO {role}" for table in tables]
    return MissingPrivilegeError(
        role=name,
        need=f"keep the migrator's own tables ({describe(error)})",
        statement="; ".join(statements or [f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"]),
    )


def _denies_own_tables(error: BaseException) -> bool:
    """Whether the role lacks a right to the migrator's own tables."""
    denied = getattr(error, "sqlstate", None) == asyncpg.InsufficientPrivilegeError.sqlstate
    return denied and any(table in str(error) for table in (VERSION_TABLE, LEDGER, PROGRESS, BACKGROUND))


def _first(error: BaseException) -> BaseException:
    """What the others came of: SQLAlchemy's way out of a lost connection raises errors of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error
