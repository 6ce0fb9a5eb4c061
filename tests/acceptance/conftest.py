"""What the acceptance tests share: installations of Gasket whose programs are real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.gateway import Gateway, Tenant, gateway_on
from tests.acceptance.installation import REPOSITORY, Installation, Project
from tests.acceptance.processes import ForkServer, Programs


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


@pytest.fixture
async def install(
    make_database: Callable[[], Awaitable[str]], programs: Programs, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Installation]]]:
    """Call it for one more installation; with a `database_url`, in that database; with a `tree`, of that release."""
    made: list[Installation] = []

    async def make(database_url: str | None = None, tree: Path | None = None) -> Installation:
        project = Project(tmp_path / f"project{len(made)}", tree or REPOSITORY)
        home = tmp_path / f"home{len(made)}"
        home.mkdir()
        source = tree and tree / "src"
        installation = Installation(project, database_url or await make_database(), programs, home, source)
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


@pytest.fixture(scope="session")
async def shared_gateway(
    forks: ForkServer, session_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    """The replica that most tests of `/v1` ask."""
    folder = tmp_path_factory.mktemp("gateway")
    programs = Programs(forks, folder)
    installation = Installation(Project(folder / "project"), session_database_url, programs, folder)
    try:
        async with gateway_on(installation, installation.replica({"GASKET_MAX_BODY_SIZE": "1000000"})) as gateway:
            yield gateway
    finally:
        await programs.stop()
        await installation.close()


@pytest.fixture
async def gateway(shared_gateway: Gateway) -> AsyncIterator[Gateway]:
    """The shared replica. Nothing that a test does may make it log a stack trace."""
    before = len(shared_gateway.replica.output)
    gateway = Gateway(shared_gateway.installation, shared_gateway.replica, shared_gateway.api)
    async with gateway.stack:
        yield gateway
    said = shared_gateway.replica.output[before:]
    assert "Traceback" not in said, said


@pytest.fixture
async def tenant(gateway: Gateway) -> Tenant:
    """The key with one upstream that most tests need."""
    return await gateway.tenant()
