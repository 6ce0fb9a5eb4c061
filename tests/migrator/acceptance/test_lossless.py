"""Downgrades that lose nothing: what they take away is kept, comes back, and goes only when somebody says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import pytest

from tests.acceptance.installation import Finished, Installation, api
from tests.acceptance.processes import until
from tests.acceptance.terminal import run_at_terminal

# Slow, with real processes; the integration tests of the archive show the same faster.
GASKET = ("gasket", "database")
TABLES = ("openai_backends", "backend_profiles", "profile_backends", "api_keys")
LIFECYCLE = ["expires_at", "revoked_at", "revoked_by"]
ADDS_LIFECYCLE = "fc754342f710"


@pytest.fixture
async def filled(installation: Installation) -> Installation:
    """Two backends, a profile, and four keys: of no, a far and a revoked end; at the revision that made the ends."""
    replica = installation.replica()
    await replica.ready()
    async with api(replica) as client:

        async def post(path: str, **body: object) -> Any:
            answer = await client.post(path, json=body)
            assert answer.is_success, answer.text
            return answer.json()

        backends = [
            await post("/backends", name=name, base_url="https://example.com", api_key=f"sk-{name}") for name in "ab"
        ]
        profile = await post(
            "/profiles", name="team", backends=[b["id"] for b in backends[::-1]], allowed_models=["m"], description="ü"
        )
        for number in range(4):
            key = await post(
                "/keys",
                user_email="ada@example.com",
                name=f"key {number}",
                profile_id=profile["id"],
                expires_at="2031-02-03T04:05:06Z" if number else None,
            )
        await post(f"/keys/{key['id']}/revoke", revoked_by="security@example.com")
    await replica.stop()
    later = ("--no-prompt", "--no-archive", "--discard-data", ADDS_LIFECYCLE)
    await _done(installation, *GASKET, "downgrade", *later)
    installation.project.end_at(ADDS_LIFECYCLE)
    return installation


async def _rows(installation: Installation) -> dict[str, list[asyncpg.Record]]:
    look = await installation.look()
    return {table: await look.fetch(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}


async def _done(installation: Installation, *command: str) -> Finished:
    done = await installation.run(*command)
    assert done.exit_code == 0, f"{command}: {done.output}"
    assert "Traceback" not in done.output, done.output
    return done


@pytest.mark.parametrize("handle", [GASKET, ("alembic",)], ids=["gasket", "alembic"])
async def test_every_row_is_kept_and_comes_back_as_it_was(filled: Installation, handle: tuple[str, ...]) -> None:
    """Of a table (the keys), and of columns of rows that stay (their end and revocation)."""
    before = await _rows(filled)
    assert {table: len(rows) for table, rows in before.items()} == dict(zip(TABLES, (2, 1, 2, 4), strict=True))
    confirm = () if handle == ("alembic",) else ("--no-prompt",)

    # The columns alone: the rows stay, without them.
    await _done(filled, *handle, "downgrade", *confirm, "-1")
    without = [tuple(value for name, value in key.items() if name not in LIFECYCLE) for key in before["api_keys"]]
    assert [tuple(key) for key in (await _rows(filled))["api_keys"]] == without
    assert await filled.archived_rows() == 4
    await _done(filled, *handle, "upgrade", "head")
    assert await _rows(filled) == before
    assert await filled.archived_rows() == 0

    # The table with them, and everything.
    for target in (filled.project.shipped[1], "base"):
        await _done(filled, *handle, "downgrade", *confirm, target)
        assert not await filled.has_table("api_keys")
        await _done(filled, *handle, "upgrade", "head")
        assert await _rows(filled) == before
        assert await filled.archived_rows() == 0

    # Keys made from then on get numbers of their own.
    look = await filled.look()
    made = await look.fetchval(
        "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) "
        "VALUES ('ada@example.com', 'new', 'digest', 'gsk_...', $1) RETURNING id",
        before["backend_profiles"][0]["id"],
    )
    assert made == 5


async def test_the_archive_is_listed_shown_and_dropped(filled: Installation) -> None:
    assert "empty" in (await _done(filled, *GASKET, "archive", "list")).line
    await _done(filled, *GASKET, "downgrade", "--no-prompt", filled.project.shipped[1])
    listed = (await _done(filled, *GASKET, "archive", "list")).output.splitlines()
    assert len(listed) == 2
    table, columns = listed
    for part in ("revision 689f3f5b9163", "4 rows of public.api_keys;", "4 still here"):
        assert part in table
    for part in (f"revision {ADDS_LIFECYCLE}", "4 rows of public.api_keys (expires_at, revoked_at, revoked_by)"):
        assert part in columns
    assert "object at" not in str(listed)
    assert "Archive(" not in str(listed)
    number = columns.split()[0]
    shown = (await _done(filled, *GASKET, "archive", "show", number)).output
    for part in (ADDS_LIFECYCLE, "revoked_by", '"row_count": 4'):
        assert part in shown
    assert "archive    0" in (await _done(filled, *GASKET, "status")).output

    # To drop it has to be confirmed, and there is nobody to ask here.
    refused = await filled.run(*GASKET, "archive", "drop", number)
    assert refused.exit_code > 0
    assert "--no-prompt" in refused.line
    assert await filled.archived_rows() == 8
    async with filled.lock_held("a colleague"):
        at_once = {"GASKET_MIGRATION_LOCK_WAIT": "0"}
        waited = await filled.run(*GASKET, "archive", "drop", "--no-prompt", number, settings=at_once)
    assert "a colleague" in waited.line
    assert await filled.archived_rows() > 0
    dropped = await run_at_terminal(filled, *GASKET, "archive", "drop", number, answers=[("for good?", "y")])
    assert dropped.exit_code == 0, dropped.output
    assert await filled.archived_rows() == 4
    for command in ("show", "drop"):
        unknown = await filled.run(*GASKET, "archive", command, number)
        assert unknown.exit_code > 0
        assert f"no archive {number}" in unknown.line
        assert table.split()[0] in unknown.line

    # What was dropped is gone, what was not comes back.
    await _done(filled, *GASKET, "upgrade")
    assert [row["revoked_by"] for row in (await _rows(filled))["api_keys"]] == [None] * 4
    assert "none here any more" in (await _done(filled, *GASKET, "archive", "list")).line


async def test_rows_are_lost_only_when_it_is_said_twice(filled: Installation) -> None:
    before = await _rows(filled)
    for options, missing in (
        (["--no-archive", "--no-prompt"], "--discard-data"),
        (["--no-archive"], "--no-prompt"),
        (["--discard-data"], "--no-prompt"),
        ([], "--no-prompt"),
    ):
        refused = await filled.run(*GASKET, "downgrade", *options, "-1")
        assert refused.exit_code > 0
        assert missing in refused.line, options
        assert "nothing was changed" in refused.line, options
    asked_twice = await run_at_terminal(
        filled, *GASKET, "downgrade", "--no-archive", "-1", answers=[(" back on ", "y"), ("Are you sure?", "n")]
    )
    assert asked_twice.exit_code > 0
    assert "None of it is archived" in asked_twice.line
    assert await _rows(filled) == before
    done = await _done(filled, *GASKET, "downgrade", "--no-archive", "--no-prompt", "--discard-data", "-1")
    assert "Copying" not in done.line
    assert "empty" in (await _done(filled, *GASKET, "archive", "list")).line
    await _done(filled, "alembic", "upgrade", "head")
    assert [row["revoked_by"] for row in (await _rows(filled))["api_keys"]] == [None] * 4


async def test_plain_alembic_has_an_option_for_it_and_archives_without(filled: Installation) -> None:
    await _done(filled, "alembic", "-x", "discard_data=yes", "downgrade", "-1")
    await _done(filled, "alembic", "-x", "discard_data=perhaps", "downgrade", "-1")
    listed = (await _done(filled, *GASKET, "archive", "list")).output.splitlines()
    assert [line.split()[4].strip(",") for line in listed] == ["689f3f5b9163"]
    await _done(filled, "alembic", "-x", "restore=no", "upgrade", "head")
    assert (await _rows(filled))["api_keys"] == []
    assert await filled.archived_rows() == 4


async def test_an_upgrade_may_leave_the_archive_alone(filled: Installation) -> None:
    await _done(filled, *GASKET, "downgrade", "--no-prompt", filled.project.shipped[1])
    await _done(filled, *GASKET, "upgrade", "--no-restore")
    assert (await _rows(filled))["api_keys"] == []
    assert await filled.archived_rows() == 8  # of a step the whole rows, of another three of their columns


async def test_at_a_terminal_it_shows_what_would_go_and_asks(filled: Installation) -> None:
    before, ledger = await _rows(filled), await filled.ledger()
    target = filled.project.shipped[1]
    declined = await run_at_terminal(filled, *GASKET, "downgrade", target, answers=[(" back on ", "n")])
    assert declined.exit_code > 0
    assert "Traceback" not in declined.output
    assert "nothing was changed" in declined.line
    for part in (
        f"{ADDS_LIFECYCLE} add api key lifecycle",
        "ALTER TABLE api_keys DROP COLUMN revoked_by",
        "DROP TABLE api_keys",
        "column expires_at, revoked_at, revoked_by of public.api_keys: about 4 rows",
        "table public.api_keys: about 4 rows",
        "Copying them into the archive takes about",
    ):
        assert part in declined.line, part
    assert await _rows(filled) == before
    assert await filled.ledger() == ledger
    assert await filled.holder() is None


async def test_without_a_question_nothing_is_tried_out_and_the_step_says_what_it_kept(filled: Installation) -> None:
    """The trial would hold the tables' locks twice, for a preview that nobody reads."""
    done = await _done(filled, *GASKET, "downgrade", "--no-prompt", filled.project.shipped[1])
    assert "ALTER TABLE api_keys DROP COLUMN revoked_by" in done.line
    for part in ("about 4 rows", "Copying"):
        assert part not in done.line, done.output
    for columns in (" (expires_at, revoked_at, revoked_by)", " ("):
        assert f"keeps 4 rows of public.api_keys{columns}" in done.line


async def test_a_downgrade_that_needs_python_is_shown_and_kept_too(installation: Installation) -> None:
    """It is tried out with its own code, for there is no SQL to show."""
    installation.project.add_revision(
        "asking",
        'op.execute("CREATE TABLE asking AS SELECT 1 AS n")',
        'if op.get_bind().execute(sa.text("SELECT count(*) FROM asking")).scalar():\n    op.drop_table("asking")',
    )
    await installation.migrate()
    done = await run_at_terminal(installation, *GASKET, "downgrade", "-1", answers=[(" back on ", "y")])
    assert done.exit_code == 0, done.output
    assert "uses the result of a statement" in done.line
    assert "table public.asking: about" in done.line
    assert not await installation.has_table("asking")
    assert await installation.archived_rows() == 1


async def test_a_downgrade_that_fails_keeps_everything_and_says_why(installation: Installation) -> None:
    installation.project.add_revision(
        "stuck",
        'op.execute("CREATE TABLE stuck AS SELECT 1 AS n")',
        'op.drop_table("stuck")\nraise RuntimeError("not today")',
    )
    await installation.migrate()
    ledger = await installation.ledger()
    failed = await installation.run(*GASKET, "downgrade", "--no-prompt", "-1")
    assert failed.exit_code > 0
    assert "Traceback" not in failed.output, failed.output
    assert "The downgrade of revision stuck failed: RuntimeError: not today" in failed.line
    assert await installation.ledger() == ledger
    assert await installation.has_table("stuck")
    look = await installation.look()
    assert await look.fetchval("SELECT to_regclass('gasket_archive.manifest')") is None
    [failure] = await look.fetch("SELECT revision, direction, error FROM migration_failures")
    assert (failure["revision"], failure["direction"]) == ("stuck", "downgrade")
    assert "not today" in failure["error"]


async def test_writers_during_a_downgrade_lose_nothing(filled: Installation) -> None:
    """Each row whose INSERT was confirmed is live or in the archive, with its values."""
    look = await filled.look()
    profile = await look.fetchval("SELECT id FROM backend_profiles")
    written: Counter[str] = Counter()

    async def write(writer: str) -> None:
        connection = await filled.connect()
        try:
            while True:
                await connection.execute(
                    "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, revoked_by) "
                    "VALUES ('a@example.com', $1, gen_random_uuid()::text, 'p', $2, $1)",
                    writer,
                    profile,
                )
                written[writer] += 1
        except (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError):
            pass  # the schema that it writes to is gone
        finally:
            connection.terminate()

    writers = [asyncio.create_task(write(f"writer {number}")) for number in range(3)]
    await until(lambda: written.total() > 200, 60, "rows")
    await _done(filled, *GASKET, "downgrade", "--no-prompt", filled.project.shipped[1])
    await asyncio.wait_for(asyncio.gather(*writers), 60)
    assert await filled.archived_rows() == 2 * (4 + written.total())
    await _done(filled, *GASKET, "upgrade")
    rows = await look.fetch("SELECT name, revoked_by FROM api_keys WHERE name LIKE 'writer%'")
    assert Counter(row["name"] for row in rows) == written
    assert all(row["revoked_by"] == row["name"] for row in rows)
    assert await look.fetchval("SELECT count(*) FROM api_keys") == 4 + written.total()
