"""Real signals to this process, whose own handlers are put back at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Litestar

from gasket.shutdown import Shutdown

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """What a server and a replica note of their end: what happens, and how many seconds after the first signal."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, float]] = []
        self._began = 0.0

    def handle(self, number: int, _frame: object) -> None:
        """The server's own handler."""
        self.note(signal.Signals(number).name)

    def note(self, what: str) -> None:
        self.noted.append((what, time.monotonic() - self._began))

    def send(self, number: int) -> None:
        self._began = self._began or time.monotonic()
        os.kill(os.getpid(), number)

    @property
    def order(self) -> list[str]:
        return [what for what, _ in self.noted]

    async def until(self, count: int) -> None:
        """Until so many things have happened."""
        async with asyncio.timeout(30):
            while len(self.noted) < count:  # noqa: ASYNC110  # signals set no event
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@asynccontextmanager
async def serving(server: Server, *, delay: float = 0.2) -> AsyncIterator[None]:
    """A server with handlers of its own, and an application that has started."""
    for number in SIGNALS:
        signal.signal(number, server.handle)
    app = Litestar([], openapi_config=None, logging_config=None)
    shutdown = Shutdown(
        delay=delay, timeout=0.2, announce=lambda: server.note("announce"), stop=lambda: server.note("stop")
    )
    shutdown.install(app)
    await _call(app.on_startup[-1])
    try:
        yield
    finally:
        await _call(app.on_shutdown[0])


async def _call(hook: Any) -> None:
    await hook()


async def test_it_says_so_then_takes_nothing_new_then_ends_what_runs() -> None:
    server = Server()
    async with serving(server):
        server.send(signal.SIGTERM)
        await server.until(3)
    assert server.order == ["announce", "SIGTERM", "stop"]
    announced, closed, stopped = (at for _, at in server.noted)
    assert announced < closed
    assert closed >= 0.2
    assert stopped >= 0.4


async def test_somebody_at_a_terminal_does_not_wait() -> None:
    server = Server()
    async with serving(server, delay=60):
        server.send(signal.SIGINT)
        await server.until(3)
    assert server.order == ["announce", "SIGINT", "stop"]
    assert server.noted[1][1] < 30
    assert server.noted[2][1] >= 0.2


@pytest.mark.parametrize("second", SIGNALS)
async def test_a_second_signal_goes_straight_to_the_server(second: signal.Signals) -> None:
    server = Server()
    async with serving(server, delay=60):
        server.send(signal.SIGTERM)
        await server.until(1)
        server.send(second)
        await server.until(2)
        server.send(second)
        await server.until(3)
    assert server.order == ["announce", second.name, second.name]


async def test_at_the_end_the_servers_handlers_are_back() -> None:
    server = Server()
    async with serving(server):
        assert all(signal.getsignal(number) != server.handle for number in SIGNALS)
    assert all(signal.getsignal(number) == server.handle for number in SIGNALS)
    server.send(signal.SIGTERM)
    await server.until(1)
    assert server.order == ["SIGTERM"]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_where_no_server_listens_nothing_is_changed(handler: Any) -> None:
    """An application in a test, or under a command."""
    app = Litestar([], openapi_config=None, logging_config=None)
    Shutdown(delay=0, timeout=0, announce=lambda: None, stop=lambda: None).install(app)
    for number in SIGNALS:
        signal.signal(number, handler)
    await _call(app.on_startup[-1])
    assert all(signal.getsignal(number) == handler for number in SIGNALS)
    await _call(app.on_shutdown[0])
    assert all(signal.getsignal(number) == handler for number in SIGNALS)


def test_in_another_thread_nothing_is_changed() -> None:
    """Python lets only the main thread set handlers."""
    server = Server()
    for number in SIGNALS:
        signal.signal(number, server.handle)
    failed: list[BaseException] = []

    async def serve() -> None:
        app = Litestar([], openapi_config=None, logging_config=None)
        Shutdown(delay=0, timeout=0, announce=lambda: None, stop=lambda: None).install(app)
        await _call(app.on_startup[-1])
        await _call(app.on_shutdown[0])

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert failed == []
    assert signal.getsignal(signal.SIGTERM) == server.handle
