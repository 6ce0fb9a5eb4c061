"""Starts, commands and kills in whatever order, for minutes."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from tests.acceptance.installation import Installation

LITESTAR = ("litestar", "--app", "gasket.app:create_app", "database")
COMMANDS = (
    ("alembic", "upgrade", "head"),
    ("alembic", "downgrade", "-1"),
    (*LITESTAR, "upgrade", "--no-prompt"),
    (*LITESTAR, "downgrade", "--no-prompt", "--", "-2"),
)
ROUNDS = 60


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_at_any_moment_the_ledger_and_the_schema_agree(installation: Installation, seed: int) -> None:
    chance = random.Random(seed)
    for name in ("one", "two", "three"):
        installation.project.add_table(name)
    installation.project.add_pause("four")
    await installation.pause(0.2)
    await installation.migrate()
    for _ in range(ROUNDS):
        replicas = [installation.replica() for _ in range(chance.randint(1, 4))]
        commands = [installation.start(*command) for command in chance.sample(COMMANDS, chance.randint(1, 3))]
        for program in chance.sample([*replicas, *commands], chance.randint(0, 2)):
            await asyncio.sleep(chance.uniform(0, 1.5))
            program.signal(chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        for command in commands:
            await command.exited(60)
        for replica in replicas:
            await replica.settled()
            await replica.stop()
        for program in (*replicas, *commands):
            assert "Traceback" not in program.output, str(program)
        await installation.until_unlocked()
        await installation.assert_consistent()
    done = await installation.run("alembic", "upgrade", "head")
    assert done.exit_code == 0, done.output
    await installation.assert_consistent()
    assert await installation.versions() == ["four"]
