from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

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
            await asyncio.sleep(30)
    assert 0.3 <= time.monotonic() - started < 20


async def test_a_client_that_left_at_once_is_noticed_soon() -> None:
    client = Client()
    client.gone.set()
    started = time.monotonic()
    with pytest.raises(ClientGoneError):
        async with Watch(client.receive, Deadlines()):
            await asyncio.sleep(30)
    assert time.monotonic() - started < 20


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
        async with asyncio.timeout(30):
            while not client.listeners:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
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
            await asyncio.sleep(30)


async def test_a_replica_that_stops_leaves_alone_what_is_done() -> None:
    watch = Watch(Client().receive, Deadlines())
    async with watch:
        await asyncio.sleep(0)
    watch.stop()
    await asyncio.sleep(0.01)


@asynccontextmanager
async def clean() -> AsyncIterator[asyncio.Task[Any]]:
    """The task of a test that leaves no other behind, and no mark of a cancellation on itself."""
    task = asyncio.current_task()
    assert task is not None
    before = asyncio.all_tasks()
    yield task
    await asyncio.sleep(0)  # a mark would strike here
    assert task.cancelling() == 0
    assert asyncio.all_tasks() <= before


async def test_no_mark_and_no_task_stay_behind_however_it_ends() -> None:
    async with clean():
        for left_after in (None, 0.15, 0.25):
            client = Client()
            if left_after is not None:
                asyncio.get_running_loop().call_later(left_after, client.gone.set)
            with suppress(ClientGoneError):
                async with Watch(client.receive, Deadlines()):
                    await asyncio.sleep(0.3)
    async with clean():
        with pytest.raises(ValueError, match="a fault"):
            async with Watch(Client().receive, Deadlines()):
                raise ValueError("a fault")


async def test_work_that_ends_although_it_was_interrupted_has_ended() -> None:
    """Whoever swallows a cancellation, as asyncio.wait_for may, goes on, and nobody is hit later."""
    async with clean():
        watch = Watch(Client().receive, Deadlines())
        async with watch:
            asyncio.get_running_loop().call_soon(watch.stop)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)


async def test_work_that_is_stopped_by_itself_has_ended_too() -> None:
    async with clean():
        watch = Watch(Client().receive, Deadlines())
        async with watch:
            watch.stop()


async def test_an_error_on_the_way_out_is_what_is_told() -> None:
    watch = Watch(Client().receive, Deadlines())

    async def work() -> None:
        async with watch:
            try:
                await asyncio.sleep(30)
            finally:
                raise ValueError("a fault")

    async with clean():
        asyncio.get_running_loop().call_soon(watch.stop)
        with pytest.raises(ValueError, match="a fault"):
            await work()


@pytest.mark.parametrize("also_stopped", [None, "before", "after"])
async def test_a_cancellation_from_outside_stays_one(also_stopped: str | None) -> None:
    watch = Watch(Client().receive, Deadlines())

    async def work() -> None:
        async with watch:
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    if also_stopped == "before":
        watch.stop()
    task.cancel()
    if also_stopped == "after":
        watch.stop()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("stopped", [True, False])
async def test_inside_a_limit_of_time(stopped: bool) -> None:
    """asyncio.timeout around it: each knows its own cancellation."""
    async with clean():
        watch = Watch(Client().receive, Deadlines())
        if stopped:
            asyncio.get_running_loop().call_soon(watch.stop)
        with pytest.raises(BusyError if stopped else TimeoutError):
            async with asyncio.timeout(60 if stopped else 0.05), watch:
                await asyncio.sleep(30)


@pytest.mark.parametrize("stopped", [True, False])
async def test_around_a_limit_of_time(stopped: bool) -> None:
    async with clean():
        watch = Watch(Client().receive, Deadlines())
        if stopped:
            asyncio.get_running_loop().call_soon(watch.stop)
        with pytest.raises(BusyError if stopped else TimeoutError):
            async with watch, asyncio.timeout(60 if stopped else 0.05):
                await asyncio.sleep(30)


@pytest.mark.parametrize("around", [True, False])
async def test_both_in_one_turn(around: bool) -> None:
    """The outer one is what is told."""
    async with clean():
        watch = Watch(Client().receive, Deadlines())
        limit = asyncio.timeout(None)

        def both() -> None:
            limit.reschedule(0)  # long over
            watch.stop()

        outer, inner = (watch, limit) if around else (limit, watch)
        asyncio.get_running_loop().call_soon(both)
        with pytest.raises(BusyError if around else TimeoutError):
            async with outer, inner:
                await asyncio.sleep(30)


async def test_it_is_interrupted_once() -> None:
    """What tidies up after an interruption is not interrupted by the next reason."""
    client, tidied = Client(), False
    watch = Watch(client.receive, Deadlines())

    async def work() -> None:
        nonlocal tidied
        async with watch:
            try:
                await asyncio.sleep(30)
            finally:
                watch.stop()
                await asyncio.sleep(0.01)
                tidied = True

    async with clean():
        asyncio.get_running_loop().call_later(0.2, client.gone.set)
        with pytest.raises(ClientGoneError):
            await work()
    assert tidied


async def test_a_client_that_cannot_be_listened_to_has_left(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> HTTPReceiveMessage:
        raise RuntimeError("the server is at fault")

    gc.collect()  # what other tests have left is complained of now, and not below
    caplog.clear()
    async with clean():
        with pytest.raises(ClientGoneError):
            async with Watch(receive, Deadlines()):
                await asyncio.sleep(30)
    gc.collect()  # an exception that nobody has asked for is complained of then
    assert not caplog.records
