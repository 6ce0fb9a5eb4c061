"""Revisions with odd names or texts, or that leave another role on: each works, or a sentence names the cause."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gasket.migrator.commands.accept import accept
from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.errors import MigrationFailedError, RevisionFileError
from gasket.migrator.head import bring_to_head
from tests.migrator.project import Project, ledger


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
async def role(observer: asyncpg.Connection) -> AsyncIterator[str]:
    name = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {name} NOLOGIN")
    yield name
    await observer.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
async def database_of(server_url: str, url_with: Callable[..., str]) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    names: list[str] = []
    server = await asyncpg.connect(server_url)

    async def make(encoding: str) -> str:
        name = f"gasket_test_{uuid4().hex[:16]}"
        await server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        names.append(name)
        return url_with(server_url, database=name)

    yield make
    for name in names:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
@pytest.mark.parametrize("text", ["grün", "ключи", "鍵 → value"])
async def test_a_docstring_that_the_database_cannot_hold(
    project: Project, database_of: Callable[[str], Awaitable[str]], encoding: str, text: str
) -> None:
    url = await database_of(encoding)
    path = project.add()
    path.write_text(path.read_text().replace('"""r1"""', f'"""{text}"""'), encoding="utf-8")
    await bring_to_head(project.config(url))
    connection = await asyncpg.connect(url)
    assert await ledger(connection) == [("r1", "upgrade")]
    await connection.close()


@pytest.mark.parametrize("statement", ["SET ROLE {}", "SET SESSION AUTHORIZATION {}", "SET LOCAL ROLE {}"])
async def test_a_role_that_is_left_on(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, statement: str
) -> None:
    project.add(f'op.execute("{statement.format(role)}")')
    project.add()
    with pytest.raises(MigrationFailedError, match=r"r1 failed: permission denied .* leaves it on; .* RESET ROLE"):
        await bring_to_head(project.config(database_url))
    assert await observer.fetchval("SELECT count(*) FROM migration_ledger") == 0


@pytest.mark.parametrize("statement", ["SET ROLE {}", "SET SESSION AUTHORIZATION {}"])
async def test_a_role_that_may_write_to_the_ledger_ends_with_its_step(
    project: Project, database_url: str, observer: asyncpg.Connection, role: str, statement: str
) -> None:
    project.add()
    await bring_to_head(project.config(database_url))
    await observer.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    project.add(f'op.execute("{statement.format(role)}")')
    project.add()
    await bring_to_head(project.config(database_url))
    owners = "SELECT count(*) FROM pg_tables WHERE tableowner = current_user AND tablename = 't3'"
    assert await observer.fetchval(owners) == 1


async def test_an_index_name_that_postgresql_cuts(
    project: Project, database_url: str, observer: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    project.add('op.execute("CREATE TABLE t1 (v int)")')
    await bring_to_head(project.config(database_url))
    await observer.execute("INSERT INTO t1 VALUES (1), (1)")
    name = "ix_" + "x" * 67
    project.add(
        "with op.get_context().autocommit_block():\n"
        f'        op.execute("CREATE UNIQUE INDEX CONCURRENTLY {name} ON t1 (v)")'
    )
    with pytest.raises(MigrationFailedError, match="could not create unique index"):
        await bring_to_head(project.config(database_url))
    await observer.execute("DELETE FROM t1")
    await bring_to_head(project.config(database_url))
    assert "going on after 1 statement that" in caplog.text
    valid = "SELECT array_agg(indisvalid) FROM pg_index WHERE indrelid = 't1'::regclass"
    assert await observer.fetchval(valid) == [True]


async def test_an_index_name_that_is_refused_before_its_statement_is_sent(project: Project, database_url: str) -> None:
    """It fails before its statement is sent, so the block has committed nothing."""
    project.add()
    project.add(
        "with op.get_context().autocommit_block():\n"
        f"        op.create_index({'ix_' + 'x' * 67!r}, 't1', ['id'], postgresql_concurrently=True)"
    )
    with pytest.raises(MigrationFailedError) as refusal:
        await bring_to_head(project.config(database_url))
    assert "it was rolled back whole, r1 before it stays; the schema is at r1" in str(refusal.value)


async def test_a_colon_that_sqlalchemy_takes_for_a_parameter(project: Project, database_url: str) -> None:
    """The name of that parameter is a value, so it is not told."""
    path = project.add("""op.execute("SELECT '{\\"pin\\":4711}'::jsonb")""")
    config = project.config(database_url)
    sentence = r"begins no parameter, as in JSON, is written \\\\: or, in a raw string, \\: \(2026_0001.py, line 11\)"
    failure = (await forecast_pending(config)).failure or ""
    assert re.search(sentence, failure)
    with pytest.raises(MigrationFailedError, match=sentence) as refusal:
        await bring_to_head(config)
    assert "4711" not in failure + str(refusal.value)
    path.write_text(path.read_text().replace(":4711", r"\\:4711"))
    await bring_to_head(config)


async def test_a_file_that_is_another_revision_once_it_is_imported(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    """No check has seen that one."""
    project.add()
    path = project.add()
    path.write_text(path.read_text() + '\nif True:\n    revision = "r9"\n')
    config = project.config(database_url)
    sentence = r"2026_0002.py is revision r9 once it is imported.*nothing was changed"
    with pytest.raises(RevisionFileError, match=sentence):
        await forecast_pending(config)
    with pytest.raises(RevisionFileError, match=sentence):
        await bring_to_head(config)
    assert await ledger(observer) == []


async def test_an_applied_file_that_stands_elsewhere_once_it_is_imported(project: Project, database_url: str) -> None:
    """A start applies no step of it, so a plan does not refuse what a start does."""
    config = project.config(database_url)
    project.add()
    project.add()
    path = project.add()
    await bring_to_head(config)
    path.write_text(path.read_text() + '\nif True:\n    down_revision = ("r1", "r2")\n')
    await accept(config, "r3")
    project.add()
    [revision] = (await forecast_pending(config)).revisions
    assert revision.revision == "r4"
    await bring_to_head(config)


@pytest.mark.parametrize("place", ["file", "upgrade"])
async def test_a_file_that_ends_the_process(
    project: Project, database_url: str, observer: asyncpg.Connection, place: str
) -> None:
    project.add()
    path = project.add("op.execute('CREATE TABLE t2 (id int)')\n    raise SystemExit(0)")
    if place == "file":
        path.write_text(path.read_text() + "\nraise SystemExit(0)\n")
    expected = RevisionFileError if place == "file" else MigrationFailedError
    with pytest.raises(expected, match=r"SystemExit: 0 \(2026_0002.py, line \d+\)"):
        await bring_to_head(project.config(database_url))
    assert await ledger(observer) == ([] if place == "file" else [("r1", "upgrade")])
