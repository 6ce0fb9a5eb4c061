"""When a replica does not start: not 0, no port, no stack trace, one sentence with what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest

from tests.acceptance.installation import Installation
from tests.acceptance.processes import free_port
from tests.acceptance.wire import Server, tapped


async def test_a_server_that_is_away(installation: Installation) -> None:
    url = f"postgresql://gasket:hunter2secret@127.0.0.1:{free_port()}/gasket"
    said = await installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "1"}, cold=True).refused()
    assert "DATABASE_URL" in said
    assert re.search(r"within \d+ s", said)  # 1, or what a slow machine has made of it
    assert "GASKET_DATABASE_WAIT" in said
    assert "hunter2secret" not in said


async def test_a_server_that_does_not_answer(installation: Installation) -> None:
    """It accepts connections and says nothing, as one behind a firewall or a stopped virtual machine."""
    silent = await asyncio.start_server(_say_nothing, "127.0.0.1", 0)
    async with silent:
        url = f"postgresql://gasket@127.0.0.1:{silent.sockets[0].getsockname()[1]}/gasket?sslmode=disable"
        said = await installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "2"}).refused()
    assert "DATABASE_URL" in said
    assert re.search(r"within \d+ s", said)  # 2, or what a slow machine has made of them


@pytest.mark.parametrize("setting", ["DATABASE_URL", "GASKET_MIGRATION_DATABASE_URL"])
async def test_a_certificate_that_is_not_there(installation: Installation, setting: str) -> None:
    """Waiting would not bring it."""
    joint = "&" if "?" in installation.database_url else "?"
    url = f"{installation.database_url}{joint}sslmode=verify-ca&sslrootcert=/nowhere/root.crt"
    said = await installation.replica({setting: url, "GASKET_DATABASE_WAIT": "300"}).refused()
    for part in ("sslrootcert is /nowhere/root.crt", f"Correct {setting}", "nothing was changed"):
        assert part in said, part
    assert "waiting" not in said


async def test_a_server_without_tls_where_the_url_asks_for_it(installation: Installation) -> None:
    """Waiting would not bring that either."""

    async def refuse_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # PostgreSQL manual, "SSL Session Encryption": the request, and N for no
        writer.write(b"N")
        await _say_nothing(reader, writer)

    plain = await asyncio.start_server(refuse_tls, "127.0.0.1", 0)
    async with plain:
        url = f"postgresql://gasket@127.0.0.1:{plain.sockets[0].getsockname()[1]}/gasket?sslmode=require"
        said = await installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "60"}).refused()
    for part in ("rejected SSL upgrade", "sslmode asks for TLS", "Correct DATABASE_URL"):
        assert part in said, part
    assert "waiting" not in said


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass
    writer.close()


async def test_a_database_that_does_not_exist(installation: Installation, url_with: Callable[..., str]) -> None:
    url = url_with(installation.database_url, database="gasket_test_missing")
    said = await installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "1"}).refused()
    assert "gasket_test_missing" in said
    assert "create the database" in said


async def test_a_database_that_is_created_while_it_is_waited_for(
    installation: Installation, url_with: Callable[..., str]
) -> None:
    look = await installation.look()
    name = f"{Server.of(installation.database_url).database}_late"
    url = url_with(installation.database_url, database=name)
    replica = installation.replica({"DATABASE_URL": url, "GASKET_DATABASE_WAIT": "60"})
    await replica.says("waiting up to 60 s for the database")
    await look.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        answer = await replica.ready()
        assert answer["state"] == "at_head"
        await replica.stop()
    finally:
        await look.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (("gasket", "run", "--web-concurrency", "2"), {}),
        (("gasket", "run"), {"LITESTAR_WEB_CONCURRENCY": "2"}),
        (("litestar", "--app", "gasket.app:create_app", "run"), {"WEB_CONCURRENCY": "2"}),
    ],
)
async def test_more_than_one_process(
    installation: Installation, command: tuple[str, ...], settings: dict[str, str | None]
) -> None:
    """Its workers would each be refused or not, and the parent exit 0 either way."""
    said = await installation.run(*command, "--port", str(free_port()), settings=settings)
    assert said.exit_code == 1
    assert "a replica is one process, and 2 were asked for" in said.line
    assert "Start more replicas" in said.line
    assert "Traceback" not in said.output
    assert not await installation.has_table("alembic_version")


async def test_two_heads(installation: Installation) -> None:
    base = installation.project.shipped[-1]
    installation.project.add_table("left")
    installation.project.add_revision("right", down_revision=base)
    said = await installation.replica().refused()
    assert "left" in said
    assert "right" in said
    assert "gasket database merge left right" in said
    assert not await installation.has_table("alembic_version")


async def test_an_undecided_compatibility(installation: Installation) -> None:
    path = installation.project.add_table("undecided")
    path.write_text(path.read_text().replace("backward_compatible: bool = True", "backward_compatible: bool"))
    said = await installation.replica().refused()
    assert path.name in said
    assert "backward_compatible" in said
    assert not await installation.has_table("alembic_version")


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("def upgrade() -> None:", "def upgrade() ->"),
        ("import sqlalchemy as sa", "import sqlalchemy_of_tomorrow as sa"),
    ],
)
async def test_a_file_that_cannot_be_loaded(installation: Installation, there: str, instead: str) -> None:
    path = installation.project.add_table("broken")
    path.write_text(path.read_text().replace(there, instead))
    said = await installation.replica().refused()
    command = await installation.run("alembic", "upgrade", "head")
    assert command.exit_code > 0
    assert "Traceback" not in command.output
    for message in (said, command.line):
        assert path.name in message
        assert "nothing was changed" in message
    assert not await installation.has_table("alembic_version")


@pytest.mark.parametrize("compatible", [False, True])
async def test_a_schema_that_a_newer_release_has_changed(installation: Installation, compatible: bool) -> None:
    newer = installation.project.add_table("newer", backward_compatible=compatible)
    await installation.replica({"GASKET_RELEASE": "2.0"}).ready()
    newer.unlink()
    older = installation.replica({"GASKET_RELEASE": "1.0"})
    if compatible:
        answer = await older.ready()
        assert (answer["state"], answer["revision"]) == ("ahead", "newer")
    else:
        said = await older.refused()
        for part in ("revision newer", "release 2.0", "release 1.0", "not backward compatible"):
            assert part in said
    assert await installation.versions() == ["newer"]


async def test_a_revision_that_nobody_knows(installation: Installation) -> None:
    await installation.migrate()
    await (await installation.look()).execute("UPDATE alembic_version SET version_num = 'feedfacecafe'")
    said = await installation.replica({"GASKET_RELEASE": "1.0"}).refused()
    assert "feedfacecafe" in said
    assert "release 1.0" in said
    for command in ("alembic upgrade head", "alembic downgrade -1", "gasket database upgrade", "alembic current"):
        done = await installation.run(*command.split())
        assert done.exit_code > 0, command
        assert "feedfacecafe" in done.output, command
        assert "Traceback" not in done.output, command
    assert await installation.versions() == ["feedfacecafe"]


async def test_told_not_to_migrate_it_waits_until_somebody_has(installation: Installation) -> None:
    replica = installation.replica({"GASKET_MIGRATE_ON_STARTUP": "false"})
    await replica.says("GASKET_MIGRATE_ON_STARTUP is false")
    assert not await installation.has_table("alembic_version")
    job = await installation.run("litestar", "--app", "gasket.app:create_app", "database", "upgrade", cold=True)
    assert job.exit_code == 0, job.output
    answer = await replica.ready()
    assert answer["state"] == "at_head"
    await installation.assert_migrated_once()


async def test_told_not_to_migrate_it_waits_no_longer_than_the_limit(installation: Installation) -> None:
    replica = installation.replica({"GASKET_MIGRATE_ON_STARTUP": "false", "GASKET_MIGRATION_LOCK_WAIT": "1"})
    said = await replica.refused()
    assert installation.project.shipped[-1] in said
    assert "gasket database upgrade" in said
    assert not await installation.has_table("alembic_version")
    assert "Pool disposed" not in replica.output


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("GASKET_MIGRATION_LOCK_WAIT", "soon", "number of seconds"),
        ("GASKET_DATABASE_SCHEMA", "pg_own", "schema name"),
        ("GASKET_MIGRATE_ON_STARTUP", "perhaps", "true or false"),
        ("DATABASE_URL", "mysql://root:hunter2secret@localhost/db", "postgresql://"),
        ("DATABASE_URL", "postgresql://root:hunter2secret@localhost/db?sslmode=maybe", "sslmode"),
        ("GASKET_DATABASE_POOL_SIZE", "0", "1 to 1000"),
    ],
)
async def test_a_wrong_setting(installation: Installation, name: str, value: str, allowed: str) -> None:
    async with tapped(installation.database_url) as tap:
        settings = {"DATABASE_URL": tap.url, name: value}
        replica = installation.replica(settings)
        command = await installation.run("alembic", "current", settings=settings)
        said = await replica.refused()
    assert command.exit_code > 0
    for message in (said, command.line):
        assert name in message
        assert allowed in message
        assert "hunter2secret" not in message
        assert "Traceback" not in message
    assert not tap.sent
