"""SQLAlchemy's driver with fewer round trips: what is sent, what comes back, and what stays refused."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from gasket.migrator.synchronous import run_sync
from gasket.postgres.driver import Batch, fetch, returns_no_rows


async def run(connection: asyncpg.Connection, work: Any) -> Any:
    def in_transaction(over: sa.Connection) -> Any:
        with over.begin():
            return work(over)

    return await run_sync(connection, in_transaction)


async def test_a_statement_without_rows_is_sent_once_and_counts_what_it_changed(
    connection: asyncpg.Connection,
) -> None:
    def work(over: sa.Connection) -> list[int]:
        over.exec_driver_sql("CREATE TABLE counted (id int)")
        changes = ("INSERT INTO counted VALUES (1), (2)", "UPDATE counted SET id = id + 1;", "DELETE FROM counted")
        return [over.exec_driver_sql(change).rowcount for change in changes]

    sent: list[str] = []  # what is prepared goes another way
    with connection.query_logger(lambda record: sent.append(record.query)):
        assert await run(connection, work) == [2, 2, 2]
        await asyncio.sleep(0)  # the driver calls a logger in the loop's next round
    start = sent.index("BEGIN;", 1)  # SQLAlchemy looks at a new connection first
    assert [sql.split()[0] for sql in sent[start:]] == ["BEGIN;", "CREATE", "INSERT", "UPDATE", "DELETE", "COMMIT;"]


async def test_rows_come_back_whatever_the_statement_is(connection: asyncpg.Connection) -> None:
    def work(over: sa.Connection) -> list[Any]:
        over.exec_driver_sql("CREATE TABLE returned (id int)")
        asked = ("INSERT INTO returned VALUES (1) RETURNING id", "DELETE FROM returned\nreturning *", "SELECT 3")
        rows = [over.exec_driver_sql(sql).scalar_one() for sql in asked]
        return [*rows, over.exec_driver_sql("SELECT $1::int", (4,)).scalar_one()]

    assert await run(connection, work) == [1, 1, 3, 4]


async def test_an_error_is_sqlalchemys_and_names_the_statement(connection: asyncpg.Connection) -> None:
    with pytest.raises(DBAPIError) as refused:
        await run(connection, lambda over: over.exec_driver_sql("DROP TABLE not_there"))
    assert refused.value.statement == "DROP TABLE not_there"
    assert getattr(refused.value.orig, "sqlstate", None) == "42P01"
    assert not connection.is_in_transaction()


@pytest.mark.parametrize("sql", ["CREATE TABLE a1 (id int); CREATE TABLE a2 (id int)", "DELETE FROM pg_class; COMMIT"])
async def test_several_statements_in_one_text_stay_refused(sql: str, connection: asyncpg.Connection) -> None:
    with pytest.raises(DBAPIError, match="multiple commands"):
        await run(connection, lambda over: over.exec_driver_sql(sql))


async def test_a_batch_is_sent_as_one(connection: asyncpg.Connection) -> None:
    def work(over: sa.Connection) -> int:
        over.exec_driver_sql("SAVEPOINT a")
        over.exec_driver_sql("CREATE TABLE undone (id int)")
        over.exec_driver_sql(Batch("ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a"))
        return len(fetch(over, "SELECT FROM pg_class WHERE relname = 'undone'"))

    sent: list[str] = []
    with connection.query_logger(lambda record: sent.append(record.query)):
        assert await run(connection, work) == 0
        await asyncio.sleep(0)
    assert "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a" in sent


async def test_what_is_fetched_stays_prepared_until_the_session_forgets_it(connection: asyncpg.Connection) -> None:
    query = "SELECT count(*) FROM pg_class WHERE relname = $1"

    def work(over: sa.Connection) -> list[Any]:
        def count() -> int:
            [(found,)] = fetch(over, query, "lasting")
            return int(found)

        before = count()
        over.exec_driver_sql("CREATE TABLE lasting (id int)")
        after = count()
        kept = over.exec_driver_sql("SELECT array(SELECT statement FROM pg_prepared_statements)").scalar_one()
        over.exec_driver_sql("DEALLOCATE ALL")
        return [before, after, kept.count(query), count()]

    assert await run(connection, work) == [0, 1, 1, 1]


async def test_what_is_fetched_is_in_the_transaction_and_fails_as_sqlalchemys(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE fetched (id int)")

    def work(over: sa.Connection) -> None:
        fetch(over, "INSERT INTO fetched VALUES ($1)", 1)
        over.commit()
        fetch(over, "INSERT INTO fetched VALUES ($1)", 2)
        over.rollback()
        with pytest.raises(DBAPIError) as refused:
            fetch(over, "SELECT 1 / $1::int", 0)
        assert refused.value.statement == "SELECT 1 / $1::int"
        assert getattr(refused.value.orig, "sqlstate", None) == "22012"

    await run_sync(connection, work)
    assert not connection.is_in_transaction()
    assert await connection.fetchval("SELECT array_agg(id) FROM fetched") == [1]


@pytest.mark.parametrize(
    ("sql", "rowless"),
    [
        ("CREATE TABLE a (id int)", True),
        ("\n\tdrop table a ;\n", True),
        ("UPDATE a SET b = 'returning'", False),  # not known is enough
        ("WITH x AS (SELECT 1) INSERT INTO a SELECT * FROM x", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END", False),
        ("created", False),
        ("TABLE a", False),
        ("", False),
    ],
)
def test_what_surely_returns_no_rows(sql: str, rowless: bool) -> None:
    assert returns_no_rows(sql) is rowless
