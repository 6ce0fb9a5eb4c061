"""Any number of replicas start on one database: from nothing, at head, and with an index to build."""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.installation import Installation
from tests.acceptance.processes import until
from tests.acceptance.wire import Tap, tapped

WAITING = "waiting for the migration lock"

# Tables, indexes and sequences, with the rows ever written to the tables. Catalogs are left out: autovacuum's
# ANALYZE writes to them.
_WRITTEN = """
SELECT relname, n_tup_ins, n_tup_upd, n_tup_del, (SELECT count(*) FROM pg_class) FROM pg_stat_user_tables ORDER BY 1
"""


async def _start_together(installation: Installation, count: int, *, cold: bool = False) -> None:
    replicas = [installation.replica(cold=cold) for _ in range(count)]
    answers = await asyncio.gather(*(replica.ready(within=120) for replica in replicas))
    head = installation.project.revisions()[-1]
    assert {(answer["state"], answer["revision"], answer["head"]) for answer in answers} == {("at_head", head, head)}


_EIGHT_COLD = pytest.param(8, True, marks=pytest.mark.soak)  # warm ones race for the same lock, much faster


@pytest.mark.parametrize(("count", "cold"), [(1, True), (8, False), (24, False), _EIGHT_COLD])
async def test_replicas_start_together_on_an_empty_database(installation: Installation, count: int, cold: bool) -> None:
    await _start_together(installation, count, cold=cold)
    await installation.assert_migrated_once()


@pytest.mark.parametrize(("count", "cold"), [(1, True), (8, False), (24, False)])
async def test_a_start_at_head_takes_no_lock_and_writes_nothing(
    installation: Installation, count: int, cold: bool
) -> None:
    await installation.migrate()
    look = await installation.look()

    async def alone() -> bool:
        """A backend tells what it has written before it is gone, which is some time after its client."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return not await look.fetchval(f"{others} AND backend_type = 'client backend'")

    await until(alone, 30, "the end of the migrating backend")
    await look.execute("SELECT pg_stat_clear_snapshot()")
    before = await look.fetch(_WRITTEN)
    async with tapped(installation.database_url) as tap, installation.lock_held():
        installation.settings["DATABASE_URL"] = tap.url
        await _start_together(installation, count, cold=cold)
        _assert_only_looked(tap)
    await look.execute("SELECT pg_stat_clear_snapshot()")
    assert before == await look.fetch(_WRITTEN)


def _assert_only_looked(tap: Tap) -> None:
    said = [statement for connection in tap.statements for statement in connection]
    assert any("alembic_version" in statement for statement in said)
    for statement in said:
        assert statement.lstrip().upper().startswith(("SELECT", "SHOW")), statement
        assert "advisory" not in statement.lower()
        assert "set_config" not in statement.lower()


async def test_the_tap_sees_the_lock_where_it_is_taken(installation: Installation) -> None:
    """The counterpart of the test before: what that one looks for is there when something is pending."""
    async with tapped(installation.database_url) as tap:
        await installation.replica({"DATABASE_URL": tap.url}).ready()
        said = [statement for connection in tap.statements for statement in connection]
    assert any("pg_try_advisory_lock" in statement for statement in said)
    assert any(statement.lstrip().startswith("INSERT INTO") for statement in said)
    with pytest.raises(AssertionError):
        _assert_only_looked(tap)


async def test_starters_wait_out_a_concurrent_index(installation: Installation) -> None:
    await installation.migrate()
    look = await installation.look()
    await look.execute(
        "INSERT INTO backend_profiles (name) SELECT 'profile ' || n FROM generate_series(1, 200000) AS n", timeout=180
    )
    installation.project.add_pause("until_all_wait")
    await installation.pause(90)
    installation.project.add_revision(
        "an_index",
        """
        with op.get_context().autocommit_block():
            # The expression makes it slow: the others try for the lock again and again meanwhile.
            op.execute("CREATE INDEX CONCURRENTLY ix_slow ON backend_profiles (md5(repeat(name, 300)))")
        """,
        """
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX CONCURRENTLY ix_slow")
        """,
    )
    replicas = [installation.replica() for _ in range(6)]
    await until(lambda: sum(WAITING in replica.output for replica in replicas) == 5, 60, "all but one waiting")
    await installation.go_on()
    await asyncio.gather(*(replica.ready(within=120) for replica in replicas))
    await installation.assert_migrated_once()
    assert await look.fetchval("SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = 'ix_slow'::regclass")
    assert "deadlock" not in "".join(replica.output for replica in replicas)
