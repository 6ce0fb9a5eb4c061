"""What the acceptance tests share: installations of Gasket whose programs are real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser as Chromium

from tests.acceptance.browser import Browser, chromium
from tests.acceptance.gateway import Gateway, Tenant, gateway_on
from tests.acceptance.installation import ADMIN_TOKEN, Installation, Project
from tests.acceptance.processes import ForkServer, Programs


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


@pytest.fixture(scope="session")
async def shared_chromium() -> AsyncIterator[Chromium]:
    """The one browser of the session."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
def browser(shared_chromium: Chromium, gateway: Gateway) -> Browser:
    """An administrator in front of the shared replica."""
    return Browser(shared_chromium, gateway.replica.base_url, ADMIN_TOKEN)


@pytest.fixture
def stranger(shared_chromium: Chromium, gateway: Gateway) -> Browser:
    """A visitor who is not signed in."""
    return Browser(shared_chromium, gateway.replica.base_url, None)
