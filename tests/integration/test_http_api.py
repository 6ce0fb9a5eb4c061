"""What holds for every route: tokens, problems, documentation, and a database that does not do as it should."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from litestar import Litestar
from litestar.di import Provide
from sqlalchemy import text

from gasket import db, http
from gasket.backends.breaker import Breakers
from gasket.backends.controller import BackendController
from gasket.backends.models import key_ring
from gasket.log_lines import formatter
from gasket.upstream.client import UpstreamClient

from .conftest import ADMIN_TOKEN, SECRET_KEY, ApiAt, Post, assert_problem, client_of, migrate

URL = "https://api.example.com/v1"
ROUTES = [
    ("GET", "/api/backends"),
    ("POST", "/api/backends"),
    ("DELETE", "/api/backends/1"),
    ("GET", "/api/profiles"),
    ("PATCH", "/api/keys/1"),
    ("POST", "/api/keys/1/rotate"),
    ("GET", "/api/usage"),
    ("GET", "/api/migrations"),
    ("OPTIONS", "/api/keys"),
    ("PUT", "/api/keys"),  # no such method
    ("GET", "/api/keys/first"),  # no such id
    ("GET", "/api/nothing"),  # no such route
    ("GET", "/api//nothing/"),
    ("GET", "/api"),
]


HEADERS = [
    None,
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {ADMIN_TOKEN}x",
    f"Bearer {ADMIN_TOKEN[:-1]}",
    f"Basic {ADMIN_TOKEN}",
    ADMIN_TOKEN,
    "Bearer schlüssel",
    f"Bearer {ADMIN_TOKEN}, {ADMIN_TOKEN}",
]


_ADDRESSES = itertools.count(1)


class TestTokens:
    @pytest.mark.parametrize(
        ("method", "path", "header"),
        [(*route, "Bearer wrong") for route in ROUTES] + [("GET", "/api/keys", header) for header in HEADERS],
    )
    async def test_a_stranger_learns_nothing(
        self, replica: httpx.AsyncClient, method: str, path: str, header: str | None
    ) -> None:
        headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
        transport: Any = replica._transport
        address = f"10.8.0.{next(_ADDRESSES)}"  # of ten wrong tokens, the next one is told to wait
        theirs = httpx.ASGITransport(transport.app, raise_app_exceptions=False, client=(address, 1))
        async with httpx.AsyncClient(transport=theirs, base_url="http://gasket") as stranger:
            response = await stranger.request(method, path, headers=headers)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert set(response.headers) == {"www-authenticate", "content-type", "content-length", "x-request-id"}

    async def test_the_scheme_is_known_in_any_case(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/api/keys", headers={"Authorization": f"bEARER {ADMIN_TOKEN}"})
        assert response.status_code == 200

    async def test_tokens_are_rotated(self, api_database_url: str, api_at: ApiAt) -> None:
        async def accepted(tokens: str) -> list[bool]:
            async with api_at(api_database_url, tokens=tokens) as client:
                answers = [
                    await client.get("/api/keys", headers={"Authorization": f"Bearer {token}"})
                    for token in ("the-old-token-of-admin", "the-new-token-of-admin")
                ]
            return [answer.status_code == 200 for answer in answers]

        assert await accepted("the-old-token-of-admin") == [True, False]
        assert await accepted("the-new-token-of-admin, the-old-token-of-admin") == [True, True]
        assert await accepted("the-new-token-of-admin") == [False, True]

    async def test_the_documentation_needs_a_sign_in_unless_it_is_public(
        self, client: httpx.AsyncClient, api_at: ApiAt, api_database_url: str
    ) -> None:
        async with httpx.AsyncClient(transport=client._transport, base_url="http://gasket") as stranger:
            assert_problem(await stranger.get("/schema/openapi.json"), 401, "unauthorized")
            assert (await stranger.get("/ui/reference")).headers["location"].startswith("/ui/sign-in?")
            assert_problem(await stranger.get("/nothing"), 404, "not-found")
        async with api_at(api_database_url, GASKET_DOCS_PUBLIC="true") as public:
            del public.headers["authorization"]
            assert (await public.get("/schema/openapi.json")).json()["info"]["title"] == "Gasket"
            for path in ("/schema", "/schema/"):
                assert (await public.get(path)).headers["location"] == "/ui/reference"
            assert "/api/keys" in (await public.get("/ui/reference")).text
            assert (await public.get("/ui/reference/keys")).status_code == 200
            assert (await public.get("/ui")).headers["location"] == "/ui/sign-in"


class TestProblems:
    @pytest.mark.parametrize("content", [b"", b"{", b'{"name": }', b"\xff\xfe", b'"', b"[" * 5000])
    async def test_unreadable_json(self, client: httpx.AsyncClient, content: bytes) -> None:
        response = await client.post("/api/backends", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["type"] == "urn:gasket:problem:invalid-input"

    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/api/keys"), ("POST", "/api/backends"), ("PATCH", "/api/profiles/1")]
    )
    async def test_a_body_that_is_missing(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        detail = assert_problem(await client.request(method, path), 400, "invalid-input", field="body")
        assert detail == "body: A JSON body is needed."

    async def test_a_body_that_is_too_large(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/api/backends", json={"name": "x" * 1_000_001})
        assert_problem(response, 413, "too-large")

    async def test_a_method_that_is_not_there(self, client: httpx.AsyncClient) -> None:
        response = await client.put("/api/keys", json={})
        assert_problem(response, 405, "method-not-allowed")
        assert set(response.headers["allow"].split(", ")) == {"GET", "POST", "OPTIONS"}

    async def test_a_path_that_is_not_there(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.get("/api/nothing"), 404, "not-found")


async def test_every_route_is_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/schema/openapi.json")).json()
    assert document["info"]["title"] == "Gasket"
    assert document["components"]["securitySchemes"] == {
        "adminToken": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "__Host-gasket"},
    }
    operations = [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        if path.startswith("/api/")
        for method, operation in methods.items()
    ]
    assert len(operations) == 48
    for name, operation in operations:
        assert operation["security"] == [{"adminToken": []}, {"session": []}], name
        assert operation["summary"], name
        assert operation["description"], name
        problems = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
        assert set(problems) >= {"400", "401", "500", "503"}, name
        found = "{" in name and "/users/" not in name  # of an address without rows there are none, which is an answer
        assert ("404" in problems) == (found or name in ("post /api/keys", "post /api/me/keys")), name
        for answer in problems.values():
            content = answer["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
            assert content["examples"], name


async def test_every_input_has_examples(client: httpx.AsyncClient) -> None:
    document = (await client.get("/schema/openapi.json")).json()
    for name in ("BackendCreate", "BackendUpdate", "ProfileCreate", "ProfileUpdate", "KeyCreate", "KeyUpdate"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("examples") or "boolean" in json.dumps(schema) or field == "profile_id", (name, field)


class TestCommit:
    """A COMMIT that fails: deferred constraints are checked there, and nowhere before."""

    @pytest.fixture
    async def refuse(self, database: asyncpg.Connection) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
        async def install(sqlstate: str) -> None:
            await database.execute(
                f"""
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                  $$ BEGIN RAISE EXCEPTION 'secret detail' USING ERRCODE = '{sqlstate}'; END $$;
                CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE OR DELETE ON openai_backends
                  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
                """
            )

        yield install
        await database.execute("DROP TRIGGER IF EXISTS refuse ON openai_backends; DROP FUNCTION IF EXISTS refuse()")

    @pytest.mark.parametrize(
        ("sqlstate", "status", "name"),
        [
            ("P0001", 500, "internal"),
            ("23514", 409, "conflict"),
            ("40001", 503, "database-busy"),
            ("57014", 503, "database-busy"),
        ],
    )
    async def test_it_is_an_error_and_never_a_success(
        self,
        client: httpx.AsyncClient,
        post: Post,
        database: asyncpg.Connection,
        refuse: Callable[[str], Awaitable[None]],
        sqlstate: str,
        status: int,
        name: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        backend = await post("/api/backends", name="main", base_url=URL)
        path = f"/api/backends/{backend['id']}"
        await refuse(sqlstate)
        caplog.handler.setFormatter(formatter("text"))
        for response in (
            await client.post("/api/backends", json={"name": "new", "base_url": URL, "api_key": "sk-secret"}),
            await client.patch(path, json={"name": "renamed"}),
            await client.delete(path),
        ):
            assert "secret" not in assert_problem(response, status, name)
            assert ("retry-after" in response.headers) == (status == 503)
        assert (await client.get("/api/backends")).json()["items"] == [backend]
        assert (f"[SQLSTATE {sqlstate}]" in caplog.text) == (status >= 500)
        assert "secret" not in caplog.text


def always(value: object) -> Provide:
    """A dependency that is this value."""
    return Provide(lambda: value, sync_to_thread=False)


@asynccontextmanager
async def small_replica(
    database_url: str, *, pool_size: int = 1, pool_timeout: float = 5.0, answer_timeout: float = 30.0
) -> AsyncIterator[httpx.AsyncClient]:
    """An application of the backends alone, whose engine has other limits than the real one."""
    engine = db.create_engine(
        database_url,
        schema="public",
        release="0",
        pool_size=pool_size,
        pool_timeout=pool_timeout,
        answer_timeout=answer_timeout,
    )
    key_ring.load([SECRET_KEY])
    sessions = db.create_sessions(engine)
    given = {"transaction": sessions.begin, "breakers": Breakers(), "upstream": UpstreamClient()}
    app = Litestar(
        [BackendController],
        dependencies={
            "db_session": Provide(db.session_provider(sessions)),
            **{name: always(value) for name, value in given.items()},
        },
        exception_handlers=http.EXCEPTION_HANDLERS,
        logging_config=None,
    )
    try:
        async with client_of(app) as client:
            yield client
    finally:
        await engine.dispose()


@asynccontextmanager
async def locked(database_url: str) -> AsyncIterator[None]:
    """Nobody reads the backends meanwhile."""
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        async with connection.transaction():
            await connection.execute("LOCK openai_backends")
            yield
    finally:
        await connection.close(timeout=10)


class TestDatabaseTrouble:
    @pytest.mark.parametrize("query", ["host=/nonexistent", "host=127.0.0.1&port=1", "database=nonexistent"])
    async def test_away(
        self, api_database_url: str, url_with: Callable[..., str], query: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = url_with("postgresql://gasket:hunter2@/gasket", database="gasket") + f"?{query}"
        if query.startswith("database"):
            url = url_with(api_database_url, database="nonexistent")
        async with small_replica(url) as client:
            response = await client.get("/backends")
        assert_problem(response, 503, "database-away")
        assert response.headers["retry-after"] == "2"
        assert "GET /backends" in caplog.text
        assert "hunter2" not in caplog.text
        assert "Traceback" not in caplog.text

    async def test_a_connection_that_the_server_closed_is_replaced(self, api_database_url: str) -> None:
        engine = db.create_engine(api_database_url, schema="public", release="0", pool_size=1)
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
        try:
            await driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        except asyncpg.PostgresError:
            assert driver.is_closed()
        async with engine.connect() as connection:
            assert (await connection.get_raw_connection()).driver_connection is not driver
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    async def test_a_connection_lost_in_the_middle(self, database: asyncpg.Connection, api_database_url: str) -> None:
        async with small_replica(api_database_url) as other, locked(api_database_url):
            request = asyncio.create_task(other.get("/backends"))
            await database.execute("SELECT pg_terminate_backend($1)", await sessions_in(database, "active"))
            response = await request
        assert_problem(response, 503, "database-away")
        assert response.headers["retry-after"]

    async def test_no_answer_in_time(self, api_database_url: str) -> None:
        async with small_replica(api_database_url, answer_timeout=3) as other:  # it holds for the second one, too
            async with locked(api_database_url):
                assert_problem(await other.get("/backends"), 503, "database-busy")
            assert (await other.get("/backends")).status_code == 200

    async def test_all_connections_in_use(self, database: asyncpg.Connection, api_database_url: str) -> None:
        async with small_replica(api_database_url, pool_size=2, pool_timeout=0.2) as other:
            async with locked(api_database_url):
                waiting = [asyncio.create_task(other.get("/backends")) for _ in range(2)]
                await sessions_in(database, "active", count=2)
                refused = await other.get("/backends")
            assert_problem(refused, 503, "database-busy")
            assert refused.headers["retry-after"]
            assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]

    async def test_a_schema_without_the_table_is_told_as_such_and_logged(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with small_replica(database_url) as client:
            response = await client.post("/backends", json={"name": "main", "base_url": URL, "api_key": "sk-secret"})
        detail = assert_problem(response, 503, "schema-not-ready")
        assert "openai_backends" not in detail
        assert "was taken back" in detail
        assert response.headers["retry-after"]
        assert "openai_backends" in caplog.text
        assert "sk-secret" not in caplog.text
        assert URL not in caplog.text, "the statement's parameters are in the log"
        ours = [record for record in caplog.records if record.name.startswith("gasket")]
        assert [record.levelno for record in ours] == [logging.WARNING]


async def sessions_in(database: asyncpg.Connection, state: str = "%", *, count: int = 1) -> int:
    """The pid of one of the sessions of `small_replica`, once there are so many in this state."""
    for _ in range(1000):
        pids = await database.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state LIKE $1 "
            "AND application_name LIKE 'gasket 0 %' AND query <> ''",
            state,
        )
        if len(pids) >= count:
            pid: int = pids[0]["pid"]
            return pid
        await asyncio.sleep(0.01)
    raise TimeoutError("no such sessions")


async def test_nothing_goes_stale_while_the_schema_changes(database_url: str, api_at: ApiAt) -> None:
    """One connection, which has seen each statement before: a plan kept anywhere would be refused."""
    await migrate(database_url)
    look = await asyncpg.connect(database_url)
    async with api_at(database_url, GASKET_DATABASE_POOL_SIZE="1") as client:
        await client.post("/api/backends", json={"name": "main", "base_url": URL})
        for change in (
            "ADD COLUMN extra text",
            "ALTER COLUMN name TYPE varchar(200)",
            "ALTER COLUMN name TYPE text",
            "DROP COLUMN extra",
            "ALTER COLUMN id TYPE bigint",
        ):
            await look.execute(f"ALTER TABLE openai_backends {change}")
            for _ in range(2):
                assert (await client.get("/api/backends")).json()["total"] == 1
                assert (await client.patch("/api/backends/1", json={"name": "main"})).status_code == 200
    await look.close()


async def test_tables_are_found_whatever_the_search_path_says(
    client: httpx.AsyncClient, api_at: ApiAt, api_database_url: str, database: asyncpg.Connection
) -> None:
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"CREATE SCHEMA elsewhere; ALTER DATABASE {name} SET search_path = elsewhere")
    try:
        async with api_at(api_database_url) as other:
            profile = await other.post("/api/profiles", json={"name": "team"})
            assert profile.status_code == 201, profile.text
            assert (await other.delete(f"/api/profiles/{profile.json()['id']}")).status_code == 204
    finally:
        await database.execute(f"ALTER DATABASE {name} RESET search_path; DROP SCHEMA elsewhere")


async def test_sessions_say_whose_they_are(database: asyncpg.Connection, api_database_url: str, api_at: ApiAt) -> None:
    async with api_at(api_database_url, GASKET_RELEASE="1.2.3-test") as client:
        await client.get("/api/keys")
        names = await database.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'gasket 1.2.3-test %'"
        )
    assert len(names) == 1
