"""The holder of the migration lock dies, loses its connection, is asked to stop; and who waits for it."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import pytest

from tests.acceptance.installation import Installation
from tests.acceptance.processes import Replica, until
from tests.acceptance.wire import Server

WAITING = "waiting for the migration lock"


async def _holder_in_long_statement(installation: Installation, *, cold: bool = False) -> tuple[Replica, int]:
    """A replica inside a statement of 90 s, the second of three pending revisions, with the holder's backend pid."""
    installation.project.add_table("first_step")
    installation.project.add_pause("long_step")
    installation.project.add_table("last_step")
    await installation.pause(90)
    holder = installation.replica(cold=cold)
    return holder, await installation.pausing()


async def _until_nothing_runs(installation: Installation) -> None:
    async def nothing() -> bool:
        return not await installation.statements("test_control.pause") and await installation.holder() is None

    await until(nothing, 10, "the end of the statement, and the lock free")


async def _assert_only_first_step_applied(installation: Installation) -> None:
    assert (await installation.ledger())[-1] == ("first_step", "upgrade")
    assert await installation.versions() == ["first_step"]
    assert not await installation.has_table("long_step")
    assert not await installation.has_table("last_step")


async def test_a_killed_holder_is_followed_by_another_within_five_seconds(installation: Installation) -> None:
    holder, _ = await _holder_in_long_statement(installation, cold=True)
    waiter = installation.replica()
    await waiter.says(WAITING)
    await installation.pause(0)  # for who comes next: the holder's statement goes on for its 90 s
    holder.signal(signal.SIGKILL)

    async def followed() -> bool:
        return (await installation.ledger())[-1] == ("last_step", "upgrade")

    await until(followed, 5, "the work of the next one")
    await waiter.ready()
    await installation.assert_migrated_once()
    assert await holder.exited(10) == -signal.SIGKILL
    assert not await installation.statements("test_control.pause")


async def test_a_holder_killed_before_its_autocommit_block_is_recorded_is_followed_by_one_that_goes_on(
    installation: Installation,
) -> None:
    installation.project.add_table("counted")
    await installation.migrate()
    await installation.pause(90)
    installation.project.add_revision(
        "in_parts",
        """
        op.execute("INSERT INTO counted VALUES (1)")
        with op.get_context().autocommit_block():
            op.execute("ALTER TABLE counted ADD COLUMN c int NOT NULL DEFAULT 0")
            op.execute("UPDATE counted SET c = c + 1")
            op.execute("SELECT test_control.pause()")
            op.execute("CREATE INDEX CONCURRENTLY by_c ON counted (c)")
        """,
    )
    look, books = await installation.look(), await installation.connect()
    holder = installation.replica()
    await installation.pausing()
    await books.execute("BEGIN; LOCK TABLE migration_ledger IN SHARE ROW EXCLUSIVE MODE")
    await installation.go_on()

    async def done_and_not_recorded() -> bool:
        built = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('by_c')"
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 'migration_ledger'::regclass AND NOT granted"
        return bool(await look.fetchval(built)) and await look.fetchval(waits) == 1

    await until(done_and_not_recorded, 30, "the index there, and its revision not recorded")
    holder.signal(signal.SIGKILL)
    assert await holder.exited(10) == -signal.SIGKILL
    await books.close()
    await installation.until_unlocked()
    follower = installation.replica()
    await follower.ready()
    await installation.assert_migrated_once()
    assert [tuple(row) for row in await look.fetch("SELECT id, c FROM counted")] == [(1, 1)]
    assert await look.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'counted'::regclass AND indisvalid") == 2


async def test_without_its_connection_a_holder_applies_nothing_more(installation: Installation) -> None:
    holder, pid = await _holder_in_long_statement(installation)
    await installation.pause(0)
    rival = await installation.connect(server_settings={"application_name": "the test in between"})
    # In PostgreSQL's queue for the lock: it is the rival's the moment the holder's session ends.
    taking = asyncio.create_task(rival.execute("SELECT pg_advisory_lock($1, $2)", *installation.lock_arguments))
    await until(lambda: _somebody_queues(installation), 30, "the test in the queue for the lock")
    assert await (await installation.look()).fetchval("SELECT pg_terminate_backend($1)", pid)
    await taking

    async def ended_or_waits() -> bool:
        await _assert_only_first_step_applied(installation)
        return holder.exit_code is not None or "the test in between" in holder.output

    await until(ended_or_waits, 40, lambda: f"the end of {holder}, or that it waits")
    watched_until = time.monotonic() + 1.5
    while time.monotonic() < watched_until:
        await _assert_only_first_step_applied(installation)
    await rival.close()
    if holder.exit_code is None:
        await holder.ready()
    else:
        await holder.refused()
        await installation.replica().ready()
    await installation.assert_migrated_once()


async def test_a_revision_that_gives_the_lock_away_is_rolled_back(installation: Installation) -> None:
    installation.project.add_pause("long_step")
    giving = 'op.create_table("giving", sa.Column("id", sa.Integer()))\nop.execute("SELECT pg_advisory_unlock_all()")'
    installation.project.add_revision("giving", giving)
    await installation.pause(90)
    holder = installation.replica()
    await installation.pausing()
    # Ready to take the lock the moment it is given away, so that somebody holds it in any case.
    rival = await installation.connect()
    taking = asyncio.create_task(rival.execute("SELECT pg_advisory_lock($1, $2)", *installation.lock_arguments))
    await until(lambda: _somebody_queues(installation), 30, "the test in the queue for the lock")
    await installation.go_on()
    await asyncio.wait_for(taking, 60)
    assert not await installation.has_table("giving")
    await rival.close()
    assert "no longer holds it" in await holder.refused()
    assert await installation.versions() == ["long_step"]
    assert not await installation.has_table("giving")


async def _somebody_queues(installation: Installation) -> bool:
    found = (
        "SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database "
        "WHERE d.datname = current_database() AND locktype = 'advisory' AND classid = $1::oid AND NOT granted"
    )
    return bool(await (await installation.look()).fetchval(found, installation.lock[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_holder_that_is_asked_to_stop_rolls_back_and_unlocks(
    installation: Installation, number: signal.Signals
) -> None:
    holder, _ = await _holder_in_long_statement(installation, cold=number == signal.SIGTERM)
    holder.signal(number)
    said = await holder.refused(within=5)
    for part in ("Stopped by SIGTERM or SIGINT", "was rolled back", "the next start drops", "Start again to go on"):
        assert part in said, part
    await _until_nothing_runs(installation)
    await _assert_only_first_step_applied(installation)
    await installation.pause(0)
    await installation.replica().ready()
    await installation.assert_migrated_once()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_waiter_that_is_asked_to_stop_leaves_at_once(
    installation: Installation, number: signal.Signals
) -> None:
    async with installation.lock_held():
        waiter = installation.replica()
        await waiter.says(WAITING)
        waiter.signal(number)
        assert "Stopped by SIGTERM or SIGINT" in await waiter.refused(within=5)
    assert not await installation.has_table("alembic_version")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"DATABASE_URL": "postgresql://gasket@127.0.0.1:1/gasket"}, "waiting up to 30 s for the database"),
        ({"GASKET_MIGRATE_ON_STARTUP": "false"}, "GASKET_MIGRATE_ON_STARTUP is false"),
    ],
)
async def test_who_waits_for_something_else_leaves_at_once_too(
    installation: Installation, settings: dict[str, str | None], says: str
) -> None:
    waiter = installation.replica(settings)
    await waiter.says(says)
    waiter.signal(signal.SIGTERM)
    await waiter.refused(within=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("command", ["alembic upgrade head", "gasket database upgrade"])
async def test_a_command_that_is_asked_to_stop_rolls_back_and_unlocks(
    installation: Installation, command: str, number: signal.Signals
) -> None:
    installation.project.add_pause("long_step")
    await installation.pause(90)
    holder, waiter = installation.start(*command.split()), installation.start(*command.split())
    await installation.pausing()
    await until(lambda: WAITING in holder.output + waiter.output, 20, "one of them waiting")
    if WAITING in holder.output:
        holder, waiter = waiter, holder
    for program in (waiter, holder):
        program.signal(number)
        assert await program.exited(5) == 128 + number
        assert program.output.count("Stopped by SIGTERM or SIGINT") == 1
    for program in (holder, waiter):
        assert "Traceback" not in program.output
        assert "does not hold the migration lock any more. Run it again" in program.output
    await _until_nothing_runs(installation)
    assert await installation.versions() == installation.project.shipped[-1:]
    assert not await installation.has_table("long_step")


async def test_the_limit_of_waiting_names_who_holds_the_lock(installation: Installation) -> None:
    async with installation.lock_held("nightly maintenance") as holder:
        pid = await holder.fetchval("SELECT pg_backend_pid()")
        port = await holder.fetchval("SELECT client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        replica = installation.replica({"GASKET_MIGRATION_LOCK_WAIT": "1"})
        said = await replica.refused()
        command = await installation.run("alembic", "upgrade", "head", settings={"GASKET_MIGRATION_LOCK_WAIT": "0"})
    assert command.exit_code > 0
    client = "local socket" if Server.of(installation.database_url).is_socket else f":{port}"
    for message in (said, command.line):
        assert f"pid {pid}" in message
        assert "nightly maintenance" in message
        assert client in message
        assert "GASKET_MIGRATION_LOCK_WAIT" in message
    assert not await installation.has_table("alembic_version")


async def test_a_holder_at_work_is_waited_for_past_the_limit_and_a_stopped_one_is_not(
    installation: Installation,
) -> None:
    holder, pid = await _holder_in_long_statement(installation)
    began = time.monotonic()
    patient = installation.replica({"GASKET_MIGRATION_LOCK_WAIT": "2"})
    await patient.says(WAITING)
    await asyncio.sleep(max(0.0, 6 - (time.monotonic() - began)))
    assert patient.exit_code is None, str(patient)
    holder.signal(signal.SIGSTOP)
    await installation.go_on()  # its session is idle in its transaction from now on
    said = await patient.refused(within=20)
    holder.signal(signal.SIGCONT)
    assert f"held by pid {pid}" in said
    assert re.search(r"made no progress for [2-9]\d? s", said)
    await holder.ready()
    await installation.assert_migrated_once()


async def test_waiters_see_which_replica_they_wait_for(installation: Installation) -> None:
    holder, pid = await _holder_in_long_statement(installation)
    waiter = installation.replica({"GASKET_RELEASE": "a-waiter"})
    await waiter.says(WAITING)
    assert f"pid {pid}" in waiter.output
    assert "gasket-migrate" in waiter.output
    assert f":{holder.pid}'" in waiter.output
    assert "test_control.pause" in waiter.output
