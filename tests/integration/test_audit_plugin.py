"""What a replica does for the audit beside requests: log lines, refused sign-ins, and the end of old entries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from gasket import db
from gasket.access.sessions import SessionService
from gasket.audit.outbox import LOGGED_AT_ONCE, MOST_AT_ONCE
from gasket.audit.plugin import AuditPlugin
from gasket.audit.refusals import MOST_ADDRESSES, RefusedSignIns
from gasket.audit.retention import delete_old
from gasket.log_lines import formatter
from tests.acceptance.processes import until
from tests.integration.conftest import Post, assert_problem

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def sessions(api_database_url: str) -> AsyncIterator[Sessions]:
    engine = db.create_engine(api_database_url, schema="public", release="test", pool_size=4)
    yield db.create_sessions(engine)
    await engine.dispose()


@pytest.fixture
def refused() -> RefusedSignIns:
    return RefusedSignIns()


@pytest.fixture
async def plugin(
    sessions: Sessions, refused: RefusedSignIns, database: asyncpg.Connection, client: httpx.AsyncClient
) -> AuditPlugin:
    """One that has nothing of earlier tests to do; call its `work`."""
    await database.execute("DELETE FROM audit_outbox")
    return AuditPlugin(sessions.begin, refused, retention_days=365, every=0.05)


async def make_old(database: asyncpg.Connection, days: int, number: int) -> None:
    """Entries that are so old, which only the owner of the table can make."""
    await database.execute("ALTER TABLE audit_log DISABLE TRIGGER complete_audit_entry")
    await database.execute(
        "INSERT INTO audit_log (at, actor, actor_kind, how, action) "
        "SELECT now() - make_interval(days => $1), 'old', 'role', 'sql', 'create' FROM generate_series(1, $2::int)",
        days,
        number,
    )
    await database.execute("ALTER TABLE audit_log ENABLE TRIGGER complete_audit_entry")


async def entries(database: asyncpg.Connection, action: str) -> list[dict[str, Any]]:
    rows = await database.fetch("SELECT * FROM audit_log WHERE action = $1 ORDER BY id", action)
    return [{**row, "after": json.loads(row["after"])} for row in rows]


@contextmanager
def sent_values(sessions: Sessions) -> Iterator[list[int]]:
    """How many values each statement sends."""
    sent = list[int]()

    def note(_connection: object, _cursor: object, _statement: str, values: Sequence[object], *_rest: object) -> None:
        sent.append(len(values))

    engine = sessions.kw["bind"].sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def is_waiting_for_a_lock(database: asyncpg.Connection) -> bool:
    query = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'audit_outbox'::regclass"
    return bool(await database.fetchval(query))


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The audit's log lines as the log has them."""
    json_lines = formatter("json")
    return [json.loads(json_lines.format(record)) for record in caplog.records if record.name == "gasket.audit"]


class TestLogLines:
    async def test_each_entry_is_one(
        self, plugin: AuditPlugin, post: Post, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        profile = await post("/api/profiles", name="a name that is the user's own")
        await database.execute("UPDATE backend_profiles SET description = 'words'")
        await plugin.work()
        created, changed = lines(caplog)
        wanted = {
            "logger": "gasket.audit",
            "level": "info",
            "message": f"'root' (api): create profile {profile['id']}",
            "actor": "root",
            "actor_kind": "root",
            "how": "api",
            "source": "127.0.0.1",
            "action": "create",
            "object_kind": "profile",
            "object_id": str(profile["id"]),
            "table_name": "backend_profiles",
        }
        assert wanted.items() <= created.items()
        assert created.keys() >= {"entry", "at", "request_id", "database_role"}
        assert (changed["how"], changed["changed"]) == ("sql", ["description"])
        assert "own" not in json.dumps([created, changed])  # what a row says stays in the database
        await plugin.work()
        assert len(lines(caplog)) == 2

    async def test_several_replicas_log_each_once(
        self, sessions: Sessions, plugin: AuditPlugin, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        await database.execute(
            "INSERT INTO audit_log (actor, actor_kind, how, action) "
            "SELECT 'many', 'role', 'sql', 'create' FROM generate_series(1, 1200)"
        )
        others = [AuditPlugin(sessions.begin, RefusedSignIns(), retention_days=0) for _ in range(2)]
        await asyncio.gather(*(each.work() for each in [plugin, *others]))
        await plugin.work()
        logged = [line["entry"] for line in lines(caplog)]
        assert len(logged) == len(set(logged)) == 1200

    async def test_requests_get_their_turns_while_many_are_logged(
        self, plugin: AuditPlugin, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        many = 2 * MOST_AT_ONCE + 1
        await database.execute(
            "INSERT INTO audit_log (actor, actor_kind, how, action) "
            "SELECT 'many', 'role', 'sql', 'create' FROM generate_series(1, $1::int)",
            many,
        )
        working = asyncio.create_task(plugin.work())
        seen = [0]
        while not working.done():
            await asyncio.sleep(0)
            seen.append(sum(record.name == "gasket.audit" for record in caplog.records))
        await working
        assert seen[-1] == many
        assert max(after - before for before, after in pairwise(seen)) <= LOGGED_AT_ONCE

    async def test_an_entry_whose_logging_was_rolled_back_is_logged_again(
        self, sessions: Sessions, plugin: AuditPlugin, post: Post, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        await post("/api/profiles", name="p")

        class Failing(Exception):
            pass

        class Begin:
            async def __aenter__(self) -> AsyncSession:
                self._session = sessions()
                return await self._session.__aenter__()

            async def __aexit__(self, *_error: object) -> None:
                await self._session.__aexit__(None, None, None)
                raise Failing

        failing: Any = Begin
        with pytest.raises(Failing):
            await AuditPlugin(failing, RefusedSignIns(), retention_days=0).work()
        await plugin.work()
        first, second = lines(caplog)
        assert first["entry"] == second["entry"]

    async def test_a_text_line_says_it_in_words(
        self, plugin: AuditPlugin, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        await database.execute(
            "INSERT INTO audit_log (actor, actor_kind, how, action) VALUES (E'a\nforged line', 'role', 'sql', 'create')"
        )
        await plugin.work()
        (record,) = [record for record in caplog.records if record.name == "gasket.audit"]
        assert "\n" not in formatter("text").format(record)

    async def test_it_works_by_itself_until_it_is_stopped(
        self, plugin: AuditPlugin, post: Post, database: asyncpg.Connection, refused: RefusedSignIns
    ) -> None:
        left = "SELECT count(*) FROM audit_outbox"
        plugin.start()
        await post("/api/profiles", name="p")
        await until(lambda: database.fetchval(f"SELECT ({left}) = 0"), 30, "an empty outbox")
        refused.count("203.0.113.77")
        await plugin.stop()
        assert (await entries(database, "refused_sign_in"))[-1]["source"] == "203.0.113.77"
        assert await database.fetchval(left) == 0

    async def test_what_comes_while_it_works_is_done_at_the_end(
        self, plugin: AuditPlugin, database: asyncpg.Connection, refused: RefusedSignIns
    ) -> None:
        async with database.transaction():
            await database.execute("LOCK TABLE audit_outbox")
            plugin.start()
            await until(lambda: is_waiting_for_a_lock(database), 30, "work that is under way")
            stopping = asyncio.create_task(plugin.stop())
            await asyncio.sleep(0)
            refused.count("203.0.113.78")
        await stopping
        assert (await entries(database, "refused_sign_in"))[-1]["source"] == "203.0.113.78"

    async def test_a_database_without_the_table_is_told_of_once(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = db.create_engine(database_url, schema="public", release="test", pool_size=1)
        plugin = AuditPlugin(db.create_sessions(engine).begin, RefusedSignIns(), retention_days=365, every=0.01)
        plugin.start()
        await until(lambda: bool(caplog.messages), 30, "a warning")
        await asyncio.sleep(0.1)  # some more rounds
        await plugin.stop()
        await engine.dispose()
        assert len(caplog.messages) == 1
        assert "audit_outbox" in caplog.text


class TestRefusedSignIns:
    async def test_are_counted_by_address(
        self, plugin: AuditPlugin, refused: RefusedSignIns, database: asyncpg.Connection
    ) -> None:
        before = len(await entries(database, "refused_sign_in"))
        for number in range(MOST_ADDRESSES + 3):
            for _ in range(2):
                refused.count(f"192.0.2.{number}")
        plugin._next_refusals = 0.0
        await plugin.work()
        found = (await entries(database, "refused_sign_in"))[before:]
        assert [entry["source"] for entry in found] == [*(f"192.0.2.{n}" for n in range(MOST_ADDRESSES)), None]
        assert [entry["after"] for entry in found] == [
            *[{"count": 2}] * MOST_ADDRESSES,
            {"count": 6, "sources": "further addresses"},
        ]
        assert {(entry["actor"], entry["actor_kind"], entry["before"]) for entry in found} == {
            ("unknown", "unknown", None)
        }

    async def test_wrong_tokens_are_refused_sign_ins_and_missing_ones_are_not(self, client: httpx.AsyncClient) -> None:
        transport: Any = client._transport
        plugin = transport.app.plugins.get(AuditPlugin)
        plugin._refused.take()
        for header in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Authorization": ""}):
            assert_problem(await client.get("/api/me", headers=header), 401, "unauthorized")
        assert [(one.source, one.count) for one in plugin._refused.take()] == [("127.0.0.1", 3)]

    async def test_those_that_cannot_be_stored_stay_counted(self, database_url: str, refused: RefusedSignIns) -> None:
        refused.count("192.0.2.1")
        engine = db.create_engine(database_url, schema="public", release="test", pool_size=1)
        plugin = AuditPlugin(db.create_sessions(engine).begin, refused, retention_days=0)
        plugin._next_refusals = 0.0
        with pytest.raises(Exception, match="audit_log"):
            await plugin.work()
        await engine.dispose()
        assert [(one.source, one.count) for one in refused.take()] == [("192.0.2.1", 1)]


class TestRetention:
    async def test_what_is_older_goes_with_one_entry_that_says_so(
        self, plugin: AuditPlugin, database: asyncpg.Connection
    ) -> None:
        await make_old(database, 366, 7)
        await make_old(database, 364, 2)
        before = len(await entries(database, "retention"))
        plugin._next_retention = 0.0
        await plugin.work()
        assert await database.fetchval("SELECT count(*) FROM audit_log WHERE actor = 'old'") == 2
        (entry,) = (await entries(database, "retention"))[before:]
        assert (entry["after"]["entries"], entry["actor_kind"], entry["how"]) == (7, "replica", "sql")
        plugin._next_retention = 0.0
        await plugin.work()
        assert len(await entries(database, "retention")) == before + 1

    async def test_its_failure_does_not_keep_entries_from_the_log(
        self, plugin: AuditPlugin, sessions: Sessions, post: Post, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.audit")
        plugin = AuditPlugin(sessions.begin, RefusedSignIns(), retention_days=10**10)  # more than a timedelta takes
        plugin._next_retention = 0.0
        await post("/api/profiles", name="a profile")
        with pytest.raises(OverflowError):
            await plugin.work()
        assert [line["object_kind"] for line in lines(caplog)] == ["profile"]

    async def test_in_batches(self, sessions: Sessions, database: asyncpg.Connection) -> None:
        await make_old(database, 400, 5)
        more = list[bool]()
        for _ in range(3):
            async with sessions.begin() as session:
                more.append(await delete_old(session, days=399, at_once=2))
        assert more == [True, True, False]

    async def test_no_ids_leave_the_database(self, sessions: Sessions, database: asyncpg.Connection) -> None:
        await make_old(database, 400, 50)
        async with sessions.begin() as session:
            with sent_values(sessions) as sent:
                assert await delete_old(session, days=399, at_once=50)
        assert max(sent) < 10

    async def test_zero_days_are_for_ever(self, sessions: Sessions, database: asyncpg.Connection) -> None:
        await make_old(database, 10_000, 1)
        plugin = AuditPlugin(sessions.begin, RefusedSignIns(), retention_days=0)
        plugin._next_retention = 0.0
        await plugin.work()
        assert await database.fetchval("SELECT count(*) FROM audit_log WHERE at < now() - interval '9000 days'") == 1
        async with sessions.begin() as session:
            await delete_old(session, days=9000)


class TestSessions:
    async def make(self, database: asyncpg.Connection, name: str, *, seen: str, begun: str, number: int = 1) -> None:
        """Sessions that were seen and begun so long ago."""
        await database.execute(
            "INSERT INTO browser_sessions (digest, name, role, last_seen_at, created_at) "
            "SELECT $1 || n, $1, 'viewer', now() - $2::text::interval, now() - $3::text::interval "
            "FROM generate_series(1, $4::int) AS n",
            name,
            seen,
            begun,
            number,
        )

    async def test_those_that_are_over_go_whatever_the_retention_is_and_a_replica_did_it(
        self, sessions: Sessions, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await self.make(database, "idle", seen="9 h", begun="9 h")
        await self.make(database, "old", seen="1 min", begun="25 h")
        await self.make(database, "live", seen="7 h", begun="23 h")
        last = await database.fetchval("SELECT coalesce(max(id), 0) FROM audit_log")
        plugin = AuditPlugin(sessions.begin, RefusedSignIns(), retention_days=0)
        plugin._next_retention = 0.0
        await plugin.work()
        assert [row["name"] for row in await database.fetch("SELECT name FROM browser_sessions")] == ["live"]
        told = await database.fetch(
            "SELECT action, object_kind, actor_kind, before ->> 'name' AS name FROM audit_log WHERE id > $1 ORDER BY 4",
            last,
        )
        assert [tuple(row) for row in told] == [("delete", "session", "replica", name) for name in ("idle", "old")]

    async def test_in_batches(
        self, sessions: Sessions, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await self.make(database, "idle", seen="9 h", begun="9 h", number=5)
        more = list[bool]()
        for _ in range(3):
            async with sessions.begin() as session:
                more.append(await SessionService(session).delete_over(at_once=2))
        assert more == [True, True, False]

    async def test_no_ids_leave_the_database(
        self, sessions: Sessions, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await self.make(database, "idle", seen="9 h", begun="9 h", number=50)
        async with sessions.begin() as session:
            with sent_values(sessions) as sent:
                assert await SessionService(session).delete_over(at_once=50)
        assert max(sent) < 10
