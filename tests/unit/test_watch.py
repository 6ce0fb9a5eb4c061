from __future__ import annotations

import asyncio
import time

import pytest
from litestar.types import HTTPReceiveMessage

from gasket.deadlines import Deadlines
from gasket.proxy.errors import BusyError, ClientGoneError
from gasket.proxy.watch import Watch


class Client:
    """The server's side of a client that has sent all, and may leave."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.listeners: list[bool] = []
        """Whether each still listens."""

    async def receive(self) -> HTTPReceiveMessage:
        self.listeners.append(True)
        try:
            await self.gone.wait()
        finally:
            self.listeners[-1] = False
        return {"type": "http.disconnect"}


async def test_a_client_that_leaves_ends_the_work() -> None:
    client = Client()
    asyncio.get_running_loop().call_later(0.3, client.gone.set)
    started = time.monotonic()
    with pytest.raises(ClientGoneError):
        async with Watch(client.receive, Deadlines()):
            await asyncio.sleep(10)
    assert 0.3 <= time.monotonic() - started < 1.3


async def test_a_client_that_left_at_once_is_noticed_soon() -> None:
    client = Client()
    client.gone.set()
    started = time.monotonic()
    with pytest.raises(ClientGoneError):
        async with Watch(client.receive, Deadlines()):
            await asyncio.sleep(10)
    assert time.monotonic() - started < 1


async def test_nobody_listens_while_an_answer_is_quick() -> None:
    """A task for each request that listens costs more than reading the request."""
    client = Client()
    async with Watch(client.receive, Deadlines()):
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)
    assert client.listeners == []


async def test_nobody_listens_once_the_work_is_done() -> None:
    client = Client()
    async with Watch(client.receive, Deadlines()):
        await asyncio.sleep(0.3)
        assert client.listeners == [True]
    await asyncio.sleep(0)
    assert client.listeners == [False]


async def test_the_end_of_the_work_and_of_the_client_in_one_moment() -> None:
    """What the watch does then must not hit what the task does next."""
    client = Client()
    async with Watch(client.receive, Deadlines()):
        await asyncio.sleep(0.3)
        client.gone.set()
    await asyncio.sleep(0.01)


async def test_a_replica_that_stops_ends_the_work_in_words() -> None:
    watch = Watch(Client().receive, Deadlines())
    asyncio.get_running_loop().call_later(0.01, watch.stop)
    with pytest.raises(BusyError, match="stopped"):
        async with watch:
            await asyncio.sleep(10)


async def test_a_replica_that_stops_leaves_alone_what_is_done() -> None:
    watch = Watch(Client().receive, Deadlines())
    async with watch:
        await asyncio.sleep(0)
    watch.stop()
    await asyncio.sleep(0.01)
