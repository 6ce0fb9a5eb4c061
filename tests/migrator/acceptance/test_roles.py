"""Roles: their own settings, too few rights, and one for the schema beside one for the rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import asyncpg
import pytest

from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import Replica
from tests.acceptance.wire import Server

MakeRole = Callable[[Installation, str], Awaitable[tuple[str, str]]]
TABLES = ("openai_backends", "backend_profiles", "profile_backends", "api_keys")


@pytest.fixture
async def make_role(server_url: str, url_with: Callable[..., str]) -> AsyncIterator[MakeRole]:
    """Call it with an installation and what the role may do there; gives its name and its URL.

    The privileges of `{role}` are SQL text.
    """
    made: list[tuple[Installation, str]] = []

    async def make(installation: Installation, privileges: str) -> tuple[str, str]:
        role, password = f"gasket_test_{uuid4().hex[:12]}", uuid4().hex
        look = await installation.look()
        await look.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        made.append((installation, role))
        await look.execute(privileges.format(role=role, database=Server.of(installation.database_url).database))
        return role, url_with(installation.database_url, user=role, password=password)

    yield make
    for installation, role in made:
        connection = await installation.connect()
        try:
            await connection.execute(
                f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
            )
        finally:
            await connection.close()


async def test_limits_and_search_path_of_the_role_do_not_reach_a_migration(
    installation: Installation, make_role: MakeRole
) -> None:
    role, url = await make_role(
        installation,
        "GRANT CREATE ON SCHEMA public TO {role}; CREATE SCHEMA hostile AUTHORIZATION {role}; "
        "ALTER ROLE {role} SET statement_timeout = '1s'; ALTER ROLE {role} SET idle_session_timeout = '1s'; "
        "ALTER ROLE {role} SET idle_in_transaction_session_timeout = '1s'; ALTER ROLE {role} SET lock_timeout = '1s'; "
        "ALTER ROLE {role} SET search_path = hostile, pg_catalog, public",
    )
    installation.settings["DATABASE_URL"] = url
    project = installation.project
    project.add_pause("slow_statement")
    project.add_revision("idle_session", "import time\ntime.sleep(1.5)")
    project.add_revision("idle_transaction", 'import time\nop.execute("SELECT 1")\ntime.sleep(1.5)')
    await installation.pause(2)
    replicas = [installation.replica() for _ in range(2)]
    for replica in replicas:
        await replica.ready()
    await installation.assert_migrated_once()
    look = await installation.look()
    where = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = $1 AND relkind = 'r'"
    for table in (*TABLES, "slow_statement", "alembic_version", "migration_ledger"):
        assert [row[0] for row in await look.fetch(where, table)] == ["public"], table
    assert await look.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'hostile'::regnamespace") == 0
    # The limits of time do reach the API, which on a busy machine may need more than a second.
    for limit in ("statement", "idle_session", "idle_in_transaction_session", "lock"):
        await look.execute(f"ALTER ROLE {role} RESET {limit}_timeout")
    async with api(replicas[0]) as client:
        made = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        assert made.status_code == 201, made.text


async def test_tables_of_the_same_name_earlier_in_the_search_path_do_not_mislead(
    installation: Installation, make_role: MakeRole
) -> None:
    _, url = await make_role(
        installation,
        "GRANT CREATE ON SCHEMA public TO {role}; CREATE SCHEMA hostile AUTHORIZATION {role}; "
        "CREATE TABLE hostile.alembic_version (version_num varchar(32) PRIMARY KEY); "
        "INSERT INTO hostile.alembic_version VALUES ('feedfacecafe'); "
        "CREATE TABLE hostile.api_keys (id integer); CREATE TABLE hostile.migration_ledger (id integer); "
        "GRANT ALL ON ALL TABLES IN SCHEMA hostile TO {role}; ALTER ROLE {role} SET search_path = hostile, public",
    )
    installation.settings["DATABASE_URL"] = url
    answer = await installation.replica().ready()
    assert answer["state"] == "at_head"
    await installation.assert_migrated_once()
    look = await installation.look()
    assert await look.fetchval("SELECT array_agg(version_num) FROM hostile.alembic_version") == ["feedfacecafe"]
    for command in ("current", "check"):
        done = await installation.run("alembic", command)
        assert done.exit_code == 0, done.output


async def test_a_role_for_the_schema_and_a_role_for_the_rows(installation: Installation, make_role: MakeRole) -> None:
    ddl_role, ddl_url = await make_role(installation, "GRANT CREATE ON SCHEMA public TO {role}")
    app_role, app_url = await make_role(installation, "SELECT")
    installation.settings |= {"DATABASE_URL": app_url, "GASKET_MIGRATION_DATABASE_URL": ddl_url}
    replica = installation.replica()
    await replica.ready()
    await installation.assert_migrated_once()
    look = await installation.look()
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert [row[0] for row in await look.fetch(owners)] == [ddl_role]
    assert await look.fetchval("SELECT array_agg(DISTINCT role) FROM migration_ledger") == [ddl_role]
    for table in TABLES:
        assert await _rights(look, app_role, table) == {"SELECT", "INSERT", "UPDATE", "DELETE"}, table
    for table in ("alembic_version", "migration_ledger"):
        assert await _rights(look, app_role, table) == {"SELECT"}, table
    await _use_the_api(installation, replica)

    # What a later revision makes is granted as well, and a start of the old release's sees it at once.
    installation.project.add_table("one_more")
    newer = installation.replica()
    await newer.ready()
    assert await _rights(look, app_role, "one_more") == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    done = await installation.run("litestar", "--app", "gasket.app:create_app", "database", "check")
    assert done.exit_code in (0, 1), done.output


async def _rights(look: asyncpg.Connection, role: str, table: str) -> set[str]:
    kinds = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    return {kind for kind in kinds if await look.fetchval("SELECT has_table_privilege($1, $2, $3)", role, table, kind)}


async def _use_the_api(installation: Installation, replica: Replica) -> None:
    async with api(replica) as client:
        backend = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        profile = await client.post("/profiles", json={"name": "one", "backends": [backend.json()["id"]]})
        body = {"user_email": "ada@example.com", "name": "laptop", "profile_id": profile.json()["id"]}
        key = await client.post("/keys", json=body)
        assert key.status_code == 201, key.text
        revoked = await client.post(f"/keys/{key.json()['id']}/revoke")
        assert revoked.status_code == 200, revoked.text
        deleted = await client.delete(f"/keys/{key.json()['id']}")
        assert deleted.status_code == 204, deleted.text
        history = await client.get("/migrations")
        assert history.status_code == 200, history.text
        assert history.json()["current"] == await installation.versions()


async def test_a_role_that_may_make_no_tables_is_told_what_to_grant(
    installation: Installation, make_role: MakeRole
) -> None:
    await (await installation.look()).execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    role, url = await make_role(installation, "SELECT")
    said = await installation.replica({"DATABASE_URL": url, "GASKET_LOG_FORMAT": "text"}).refused()
    assert role in said
    assert f'GRANT USAGE, CREATE ON SCHEMA "public" TO "{role}"' in said
    assert not await installation.has_table("migration_ledger")


async def test_a_role_that_may_make_no_schema_is_told_what_to_run(
    installation: Installation, make_role: MakeRole
) -> None:
    role, url = await make_role(installation, "SELECT")
    installation.settings |= {"GASKET_DATABASE_SCHEMA": "elsewhere", "GASKET_LOG_FORMAT": "text"}
    said = await installation.replica({"DATABASE_URL": url}).refused()
    assert f'CREATE SCHEMA "elsewhere" AUTHORIZATION "{role}"' in said


async def test_a_role_that_does_not_own_the_tables_fails_whole(installation: Installation, make_role: MakeRole) -> None:
    """The revision is rolled back; PostgreSQL's words say what right is missing."""
    await installation.migrate()
    _, url = await make_role(
        installation, "GRANT CREATE ON SCHEMA public TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    )
    installation.project.add_revision("a_column", 'op.add_column("api_keys", sa.Column("more", sa.Text()))')
    said = await installation.replica({"DATABASE_URL": url}).refused()
    assert "must be owner of table api_keys" in said
    assert "42501" in said
    assert await installation.versions() == installation.project.shipped[-1:]


async def test_a_wrong_password_is_refused_at_once(installation: Installation, make_role: MakeRole) -> None:
    """On a server that trusts everybody the role is missing instead: the same refusal."""
    role, url = await make_role(installation, "ALTER ROLE {role} NOLOGIN")
    said = await installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "60"}).refused(within=40)
    assert role in said
    assert "DATABASE_URL" in said
    assert Server.of(url).password not in said


async def test_a_primary_that_takes_no_writes(installation: Installation, make_role: MakeRole) -> None:
    _, url = await make_role(
        installation,
        "GRANT CREATE ON SCHEMA public TO {role}; ALTER ROLE {role} SET default_transaction_read_only = on",
    )
    said = await installation.replica({"DATABASE_URL": url}).refused()
    assert "default_transaction_read_only" in said
    assert not await installation.has_table("migration_ledger")
    await installation.migrate()
    look = await installation.look()
    await look.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {Server.of(url).user}")
    answer = await installation.replica({"DATABASE_URL": url}).ready()
    assert answer["state"] == "at_head"


async def test_commands_that_look_say_which_right_they_lack(installation: Installation, make_role: MakeRole) -> None:
    await installation.migrate()
    installation.project.add_table("taken_back")
    await installation.migrate()
    await (await installation.look()).execute("INSERT INTO taken_back VALUES (1)")
    await installation.run("gasket", "database", "downgrade", "--no-prompt")
    role, url = await make_role(installation, "GRANT CREATE ON SCHEMA public TO {role}")
    grant = f'GRANT USAGE ON SCHEMA "public" TO "{role}"; GRANT SELECT ON ALL TABLES IN SCHEMA "public" TO "{role}"'
    for command in ("alembic current", "gasket database downgrade --no-prompt", "gasket database rollback --no-prompt"):
        done = await installation.run(*command.split(), settings={"DATABASE_URL": url})
        assert done.exit_code > 0, command
        assert "Traceback" not in done.output, done.output
        assert grant in done.line, command
    listed = await installation.run("gasket", "database", "archive", "list", settings={"DATABASE_URL": url})
    assert listed.exit_code == 1
    mended = grant.replace('"public"', '"gasket_archive"')
    assert mended in listed.line
    await (await installation.look()).execute(mended)
    listed = await installation.run("gasket", "database", "archive", "list", settings={"DATABASE_URL": url})
    assert "1 row of public.taken_back" in listed.line

    # What it may look at it may not yet drop.
    drop = ("gasket", "database", "archive", "drop", "--no-prompt", listed.output.splitlines()[-1].split()[0])
    for lacking in ("look at the schema's state", "drop archive"):
        dropped = await installation.run(*drop, settings={"DATABASE_URL": url})
        assert dropped.exit_code == 1
        assert f"may not {lacking}" in dropped.line
        assert "Traceback" not in dropped.output, dropped.output
        await (await installation.look()).execute(dropped.output.partition("run: ")[2])
    dropped = await installation.run(*drop, settings={"DATABASE_URL": url})
    assert dropped.exit_code == 0, dropped.output
    assert await installation.archived_rows() == 0


@pytest.mark.parametrize("table", ["alembic_version", "migration_ledger"])
async def test_commands_that_look_wait_no_longer_than_the_limit(installation: Installation, table: str) -> None:
    await installation.migrate()
    somebody = await installation.connect(server_settings={"application_name": "somebody"})
    try:
        await somebody.execute(f"BEGIN; LOCK TABLE {table}")
        commands = ["gasket database downgrade --no-prompt", "gasket database rollback --no-prompt"]
        if table == "alembic_version":
            commands.append("alembic current")
        limit = {"GASKET_DATABASE_WAIT": "1"}
        finished = await asyncio.gather(*(installation.run(*each.split(), settings=limit) for each in commands))
        for command, done in zip(commands, finished, strict=True):
            assert done.exit_code > 0, command
            assert "Traceback" not in done.output, done.output
            for part in ("'somebody'", f"LOCK TABLE {table}", "GASKET_DATABASE_WAIT"):
                assert part in done.line, command
    finally:
        await somebody.close(timeout=10)
