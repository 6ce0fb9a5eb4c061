"""PgBouncer in transaction mode between Gasket and the server."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest

from gasket.migrator.config import MigratorConfig
from gasket.migrator.drift_watch import DriftWatch
from gasket.usage.writer import UsageWriter
from tests.acceptance.gateway import exchange, gateway_on, request
from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import until
from tests.acceptance.wire import Server, listens, pgbouncer_process
from tests.integration.usage_entries import assert_totals_agree, entry


@pytest.fixture(scope="module")
def pgbouncer(server_url: str, open_folder: Path) -> Iterator[tuple[int, Path]]:
    """The port and the log of a PgBouncer before the tests' server."""
    if not shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        reason = "pgbouncer is not installed (Debian: apt install pgbouncer)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with pgbouncer_process(server_url, open_folder / "pgbouncer", users={}) as process:
        yield process


@pytest.fixture
async def pooled(installation: Installation, pgbouncer: tuple[int, Path]) -> Installation:
    """An installation whose DATABASE_URL leads through the pooler."""
    port, log = pgbouncer
    await listens(port, log)
    installation.settings["DATABASE_URL"] = Server.of(installation.database_url).url_through(port)
    return installation


async def test_a_pending_migration_is_refused_with_the_way_out(pooled: Installation) -> None:
    said = await pooled.replica().refused()
    assert "GASKET_MIGRATION_DATABASE_URL" in said
    assert "pooler" in said
    command = await pooled.run("alembic", "upgrade", "head")
    assert command.exit_code > 0
    assert "GASKET_MIGRATION_DATABASE_URL" in command.line
    assert not await pooled.has_table("alembic_version")
    assert not await _advisory_locks(pooled)


async def test_with_a_direct_url_it_migrates_and_serves_through_the_pooler_under_load(pooled: Installation) -> None:
    pooled.settings["GASKET_MIGRATION_DATABASE_URL"] = pooled.database_url
    replicas = [pooled.replica() for _ in range(2)]
    await asyncio.gather(*(replica.ready() for replica in replicas))
    await pooled.assert_migrated_once()
    async with api(replicas[0]) as first, api(replicas[1]) as second:
        statuses = await asyncio.gather(*(_traffic((first, second)[n % 2], n) for n in range(60)))
        listed = (await first.get("/backends", params={"pageSize": 100})).json()
    assert {status for several in statuses for status in several} == {201, 200}
    assert listed["total"] == 60


async def test_drift_is_not_looked_for_through_the_pooler_which_is_told_once(
    pooled: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever else comes through it would have the lock of the replica that looks."""
    config = MigratorConfig(database_url=pooled.settings["DATABASE_URL"], release="1.0", ini=pooled.project.ini)
    watch = DriftWatch(config, first=(0, 0), every=0.05, take_over=0.05)
    watch.start()
    told = "drift is not looked for: DATABASE_URL leads through a connection pooler"
    await until(lambda: told in caplog.text, 30, "the complaint")
    await asyncio.sleep(0.5)  # several tries
    await watch.stop()
    assert watch.count is None
    assert caplog.text.count(told) == 1


@pytest.mark.parametrize("direct", [False, True])
async def test_keys_are_looked_up_through_the_pooler(pooled: Installation, direct: bool) -> None:
    """Nobody can LISTEN through it: without a direct URL a change is noticed after two seconds, and the log says so."""
    done = await pooled.run("alembic", "upgrade", "head", settings={"DATABASE_URL": pooled.database_url})
    assert done.exit_code == 0, done.output
    if direct:
        pooled.settings["GASKET_MIGRATION_DATABASE_URL"] = pooled.database_url
    replica = pooled.replica()
    async with gateway_on(pooled, replica) as gateway:
        tenant = await gateway.tenant()
        keys = [(await gateway.issue(tenant.profile))["key"] for _ in range(20)]
        answers = await asyncio.gather(*(exchange(replica, request(key)) for key in keys * 3))
        assert {answer.status for answer in answers} == {200}
        assert (await tenant.ask()).status == 200
        if not direct:
            await replica.says("connection pooler")
        assert (await tenant.api.post(f"/keys/{tenant.key_id}/revoke")).status_code == 200

        async def refused() -> bool:
            return (await tenant.ask()).status == 401

        await until(refused, 5, "the end of a revoked key")
        assert await _prepared(pooled) == set(), "it would be somebody else's, or nobody's, at the next key"
    assert ("connection pooler" in replica.output) != direct


async def _traffic(client: httpx.AsyncClient, number: int) -> list[int]:
    """Make a backend, read it, change it, list all."""
    body = {"name": f"backend {number}", "base_url": "https://example.com/v1", "api_key": f"sk-{number}"}
    made = await client.post("/backends", json=body)
    assert made.status_code == 201, made.text
    place = f"/backends/{made.json()['id']}"
    shown = await client.get(place)
    changed = await client.patch(place, json={"name": f"renamed {number}"})
    listed = await client.get("/backends")
    assert changed.json()["name"] == f"renamed {number}"
    return [response.status_code for response in (made, shown, changed, listed)]


async def test_at_head_it_starts_through_the_pooler_alone(pooled: Installation) -> None:
    await _migrate_directly(pooled)
    replicas = [pooled.replica() for _ in range(4)]
    answers = await asyncio.gather(*(replica.ready() for replica in replicas))
    assert {answer["state"] for answer in answers} == {"at_head"}
    command = await pooled.run("alembic", "current")
    assert command.exit_code == 0
    assert "(head)" in command.output
    assert not await _advisory_locks(pooled)


async def test_nothing_of_a_session_stays_behind_in_the_pooler(pooled: Installation) -> None:
    """A setting that outlived its transaction would reach whoever gets that server connection next."""
    await _migrate_directly(pooled)
    await pooled.run("alembic", "current")
    await pooled.replica().ready()
    refused = await pooled.run("alembic", "downgrade", "-1")
    assert refused.exit_code > 0
    look = await pooled.look()
    pids = await look.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert pids, "the pooler was to hold server connections"
    client = await asyncpg.connect(pooled.settings["DATABASE_URL"], statement_cache_size=0)
    try:
        for _ in range(4):
            rows = await client.fetch("SELECT name FROM pg_settings WHERE source = 'session'")
            assert {row[0] for row in rows} <= {"application_name", "client_encoding"}
    finally:
        await client.close()


async def test_usage_is_written_through_the_pooler(pooled: Installation) -> None:
    await _migrate_directly(pooled)
    url = pooled.settings["DATABASE_URL"]
    writers = [UsageWriter(url, schema="public", application_name=f"usage-{number}") for number in range(3)]
    for number in range(3000):
        writers[number % 3].put(entry(key_id=number % 7))
    # A close has five seconds, and is not to be the one that writes most of them.
    await until(lambda: not any(writer.waiting for writer in writers), 60, "all to be written")
    assert await asyncio.gather(*(writer.close() for writer in writers)) == [0, 0, 0]
    await assert_totals_agree(await pooled.look(), records=3000)
    client = await asyncpg.connect(url, statement_cache_size=0)
    try:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            assert await client.fetchval(f"SHOW {name}") == "0"
    finally:
        await client.close()


async def _migrate_directly(pooled: Installation) -> None:
    direct = {"GASKET_MIGRATION_DATABASE_URL": pooled.database_url}
    done = await pooled.run("alembic", "upgrade", "head", settings=direct)
    assert done.exit_code == 0, done.output


async def _prepared(pooled: Installation) -> set[str]:
    """The names of what is prepared on the pooler's server connections, of which there are two."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            client = await asyncpg.connect(pooled.settings["DATABASE_URL"], statement_cache_size=0)
            stack.push_async_callback(client.close)
            await stack.enter_async_context(client.transaction())  # keeps its server connection
            clients.append(client)
        rows = [await client.fetch("SELECT name FROM pg_prepared_statements WHERE name <> ''") for client in clients]
        return {row["name"] for several in rows for row in several}


async def _advisory_locks(installation: Installation) -> int:
    count: int = await (await installation.look()).fetchval(
        "SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database "
        "WHERE locktype = 'advisory' AND d.datname = current_database()"
    )
    return count
