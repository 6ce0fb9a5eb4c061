"""Roles and sessions that are in the way: limits that a role carries, and transactions without a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.connecting import looking
from gasket.migrator.errors import LocksNotGrantedError, MissingPrivilegeError
from gasket.migrator.head import bring_to_head
from gasket.migrator.ledger.read import read_state
from tests.acceptance.processes import until
from tests.migrator.project import BOOKS, Project, tables


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def owner(database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]) -> AsyncIterator[str]:
    """The URL of a role that owns the schema, and whose statements may take a millisecond."""
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'; ALTER SCHEMA public OWNER TO {role}; "
        f"ALTER ROLE {role} SET statement_timeout = '1ms'"
    )
    yield url_with(database_url, user=role, password="secret-word")
    await observer.execute(f"ALTER SCHEMA public OWNER TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_millisecond_of_the_migrating_role_is_lifted(
    project: Project, database_url: str, observer: asyncpg.Connection, owner: str
) -> None:
    project.add('op.execute("CREATE TABLE t1 AS SELECT pg_sleep(0.1) IS NULL AS slow")')
    await bring_to_head(project.config(database_url, migration_database_url=owner))
    assert await tables(observer) == [*BOOKS, "t1"]


async def test_a_millisecond_of_the_role_that_looks_is_one_sentence(
    project: Project, database_url: str, observer: asyncpg.Connection, owner: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url, migration_database_url=owner))
    await observer.execute("BEGIN; LOCK TABLE migration_ledger")  # so that the look surely takes longer
    with pytest.raises(MissingPrivilegeError) as refusal:
        await bring_to_head(project.config(owner))
    await observer.execute("ROLLBACK")
    for part in ("look at the schema's state", "its statement_timeout is 1ms", "SET statement_timeout = '30s';"):
        assert part in str(refusal.value), part


async def test_a_lock_timeout_of_the_role_that_looks_is_one_sentence(
    project: Project, database_url: str, observer: asyncpg.Connection, owner: str
) -> None:
    project.add()
    config = project.config(owner)
    await bring_to_head(project.config(database_url, migration_database_url=owner))
    await observer.execute(f"ALTER ROLE {owner.split('//')[1].split(':')[0]} SET statement_timeout = 0")
    await observer.execute(f"ALTER ROLE {owner.split('//')[1].split(':')[0]} SET lock_timeout = '1ms'")
    await observer.execute("BEGIN; LOCK TABLE migration_ledger")
    with pytest.raises(LocksNotGrantedError, match="The migrator's own tables stayed locked"):
        async with looking(config) as connection:
            await read_state(connection, config.schema)
    await observer.execute("ROLLBACK")


@pytest.mark.parametrize("gid", ["nightly", "it's 2 o'clock"])
async def test_a_prepared_transaction_in_the_way_is_named_with_what_ends_it(
    project: Project, database_url: str, observer: asyncpg.Connection, gid: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    quoted = (gid + uuid4().hex).replace("'", "''")
    await observer.execute(f"BEGIN; SELECT FROM t1; PREPARE TRANSACTION '{quoted}'")
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN c int")')
    try:
        message = ""
        for _ in range(3):  # a try lasts a tenth of a second, in which a slow server may not tell who is in the way
            with pytest.raises(LocksNotGrantedError) as refusal:
                await bring_to_head(project.config(database_url, ddl_wait=1))
            message = str(refusal.value)
            if "Blocked by: " in message:
                break
    finally:
        await observer.execute(f"ROLLBACK PREPARED '{quoted}'")
    for part in ("a prepared transaction", f"gid '{quoted}'", f"ROLLBACK PREPARED '{quoted}'"):
        assert part in message, part
    assert "pg_terminate_backend" not in message
    await bring_to_head(project.config(database_url))


async def test_a_prepared_transaction_that_holds_the_migrators_tables_is_named(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    gid = f"books {uuid4().hex}"
    await observer.execute(f"BEGIN; LOCK TABLE migration_ledger; PREPARE TRANSACTION '{gid}'")
    try:
        with pytest.raises(LocksNotGrantedError, match=f"ROLLBACK PREPARED '{gid}'") as refusal:
            await bring_to_head(project.config(database_url, database_wait=2))
        assert "pg_terminate_backend" not in str(refusal.value)
    finally:
        await observer.execute(f"ROLLBACK PREPARED '{gid}'")


async def test_who_was_seen_by_an_earlier_try_is_named(
    project: Project, database_url: str, observer: asyncpg.Connection, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Later tries cannot look: the role may not have another connection."""
    project.add()
    config = project.config(database_url, migration_database_url=owner, ddl_wait=2)
    await bring_to_head(config)
    project.add('op.execute("ALTER TABLE t1 ADD COLUMN c int")')
    somebody: asyncpg.Connection = await asyncpg.connect(database_url)
    try:
        await somebody.execute("BEGIN; SELECT FROM t1")
        migrating = asyncio.create_task(bring_to_head(config))

        async def seen_or_done() -> bool:
            return migrating.done() or any(getattr(record, "blockers", None) for record in caplog.records)

        await until(seen_or_done, 30, "it is seen who blocks")
        role = owner.split("//")[1].split(":")[0]
        await observer.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
        await observer.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}' "
            "AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
        )
        with pytest.raises(LocksNotGrantedError, match=f"Blocked by: pid {somebody.get_server_pid()} "):
            await migrating
    finally:
        await somebody.close()


def test_without_a_look_at_who_blocks_the_refusal_does_not_say_nobody() -> None:
    refusal = str(LocksNotGrantedError(revision="r1", waited=2, tries=4, blockers=[]))
    assert "Who blocks it could not be seen in time" in refusal
    assert refusal.endswith("Start again, or raise GASKET_MIGRATION_DDL_WAIT.")
