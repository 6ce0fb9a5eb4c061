"""Two releases on one database: rolling deploys, rollbacks without the newer files, and no boomerang.

The older release is the same code with fewer migration files, which is what tells two releases apart for the
migrator. `test_rollout.py` has one that is built from an earlier commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.acceptance.installation import Installation, api

# Slow, with real processes; the integration tests of the gate and of `rollback` show the same faster.
ROLLBACK = ("gasket", "database", "rollback")

_ADD_COLUMN = 'op.add_column("openai_backends", sa.Column("region", sa.Text(), nullable=True))'
_DROP_COLUMN = 'op.drop_column("openai_backends", "region")'
_ADD_INDEX = """
with op.get_context().autocommit_block():
    op.create_index("ix_region", "openai_backends", ["region"], postgresql_concurrently=True)
"""
_DROP_INDEX = """
with op.get_context().autocommit_block():
    op.drop_index("ix_region", postgresql_concurrently=True)
"""
_ASK_FIRST = 'if op.get_bind().execute(sa.text("SELECT 1")).scalar():\n    op.drop_table("asking")'


@pytest.fixture
async def older(install: Callable[..., Awaitable[Installation]]) -> Installation:
    """Release 1.0, with the revisions that we ship."""
    installation = await install()
    installation.settings["GASKET_RELEASE"] = "1.0"
    return installation


@pytest.fixture
async def newer(install: Callable[..., Awaitable[Installation]], older: Installation) -> Installation:
    """Release 2.0 on the same database: a nullable column, and an index on it that is built concurrently."""
    return await _release(install, older, "2.0")


async def _release(install: Callable[..., Awaitable[Installation]], older: Installation, name: str) -> Installation:
    installation = await install(older.database_url)
    installation.settings["GASKET_RELEASE"] = name
    installation.project.add_revision("add_region", _ADD_COLUMN, _DROP_COLUMN)
    installation.project.add_revision("index_region", _ADD_INDEX, _DROP_INDEX)
    return installation


async def test_an_older_release_serves_on_a_compatible_schema_and_warns(
    older: Installation, newer: Installation
) -> None:
    await older.migrate()
    await newer.migrate()
    replica = older.replica()
    answer = await replica.ready()
    assert (answer["state"], answer["revision"]) == ("ahead", "index_region")
    async with api(replica) as client:
        made = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        assert made.status_code == 201, made.text
    warning = await replica.log_line(level="warning")
    for part in (
        "release 1.0",
        "add_region by release 2.0",
        "index_region by release 2.0",
        "the release can run on it",
    ):
        assert part in warning["message"]
    upgraded = await older.run("gasket", "database", "upgrade")
    assert upgraded.exit_code == 0, upgraded.output
    assert await newer.versions() == ["index_region"]


async def test_an_older_release_refuses_an_incompatible_schema_and_names_both_ways_out(
    older: Installation, newer: Installation
) -> None:
    """The one that it cannot run on is named, though it is neither the newest nor alone."""
    newer.project.add_table("breaking", backward_compatible=False)
    newer.project.add_table("harmless")
    await newer.migrate()
    said = await older.replica().refused()
    for part in (
        "revision breaking",
        "applied by release 2.0",
        "this release 1.0",
        "not backward compatible",
        "nothing was changed",
        "Deploy release 2.0 or a later one",
        "gasket database rollback",
    ):
        assert part in said, part
    for command in ("alembic upgrade head", "gasket database upgrade", "gasket database plan"):
        done = await older.run(*command.split())
        assert done.exit_code > 0, command
        assert "revision breaking" in done.line, command
    assert await newer.versions() == ["harmless"]


async def test_a_rollback_without_the_newer_files_is_kept_until_somebody_lifts_it(
    install: Callable[..., Awaitable[Installation]], older: Installation, newer: Installation
) -> None:
    newer.project.add_table("breaking", backward_compatible=False)
    await older.migrate()
    await newer.migrate()
    look = await newer.look()
    await look.execute("INSERT INTO openai_backends (name, base_url, region) VALUES ('one', 'https://a.example', 'eu')")
    before = await newer.ledger()

    refused = await older.run(*ROLLBACK)
    assert refused.exit_code > 0
    assert "--no-prompt" in refused.line
    assert await newer.ledger() == before

    # The older release brings the schema back, newest first, and serves.
    done = await older.run(*ROLLBACK, "--no-prompt")
    assert done.exit_code == 0, done.output
    for part in ("DROP TABLE breaking", "DROP INDEX CONCURRENTLY ix_region", "DROP COLUMN region"):
        assert part in done.line
    assert "Taken back: breaking, index_region, add_region" in done.line
    taken_back = [(revision, "downgrade") for revision in ("breaking", "index_region", "add_region")]
    assert await newer.ledger() == before + taken_back
    assert await older.versions() == older.project.shipped[-1:]
    assert not await older.has_table("breaking")
    assert not await older.has_table("ix_region")
    assert (await older.replica().ready())["state"] == "at_head"

    # The newer release does not come back by itself: no boomerang.
    said = await newer.replica().refused()
    taken_back_at = await look.fetchval(
        "SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') "
        "FROM migration_ledger WHERE revision = 'breaking' ORDER BY id DESC LIMIT 1"
    )
    role = await look.fetchval("SELECT current_user")
    for part in (
        "Revision breaking, the head of this release 2.0",
        f"taken back at {taken_back_at}",
        f"by {role}",
        "release 2.0 had applied it",
        "nothing was changed",
        "gasket database upgrade",
    ):
        assert part in said, part
    assert await older.versions() == older.project.shipped[-1:]

    # An explicit upgrade lifts it, and the rows are back.
    lifted = await newer.run("gasket", "database", "upgrade")
    assert lifted.exit_code == 0, lifted.output
    assert (await newer.replica().ready())["state"] == "at_head"
    assert await look.fetchval("SELECT region FROM openai_backends") == "eu"

    # Rolled back again, a release that has a revision on top upgrades without being asked.
    assert (await older.run(*ROLLBACK, "--no-prompt")).exit_code == 0
    newest = await _release(install, older, "3.0")
    newest.project.add_table("breaking", backward_compatible=False)
    newest.project.add_table("mended")
    assert (await newest.replica().ready())["revision"] == "mended"
    assert await look.fetchval("SELECT region FROM openai_backends") == "eu"
    assert await look.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_region'::regclass")


async def test_a_rollback_goes_no_further_than_it_is_told(older: Installation, newer: Installation) -> None:
    await newer.migrate()
    done = await older.run(*ROLLBACK, "--no-prompt", "add_region")
    assert done.exit_code == 0, done.output
    assert await newer.versions() == ["add_region"]
    assert "Taken back: index_region" in done.line
    assert await older.holder() is None


async def test_a_rollback_where_nothing_is_newer_does_nothing(older: Installation, newer: Installation) -> None:
    """A goal that only a downgrade can reach is refused."""
    await newer.migrate()
    for goal in ([], ["index_region"]):
        done = await newer.run(*ROLLBACK, "--no-prompt", *goal)
        assert done.exit_code == 0, done.output
        assert "Nothing" in done.line
    for elsewhere, said in (
        ("add_region", "nothing was changed. To take back revisions of this release run: gasket database downgrade "),
        ("nonsense", "There is no revision nonsense; nothing was changed."),
    ):
        refused = await newer.run(*ROLLBACK, "--no-prompt", elsewhere)
        assert refused.exit_code == 1
        assert said in refused.line
    assert await newer.versions() == ["index_region"]


async def test_a_rollback_from_a_branch_leads_to_where_it_left(older: Installation, newer: Installation) -> None:
    """Each release has a revision of its own on the same one: what the older one's refusal names brings it back."""
    older.project.add_table("beside")
    await newer.migrate()
    said = await older.replica().refused()
    assert "it lacks beside of this release, which stands beside it" in said
    assert "roll the schema back to this one: gasket database rollback" in said
    done = await older.run(*ROLLBACK, "--no-prompt")
    assert done.exit_code == 0, done.output
    assert await older.versions() == newer.project.shipped[-1:]
    assert (await older.replica().ready())["revision"] == "beside"


@pytest.mark.parametrize("handle", ["gasket database downgrade --no-prompt", "alembic downgrade"])
async def test_a_downgrade_without_the_newest_file_names_the_release_that_has_it(
    older: Installation, newer: Installation, handle: str
) -> None:
    await newer.migrate()
    done = await older.run(*handle.split(), "-1")
    assert done.exit_code > 0
    for part in ("revision index_region, applied by release 2.0", "a downgrade needs its file", "database rollback"):
        assert part in done.line, part
    assert await newer.versions() == ["index_region"]


async def test_rows_that_cannot_be_archived_are_let_go_by_the_command_that_is_named(
    older: Installation, newer: Installation
) -> None:
    """The one in use, whichever that is."""
    newer.project.add_revision(
        "in_parts",
        'op.create_table("in_parts", sa.Column("id", sa.Integer()))',
        'op.drop_table("in_parts")\nwith op.get_context().autocommit_block():\n    op.execute("ANALYZE api_keys")',
    )
    await newer.migrate()
    shipped = older.project.shipped[-1]
    for installation, command, named in (
        (newer, "alembic downgrade -1", "alembic -x discard_data=yes downgrade -1"),
        (newer, f"gasket database downgrade --no-prompt {shipped}", f"gasket database downgrade {shipped}"),
        (newer, "gasket database downgrade --no-prompt -2", "gasket database downgrade -1 --no-archive"),
        (older, "gasket db rollback --no-prompt", "gasket db rollback --no-archive"),
    ):
        done = await installation.run(*command.split())
        assert done.exit_code > 0, command
        assert f"let the data go: {named}" in done.line, done.output
    look = await older.look()
    assert await look.fetchval("SELECT count(*) FROM migration_failures WHERE revision = 'in_parts'") == 4
    done = await older.run(*named.replace("litestar", "gasket").split(), "--no-prompt", "--discard-data")
    assert done.exit_code == 0, done.output
    assert await older.versions() == [shipped]


async def test_one_revision_that_needs_its_file_keeps_all_of_a_rollback_from_starting(
    older: Installation, newer: Installation
) -> None:
    newer.project.add_revision(
        "asking", 'op.create_table("asking", sa.Column("id", sa.Integer(), primary_key=True))', _ASK_FIRST
    )
    newer.project.add_table("on_top")
    await newer.migrate()
    before = await newer.ledger()
    done = await older.run(*ROLLBACK, "--no-prompt")
    assert done.exit_code > 0
    assert "Traceback" not in done.output
    for part in ("Revision asking", "uses the result of a statement", "nothing was changed", "with release 2.0"):
        assert part in done.line, part
    assert await newer.ledger() == before
    assert await newer.versions() == ["on_top"]
    assert await newer.has_table("on_top")
    # The release that has the file can.
    done = await newer.run("gasket", "database", "downgrade", "--no-prompt", older.project.shipped[-1])
    assert done.exit_code == 0, done.output
    assert (await older.replica().ready())["state"] == "at_head"
