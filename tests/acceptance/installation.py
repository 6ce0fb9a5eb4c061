"""One installation of Gasket as a test sees it: migration files, a database, and programs that use both."""

from __future__ import annotations

import shutil
import textwrap
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import asyncpg
import httpx
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.acceptance.processes import Program, Programs, Replica, until

ADMIN_TOKEN = "an-installation-for-tests"
SECRET_KEY = urlsafe_b64encode(b"a secret key for tests of Gasket").decode()
LOCK_CLASS = 0x6761736B
"""What DESIGN.md calls the constant class for Gasket; written out, because it must never change."""

Settings = Mapping[str, str | None]
SERVING = {"GASKET_ADMIN_TOKEN": ADMIN_TOKEN, "GASKET_SECRET_KEY": SECRET_KEY}
"""What only a replica needs; commands do without."""

REPOSITORY = Path(__file__).parents[2]
_REVISION = '''\
"""{revision}"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "{revision}"
down_revision: str | None = "{down_revision}"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

backward_compatible: bool = {backward_compatible}
downgrade_is_empty: str = "many a test has no need of it"
{declares}

def upgrade() -> None:
{upgrade}


def downgrade() -> None:
{downgrade}
'''


def api(replica: Replica, token: str = ADMIN_TOKEN) -> httpx.AsyncClient:
    """A client of the replica's `/api`."""
    return httpx.AsyncClient(
        base_url=f"{replica.base_url}/api",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
        verify=False,  # there is no TLS; loading the certificates takes longer than many a test
    )


class Project:
    """A copy of a tree's `alembic.ini` and `migrations/`, to which a test adds revisions of its own."""

    def __init__(self, folder: Path, tree: Path = REPOSITORY) -> None:
        self.folder = folder
        self.ini = folder / "alembic.ini"
        self.versions = folder / "migrations" / "versions"
        folder.mkdir()
        shutil.copy(tree / "alembic.ini", self.ini)
        shutil.copytree(tree / "migrations", folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
        self.shipped = self.revisions()

    def revisions(self) -> list[str]:
        """All revisions, oldest first, as Alembic reads them."""
        script = ScriptDirectory.from_config(Config(str(self.ini)))
        return [entry.revision for entry in reversed(list(script.walk_revisions()))]

    def end_at(self, revision: str) -> None:
        """Remove the files of all revisions that stand on this one: what is left is an older release's."""
        script = ScriptDirectory.from_config(Config(str(self.ini)))
        for entry in script.iterate_revisions("head", revision):
            Path(entry.path).unlink()
        self.shipped = self.revisions()

    def add_revision(
        self,
        revision: str,
        upgrade: str = "pass",
        downgrade: str = "pass",
        *,
        backward_compatible: bool = True,
        down_revision: str | None = None,
        declares: str = "",
    ) -> Path:
        """Write a migration file on top of the newest one; the texts are lines of Python."""
        existing = self.revisions()
        path = self.versions / f"2030_01_01_{len(existing):04d}_{revision}.py"
        assert not path.exists()
        path.write_text(
            _REVISION.format(
                revision=revision,
                down_revision=down_revision or existing[-1],
                backward_compatible=backward_compatible,
                declares=declares,
                upgrade=textwrap.indent(textwrap.dedent(upgrade).strip(), "    "),
                downgrade=textwrap.indent(textwrap.dedent(downgrade).strip(), "    "),
            )
        )
        return path

    def add_table(self, revision: str, *, backward_compatible: bool = True) -> Path:
        """A revision that makes a table of the same name, and drops it."""
        return self.add_revision(
            revision,
            f'op.create_table("{revision}", sa.Column("id", sa.Integer(), primary_key=True))',
            f'op.drop_table("{revision}")',
            backward_compatible=backward_compatible,
        )

    def add_pause(self, revision: str) -> Path:
        """A revision that makes a table, in a statement that takes as long as `Installation.pause` says."""
        statement = "SELECT test_control.pause()"
        return self.add_revision(
            revision,
            f'op.create_table("{revision}", sa.Column("id", sa.Integer(), primary_key=True))\n'
            f'op.execute("{statement}")',
            f'op.drop_table("{revision}")\nop.execute("{statement}")',
        )


_PAUSE = """
CREATE SCHEMA IF NOT EXISTS test_control;
GRANT USAGE ON SCHEMA test_control TO PUBLIC;
CREATE TABLE IF NOT EXISTS test_control.pauses AS SELECT 0.0::float AS seconds, false AS over;
CREATE OR REPLACE FUNCTION test_control.pause() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE until timestamptz := clock_timestamp() + make_interval(secs => (SELECT seconds FROM test_control.pauses));
BEGIN
    WHILE clock_timestamp() < until AND NOT (SELECT over FROM test_control.pauses) LOOP
        PERFORM pg_sleep(0.02);
    END LOOP;
END
$$
"""


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it said: as it stands, and in one line."""

    exit_code: int
    output: str

    @property
    def line(self) -> str:
        """The output with every run of white space as one space."""
        return " ".join(self.output.split())


class Installation:
    """Gasket's settings and files for one database; every program it starts gets exactly those.

    `database_url` is a superuser's: tests look at the database over it. The programs' own URL and all other
    settings are in `settings`, and can be changed there or for one program alone. With the `source` of another
    release its programs run that, and are cold: what the fork server has imported is this tree's.
    `copy_migrated` may bring the schema to head in place of a command, while nothing has touched the database.
    """

    def __init__(
        self,
        project: Project,
        database_url: str,
        programs: Programs,
        home: Path,
        source: Path | None = None,
        copy_migrated: Callable[[Installation], Awaitable[bool]] | None = None,
    ) -> None:
        self.project = project
        self.database_url = database_url
        self.schema = "public"
        self.settings = {
            "DATABASE_URL": database_url,
            "ALEMBIC_CONFIG": str(project.ini),
            "GASKET_DRAIN_DELAY": "0",
            **SERVING,
        }
        if source is not None:
            self.settings["PYTHONPATH"] = str(source)  # comes before where the tree itself is installed
        self._cold = source is not None
        self._programs = programs
        self._home = home
        self._copy_migrated = copy_migrated
        self._looking: asyncpg.Connection | None = None

    def replica(self, settings: Settings | None = None, *, cold: bool = False, port: int | None = None) -> Replica:
        """Start one; a setting of None is taken away."""
        self._copy_migrated = None
        return self._programs.replica(
            settings=self._with(settings), folder=self._home, cold=cold or self._cold, port=port
        )

    def start(
        self, *command: str, settings: Settings | None = None, cold: bool = False, descriptors: Sequence[int] = ()
    ) -> Program:
        """Start a command: `alembic`, `litestar` or `gasket` with its arguments. It inherits the `descriptors`."""
        self._copy_migrated = None
        return self._programs.start(
            *command,
            settings=self._with(settings),
            folder=self._home,
            cold=cold or self._cold,
            descriptors=descriptors,
        )

    async def run(
        self, *command: str, settings: Settings | None = None, cold: bool = False, within: float = 60.0
    ) -> Finished:
        """Start a command and wait for its end."""
        program = self.start(*command, settings=settings, cold=cold)
        code = await program.exited(within)
        return Finished(code, program.output)

    async def migrate(self) -> None:
        """Bring the schema to head, when that is not what is being tested."""
        if self._copy_migrated and await self._copy_migrated(self):
            self._copy_migrated = None
            return
        done = await self.run("alembic", "upgrade", "head")
        assert done.exit_code == 0, done.output

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """One more connection of the superuser's; the caller closes it."""
        self._copy_migrated = None
        connection: asyncpg.Connection = await asyncpg.connect(self.database_url, timeout=10, **options)
        return connection

    async def look(self) -> asyncpg.Connection:
        """The connection over which the test looks at the database; never inside a transaction."""
        if self._looking is None or self._looking.is_closed():
            self._looking = await self.connect()
        return self._looking

    async def close(self) -> None:
        """Close what `look` opened."""
        if self._looking is not None:
            self._looking.terminate()

    async def versions(self) -> list[str]:
        """What `alembic_version` holds."""
        rows = await (await self.look()).fetch(f'SELECT version_num FROM "{self.schema}".alembic_version')
        return [row[0] for row in rows]

    async def ledger(self) -> list[tuple[str, str]]:
        """`(revision, direction)` of every row of the ledger, oldest first."""
        rows = await (await self.look()).fetch(
            f'SELECT revision, direction FROM "{self.schema}".migration_ledger ORDER BY id'
        )
        return [(row[0], row[1]) for row in rows]

    async def has_table(self, name: str) -> bool:
        """Whether the table is there, in this installation's schema."""
        found = "SELECT to_regclass($1) IS NOT NULL"
        return bool(await (await self.look()).fetchval(found, f'"{self.schema}"."{name}"'))

    async def archived_rows(self) -> int:
        """How many rows the archive holds."""
        look = await self.look()
        tables = await look.fetch(
            "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace "
            "WHERE nspname = 'gasket_archive' AND relkind = 'r' AND relname <> 'manifest'"
        )
        return sum([await look.fetchval(f"SELECT count(*) FROM {table}") for [table] in tables])

    async def assert_consistent(self, *, in_parts: Collection[str] = ()) -> None:
        """The ledger, replayed, is a legal history that ends where `alembic_version` stands, and so do the tables.

        Of a revision that is done `in_parts` the table may be there or not.
        """
        order, position = self.project.revisions(), 0
        for revision, direction in await self.ledger():
            step = {"upgrade": position, "downgrade": position - 1}[direction]
            assert order[step] == revision, f"{direction} of {revision} at {order[:position][-1:]}"
            position += 1 if direction == "upgrade" else -1
        assert await self.versions() == order[:position][-1:]
        for number, revision in enumerate(order[len(self.project.shipped) :], start=len(self.project.shipped)):
            assert revision in in_parts or await self.has_table(revision) == (number < position), revision
        assert await self.holder() is None

    async def assert_migrated_once(self) -> None:
        """At head, each revision in the ledger exactly once, in order, and the lock free."""
        assert await self.ledger() == [(revision, "upgrade") for revision in self.project.revisions()]
        assert await self.versions() == self.project.revisions()[-1:]
        assert await self.holder() is None

    async def holder(self) -> int | None:
        """The pid of the backend that holds the migration lock."""
        pid: int | None = await (await self.look()).fetchval(
            "SELECT pid FROM pg_locks JOIN pg_database AS d ON d.oid = database WHERE d.datname = current_database() "
            "AND locktype = 'advisory' AND objsubid = 2 AND classid = $1::oid AND objid = $2::oid AND granted",
            *self.lock,
        )
        return pid

    async def until_unlocked(self, within: float = 3.0) -> None:
        """Wait until the server has noticed that the holder is gone."""

        async def free() -> bool:
            return await self.holder() is None

        await until(free, within, "the migration lock free")

    @property
    def lock(self) -> tuple[int, int]:
        """The two keys of the migration lock as `pg_locks` shows them."""
        return LOCK_CLASS, crc32(self.schema.encode())

    @property
    def lock_arguments(self) -> tuple[int, int]:
        """The same as PostgreSQL's functions take them: signed."""
        first, second = self.lock
        return first, second - 2**32 if second >= 2**31 else second

    @asynccontextmanager
    async def lock_held(self, application: str = "somebody else") -> AsyncIterator[asyncpg.Connection]:
        """Hold the migration lock, as another program would."""
        connection = await self.connect(server_settings={"application_name": application})
        try:
            await connection.execute("SELECT pg_advisory_lock($1, $2)", *self.lock_arguments)
            yield connection
        finally:
            await connection.close(timeout=10)

    async def pause(self, seconds: float) -> None:
        """How long the statement of an `add_pause` revision takes that begins from now on, unless `go_on` ends it."""
        await (await self.look()).execute(f"{_PAUSE}; UPDATE test_control.pauses SET seconds = {seconds}, over = false")

    async def go_on(self) -> None:
        """End the statement of an `add_pause` revision, if one is running, and let the next ones not pause at all."""
        await (await self.look()).execute("UPDATE test_control.pauses SET seconds = 0, over = true")

    async def pausing(self, within: float = 30.0) -> int:
        """Wait until a backend is inside the statement of an `add_pause` revision; returns its pid."""
        found: list[int] = []

        async def sleeping() -> bool:
            # Once it sleeps it has read how long; what a test sets from then on is for the next one.
            found[:] = await self.statements("test_control.pause", waiting_for="PgSleep")
            return bool(found)

        await until(sleeping, within, "a migration inside its long statement")
        assert found == [await self.holder()]
        return found[0]

    async def statements(self, text: str, *, waiting_for: str | None = None) -> list[int]:
        """Pids of the other backends of this database that are running a statement with this text in it."""
        rows = await (await self.look()).fetch(
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND position($1 IN query) > 0 "
            "AND datname = current_database() AND pid <> pg_backend_pid() AND ($2::text IS NULL OR wait_event = $2)",
            text,
            waiting_for,
        )
        return [row[0] for row in rows]

    def _with(self, settings: Settings | None) -> dict[str, str]:
        merged = {**self.settings, **(settings or {})}
        return {name: value for name, value in merged.items() if value is not None}
