"""Commands leave entries in the audit: who called them, where, and how they ended."""

from __future__ import annotations

import getpass
import json
import socket
from typing import Any

from tests.acceptance.installation import Finished, Installation


async def run(installation: Installation, *command: str, exit_code: int = 0) -> Finished:
    done = await installation.run("gasket", *command)
    assert done.exit_code == exit_code, done.output
    return done


async def entries(installation: Installation) -> list[dict[str, Any]]:
    """Those of commands: the object, and what was said of it, in their order."""
    rows = await (await installation.look()).fetch(
        "SELECT actor, actor_kind, how, source, object_kind, object_id, after FROM audit_log "
        "WHERE action = 'command' ORDER BY id"
    )
    for row in rows:
        assert (row["actor"], row["actor_kind"], row["how"]) == (getpass.getuser(), "os_user", "command")
        assert row["source"] == socket.gethostname()
    return [{**json.loads(row["after"]), "object": row["object_kind"], "id": row["object_id"]} for row in rows]


def told(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["command"].removeprefix("gasket database "), entry["outcome"]) for entry in found]


async def test_what_writes_is_recorded_before_and_after(installation: Installation) -> None:
    await run(installation, "database", "upgrade")  # which makes the audit, and so has only the second entry
    await run(installation, "database", "upgrade")
    installation.project.add_table("newer")
    await run(installation, "database", "upgrade", "newer")
    await run(installation, "database", "downgrade", "--no-prompt", "--", "-1")
    assert "Error" in (await run(installation, "database", "downgrade", "--no-prompt", "unknown", exit_code=1)).output
    found = await entries(installation)
    assert told(found) == [
        ("upgrade", "completed"),
        ("upgrade", "begun"),
        ("upgrade", "completed"),
        ("upgrade", "begun"),
        ("upgrade", "completed"),
        ("downgrade", "begun"),
        ("downgrade", "completed"),
        ("downgrade", "begun"),
        ("downgrade", "failed: TargetError"),
    ]
    assert found[3]["parameters"] == {"revision": "newer"}
    assert found[5]["parameters"] == {"revision": "-1", "no_prompt": True}
    assert {entry["object"] for entry in found} == {"schema"}


async def test_what_prints_or_looks_is_not_unless_it_looks_into_archives(installation: Installation) -> None:
    await installation.migrate()
    await run(installation, "database", "status")
    await run(installation, "database", "upgrade", "--sql")
    await run(installation, "database", "background", "list")
    await run(installation, "database", "archive", "list")
    await run(installation, "database", "archive", "show", "1", exit_code=1)
    await run(installation, "database", "archive", "drop", "1", "--no-prompt", exit_code=1)
    await run(installation, "database", "background", "pause", "7", exit_code=1)
    found = await entries(installation)
    assert [(entry["object"], entry["id"]) for entry in found[::2]] == [
        ("archive", None),
        ("archive", "1"),
        ("archive", "1"),
        ("background", "7"),
    ]
    outcomes = [entry["outcome"].partition(":")[0] for entry in found[1::2]]
    assert outcomes == ["completed", "failed", "failed", "failed"]


async def test_a_database_that_is_away_is_the_command_s_to_tell(installation: Installation) -> None:
    away = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "GASKET_DATABASE_WAIT": "0"}
    done = await installation.run("gasket", "database", "upgrade", settings=away)
    assert done.exit_code == 1
    assert "audit" not in done.output


async def test_entries_that_cannot_be_made_do_not_keep_a_command_from_its_work(installation: Installation) -> None:
    await installation.migrate()
    database = await installation.look()
    await database.execute("ALTER TABLE audit_log ADD CHECK (actor_kind <> 'os_user')")
    installation.project.add_table("newer")
    done = await run(installation, "database", "upgrade")
    assert done.output.count("The audit has no entry of this command") == 1
    assert await installation.has_table("newer")
