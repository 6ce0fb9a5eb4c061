"""Starts against commands, and installations beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.acceptance.installation import Installation

WAITING = "waiting for the migration lock"
LITESTAR = ("litestar", "--app", "gasket.app:create_app", "database")


async def test_a_downgrade_waits_for_a_start(installation: Installation) -> None:
    installation.project.add_pause("extra")
    await installation.pause(90)
    replica = installation.replica()
    await installation.pausing()
    downgrade = installation.start("alembic", "downgrade", "-1")
    await downgrade.says(WAITING)
    await installation.go_on()
    assert await downgrade.exited(60) == 0, downgrade.output
    await replica.settled()
    assert (await installation.ledger())[-2:] == [("extra", "upgrade"), ("extra", "downgrade")]
    await installation.assert_consistent()


async def test_a_start_waits_for_a_downgrade_that_it_finds_under_way(installation: Installation) -> None:
    installation.project.add_table("below")
    installation.project.add_pause("extra")
    await installation.pause(0)
    await installation.migrate()
    await installation.pause(90)
    downgrade = installation.start("alembic", "downgrade", "-2")
    await installation.pausing()
    installation.project.add_table("above")
    replica = installation.replica()
    await replica.says(WAITING)
    await installation.go_on()
    await replica.ready()
    assert await downgrade.exited(30) == 0, downgrade.output
    assert (await installation.ledger())[-5:] == [
        ("extra", "downgrade"),
        ("below", "downgrade"),
        ("below", "upgrade"),
        ("extra", "upgrade"),
        ("above", "upgrade"),
    ]
    await installation.assert_consistent()


async def test_a_start_and_an_upgrade_by_command_share_the_work(installation: Installation) -> None:
    installation.project.add_pause("extra")
    await installation.pause(1)
    command = installation.start(*LITESTAR, "upgrade")
    replica = installation.replica()
    await replica.ready()
    assert await command.exited(60) == 0, command.output
    await installation.assert_migrated_once()


async def test_a_free_for_all_ends_consistently(installation: Installation) -> None:
    await installation.migrate()
    for name in ("one", "two", "three"):
        installation.project.add_table(name)
    replicas = [installation.replica() for _ in range(3)]
    commands = [
        installation.start("alembic", "downgrade", "-1"),
        installation.start(*LITESTAR, "upgrade"),
        installation.start(*LITESTAR, "downgrade", "--no-prompt", "--", "-1"),
        installation.start("alembic", "upgrade", "head"),
    ]
    for command in commands:
        assert await command.exited(60) == 0, str(command)
    for replica in replicas:
        await replica.settled()
        assert "Traceback" not in replica.output
    await installation.assert_consistent()
    # Whoever came last may have taken the head back: a start then refuses, an explicit upgrade applies it again.
    done = await installation.run("alembic", "upgrade", "head")
    assert done.exit_code == 0, done.output
    await installation.replica().ready()
    await installation.assert_consistent()
    assert await installation.versions() == ["three"]


async def test_installations_in_two_schemas_do_not_wait_for_each_other(
    install: Callable[..., Awaitable[Installation]],
) -> None:
    first = await install()
    await _start_beside(first, await install(first.database_url), schema="second_one")


async def test_installations_in_two_databases_do_not_wait_for_each_other(
    install: Callable[..., Awaitable[Installation]],
) -> None:
    await _start_beside(await install(), await install(), schema="public")


async def _start_beside(first: Installation, second: Installation, *, schema: str) -> None:
    """The second starts, migrates and serves while the first is in the middle of a migration."""
    second.schema = second.settings["GASKET_DATABASE_SCHEMA"] = schema
    first.project.add_pause("extra")
    await first.pause(90)
    slow = first.replica()
    await first.pausing()
    answer = await second.replica().ready()
    assert answer["state"] == "at_head"
    assert await first.statements("test_control.pause"), "the first was to be still at it"
    assert slow.exit_code is None
    await second.assert_migrated_once()
    await first.go_on()


async def test_two_schemas_of_one_database_are_two_installations(
    install: Callable[..., Awaitable[Installation]],
) -> None:
    first = await install()
    second = await install(first.database_url)
    second.schema = second.settings["GASKET_DATABASE_SCHEMA"] = "second_one"
    replicas = [first.replica(), second.replica()]
    await asyncio.gather(*(replica.ready() for replica in replicas))
    for installation in (first, second):
        await installation.assert_migrated_once()
    done = await second.run("alembic", "downgrade", "base")
    assert done.exit_code == 0, done.output
    assert await second.versions() == []
    assert not await second.has_table("api_keys")
    await first.assert_migrated_once()
    assert await first.has_table("api_keys")
