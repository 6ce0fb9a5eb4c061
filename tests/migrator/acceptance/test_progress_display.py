"""What is told while the schema changes: a display at a terminal, log lines elsewhere, with the same facts."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.acceptance.installation import Finished, Installation
from tests.acceptance.terminal import run_at_terminal

# Slow, with real processes; the unit tests of the log lines, and integration tests of the steps show the same faster.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ALEMBIC = ("alembic",)
GASKET = ("gasket", "database")
BOTH = pytest.mark.parametrize("handle", [ALEMBIC, GASKET], ids=["alembic", "gasket"])


def _shown(done: Finished) -> str:
    """What was on the screen at some time, in one line."""
    return " ".join(_CONTROL.sub(" ", done.output).split())


@BOTH
async def test_at_a_terminal_each_revision_is_a_line_and_the_rest_a_display(
    installation: Installation, handle: tuple[str, ...]
) -> None:
    *_, before_last, last = shipped = installation.project.shipped
    confirm = () if handle == ALEMBIC else ("--no-prompt",)
    up = await run_at_terminal(installation, *handle, "upgrade", *confirm, "head")
    assert up.exit_code == 0, up.output
    for number, revision in enumerate(shipped, start=1):
        assert re.search(rf"{number} of {len(shipped)}: upgrade {revision}, \d+\.\d", _shown(up))
    assert f"upgrade {last} " in _shown(up)  # the live line
    assert re.search(rf"{len(shipped)} revisions in \d+\.\d s$", _shown(up))
    assert "INFO" not in up.output
    assert up.output.rindex("\x1b[?25l") < up.output.rindex("\x1b[?25h")  # the cursor is back
    again = await run_at_terminal(installation, *handle, "upgrade", *confirm, "head")
    assert _shown(again).endswith("Nothing to do.")
    down = await run_at_terminal(installation, *handle, "downgrade", *confirm, before_last)
    assert down.exit_code == 0, down.output
    assert re.search(rf"1 of 1: downgrade {last}, \d+\.\d", _shown(down))


async def test_at_a_terminal_it_shows_who_is_waited_for(installation: Installation) -> None:
    await installation.migrate()
    installation.project.add_revision("waits", 'op.execute("ALTER TABLE api_keys ADD COLUMN waits int")')
    reader = await installation.connect(server_settings={"application_name": "long report"})
    await reader.execute("BEGIN; SELECT FROM api_keys")
    shown = asyncio.Event()
    running = run_at_terminal(installation, "alembic", "upgrade", "head", shows=("application 'long report'", shown))
    upgrading = asyncio.create_task(running)
    await asyncio.wait({upgrading, asyncio.create_task(shown.wait())}, return_when=asyncio.FIRST_COMPLETED)
    await reader.close()
    done = await upgrading
    assert done.exit_code == 0, done.output
    # From the second try on; the display, which is drawn now and then, may have left that one out.
    told = r"try (?:[2-9]|\d\d), \d+\.\d of at most 300 s\): pid \d+ \(application 'long report'"
    assert re.search(told, _shown(done)), done.output
    assert "1 of 1: upgrade waits, " in _shown(done)


async def test_at_a_terminal_a_rollback_shows_its_steps_and_a_refusal_stays_one_sentence(
    installation: Installation,
) -> None:
    newer = installation.project.add_table("newer")
    broken = installation.project.add_revision("broken", 'op.execute("SELECT 1 / 0")')
    failed = await run_at_terminal(installation, *GASKET, "upgrade", "--no-prompt")
    assert failed.exit_code == 1
    shipped = len(installation.project.shipped)
    assert f"{shipped + 1} of {shipped + 2}: upgrade newer, " in _shown(failed)
    assert re.search(
        r"Error: The upgrade of revision broken failed: division by zero.*then start again\.$", _shown(failed)
    )
    assert "Traceback" not in failed.output
    newer.unlink()
    broken.unlink()
    back = await run_at_terminal(installation, *GASKET, "rollback", "--no-prompt")
    assert back.exit_code == 0, back.output
    assert re.search(r"1 of 1: downgrade newer, \d+\.\d", _shown(back))


async def test_without_a_terminal_the_log_says_it_all(installation: Installation) -> None:
    await installation.migrate()
    installation.project.add_table("one")
    installation.project.add_revision("waits", 'op.execute("ALTER TABLE api_keys ADD COLUMN waits int")')
    reader = await installation.connect(server_settings={"application_name": "long report"})
    await reader.execute("BEGIN; SELECT FROM api_keys")
    command = installation.start("alembic", "upgrade", "head", settings={"GASKET_LOG_FORMAT": "text"})
    await command.says("revision waits (2 of 2): locks are taken (try 2, ")
    await reader.close()
    assert await command.exited(60) == 0, command
    for line in (
        r"applying revision one \(1 of 2\): one\n",
        r"applied revision one \(1 of 2\) in \d+\.\d\d s\n",
        r"applying revision waits \(2 of 2\): waits\n",
        r"try 2, \d+\.\d of at most 300 s\): pid \d+ \(application 'long report', .*; trying again in \d+\.\d s",
        r"applied revision waits \(2 of 2\) in ",
    ):
        assert re.search(line, command.output), f"{line}\n{command.output}"
    for line in ("Context impl", "Running upgrade"):
        assert line not in command.output
    assert "\x1b[" not in command.output
