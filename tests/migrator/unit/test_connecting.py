"""What a database that is away is called: host, port, database and role, and never the password."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connect
from gasket.migrator.errors import DatabaseRefusedError, DatabaseUnavailableError, RevisionFileError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def config(url: str) -> MigratorConfig:
    return MigratorConfig(
        database_url=url, release="1", ini=Path("/nowhere/alembic.ini"), load_metadata=MetaData, database_wait=0.0
    )


async def told(url: str) -> str:
    with pytest.raises((DatabaseUnavailableError, DatabaseRefusedError)) as refusal:
        await connect(config(url), migrating=False)
    message = str(refusal.value)
    assert "hunter2" not in message
    assert "Errno" not in message
    assert "\n" not in message
    return message


async def test_a_server_that_is_away_is_named(closed_port: int) -> None:
    message = await told(f"postgresql://app:hunter2@127.0.0.1:{closed_port}/gasket")
    assert f"The database app@127.0.0.1:{closed_port}/gasket (DATABASE_URL) could not be reached" in message
    assert "Connection refused" in message


@pytest.mark.parametrize(
    ("query", "says"),
    [("", "could not be reached"), ("?sslmode=prefer", "could not be reached"), ("?sslmode=require", "asks for TLS")],
)
async def test_only_a_url_that_demands_tls_is_at_fault_for_an_answer_out_of_order(query: str, says: str) -> None:
    async def upset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)  # the question for TLS
        writer.write(b"T\0\0")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(upset, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert says in await told(f"postgresql://app@127.0.0.1:{port}/gasket{query}")


async def test_a_file_that_cannot_be_read_is_told_at_once_though_the_server_is_away(
    tmp_path: Path, closed_port: int
) -> None:
    project = Project(tmp_path)
    project.add().write_text("revision = 'a")
    away = project.config(f"postgresql://app@127.0.0.1:{closed_port}/gasket", database_wait=300)
    async with asyncio.timeout(60):
        with pytest.raises(RevisionFileError, match="2026_0001.py is not Python"):
            await bring_to_head(away)


async def test_a_host_name_that_cannot_be_resolved_is_named() -> None:
    message = await told("postgresql://app:hunter2@no-such-host.invalid/gasket")
    assert "app@no-such-host.invalid:5432/gasket" in message
    assert "the host name cannot be resolved" in message


async def test_a_socket_that_is_missing_is_named(tmp_path: Path) -> None:
    message = await told(f"postgresql://app:hunter2@/gasket?host={tmp_path}")
    assert f"app@[{tmp_path}]:5432/gasket" in message


async def test_of_several_hosts_each_is_named_with_its_own_fault(closed_port: int) -> None:
    message = await told(f"postgresql://app:hunter2@127.0.0.1:{closed_port},no-such-host.invalid/gasket")
    assert f"app@127.0.0.1:{closed_port},no-such-host.invalid:5432/gasket" in message
    assert "127.0.0.1: Connection refused" in message
    assert "no-such-host.invalid: the host name cannot be resolved" in message


async def test_the_migrating_role_is_named_with_its_own_variable(closed_port: int) -> None:
    app = "postgresql://app:hunter2@127.0.0.1/gasket"
    owner = f"postgresql://owner:hunter2@127.0.0.1:{closed_port}/gasket"
    both = MigratorConfig(
        database_url=app,
        migration_database_url=owner,
        release="1",
        ini=Path("/nowhere/alembic.ini"),
        load_metadata=MetaData,
        database_wait=0.0,
    )
    with pytest.raises(DatabaseUnavailableError) as refusal:
        await connect(both, migrating=True)
    assert f"owner@127.0.0.1:{closed_port}/gasket (GASKET_MIGRATION_DATABASE_URL)" in str(refusal.value)
