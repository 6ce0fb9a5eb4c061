"""What every test may use: a PostgreSQL server, and empty databases on it that go away with the test."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import settings

from gasket.embedded import EmbeddedDatabase
from tests.acceptance.installation import REPOSITORY, Installation, Project
from tests.acceptance.processes import ForkServer, Programs
from tests.acceptance.templates import Templates
from tests.servers import OwnServer, create_database, own_server, primary_and_standby


def pytest_configure() -> None:
    """A CI's SIGTERM ends the run as Ctrl-C does, with the fixtures' clearing up: no server is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings.register_profile("gasket", deadline=None)  # how long one example takes is the machine's affair
    settings.load_profile("gasket")


def pytest_collection_finish() -> None:
    """The tests themselves stay to the end, so garbage collections leave them out; some tests ask for several."""
    gc.collect()
    gc.freeze()


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
    """The libpq URL of a superuser: of TEST_DATABASE_URL, else of a server that lives as long as the session.

    That one is the embedded server, or of the programs in the folder TEST_POSTGRESQL.
    """
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    if programs := os.environ.get("TEST_POSTGRESQL"):
        with _server_of(programs) as url:
            yield url
        return
    fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_prepared_transactions": "8"}
    with EmbeddedDatabase(open_folder / "server", max_connections=300, settings=fast) as url:
        yield url


@contextmanager
def _server_of(programs: str) -> Iterator[str]:
    """A server of the programs in this folder; it ends when its input ends, so no killed test run leaves it behind."""
    process = subprocess.Popen(
        [REPOSITORY / ".ci" / "with-postgresql", "sh", "-c", 'echo "$TEST_DATABASE_URL"; exec cat'],
        env={**os.environ, "PG_BIN": programs},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C does not reach it: the fixtures need it to the end
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, f"no server started from {programs}: see above"
        yield url


@pytest.fixture
def restartable(open_folder: Path) -> Iterator[OwnServer]:
    """A server of the test's own."""
    with own_server(open_folder) as server:
        yield server


@pytest.fixture
def pair(open_folder: Path) -> Iterator[tuple[str, str]]:
    """The URLs of an empty database on a primary, and on the standby that follows it."""
    with primary_and_standby(open_folder) as urls:
        yield urls


@asynccontextmanager
async def databases(server_url: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Call it for the URL of one more database, empty or a copy of one that nobody is connected to; the end drops them
    all, whoever is connected.
    """
    names: list[str] = []

    async def make(template: str = "template0") -> str:
        name = f"gasket_test_{uuid4().hex[:16]}"
        async with _connected(server_url) as server:
            await create_database(server, name, template)
        names.append(name)
        return rewrite_url(server_url, database=name)

    try:
        yield make
    finally:
        for name in names:
            async with _connected(server_url) as server:
                await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", timeout=60)


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


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        yield connection
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
    if left < 10:
        await asyncio.sleep(left + 0.01)


@pytest.fixture(scope="session")
def url_with() -> Callable[..., str]:
    """`rewrite_url`, for tests: `url_with(url, user="app", password="secret")`."""
    return rewrite_url


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """One for the whole session."""
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    yield server
    server.stop()


@pytest.fixture
async def programs(forks: ForkServer, tmp_path: Path) -> AsyncIterator[Programs]:
    """Starts programs for this test; its end ends them."""
    folder = tmp_path / "logs"
    folder.mkdir()
    programs = Programs(forks, folder)
    yield programs
    await programs.stop()


@pytest.fixture(scope="session")
async def templates(
    server_url: str, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Templates]:
    """Databases at head, for installations to copy."""
    folder = tmp_path_factory.mktemp("templates")
    async with databases(server_url) as make:
        yield Templates(server_url, make, Programs(forks, folder), folder)


@pytest.fixture
async def install(
    make_database: Callable[[], Awaitable[str]], programs: Programs, templates: Templates, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Installation]]]:
    """Call it for one more installation; with a `database_url`, in that database; with a `tree`, of that release."""
    made: list[Installation] = []

    async def make(database_url: str | None = None, tree: Path | None = None) -> Installation:
        project = Project(tmp_path / f"project{len(made)}", tree or REPOSITORY)
        home = tmp_path / f"home{len(made)}"
        home.mkdir()
        source = tree and tree / "src"
        copy = None if database_url or tree else templates.copy_into
        installation = Installation(project, database_url or await make_database(), programs, home, source, copy)
        made.append(installation)
        return installation

    yield make
    await programs.stop()
    for installation in made:
        await installation.close()


@pytest.fixture
async def installation(install: Callable[..., Awaitable[Installation]]) -> Installation:
    """The one installation that most tests need, on an empty database."""
    return await install()
