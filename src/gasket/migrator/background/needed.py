"""Background work that a revision needs: done before it is applied, by the session that holds the migration lock."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from gasket.migrator.background.worker_lock import taken_over
from gasket.migrator.background.working import work_on
from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import NotAppliedError
from gasket.migrator.ledger.background import OPEN, STOPPED, State, Work, read_works_of

_TELL_EVERY = 5.0


async def finish_needed(
    connection: asyncpg.Connection, config: MigratorConfig, revision: str, needs: Iterable[str]
) -> None:
    """Finish the work of the revisions that `revision` needs, at full speed, in the place of the replica that works.

    What has failed is tried again. A revision without work in the table was stamped, or declares none.

    Raises:
        NotAppliedError: some of it is paused or cancelled, or fails.
    """
    works = [work for needed in needs for work in await read_works_of(connection, config.schema, needed)]
    open_works = [work for work in works if work.state is not State.COMPLETE]
    for work in open_works:
        if work.state in STOPPED:
            raise unfinished(revision, work)
    if not open_works:
        return
    async with taken_over(connection, config.schema):
        for work in open_works:
            done = await work_on(
                connection,
                config,
                work,
                share=1,
                yields=False,
                before=OPEN | {State.FAILED},
                tell_every=_TELL_EVERY,
            )
            if done.state is not State.COMPLETE:
                raise unfinished(revision, done)


def unfinished(revision: str, work: Work) -> NotAppliedError:
    """The refusal of a revision that needs this work, which has failed or is stopped."""
    if work.state is State.FAILED:
        state, mend = f"has failed: {(work.error or '').rstrip('.')}", "Mend the cause"
    else:
        state = "is paused" if work.state is State.PAUSED else "was cancelled"
        mend = f"Run: {database_command(f'background resume {work.id}')}"
    return NotAppliedError(what=f"Revision {revision} needs the {work}, which {state}", mend=mend)
