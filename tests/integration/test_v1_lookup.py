"""What a key may do, from a real database, and how its changes are heard of."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import monotonic
from typing import Any
from weakref import ref

import asyncpg
import pytest

from gasket.limits.subjects import Limits
from gasket.proxy.access import Access, ServedModel
from gasket.proxy.directory import KeyDirectory
from gasket.proxy.errors import BusyError, KeyRefusedError
from gasket.proxy.listener import ChangeListener
from gasket.proxy.lookup import CONNECTIONS, KeyLookup
from gasket.upstream.routes import Proxy, Route
from tests.acceptance.wire import Server
from tests.conftest import databases

from .conftest import migrate

LOOKUP, LISTENER = "gasket-test-lookup", "gasket-test-listener"
CREDENTIALS = {"token a": "secret a", "token b": "secret b"}
CREDENTIALS |= {"token p": "http://proxy:3128", "token h": '{"X-Tenant": "t"}'}
NAMES = ["valid", "revoked", "expired", "short", "lone", "unknown"]
KEYS = {name: b"gsk_%048x" % number for number, name in enumerate(NAMES)}
DIGESTS = {name: sha256(key).hexdigest() for name, key in KEYS.items()}

SEED = """
INSERT INTO openai_backends (id, name, base_url, api_key, max_concurrency, connect_timeout, first_byte_timeout,
    chunk_timeout, skip_tls_verify) VALUES
    (1, 'a', 'http://a', 'token a', 7, 1.5, 2.5, 3.5, true),
    (2, 'b', 'http://b/v1', 'token b', NULL, 5, 300, 60, false),
    (3, 'c', 'http://c', 'sealed otherwise', NULL, 5, 300, 60, false),
    (4, 'd', 'http://d', NULL, NULL, 5, 300, 60, false);
INSERT INTO backend_profiles (id, name, allowed_models, allow_stateful_endpoints, requests_per_minute) VALUES
    (1, 'several', ARRAY['m', 'n'], true, 100), (2, 'none', '{}', false, NULL);
INSERT INTO profile_backends (profile_id, backend_id, position) VALUES (1, 3, 0), (1, 1, 1), (1, 4, 2), (1, 2, 3)
"""
NEW_KEY = """
INSERT INTO api_keys (id, user_email, name, key_value, key_preview, profile_id, expires_at, revoked_at, max_concurrency)
VALUES ($1, 'a@b.c', '', $2, '', $3, $4, $5, $6)
"""
PREVIOUS = """
INSERT INTO previous_api_keys (key_id, key_value, expires_at)
SELECT id, $1, now() + $3::interval FROM api_keys WHERE key_value = $2
"""


async def fill(connection: asyncpg.Connection) -> None:
    now = datetime.now(UTC)
    later, before = now + timedelta(seconds=90), now - timedelta(seconds=1)
    rows = [
        (0, DIGESTS["valid"], 1, None, None, 5),
        (1, DIGESTS["revoked"], 1, later, before, None),
        (2, DIGESTS["expired"], 1, before, None, None),
        (3, DIGESTS["short"], 1, later, None, None),
        (4, DIGESTS["lone"], 2, None, None, None),
    ]
    await connection.execute(SEED)
    await connection.executemany(NEW_KEY, rows)


@pytest.fixture(scope="session")
async def at_head(server_url: str) -> AsyncIterator[str]:
    """The name of a database at head that nobody is connected to."""
    async with databases(server_url) as make:
        url = await make()
        await migrate(url)
        yield Server.of(url).database


@pytest.fixture
async def database_url(make_database: Callable[..., Awaitable[str]], at_head: str) -> str:
    """A database of the test's own, at head: a copy is there sooner than the migrations are applied."""
    return await make_database(at_head)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """It, with keys in it."""
    connection: asyncpg.Connection = await asyncpg.connect(database_url, statement_cache_size=0)
    await fill(connection)
    yield connection
    await connection.close()


@asynccontextmanager
async def looking_up(url: str, schema: str = "public") -> AsyncIterator[KeyLookup]:
    lookup = KeyLookup(url, schema=schema, application_name=LOOKUP, decrypt=CREDENTIALS.get)
    try:
        yield lookup
    finally:
        await lookup.close()


@pytest.fixture
async def lookup(database: asyncpg.Connection, database_url: str) -> AsyncIterator[KeyLookup]:
    async with looking_up(database_url) as lookup:
        yield lookup


async def sessions(database: asyncpg.Connection, application: str = LOOKUP) -> list[int]:
    """The pids of the server's sessions."""
    rows = await database.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", application
    )
    return [row["pid"] for row in rows]


async def kill(database: asyncpg.Connection, application: str = LOOKUP) -> None:
    """End the sessions, and wait until they are gone."""
    for pid in await sessions(database, application):
        await database.execute("SELECT pg_terminate_backend($1, 5000)", pid)


async def until(happened: Callable[[], Awaitable[bool]], within: float = 60) -> None:
    async with asyncio.timeout(within):
        while not await happened():  # noqa: ASYNC110  # what happens is the server's
            await asyncio.sleep(0.02)


class TestKeys:
    async def test_all_that_is_known_of_one(self, lookup: KeyLookup) -> None:
        access = await lookup.find(DIGESTS["valid"])
        assert (access.key_id, access.user_email, access.expires_at) == (0, "a@b.c", None)
        assert access.limits == Limits(max_concurrency=5)
        profile = access.profile
        assert (profile.id, profile.name, profile.allow_stateful_endpoints) == (1, "several", True)
        assert profile.allowed_models == {"m", "n"}
        assert profile.limits == Limits(requests_per_minute=100)
        assert [backend.name for backend in profile.backends] == ["c", "a", "d", "b"], "in the profile's order"
        sealed, first, open_one, last = profile.backends
        assert (first.id, first.base_url, first.credential, first.skip_tls_verify) == (1, "http://a", "secret a", True)
        assert (first.max_concurrency, *first.timeouts) == (7, 1.5, 2.5, 3.5)
        assert (last.credential, last.max_concurrency, *last.timeouts) == ("secret b", None, 5, 300, 60)
        assert [backend.credential_unreadable for backend in profile.backends] == [True, False, False, False]
        assert sealed.credential is open_one.credential is None

    async def test_how_a_backend_is_asked(self, lookup: KeyLookup, database: asyncpg.Connection) -> None:
        await database.execute(
            "UPDATE openai_backends SET credential_header = 'api-key', credential_scheme = '', headers = 'token h', "
            "response_headers = ARRAY['X-Served-By'], proxy_url = 'token p' WHERE id = 1; "
            "UPDATE openai_backends SET headers = 'sealed otherwise' WHERE id = 4; "
            "UPDATE openai_backends SET proxy_url = 'sealed otherwise' WHERE id = 3"
        )
        sealed, first, other, last = (await lookup.find(DIGESTS["valid"])).profile.backends
        assert first.own_fields == [(b"x-tenant", b"t"), (b"api-key", b"secret a")]
        assert (first.response_headers, first.credential_unreadable) == ((b"x-served-by",), False)
        assert first.route == Route(skip_tls_verify=True, proxy=Proxy("proxy", 3128, b""))
        assert (sealed.proxy_url, sealed.credential_unreadable) == (None, True)
        assert (other.credential, other.credential_unreadable) == (None, True)
        assert (last.own_fields, last.response_headers) == ([(b"authorization", b"Bearer secret b")], ())

    async def test_the_models_of_a_backend_and_how_a_profile_routes(
        self, lookup: KeyLookup, database: asyncpg.Connection
    ) -> None:
        plain = (await lookup.find(DIGESTS["valid"])).profile
        assert (plain.routing, plain.user_header) == ("ordered", None)
        assert [backend.models for backend in plain.backends] == [()] * 4
        await database.execute(
            "INSERT INTO backend_models VALUES (1, 1, 'a', 'b', NULL, 0), (1, 0, 'é\"', 'ü', 95, 7);"
            "UPDATE backend_profiles SET routing = 'sticky', user_header = 'X-User' WHERE id = 1"
        )
        profile = (await lookup.find(DIGESTS["valid"])).profile
        assert (profile.routing, profile.user_header) == ("sticky", b"x-user")
        rows = (ServedModel('é"', "ü", 95, 7), ServedModel("a", "b", None, 0))
        assert [backend.models for backend in profile.backends] == [(), rows, (), ()]
        assert (await lookup.find(DIGESTS["short"])).profile is profile

    async def test_a_profile_without_backends_or_limits(self, lookup: KeyLookup) -> None:
        profile = (await lookup.find(DIGESTS["lone"])).profile
        assert profile.backends == ()
        assert not profile.limits.any
        assert profile.allows("any model")

    @pytest.mark.parametrize(
        ("name", "code"),
        [("revoked", "revoked_api_key"), ("expired", "expired_api_key"), ("unknown", "invalid_api_key")],
    )
    async def test_one_that_is_refused(self, lookup: KeyLookup, name: str, code: str) -> None:
        with pytest.raises(KeyRefusedError) as refused:
            await lookup.find(DIGESTS[name])
        assert refused.value.code == code

    async def test_the_database_says_how_long_it_lives(self, lookup: KeyLookup) -> None:
        expires_at = (await lookup.find(DIGESTS["short"])).expires_at
        assert expires_at is not None
        assert 60 < expires_at - monotonic() <= 90

    @pytest.mark.parametrize("name", ["valid", "short"])
    async def test_the_key_before_a_rotation_lives_as_long_as_its_grace_and_the_key(
        self, lookup: KeyLookup, database: asyncpg.Connection, name: str
    ) -> None:
        new = (await lookup.find(DIGESTS[name])).previous_digest
        await database.execute(PREVIOUS, DIGESTS["unknown"], DIGESTS[name], timedelta(minutes=1))
        before = await lookup.find(DIGESTS["unknown"])
        assert (new, before.previous_digest, before.profile.name) == (None, DIGESTS["unknown"], "several")
        assert before.expires_at is not None
        assert 40 < before.expires_at - monotonic() <= 60
        await database.execute("UPDATE previous_api_keys SET expires_at = now() + interval '1 day'")
        longer = (await lookup.find(DIGESTS["unknown"])).expires_at
        assert longer is not None
        assert 60 < longer - monotonic() <= (90 if name == "short" else 86_400)
        await database.execute("UPDATE previous_api_keys SET expires_at = now() - interval '1 second'")
        await self.test_one_that_is_refused(lookup, "unknown", "expired_api_key")

    async def test_a_revoked_key_takes_the_one_before_it_along(
        self, lookup: KeyLookup, database: asyncpg.Connection
    ) -> None:
        await database.execute(PREVIOUS, DIGESTS["unknown"], DIGESTS["revoked"], timedelta(minutes=1))
        await self.test_one_that_is_refused(lookup, "unknown", "revoked_api_key")

    async def test_keys_share_what_is_the_same_until_it_changes(
        self, lookup: KeyLookup, database: asyncpg.Connection
    ) -> None:
        first, second = [await lookup.find(DIGESTS[name]) for name in ("valid", "short")]
        assert first.profile is second.profile
        await database.execute("UPDATE openai_backends SET base_url = 'http://moved' WHERE id = 1")
        third = await lookup.find(DIGESTS["valid"])
        assert [backend.base_url for backend in third.profile.backends][1] == "http://moved"
        assert [backend.base_url for backend in first.profile.backends][1] == "http://a"
        assert third.profile.backends[0] is first.profile.backends[0]

    async def test_of_keys_that_nobody_remembers_nothing_stays(self, lookup: KeyLookup) -> None:
        access = await lookup.find(DIGESTS["valid"])
        left: list[ref[Any]] = [ref(access.profile), *map(ref, access.profile.backends)]
        del access
        gc.collect()
        assert [one() for one in left] == [None] * 5

    async def test_in_another_schema(self, database: asyncpg.Connection, database_url: str) -> None:
        await database.execute('ALTER SCHEMA public RENAME TO "a schema"; CREATE SCHEMA public')
        async with looking_up(database_url, "a schema") as lookup:
            assert (await lookup.find(DIGESTS["valid"])).profile.name == "several"


class TestConnections:
    async def test_a_few_are_opened_and_used_again(self, lookup: KeyLookup, database: asyncpg.Connection) -> None:
        await lookup.find(DIGESTS["valid"])
        first = await sessions(database)
        assert len(first) == 1
        found = await asyncio.gather(*(lookup.find(DIGESTS["valid"]) for _ in range(100)))
        assert {access.key_id for access in found} == {0}
        second = await sessions(database)
        assert len(second) == CONNECTIONS
        assert set(first) <= set(second)

    async def test_those_that_died_unnoticed_are_replaced(
        self, lookup: KeyLookup, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            await asyncio.gather(*(lookup.find(DIGESTS["valid"]) for _ in range(10)))
            await kill(database)
            await asyncio.gather(*(lookup.find(DIGESTS["valid"]) for _ in range(10)))
            await until(lambda: _at_most(CONNECTIONS, sessions(database)))
        assert caplog.records == []

    async def test_the_server_may_end_idle_ones(self, database: asyncpg.Connection, database_url: str) -> None:
        name = await database.fetchval("SELECT current_database()")
        await database.execute(f"ALTER DATABASE {name} SET idle_session_timeout = '2s'")
        async with looking_up(database_url) as lookup:
            for _ in range(3):
                await lookup.find(DIGESTS["valid"])
                await until(lambda: _none(sessions(database)))

    async def test_tables_may_change_under_it(
        self, lookup: KeyLookup, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a newer release does; the first of these changes the type of a column that is read."""
        await asyncio.gather(*(lookup.find(DIGESTS["valid"]) for _ in range(10)))
        for change in (
            "ALTER TABLE openai_backends ALTER name TYPE varchar",
            "ALTER TABLE api_keys ADD anything text NOT NULL DEFAULT 'x'",
            "ALTER TABLE backend_profiles ALTER allowed_models TYPE varchar[]",
            "ALTER TABLE api_keys DROP anything",
        ):
            await database.execute(change)
            found = await asyncio.gather(*(lookup.find(DIGESTS["valid"]) for _ in range(10)))
            assert {access.key_id for access in found} == {0}
        assert caplog.records == []

    async def test_whoever_is_cancelled_leaves_no_session(
        self, lookup: KeyLookup, database: asyncpg.Connection
    ) -> None:
        """At any step: while it connects, asks, or waits for a place."""
        for step in range(40):
            asking = [asyncio.create_task(lookup.find(DIGESTS["valid"])) for _ in range(CONNECTIONS + 1)]
            await asyncio.sleep(step * 0.001)
            for each in asking:
                each.cancel()
            await asyncio.wait(asking)
            assert (await lookup.find(DIGESTS["valid"])).key_id == 0
        await until(lambda: _at_most(CONNECTIONS, sessions(database)))
        assert lookup.use == (CONNECTIONS, 0, 0)
        await lookup.close()
        await until(lambda: _none(sessions(database)))


async def _none(found: Awaitable[list[int]]) -> bool:
    return await found == []


async def _at_most(count: int, found: Awaitable[list[int]]) -> bool:
    """A server comes to know only after a while that a client has gone."""
    return len(await found) <= count


class TestDatabaseAway:
    async def test_nobody_listens(self, caplog: pytest.LogCaptureFixture) -> None:
        async with looking_up("postgresql://u:very-secret@127.0.0.1:1/x") as lookup:
            for _ in range(2):
                with pytest.raises(BusyError) as busy:
                    await lookup.find(DIGESTS["valid"])
                assert (busy.value.status, busy.value.code) == (503, "database_unavailable")
                assert busy.value.retry_after
        assert len(caplog.records) == 1, "it is said once"
        assert "very-secret" not in caplog.text + str(busy.value)

    async def test_it_takes_no_more_connections(
        self,
        database: asyncpg.Connection,
        database_url: str,
        url_with: Callable[..., str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Then a key is not wrong."""
        name = await database.fetchval("SELECT current_database()")
        await database.execute(f"CREATE ROLE {name}_app LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
        try:
            async with looking_up(url_with(database_url, user=f"{name}_app", password="x")) as lookup:
                with pytest.raises(BusyError) as busy:
                    await lookup.find(DIGESTS["unknown"])
                assert busy.value.code == "database_unavailable"
                assert "too many connections" in caplog.text
        finally:
            await database.execute(f"DROP ROLE {name}_app")

    async def test_it_is_not_migrated_yet(self, make_database: Callable[[], Awaitable[str]]) -> None:
        async with looking_up(await make_database()) as lookup:
            with pytest.raises(BusyError) as busy:
                await lookup.find(DIGESTS["unknown"])
        assert (busy.value.status, busy.value.code) == (503, "schema_not_ready")

    @pytest.mark.parametrize(
        "taken_back",
        [
            "ALTER TABLE openai_backends DROP COLUMN skip_tls_verify",
            "ALTER TABLE api_keys RENAME TO old_api_keys",
            "ALTER SCHEMA public RENAME TO old_public",
        ],
        ids=["column", "table", "schema"],
    )
    async def test_a_schema_that_was_taken_back_is_not_blamed_on_the_database(
        self, lookup: KeyLookup, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture, taken_back: str
    ) -> None:
        await lookup.find(DIGESTS["valid"])
        await database.execute(taken_back)
        with pytest.raises(BusyError) as busy:
            await lookup.find(DIGESTS["lone"])
        assert (busy.value.status, busy.value.code) == (503, "schema_not_ready")
        assert busy.value.retry_after
        assert "was taken back" in str(busy.value)
        assert "database does not answer" not in str(busy.value) + caplog.text

    async def test_it_does_not_answer_in_time(
        self,
        lookup: KeyLookup,
        database: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Locked, for example; once it answers, so does the look-up, and the log says both."""
        caplog.set_level(logging.INFO, "gasket.gateway")
        await lookup.find(DIGESTS["valid"])
        async with database.transaction():
            await database.execute("LOCK TABLE api_keys")
            with monkeypatch.context() as impatient:
                impatient.setattr("gasket.proxy.lookup._ANSWER_TIMEOUT", 0.3)
                asking = [asyncio.create_task(lookup.find(DIGESTS["valid"])) for _ in range(5)]
                await asyncio.wait(asking)
        assert {type(each.exception()) for each in asking} == {BusyError}
        assert (await lookup.find(DIGESTS["valid"])).key_id == 0
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        await until(lambda: _at_most(1, sessions(database)))

    async def test_no_more_wait_than_can_be_answered(
        self, lookup: KeyLookup, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.proxy.lookup._LONGEST_QUEUE", 5)
        async with database.transaction():
            await database.execute("LOCK TABLE api_keys")
            asking = [asyncio.create_task(lookup.find(DIGESTS["valid"])) for _ in range(5)]
            await asyncio.sleep(0)
            assert lookup.use == (CONNECTIONS, CONNECTIONS, 5 - CONNECTIONS)
            with pytest.raises(BusyError) as busy:
                await lookup.find(DIGESTS["valid"])
            assert busy.value.code == "overloaded"
        assert {access.key_id for access in await asyncio.gather(*asking)} == {0}
        assert (await lookup.find(DIGESTS["valid"])).key_id == 0


@asynccontextmanager
async def listening(url: str, database: asyncpg.Connection, schema: str = "public") -> AsyncIterator[KeyDirectory]:
    """A directory whose keys never age, and that hears of changes."""
    async with looking_up(url, schema) as lookup:
        directory = KeyDirectory(lookup.find, ttl=10_000)
        listener = ChangeListener(url, schema=schema, application_name=LISTENER, directories=[directory])
        listener.start()
        try:
            await until(lambda: listens(database))
            await directory.look_up(KEYS["lone"])
            await database.execute(f"NOTIFY gasket_{schema}, 'key:{DIGESTS['lone']}'")
            await forgotten(directory, "lone")  # it hears, and has forgotten what it forgets at its beginning
            yield directory
        finally:
            await listener.stop()


async def listens(database: asyncpg.Connection) -> bool:
    """Whether the listener has said LISTEN: it is the last thing that it did, but for heartbeats."""
    query: str | None = await database.fetchval(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", LISTENER
    )
    return query is not None and query.startswith(("LISTEN", "SELECT 1"))


async def known(directory: KeyDirectory, name: str) -> Access:
    """Have it in memory. A look-up that a notification about anything else overtakes is not kept."""
    async with asyncio.timeout(60):
        while (found := directory.recall(KEYS[name])) is None:
            await directory.look_up(KEYS[name])
    return found


async def forgotten(directory: KeyDirectory, name: str) -> None:
    async def gone() -> bool:
        return directory.recall(KEYS[name]) is None

    await until(gone)


class TestListener:
    async def test_what_changes_is_forgotten_and_nothing_else(
        self, database: asyncpg.Connection, database_url: str
    ) -> None:
        async with listening(database_url, database) as directory:
            everybody = ["valid", "short", "lone"]
            for change, concerned in [
                ("UPDATE backend_profiles SET allowed_models = '{x}' WHERE id = 2", ["lone"]),
                ("UPDATE openai_backends SET base_url = 'http://other' WHERE id = 2", ["valid", "short"]),
                ("DELETE FROM profile_backends WHERE backend_id = 4", ["valid", "short"]),
                ("UPDATE api_keys SET expires_at = now() + interval '1 day' WHERE id = 3", ["short"]),
                ("NOTIFY gasket_public, 'something:new'", everybody),
                ("NOTIFY gasket_public, 'profile:x'", everybody),
                ("NOTIFY gasket_public", everybody),
                ("UPDATE api_keys SET revoked_at = now() WHERE id = 3", ["short"]),
            ]:
                before = {name: await known(directory, name) for name in everybody}
                await database.execute(change)
                for name in concerned:
                    await forgotten(directory, name)
                for name in set(everybody) - set(concerned):
                    assert directory.recall(KEYS[name]) is before[name]
            with pytest.raises(KeyRefusedError):
                await directory.look_up(KEYS["short"])
            await database.execute("UPDATE api_keys SET revoked_at = NULL")
            await until(lambda: _valid(directory, "short"))

    async def test_the_key_before_a_rotation_is_forgotten_with_the_key(
        self, database: asyncpg.Connection, database_url: str
    ) -> None:
        async with listening(database_url, database) as directory:
            await database.execute(PREVIOUS, DIGESTS["unknown"], DIGESTS["short"], timedelta(minutes=1))
            for change in (
                "UPDATE api_keys SET expires_at = now() + interval '1 day' WHERE id = 3",
                "UPDATE previous_api_keys SET expires_at = now() + interval '1 day'",
                "UPDATE api_keys SET revoked_at = now() WHERE id = 3",
            ):
                await known(directory, "unknown")
                await database.execute(change)
                await forgotten(directory, "unknown")
            with pytest.raises(KeyRefusedError, match="revoked"):
                await directory.look_up(KEYS["unknown"])

    async def test_after_a_lost_connection_nothing_is_believed(
        self, database: asyncpg.Connection, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gasket.gateway")
        async with listening(database_url, database) as directory:
            for _ in range(2):
                await known(directory, "valid")
                await kill(database, LISTENER)
                await forgotten(directory, "valid")  # nothing was changed: but something may have been
                assert await listens(database)
                await known(directory, "lone")
                await database.execute("NOTIFY gasket_public, 'profile:2'")
                await forgotten(directory, "lone")
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2

    async def test_while_it_is_away_what_is_known_stays(
        self, database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.proxy.listener._FIRST_PAUSE", 3600.0)
        async with listening(database_url, database) as directory:
            access = await known(directory, "valid")
            await kill(database, LISTENER)
            await database.execute("UPDATE api_keys SET revoked_at = now()")
            await asyncio.sleep(0.3)
            assert directory.recall(KEYS["valid"]) is access

    async def test_a_server_that_says_nothing_is_noticed(
        self, database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A heartbeat that is not answered in time, here because it takes too long."""
        monkeypatch.setattr("gasket.proxy.listener._HEARTBEAT", 0.1)
        async with listening(database_url, database) as directory:
            await asyncio.sleep(0.5)  # heartbeats that are answered
            [before] = await sessions(database, LISTENER)
            await known(directory, "valid")
            monkeypatch.setattr("gasket.proxy.listener._HEARTBEAT_TIMEOUT", 1e-9)
            await forgotten(directory, "valid")
            monkeypatch.setattr("gasket.proxy.listener._HEARTBEAT_TIMEOUT", 5.0)

            async def ended() -> bool:
                return before not in await sessions(database, LISTENER)

            await until(ended)

    async def test_in_another_schema(self, database: asyncpg.Connection, database_url: str) -> None:
        await database.execute("ALTER SCHEMA public RENAME TO other; CREATE SCHEMA public")
        async with listening(database_url, database, "other") as directory:
            access = await known(directory, "valid")
            await database.execute("NOTIFY gasket_public, 'key:all'")
            await database.execute("UPDATE other.backend_profiles SET name = 'x' WHERE id = 2")
            await known(directory, "lone")
            await database.execute("UPDATE other.backend_profiles SET allowed_models = '{x}' WHERE id = 2")
            await forgotten(directory, "lone")
            assert directory.recall(KEYS["valid"]) is access
            await database.execute("UPDATE other.api_keys SET revoked_at = now()")
            await forgotten(directory, "valid")

    async def test_it_stops_whatever_it_does(self, database: asyncpg.Connection, database_url: str) -> None:
        directory = KeyDirectory(
            KeyLookup(database_url, schema="public", application_name=LOOKUP, decrypt=CREDENTIALS.get).find, ttl=1
        )
        for url in (database_url, "postgresql://u@127.0.0.1:1/x"):
            for pause in (0.0, 0.01, 0.1, 0.5):
                before = asyncio.all_tasks()
                listener = ChangeListener(url, schema="public", application_name=LISTENER, directories=[directory])
                await listener.stop()
                listener.start()
                listener.start()
                await asyncio.sleep(pause)
                await listener.stop()
                assert asyncio.all_tasks() <= before
        await until(lambda: _none(sessions(database, LISTENER)))


async def _valid(directory: KeyDirectory, name: str) -> bool:
    try:
        await known(directory, name)
    except KeyRefusedError:
        return False
    return True
