"""Two releases, starts, commands, writers and long readers in whatever order, and kills at any moment, for minutes."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from tests.acceptance.installation import Installation
from tests.acceptance.processes import Program

GASKET = ("gasket", "database")
NEWER = (
    ("alembic", "upgrade", "head"),
    ("alembic", "downgrade", "-1"),
    (*GASKET, "upgrade", "--no-prompt"),
    (*GASKET, "downgrade", "--no-prompt", "--", "-2"),
)
OLDER = (
    (*GASKET, "rollback", "--no-prompt"),
    ("alembic", "upgrade", "head"),
    (*GASKET, "downgrade", "--no-prompt", "--", "-1"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROUNDS = 60
IN_PARTS = ("by_note",)
"""Steps that no transaction holds: a kill can come between what they do and its record."""


@pytest.fixture
async def older(install: Callable[..., Awaitable[Installation]]) -> Installation:
    """A release whose newest revision makes a table that writers fill."""
    installation = await install()
    _name_it(installation, "1.0")
    return installation


@pytest.fixture
async def newer(install: Callable[..., Awaitable[Installation]], older: Installation) -> Installation:
    """A column of that table, an index built concurrently, one more table, and a revision that takes its time."""
    installation = await install(older.database_url)
    _name_it(installation, "2.0")
    project = installation.project
    project.add_revision(
        "noted",
        'op.create_table("noted", sa.Column("id", sa.Integer(), primary_key=True))\n'
        'op.add_column("kept", sa.Column("note", sa.Text(), nullable=True))',
        'op.drop_column("kept", "note")\nop.drop_table("noted")',
    )
    block = "with op.get_context().autocommit_block():\n    "
    project.add_revision(
        "by_note",
        f'{block}op.create_index("by_note", "kept", ["note"], postgresql_concurrently=True, if_not_exists=True)',
        f'{block}op.drop_index("by_note", postgresql_concurrently=True, if_exists=True)',
    )
    project.add_revision(
        "extra",
        'op.create_table("extra", sa.Column("name", sa.Text(), primary_key=True))',
        'op.drop_table("extra")',
    )
    project.add_pause("slow")
    await installation.pause(0.2)
    return installation


def _name_it(installation: Installation, release: str) -> None:
    installation.settings |= {"GASKET_RELEASE": release, "GASKET_MIGRATION_DDL_WAIT": "5"}
    installation.project.add_revision(
        "kept", 'op.create_table("kept", sa.Column("name", sa.Text(), primary_key=True))', 'op.drop_table("kept")'
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_at_any_moment_ledger_and_schema_agree_and_no_row_is_lost(
    older: Installation, newer: Installation, seed: int
) -> None:
    chance = random.Random(seed)
    await newer.migrate()
    in_the_way = 0
    async with _crowd(newer, chance) as crowd:
        for _ in range(ROUNDS):
            releases = chance.choices((older, newer), weights=(1, 2), k=chance.randint(1, 4))
            replicas = [release.replica() for release in releases]
            commands = [newer.start(*command) for command in chance.sample(NEWER, chance.randint(1, 2))]
            commands += [older.start(*command) for command in chance.sample(OLDER, chance.randint(0, 2))]
            await _harm(newer, chance, [*replicas, *commands])
            for command in commands:
                await command.exited(90)
            for replica in replicas:
                await replica.settled()
                await replica.stop()
            for program in (*replicas, *commands):
                assert "Traceback" not in program.output, str(program)
                in_the_way += "locks are taken" in program.output
            await newer.until_unlocked()
            await newer.assert_consistent(in_parts=IN_PARTS)
    # Of an index whose DROP was cut short an INVALID one is left, until the step is done again.
    for words in ("upgrade", "downgrade --no-prompt noted", "upgrade"):
        done = await newer.run(*GASKET, *words.split())
        assert done.exit_code == 0, done.output
    await newer.assert_consistent()
    assert await newer.versions() == ["slow"]
    look = await newer.look()
    assert await look.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_note'::regclass")
    assert {row["name"]: row["note"] for row in await look.fetch("SELECT name, note FROM kept")} == crowd.kept
    assert {row["name"] for row in await look.fetch("SELECT name FROM extra")} == crowd.extra
    assert await newer.archived_rows() == 0
    # It was the campaign that it is meant to be.
    done_by = {(row[0], row[1]) for row in await look.fetch("SELECT DISTINCT release, direction FROM migration_ledger")}
    assert {("1.0", "downgrade"), ("1.0", "upgrade"), ("2.0", "downgrade"), ("2.0", "upgrade")} <= done_by
    assert None in crowd.kept.values(), "nobody wrote while the column was away"
    assert in_the_way, "no step was in anybody's way"


async def _harm(installation: Installation, chance: random.Random, programs: list[Program]) -> None:
    """Send signals to some of them, and now and then end the connection of whoever holds the lock."""
    for program in chance.sample(programs, min(len(programs), chance.randint(0, 3))):
        await asyncio.sleep(chance.uniform(0, 1.5))
        program.signal(chance.choice(SIGNALS))
    if chance.random() < 0.3:
        await (await installation.look()).execute("SELECT pg_terminate_backend($1)", await installation.holder())


class _Crowd:
    """Others at work on the same tables: writers, whose confirmed rows are noted, and readers in no hurry."""

    def __init__(self, installation: Installation, chance: random.Random) -> None:
        self.kept: dict[str, str | None] = {}
        self.extra: set[str] = set()
        self._installation = installation
        self._chance = chance

    async def write(self) -> None:
        """Insert into whatever is there, with a pause between."""
        connection = await self._installation.connect()
        try:
            while True:
                name = uuid4().hex
                if await _done(connection, "INSERT INTO kept (name, note) VALUES ($1, $2)", name, f"of {name}"):
                    self.kept[name] = f"of {name}"
                elif await _done(connection, "INSERT INTO kept (name) VALUES ($1)", name):
                    self.kept[name] = None
                if await _done(connection, "INSERT INTO extra VALUES ($1)", name):
                    self.extra.add(name)
                await asyncio.sleep(self._chance.uniform(0, 0.2))
        finally:
            connection.terminate()

    async def read(self) -> None:
        """Look at a table, and stay in the transaction for a while."""
        connection = await self._installation.connect()
        try:
            while True:
                table = self._chance.choice(("kept", "extra", "api_keys"))
                await connection.execute("BEGIN")
                await _done(connection, f"SELECT FROM {table} LIMIT 1")
                await asyncio.sleep(self._chance.uniform(0, 1.5))
                await connection.execute("ROLLBACK")
                await asyncio.sleep(self._chance.uniform(0, 0.5))
        finally:
            connection.terminate()


async def _done(connection: asyncpg.Connection, statement: str, *values: str) -> bool:
    """Whether it was; not where the table or the column is not there."""
    try:
        await connection.execute(statement, *values, timeout=30)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return False
    return True


@asynccontextmanager
async def _crowd(installation: Installation, chance: random.Random) -> AsyncIterator[_Crowd]:
    crowd = _Crowd(installation, chance)
    tasks = [asyncio.create_task(work()) for work in (crowd.write, crowd.write, crowd.read)]
    try:
        yield crowd
        assert [task for task in tasks if task.done()] == [], "somebody of the crowd gave up"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
