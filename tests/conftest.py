"""What every test may use: a PostgreSQL server, and empty databases on it that go away with the test."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import settings

from gasket.embedded import EmbeddedDatabase


def pytest_configure() -> None:
    """A CI's SIGTERM ends the run as Ctrl-C does, with the fixtures' clearing up: no server is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings.register_profile("gasket", deadline=None)  # how long one example takes is the machine's affair
    settings.load_profile("gasket")


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A new folder that, unlike `tmp_path`, another account can pass through: root's server has one."""
    folder = Path(tempfile.mkdtemp(prefix="gasket-tests-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server_url(open_folder: Path) -> Iterator[str]:
    """The libpq URL of a superuser: of TEST_DATABASE_URL, else of a server that lives as long as the session."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    with EmbeddedDatabase(open_folder / "server", max_connections=300, settings=fast) as url:
        yield url


@asynccontextmanager
async def databases(server_url: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Call it for the URL of one more database, empty or a copy of one that nobody is connected to; the end drops them
    all, whoever is connected.
    """
    names: list[str] = []

    async def make(template: str = "template0") -> str:
        name = f"gasket_test_{uuid4().hex[:16]}"
        await _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
        names.append(name)
        return rewrite_url(server_url, database=name)

    try:
        yield make
    finally:
        for name in names:
            await _execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def make_database(server_url: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """`databases` that go away with the test."""
    async with databases(server_url) as make:
        yield make


@pytest.fixture(scope="session")
async def session_database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of a database that all tests of the session share."""
    async with databases(server_url) as make:
        yield await make()


@pytest.fixture
async def database_url(make_database: Callable[..., Awaitable[str]]) -> str:
    """The URL of an empty database of the test's own."""
    return await make_database()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close(timeout=10)


def rewrite_url(url: str, *, database: str | None = None, user: str | None = None, password: str | None = None) -> str:
    """The same libpq URL with another database, user or password; hosts, port and options stay.

    Takes URLs with the host in the query too (`postgresql://user@/name?host=/folder`). What is given is not
    percent-encoded; a password goes with its user, so another user without a password has none.
    """
    parts = urlsplit(url)
    who, _, hosts = parts.netloc.rpartition("@")
    if user is not None:
        who = quote(user, safe="")
    if password is not None:
        who = f"{who.partition(':')[0]}:{quote(password, safe='')}"
    path = parts.path if database is None else f"/{quote(database, safe='')}"
    # Put together by hand: urlunsplit drops the slashes of an empty host.
    return f"{parts.scheme}://{who}@{hosts}{path}" + (f"?{parts.query}" if parts.query else "")


@pytest.fixture
async def same_minute() -> None:
    """Windows of limits turn with the clock's minutes, and then at once something is left again. Not in this test."""
    left = 60 - time.time() % 60
    if left < 5:
        await asyncio.sleep(left + 0.01)


@pytest.fixture(scope="session")
def url_with() -> Callable[..., str]:
    """`rewrite_url`, for tests: `url_with(url, user="app", password="secret")`."""
    return rewrite_url
