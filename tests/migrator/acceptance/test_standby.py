"""A server in recovery: enough at head, waited for when behind, and used once it is promoted."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import asyncpg

from tests.acceptance.installation import Installation
from tests.acceptance.processes import until


async def test_a_standby_is_waited_for_and_serves_at_head(
    install: Callable[..., Awaitable[Installation]], pair: tuple[str, str]
) -> None:
    primary_url, standby_url = pair
    installation = await install(primary_url)
    said = await installation.replica({"DATABASE_URL": standby_url, "GASKET_MIGRATION_LOCK_WAIT": "1"}).refused()
    assert "standby in recovery" in said
    assert re.search(r"within \d+ s", said)  # 1, or what a slow machine has made of it
    assert "Promote" in said

    waiting = installation.replica({"DATABASE_URL": standby_url})
    await _until_connected(standby_url)
    await installation.migrate()
    assert (await waiting.ready())["state"] == "at_head"
    assert (await installation.replica({"DATABASE_URL": standby_url}).ready())["state"] == "at_head"
    await installation.assert_migrated_once()

    # Commands that change something refuse, those that look work.
    looked = await installation.run("alembic", "current", settings={"DATABASE_URL": standby_url})
    assert (looked.exit_code, "(head)" in looked.output) == (0, True), looked.output
    at_once = {"DATABASE_URL": standby_url, "GASKET_MIGRATION_LOCK_WAIT": "0"}
    changed = await installation.run("alembic", "downgrade", "-1", settings=at_once)
    assert changed.exit_code > 0
    assert "standby in recovery" in changed.line


async def test_a_standby_that_lags_behind_is_waited_for_and_never_served_on_too_early(
    install: Callable[..., Awaitable[Installation]], pair: tuple[str, str]
) -> None:
    primary_url, standby_url = pair
    installation = await install(primary_url)
    installation.settings |= {"DATABASE_URL": standby_url, "GASKET_MIGRATION_DATABASE_URL": primary_url}
    standby: asyncpg.Connection = await asyncpg.connect(standby_url, timeout=10)
    try:
        await standby.execute("SELECT pg_wal_replay_pause()")
        said = await installation.replica({"GASKET_DATABASE_WAIT": "1"}).refused()
        head = installation.project.shipped[-1]
        for part in (f"is at {head} by way of GASKET_MIGRATION_DATABASE_URL", "shows no revision", "lags behind"):
            assert part in said, part
        waiting = installation.replica()
        await waiting.says(f"until the server of DATABASE_URL has revision {head}")
        await standby.execute("SELECT pg_wal_replay_resume()")
        assert (await waiting.ready(within=20))["state"] == "at_head"
        await installation.assert_migrated_once()
    finally:
        await standby.close()


async def test_a_standby_that_is_promoted_while_it_is_waited_for(
    install: Callable[..., Awaitable[Installation]], pair: tuple[str, str]
) -> None:
    _, standby_url = pair
    installation = await install(standby_url)
    waiting = installation.replica()
    await _until_connected(standby_url)
    assert await (await installation.look()).fetchval("SELECT pg_promote()")
    assert (await waiting.ready())["state"] == "at_head"
    await installation.assert_migrated_once()


async def _until_connected(url: str) -> None:
    """Wait until a replica's migration session is there."""
    connection: asyncpg.Connection = await asyncpg.connect(url, timeout=10)
    found = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'gasket-migrate%'"
    try:

        async def connected() -> bool:
            return bool(await connection.fetchval(found))

        await until(connected, 60, "a replica that waits")
    finally:
        await connection.close()
