"""The commands that say how a schema stands and what would happen to it, and those that record what somebody knows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.acceptance.installation import Finished, Installation, api
from tests.acceptance.terminal import run_at_terminal

# Slow, with real processes; the integration tests of the commands show the same faster.
GASKET = ("gasket", "database")
_NEED_ALL = ("downgrade --no-prompt -1", "rollback --no-prompt", "stamp --no-prompt after", "adopt after")
_SCRATCHES = "SELECT datname FROM pg_database WHERE datname LIKE 'gasket_scratch%'"


async def _done(installation: Installation, *command: str, exit_code: int = 0) -> Finished:
    """Run `gasket database ...`, which has to end so, and without a stack trace."""
    done = await installation.run(*GASKET, *command)
    assert done.exit_code == exit_code, f"{command}: {done.exit_code}\n{done.output}"
    assert "Traceback" not in done.output, done.output
    return done


async def _status(installation: Installation) -> dict[str, Any]:
    """What `status --json` says."""
    said: dict[str, Any] = json.loads((await _done(installation, "status", "--json")).output)
    return said


def _edit(path: Path) -> str:
    """Change the code of a revision; returns what it was."""
    before = path.read_text()
    path.write_text(before.replace("def upgrade() -> None:\n", 'def upgrade() -> None:\n    op.execute("SELECT 1")\n'))
    return before


async def test_status_from_nothing_to_head_and_behind(installation: Installation) -> None:
    shipped = installation.project.shipped
    said = await _status(installation)
    assert (said["state"], said["current"], said["pending"]) == ("behind", [], shipped)
    assert not await installation.has_table("migration_ledger")

    await installation.migrate()
    said = await _status(installation)
    assert (said["state"], said["current"], said["head"], said["pending"]) == ("at_head", shipped[-1:], shipped[-1], [])
    assert [run["revision"] for run in said["history"]] == shipped[: -10 - 1 : -1], "the last ten runs, newest first"
    assert all(run["direction"] == "upgrade" and run["duration_ms"] >= 0 for run in said["history"])
    assert (said["drift"], said["lock_holder"], said["held"], said["archive_bytes"]) == ([], None, None, 0)

    installation.project.add_table("newer")
    said = await _status(installation)
    assert (said["state"], said["pending"]) == ("behind", ["newer"])
    text = (await _done(installation, "status")).output.splitlines()
    assert text[0] == f"behind: {said['sentence']}"
    assert [line.split() for line in text[1:4]] == [["current", shipped[-1]], ["head", "newer"], ["pending", "newer"]]


async def test_status_of_a_revision_that_was_taken_back(installation: Installation) -> None:
    head = "taken_back"
    installation.project.add_table(head)
    await installation.migrate()
    await _done(installation, "downgrade", "--no-prompt", "-1")
    said = await _status(installation)
    assert (said["state"], said["held"], said["pending"]) == ("held", head, [head])
    assert "gasket database upgrade" in said["sentence"]
    assert said["archive_bytes"] > 0
    assert said["history"][0]["direction"] == "downgrade"


async def test_status_of_tables_that_somebody_changed_while_the_lock_is_held(installation: Installation) -> None:
    await installation.migrate()
    await (await installation.look()).execute("ALTER TABLE api_keys ADD COLUMN by_hand integer")
    async with installation.lock_held("a colleague"):
        said = await _status(installation)  # without waiting for the lock
    assert said["state"] == "drifted"
    assert any("by_hand" in difference for difference in said["drift"])
    assert "a colleague" in said["lock_holder"]
    assert str(installation.project.shipped[-1]) in said["sentence"]

    # The API says the same, but compares the tables only when it is asked to.
    replica = installation.replica()
    await replica.ready()
    async with api(replica) as client:
        report = (await client.get("/migrations")).json()
        compared = (await client.get("/migrations?drift=true")).json()
    assert report.keys() == said.keys()
    assert (report["state"], report["drift"]) == ("at_head", None)
    assert (compared["state"], compared["drift"]) == ("drifted", said["drift"])


async def test_an_edited_file_is_said_everywhere_and_nothing_is_built_on_it_before_it_is_accepted(
    installation: Installation,
) -> None:
    installation.settings["GASKET_RELEASE"] = "1.0"
    edited = installation.project.add_table("edited")
    await installation.migrate()
    installation.settings["GASKET_RELEASE"] = "1.1"
    edited.write_text(edited.read_text().replace('"""edited"""', '"""Other words."""') + "\n# and a comment\n")
    assert (await _status(installation))["edited"] == []
    _edit(edited)
    said = await _status(installation)
    assert said["state"] == "edited"
    [edit] = said["edited"]
    assert "revision edited was edited since release 1.0 applied it" in edit

    # Nothing is pending: it serves, and says so.
    replica = installation.replica()
    answer = await replica.ready()
    assert "revision edited was edited" in answer["detail"]
    assert "revision edited was edited" in replica.output
    assert '"level": "warning"' in replica.output
    await replica.stop()

    # Something is: refused, whichever handle is used.
    installation.project.add_table("newer")
    refusals = [
        await installation.replica().refused(),
        (await _done(installation, "upgrade", exit_code=1)).line,
        (await _done(installation, "plan", exit_code=1)).line,
        (await installation.run("alembic", "upgrade", "head")).line,
    ]
    applied_at = await (await installation.look()).fetchval(
        "SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') FROM migration_ledger "
        "WHERE revision = 'edited'"
    )
    for refusal in refusals:
        for part in ("revision edited was edited", "release 1.0", applied_at, "newer", "database accept edited"):
            assert part in refusal, part
    assert await installation.versions() == ["edited"]

    # Accepting asks nothing, and is written down.
    for unknown in ("newer", "nonsense"):
        refused = await _done(installation, "accept", unknown, exit_code=1)
        assert unknown in refused.line
        assert "nothing was changed" in refused.line
    await _done(installation, "accept", "edited")
    row = await (await installation.look()).fetchrow("SELECT * FROM migration_ledger ORDER BY id DESC LIMIT 1")
    assert row is not None
    assert (row["revision"], row["direction"], row["release"]) == ("edited", "accept", "1.1")
    assert row["role"]
    answer = await installation.replica().ready()
    assert (answer["state"], answer["revision"], answer["detail"]) == ("at_head", "newer", None)


async def test_an_applied_file_that_is_no_python_any_more(installation: Installation) -> None:
    """Edited is edited: with nothing pending it serves, and whatever has to import the file names it."""
    path = installation.project.add_table("broken")
    await installation.migrate()
    path.write_text(path.read_text() + "\ndef oops(:\n")
    answer = await installation.replica().ready()
    assert "revision broken was edited" in answer["detail"]
    assert (await _status(installation))["state"] == "edited"
    commands = [
        "alembic current",
        "alembic downgrade -1",
        *(f"gasket database {words}" for words in ("accept broken", "heads", "merge head", *_NEED_ALL)),
    ]
    for words in commands:
        refused = await installation.run(*words.replace("adopt after", "adopt broken").split())
        if "rollback" in words or "adopt" in words:  # there is nothing to do for them: they import none of the files
            continue
        assert refused.exit_code > 0, words
        assert "Traceback" not in refused.output, refused.output
        assert f"Migration file {path.name}" in refused.line, words
    path.write_text(path.read_text().replace("def oops(:", ""))
    installation.project.add_table("newer")
    path.write_text(path.read_text() + "\ndef oops(:\n")
    assert "revision broken was edited" in await installation.replica().refused()


async def test_files_that_stand_on_each_other(installation: Installation) -> None:
    await installation.migrate()
    one = installation.project.add_table("one")
    installation.project.add_table("two")
    one.write_text(one.read_text().replace(f'"{installation.project.shipped[-1]}"', '"two"'))
    said = [
        await installation.replica().refused(),
        *[
            (await installation.run(*words.split())).line
            for words in ("alembic upgrade head", "alembic current", "gasket database status")
        ],
    ]
    for refusal in said:
        assert "stands on itself" in refusal, refusal
        assert "Traceback" not in refusal, refusal


async def test_a_file_that_is_gone_from_the_middle(installation: Installation) -> None:
    gone = installation.project.add_table("gone")
    installation.project.add_table("after")
    await installation.migrate()
    newer = installation.project.add_table("newer")
    put_by = newer.rename(installation.project.folder / newer.name)
    gone.unlink()
    [edit] = (await _status(installation))["edited"]
    assert "revision gone is gone" in edit
    answer = await installation.replica().ready()
    assert "revision gone is gone" in answer["detail"]
    await _done(installation, "upgrade")
    needs_all_files = ("alembic current", "alembic downgrade -1", *(f"gasket database {words}" for words in _NEED_ALL))
    for words in needs_all_files:
        refused = await installation.run(*words.split())
        assert refused.exit_code > 0, words
        assert "Traceback" not in refused.output, refused.output
        assert "stands on revision gone, whose file is gone" in refused.line, words
        assert "Put the file of revision gone back" in refused.line, words
    put_by.rename(newer)
    said = await installation.replica().refused()
    for part in ("revision gone is gone", "newer", "nothing was changed", "Put the file back"):
        assert part in said
    assert "accept" not in said
    assert await installation.versions() == ["after"]


async def test_a_failed_try_is_recorded_and_shown(installation: Installation) -> None:
    await installation.migrate()
    installation.settings["GASKET_RELEASE"] = "1.1"
    installation.project.add_revision("failing", 'op.execute("SELECT 1 / 0")')
    await installation.replica().refused()
    look = await installation.look()
    [row] = await look.fetch("SELECT * FROM migration_failures")
    assert (row["revision"], row["direction"], row["release"]) == ("failing", "upgrade", "1.1")
    assert "division by zero" in row["error"]
    assert row["role"] == await look.fetchval("SELECT current_user")
    assert row["host"]
    [failure] = (await _status(installation))["failures"]
    assert (failure["revision"], failure["error"]) == ("failing", row["error"])
    assert "failing by release 1.1" in (await _done(installation, "status")).line


async def _built_by_plain_sql(installation: Installation) -> None:
    """The tables as Alembic prints them, and nothing that says where they come from."""
    printed = await installation.run("alembic", "upgrade", "head", "--sql")
    assert printed.exit_code == 0, printed.output
    script = "\n".join(line for line in printed.output.splitlines() if not line.startswith("{"))
    await (await installation.look()).execute(f"{script}; DROP TABLE alembic_version")


async def test_tables_without_a_version_table_are_adopted_when_they_are_equal(installation: Installation) -> None:
    shipped = installation.project.shipped
    await _built_by_plain_sql(installation)
    look = await installation.look()
    await look.execute("INSERT INTO openai_backends (name, base_url) VALUES ('kept', 'https://example.com')")
    await look.execute("CREATE TABLE somebody_elses (id integer)")
    refusals = [
        await installation.replica().refused(),
        (await installation.run("alembic", "upgrade", "head")).line,
        (await _done(installation, "upgrade", exit_code=1)).line,
        (await _done(installation, "plan", exit_code=1)).line,
    ]
    for refusal in refusals:
        for part in ("no alembic_version", "api_keys", "nothing was changed", "gasket database adopt REVISION"):
            assert part in refusal, part
        assert "somebody_elses" not in refusal
    assert not await installation.has_table("alembic_version")
    assert not await installation.has_table("migration_ledger")

    # Not what an earlier revision builds? More than that is no harm, but another table's column is.
    await look.execute(
        "ALTER TABLE api_keys DROP COLUMN revoked_by; ALTER TABLE openai_backends ALTER name TYPE varchar"
    )
    refused = await _done(installation, "adopt", shipped[-1], exit_code=1)
    for part in (
        "missing column public.api_keys.revoked_by",
        "different column public.openai_backends.name",
        "--force",
    ):
        assert part in refused.line, part
    assert not await installation.has_table("alembic_version")
    await look.execute(
        "ALTER TABLE api_keys ADD COLUMN revoked_by text; ALTER TABLE openai_backends ALTER name TYPE text"
    )

    done = await _done(installation, "adopt", shipped[-1])
    assert "extra table public.somebody_elses" in done.line
    assert await installation.ledger() == [(revision, "stamp") for revision in shipped]
    assert (await installation.replica().ready())["state"] == "at_head"
    assert (await _status(installation))["state"] == "drifted"  # by the other application's table
    assert await look.fetchval("SELECT name FROM openai_backends") == "kept"
    assert await look.fetch(_SCRATCHES) == []

    # What was adopted can be taken back, from the files and from the ledger alike.
    rows = await look.fetch("SELECT digest, downgrade_sql::text FROM migration_ledger")
    assert all(row["digest"] and '"sql"' in row["downgrade_sql"] for row in rows)
    await _done(installation, "downgrade", "--no-prompt", "base")
    assert await installation.has_table("somebody_elses")


async def test_what_is_recorded_already_is_not_adopted(installation: Installation) -> None:
    """All that is newer than the first revision would only be extra, and the next start would apply it again."""
    await installation.migrate()
    first, head = installation.project.shipped[0], installation.project.shipped[-1]
    refused = await _done(installation, "adopt", first, exit_code=1)
    for part in (f"says already that the schema is at {head}", "nothing was changed", "--force"):
        assert part in refused.line, part
    assert await installation.versions() == [head]
    await _done(installation, "adopt", "--force", first)
    assert await installation.versions() == [first]


async def test_adopting_by_force_in_spite_of_differences(installation: Installation) -> None:
    await _built_by_plain_sql(installation)
    await (await installation.look()).execute("DROP INDEX ix_api_keys_lower_user_email")
    head = installation.project.shipped[-1]
    refused = await _done(installation, "adopt", head, exit_code=1)
    assert "missing index public.ix_api_keys_lower_user_email" in refused.line
    unknown = await _done(installation, "adopt", "nonsense", exit_code=1)
    assert "nonsense" in unknown.line
    forced = await _done(installation, "adopt", head, "--force")
    assert "missing index public.ix_api_keys_lower_user_email" in forced.line
    assert await installation.versions() == [head]


def _add_pending(installation: Installation) -> None:
    installation.project.add_revision(
        "one",
        'op.add_column("openai_backends", sa.Column("n", sa.Integer(), nullable=False, server_default=sa.text("1")))\n'
        'op.alter_column("openai_backends", "id", type_=sa.BigInteger())',
        'op.drop_column("openai_backends", "n")',
        backward_compatible=False,
    )
    installation.project.add_revision(
        "two",
        'with op.get_context().autocommit_block():\n    op.create_index("two", "api_keys", ["name"], '
        "postgresql_concurrently=True)",
        'op.drop_index("two")',
    )


async def _live(installation: Installation) -> list[asyncpg.Record]:
    return await (await installation.look()).fetch(
        "SELECT c.relname, c.relfilenode, c.relnatts, (SELECT count(*) FROM migration_ledger) FROM pg_class AS c "
        "WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
    )


async def test_a_plan_says_what_would_happen_and_changes_nothing(installation: Installation) -> None:
    await installation.migrate()
    nothing = await _done(installation, "plan")
    assert installation.project.shipped[-1] in nothing.line
    _add_pending(installation)
    before = await _live(installation)
    async with installation.lock_held():  # it waits for nobody
        text = await _done(installation, "plan", "--sql", exit_code=3)
        plan = json.loads((await _done(installation, "plan", "--json", exit_code=3)).output)
        sarif = json.loads((await _done(installation, "plan", "--format", "sarif", exit_code=3)).output)
        markdown = await _done(installation, "plan", "--format", "markdown", exit_code=3)
    assert "rewrites" in {result["ruleId"] for result in sarif["runs"][0]["results"]}
    assert "| `openai_backends` | ACCESS EXCLUSIVE | blocks reads and writes |" in markdown.output
    for part in (
        "one (1 of 2)",
        "older releases cannot run on it",
        "locks openai_backends ACCESS EXCLUSIVE, blocks reads and writes",
        "rewrites openai_backends",
        "ADD COLUMN n INTEGER DEFAULT 1 NOT NULL",
        "two (2 of 2)",
        "leaves its transaction",
        "CREATE INDEX CONCURRENTLY two",
    ):
        assert part in text.line, part
    assert "SQL." not in text.line
    one, two = plan["revisions"]
    assert (one["revision"], one["backward_compatible"], one["estimated"]) == ("one", False, False)
    assert (one["rewrites"], two["concurrently"]) == (["openai_backends"], True)
    assert plan["estimated"] is None
    assert "ADD COLUMN" not in (await _done(installation, "plan", exit_code=3)).line
    assert await _live(installation) == before
    assert await (await installation.look()).fetch(_SCRATCHES) == []


async def test_a_plan_that_would_be_refused_or_would_fail(installation: Installation) -> None:
    await installation.migrate()
    path = installation.project.add_revision("failing", 'op.execute("SELECT 1 / 0")')
    done = await _done(installation, "plan", exit_code=1)
    assert "revision failing" in done.line
    assert "division by zero" in done.line
    assert await (await installation.look()).fetch("SELECT FROM migration_failures") == []
    path.write_text(path.read_text().replace("backward_compatible: bool = True", "backward_compatible: bool"))
    refused = await _done(installation, "plan", exit_code=1)
    assert path.name in refused.line
    assert "backward_compatible" in refused.line


@pytest.fixture
async def plain(installation: Installation, url_with: Callable[..., str]) -> AsyncIterator[Installation]:
    """The installation, whose role may make tables and no databases."""
    role = f"role_{uuid4().hex[:12]}"
    look = await installation.look()
    await look.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2secret'; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
    )
    installation.settings["DATABASE_URL"] = url_with(installation.database_url, user=role, password="hunter2secret")
    await installation.migrate()
    yield installation
    await look.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_without_the_right_to_make_a_database_a_plan_is_estimated_and_adopting_says_what_it_needs(
    plain: Installation,
) -> None:
    _add_pending(plain)
    done = await _done(plain, "plan", exit_code=3)
    for part in ("estimated from the SQL", "CREATEDB", "GASKET_SCRATCH_DATABASE_URL", "(estimated)", "openai_backends"):
        assert part in done.line, part
    plan = json.loads((await _done(plain, "plan", "--json", exit_code=3)).output)
    assert [revision["estimated"] for revision in plan["revisions"]] == [True, True]
    refused = await _done(plain, "adopt", "--force", plain.project.shipped[-1], exit_code=1)
    for part in ("CREATEDB", "GASKET_SCRATCH_DATABASE_URL", "nothing was changed"):
        assert part in refused.line, part
    assert "hunter2secret" not in done.output + refused.output


async def test_a_database_that_was_set_aside_is_used_and_left_empty(
    plain: Installation, make_database: Callable[[], Awaitable[str]]
) -> None:
    scratch = await make_database()
    look = await plain.look()
    _add_pending(plain)
    plain.settings["GASKET_SCRATCH_DATABASE_URL"] = scratch
    before = await _live(plain)
    plan = json.loads((await _done(plain, "plan", "--json", exit_code=3)).output)
    assert [revision["estimated"] for revision in plan["revisions"]] == [False, False]
    assert plan["revisions"][0]["rewrites"] == ["openai_backends"]
    assert await _live(plain) == before
    await look.execute("DROP TABLE alembic_version")
    adopted = await _done(plain, "adopt", plain.project.shipped[-1])
    assert "recorded at" in adopted.line
    connection = await asyncpg.connect(scratch)
    try:
        left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert await connection.fetch(left) == []
    finally:
        await connection.close(timeout=10)


async def test_at_a_terminal_an_upgrade_asks_first(installation: Installation) -> None:
    declined = await run_at_terminal(installation, *GASKET, "upgrade", answers=[("Apply ", "n")])
    assert declined.exit_code == 1
    assert "nothing was changed" in declined.line
    assert not await installation.has_table("alembic_version")
    done = await run_at_terminal(installation, *GASKET, "upgrade", answers=[("Apply ", "y")])
    assert done.exit_code == 0, done.output
    await installation.assert_migrated_once()


async def test_a_stamp_asks_and_is_one_row_for_each_revision(installation: Installation) -> None:
    shipped = installation.project.shipped
    refused = await _done(installation, "stamp", "head", exit_code=1)
    assert "--no-prompt" in refused.line
    declined = await run_at_terminal(installation, *GASKET, "stamp", "head", answers=[("builds?", "n")])
    assert declined.exit_code > 0
    assert "recorded at no revision, and would be at head" in declined.line
    assert not await installation.has_table("alembic_version")
    await _done(installation, "stamp", "--no-prompt", shipped[1])
    await _done(installation, "stamp", "--no-prompt", "head")
    assert await installation.ledger() == [(revision, "stamp") for revision in shipped]
    rows = await (await installation.look()).fetch("SELECT digest, downgrade_sql::text FROM migration_ledger")
    assert all(row["digest"] and '"sql"' in row["downgrade_sql"] for row in rows)
    assert not await installation.has_table("api_keys")
