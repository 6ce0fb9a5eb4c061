"""The API on a migrated database: one application and one database for the session, empty for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from alembic import command
from alembic.config import Config
from cryptography.fernet import Fernet
from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.datastructures.secret_values import SecretBytes
from litestar.di import Provide
from sqlalchemy.ext.asyncio import AsyncEngine

from gasket import db
from gasket.access.authentication import Authenticator, is_known
from gasket.app import create_app
from gasket.backends.models import key_ring
from gasket.migrator.plugin import MigratorPlugin
from gasket.peers import Peers
from gasket.settings import read_settings
from tests.clock import Clock

ADMIN_TOKEN = "an-admin-token-for-the-tests"
SECRET_KEY = Fernet.generate_key().decode()

ApiAt = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
Post = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="session")
async def api_database_url(server_url: str, url_with: Callable[..., str]) -> AsyncIterator[str]:
    """A database at head, brought there by the real migrations through the real env.py."""
    name = f"gasket_api_{uuid4().hex[:16]}"
    server = await asyncpg.connect(server_url, timeout=10)
    await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    url = url_with(server_url, database=name)
    try:
        await migrate(url)
        yield url
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()


async def migrate(database_url: str) -> None:
    """`alembic upgrade head`, in a thread: env.py runs a loop of its own."""
    config = Config(str(Path(__file__).parents[2] / "alembic.ini"))
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("GASKET_")]:
            environment.delenv(name)
        environment.setenv("DATABASE_URL", database_url)
        await asyncio.to_thread(command.upgrade, config, "head")


@pytest.fixture(scope="session")
def api_at() -> ApiAt:
    """`async with api_at(url) as client`: one more replica, with its own pool, tokens and secret keys.

    The lifespan is left out: the schema is at head, and what starts in it is tested elsewhere. Secret keys
    are the process's; at the end those of the session are back.
    """

    @asynccontextmanager
    async def start(
        database_url: str, *, tokens: str = ADMIN_TOKEN, secret_keys: str = SECRET_KEY, **settings: str
    ) -> AsyncIterator[httpx.AsyncClient]:
        environment = {"DATABASE_URL": database_url, "GASKET_ADMIN_TOKEN": tokens, "GASKET_SECRET_KEY": secret_keys}
        app = create_app(read_settings(environment | settings))
        try:
            async with client_of(app, token=tokens.partition(",")[0]) as client:
                yield client
        finally:
            engine = app.plugins.get(MigratorPlugin).read_alembic_configs()[0].get_engine()
            assert isinstance(engine, AsyncEngine)
            await engine.dispose()
            await dependency_of(app, "upstream").close()
            await dependency_of(app, "schema_monitor").close()
            await dependency_of(app, "sign_in").close()
            key_ring.load([SECRET_KEY])

    return start


def dependency_of(app: Litestar, name: str) -> Any:
    """What the application gives to its handlers under this name."""
    provide = app.dependencies[name]
    assert isinstance(provide, Provide)
    return provide.dependency()


def client_of(app: Litestar, *, token: str | None = ADMIN_TOKEN) -> httpx.AsyncClient:
    """A client of an application in this process; errors become responses, as behind a server."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    asgi: Any = app  # the same protocol, spelt with other types
    transport = httpx.ASGITransport(asgi, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gasket", headers=headers)


@pytest.fixture(scope="session")
async def replica(api_database_url: str, api_at: ApiAt) -> AsyncIterator[httpx.AsyncClient]:
    """The session's application."""
    async with api_at(api_database_url) as client:
        yield client


@pytest.fixture(scope="session")
async def database(api_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A look behind the API."""
    connection = await asyncpg.connect(api_database_url, timeout=10)
    yield connection
    await connection.close(timeout=10)


@pytest.fixture
async def client(replica: httpx.AsyncClient, database: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    """An administrator of an empty installation."""
    key_ring.load([SECRET_KEY])  # the process's: another file may have left one of its own
    yield replica
    await database.execute(
        "DELETE FROM api_keys; DELETE FROM profile_backends; DELETE FROM backend_profiles; "
        "DELETE FROM openai_backends; DELETE FROM usage_records; DELETE FROM usage_totals; DELETE FROM usage_slots; "
        "DELETE FROM usage_days; "
        "DELETE FROM access_tokens; "
        "DELETE FROM browser_sessions; DELETE FROM people"
    )


class AnotherReplica:
    """Finds out who has a session, by a clock of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.clock = Clock()
        self._authenticator = Authenticator(db.create_sessions(engine).begin, root_peers=Peers(), clock=self.clock)
        self._authenticator.root_tokens = (SecretBytes(ADMIN_TOKEN.encode()),)

    async def knows(self, session: str | None) -> bool:
        """Whether somebody has this cookie."""
        fields = [(b"host", b"gasket"), (b"cookie", f"__Host-gasket={session}".encode())]
        scope: Any = {"type": "http", "scheme": "https", "method": "GET", "client": ("10.12.1.1", 1), "headers": fields}
        await self._authenticator.put_identity(scope)
        return is_known(ASGIConnection(scope))


@pytest.fixture
async def another_replica(api_database_url: str) -> AsyncIterator[AnotherReplica]:
    engine = db.create_engine(api_database_url, schema="public", release="0", pool_size=1)
    yield AnotherReplica(engine)
    await engine.dispose()


@pytest.fixture
def post(client: httpx.AsyncClient) -> Post:
    """POST what must succeed; the answer's body."""

    async def send(path: str, **fields: object) -> dict[str, Any]:
        response = await client.post(path, json=fields)
        assert response.is_success, response.text
        body: dict[str, Any] = response.json()
        return body

    return send


def assert_problem(response: httpx.Response, status: int, name: str, *, field: str | None = None) -> str:
    """The response is this problem, about this field if any; its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:gasket:problem:{name}"
    assert problem["status"] == status
    assert [entry["field"] for entry in problem.get("errors", [])] == ([field] if field else [])
    detail: str = problem["detail"]
    return detail
