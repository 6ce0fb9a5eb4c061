"""The rows that a step takes away or brings: archived before a downgrade, put back with an upgrade."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.attempts import TRY_LOCK_TIMEOUT_MS, Attempts
from gasket.migrator.archive.keep import archiving
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.restore import RestoreReport, restore_late, upgrade_restoring
from gasket.migrator.archive.trial import Known, TrialStep, connection_of
from gasket.migrator.config import MigratorConfig
from gasket.migrator.revisions.files import RevisionFile
from gasket.migrator.revisions.rules.check import verdict_on
from gasket.migrator.sql.render import Rendering, render

_MOST_IN_VAIN = 2
"""So often rows of a step are copied though the step then finds a lock taken. The next try takes its strong lock first:
readers wait, and the copy is not made again and again."""


class KeptRows:
    """Those of one run of Alembic."""

    def __init__(self, config: MigratorConfig, attempts: Attempts) -> None:
        self._config = config
        self._attempts = attempts
        self._copied_in_vain = Counter[str]()
        self._waiting: dict[str, str | None] = {}
        self._known = Known()
        self._restored: RestoreReport | None = None

    def find_waiting(self, connection: Connection, pending: Iterable[RevisionFile]) -> None:
        """Before the first step: look for which of the revisions that are not applied rows wait."""
        archived = Manifest(connection, self._config.schema).revisions()
        self._waiting = {file.revision: verdict_on(file).digest for file in pending if file.revision in archived}

    def upgrade(self, context: MigrationContext, script: Script, run: Callable[[], None], *, restore: bool) -> None:
        """Run the step and put its rows back."""
        if not self._waiting:
            run()
            return
        with self._counting_copies(script.revision):
            self._restored = upgrade_restoring(
                context,
                schema=self._config.schema,
                revision=script.revision,
                digests=self._waiting,
                run_upgrade=run,
                render_upgrade=functools.partial(render, script.module.upgrade, metadata=self._config.metadata),
                restore=restore,
                strong=self._takes_strong_lock(script.revision),
            )

    def restored_after_commit(self, connection: Connection, revision: str) -> RestoreReport | None:
        """Bring what had to wait for the step's commit; returns what came back with it, if anything could."""
        self._waiting.pop(revision, None)  # from here on its columns hold what people write
        report, self._restored = self._restored, None
        return restore_late(connection, self._config.schema, report) if report else None

    def downgrade(
        self,
        context: MigrationContext,
        script: Script,
        run: Callable[[], None],
        *,
        digest: str | None,
        rendering: Rendering,
        discard: bool,
    ) -> None:
        """Archive what the step takes away, run it, and make sure that it took no more."""
        try:
            with archiving(
                context,
                schema=self._config.schema,
                step=TrialStep(script.revision, rendering, run),
                digest=digest,
                release=self._config.release,
                discard=discard,
                strong=self._takes_strong_lock(script.revision),
                known=self._known,
            ) as report:
                if self._attempts.patient and (report.archive is not None or report.waiting):
                    # A request that has read a row waits for our lock with its UPDATE, and our step for what the
                    # request has read: the shorter wait is ours, also in a try that was patient with autovacuum, or it
                    # is a deadlock.
                    connection_of(context).exec_driver_sql(f"SET LOCAL lock_timeout = {TRY_LOCK_TIMEOUT_MS}")
                with self._counting_copies(script.revision):
                    run()
        except BaseException:
            self._known = Known()  # what it has changed was not seen
            raise

    def _takes_strong_lock(self, revision: str) -> bool:
        return self._copied_in_vain[revision] >= _MOST_IN_VAIN

    @contextmanager
    def _counting_copies(self, revision: str) -> Iterator[None]:
        """A try of the real step."""
        try:
            yield
        except DBAPIError:
            self._copied_in_vain[revision] += 1
            raise
