"""Revisions applied to a scratch database by the real runner, for what can be found out by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gasket.migrator.apply.session import MigrationSession, migration_session
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connected
from gasket.migrator.errors import (
    InvalidIndexError,
    LockGivenAwayError,
    LockLostError,
    LocksNotGrantedError,
    MigrationFailedError,
    NotAppliedError,
    PartlyDoneError,
    ScratchDatabaseError,
)
from gasket.migrator.runner import upgrade_in_process
from gasket.migrator.scratch.database import NAME, Scratch

log = logging.getLogger("gasket.migrator")

REVISION_ERRORS = (NotAppliedError, MigrationFailedError)
"""A revision or its background work fails; each has a `what`, which is as true of a scratch database."""

_LIMIT = 300.0
_STATE = """
SELECT 'role ' || r.rolname, to_jsonb(r)::text FROM pg_catalog.pg_roles AS r
UNION ALL
SELECT 'membership of ' || pg_get_userbyid(m.member) || ' in ' || pg_get_userbyid(m.roleid),
    string_agg(to_jsonb(m)::text, ' ' ORDER BY m.grantor)
FROM pg_catalog.pg_auth_members AS m GROUP BY m.member, m.roleid
UNION ALL
SELECT 'database ' || d.datname, concat_ws(' ', d.datdba, d.datallowconn, d.datconnlimit, d.datistemplate,
    d.dattablespace, d.datacl::text, shobj_description(d.oid, 'pg_database'))
FROM pg_catalog.pg_database AS d WHERE d.datname <> current_database() AND d.datname !~ $1
UNION ALL
SELECT concat_ws(' ', 'settings of role', pg_get_userbyid(nullif(s.setrole, 0)), 'in database', d.datname),
    s.setconfig::text
FROM pg_catalog.pg_db_role_setting AS s LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
UNION ALL
SELECT 'tablespace ' || t.spcname, concat_ws(' ', t.spcowner, t.spcacl::text, t.spcoptions::text)
FROM pg_catalog.pg_tablespace AS t
UNION ALL
SELECT 'replication slot ' || p.slot_name, '' FROM pg_catalog.pg_replication_slots AS p WHERE NOT p.temporary
"""

_trying_out: ContextVar[bool] = ContextVar("trying_out", default=False)


async def build(
    scratch: Scratch,
    scripts: ScriptDirectory,
    versions: Iterable[str],
    then: Callable[[MigrationSession, Connection], None] | None = None,
) -> None:
    """Apply the given revisions, and all they stand on, through the runner; `then` goes on over the same session.

    `scripts` are the files as Alembic sees them. The guard holds back what would change the cluster, and learns whether
    the cluster was changed all the same.

    Raises:
        One of REVISION_ERRORS: a revision fails on the scratch database.
        ScratchDatabaseError: it takes too long, or a step was ended by something else.
    """
    try:
        async with asyncio.timeout(_LIMIT) as limit:
            with _without_news():
                before = await _read_cluster(scratch.config)
                try:
                    await _build(scratch, scripts, versions, then)
                finally:
                    scratch.guard.cluster_changes = _changes_of(before, await _read_cluster(scratch.config))
    except TimeoutError:
        if not limit.expired():
            raise
        raise ScratchDatabaseError(
            reason=f"the revisions took longer on it than {_LIMIT:.0f} s",
            mend="Look for one that waits or loops.",
            made=True,
        ) from None


async def _build(
    scratch: Scratch,
    scripts: ScriptDirectory,
    versions: Iterable[str],
    then: Callable[[MigrationSession, Connection], None] | None,
) -> None:
    async with migration_session(scratch.config, scratch.revisions, application=None) as session:
        assert session is not None  # it waits for nothing but the lock
        trying = session
        trying.scripts = scripts
        trying.steps.recording = None

        def work(connection: Connection) -> None:
            scratch.guard.start(trying.steps, connection)
            for version in versions:
                upgrade_in_process(trying, connection, version)
                connection.rollback()  # Alembic leaves a transaction behind, in which it has looked around
            if then:
                then(trying, connection)
            else:
                scratch.guard.switch_triggers_on()

        await session.prepare()
        with _told_of_scratch():
            await session.run(work)


@contextmanager
def _told_of_scratch() -> Iterator[None]:
    """These refusals say what state the database is in, which the reader would take for the live one."""
    try:
        yield
    except (LocksNotGrantedError, LockLostError) as error:
        raise ScratchDatabaseError(reason=_what(error), mend="Run it again.", made=True) from error
    except (LockGivenAwayError, PartlyDoneError, InvalidIndexError) as error:
        raise ScratchDatabaseError(reason=_what(error), mend="Correct the revision.", made=True) from error


def _what(error: Exception) -> str:
    """What happened, which every refusal says before the first semicolon."""
    happened = str(error).partition("; ")[0]
    return happened[:1].lower() + happened[1:]


async def _read_cluster(config: MigratorConfig) -> dict[str, str]:
    """What all databases of a server share, by name: the last look whether revisions kept out of it.

    Every role may read this. Passwords are not among it, nor are scratch databases, which come and go.
    """
    async with connected(config, migrating=True) as connection:
        return {row[0]: row[1] or "" for row in await connection.fetch(_STATE, NAME)}


def _changes_of(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Sentences, one for each object that is not as it was."""
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    return [
        f"While the revisions were tried out, {name} was "
        f"{'made' if name not in before else 'dropped' if name not in after else 'changed'} "
        "by a revision, in a way that Gasket does not recognise, or by another session."
        for name in changed
    ]


class _NoNews(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        of_background_work = "work" in record.__dict__  # its failure is told by the refusal that follows
        return not _trying_out.get() or (record.levelno >= logging.WARNING and not of_background_work)


@contextmanager
def _without_news() -> Iterator[None]:
    """Keep what is logged of each applied revision back: it reads as if it were the live database."""
    quiet = _NoNews()
    loggers = [log, logging.getLogger("alembic.runtime.migration")]
    token = _trying_out.set(True)
    for logger in loggers:
        logger.addFilter(quiet)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(quiet)
        _trying_out.reset(token)
