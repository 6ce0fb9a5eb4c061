"""What the ledger keeps of a step: its row, with what a release that lacks the file needs to take it back."""

from __future__ import annotations

import asyncio
import itertools
import socket

import asyncpg
import msgspec
from alembic.script import Script
from asyncpg.prepared_stmt import PreparedStatement

from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.config import MigratorConfig
from gasket.migrator.ledger.write import NewLedgerRow, insert_statement, record_failure
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.rules.check import verdict_on
from gasket.migrator.sql.render import Rendering, render, to_json


class LedgerRows:
    """Writes over the connection that holds the lock."""

    def __init__(self, config: MigratorConfig, revisions: Revisions, connection: asyncpg.Connection) -> None:
        self._config = config
        self._revisions = revisions
        self._connection = connection
        self._host = socket.gethostname()
        self._insert: PreparedStatement[asyncpg.Record] | None = None
        self._numbers = itertools.count(1)
        self._kept: tuple[Script, str, str] | None = None

    def prepare_again(self) -> None:
        """The session may have forgotten what was prepared."""
        self._insert = None

    def keep_meanwhile(self, script: Script) -> None:
        """Put together what `write` keeps of the script when this task next waits for the server.

        That is while the server runs the revision's first statement: rendering the way back takes about as long.
        """
        asyncio.get_running_loop().call_soon(self._keep, script)

    async def write(
        self,
        revision: str,
        direction: str,
        script: Script | None,
        *,
        move: tuple[str, str] | None,
        duration_ms: int,
        command: str,
    ) -> asyncpg.Record | None:
        """Write one row; returns what `insert_statement` does, None when this session does not hold the lock any more.

        With `script`, also what a release that lacks the file needs to take it back. `move` is where Alembic's version
        goes with it.
        """
        if self._insert is None:
            # Without a name it would be parsed and planned for each row anew, for which the server takes 0.3 ms.
            self._insert = await self._connection.prepare(
                insert_statement(self._config.schema, lock_arguments(self._config.schema)),
                name=f"gasket_ledger_{next(self._numbers)}",
            )
        file = self._revisions.get(revision)
        down_revisions = _down_revisions(script) if script else file.down_revisions if file else ()
        place, downgrade_sql = self._keep(script) if script and direction != "downgrade" else (None, None)
        row = NewLedgerRow(
            revision=revision,
            down_revision=", ".join(down_revisions) or None,
            direction=direction,
            file_sha256=file.sha256 if file else None,
            release=self._config.release,
            host=self._host,
            duration_ms=duration_ms,
            backward_compatible=file.backward_compatible if file else None,
            digest=self.digest(revision) if direction != "downgrade" else None,
            script=place,
            downgrade_sql=downgrade_sql,
            command=command,
            files=self._revisions.fingerprint,
            version=move and move[0],
            next_version=move and move[1],
        )
        return await self._insert.fetchrow(*row)

    async def write_failure(
        self, revision: str, direction: str, error: str, *, over: asyncpg.Connection | None = None
    ) -> None:
        """Write down a try that failed, once its transaction is rolled back."""
        await record_failure(
            over or self._connection,
            self._config.schema,
            revision=revision,
            direction=direction,
            error=error,
            release=self._config.release,
            host=self._host,
            files=self._revisions.fingerprint,
        )

    def digest(self, revision: str) -> str | None:
        """That of the revision's file; None where there is none, or it is not Python."""
        file = self._revisions.get(revision)
        return verdict_on(file).digest if file else None

    def _keep(self, script: Script) -> tuple[str, str]:
        """The script's place and its way back, as JSON; once for each script, also where its step is tried again."""
        if self._kept is None or self._kept[0] is not script:
            place = _describe_script(script, self._connection.get_settings().server_encoding)
            self._kept = script, place, to_json(self.render_downgrade(script))
        return self._kept[1:]

    def render_downgrade(self, script: Script) -> Rendering:
        """What its `downgrade()` would run."""
        return render(script.module.downgrade, metadata=self._config.metadata)


def _down_revisions(script: Script) -> tuple[str, ...]:
    down = script.down_revision
    return () if down is None else (down,) if isinstance(down, str) else tuple(down)


def _describe_script(script: Script, encoding: str) -> str:
    """What Alembic's module says of the revision's place, as JSON that a database with this encoding can hold."""
    names = ("down_revision", "depends_on", "branch_labels")
    doc = script.doc
    if encoding != "UTF8":  # jsonb keeps neither letters nor \\u escapes that the encoding lacks
        doc = doc.encode("ascii", "backslashreplace").decode()
    place = {name: getattr(script.module, name, None) for name in names}
    return msgspec.json.encode({**place, "doc": doc}).decode()
