from __future__ import annotations

import asyncio
import time

import pytest

from gasket.deadlines import Deadlines

LATE = 0.1
"""What a deadline may come too late by."""


class Waiting:
    def __init__(self) -> None:
        self.told: list[float] = []

    def time_is_up(self) -> None:
        self.told.append(time.monotonic())


async def test_who_waits_too_long_is_told_once_and_not_much_later() -> None:
    deadlines, short, long = Deadlines(), Waiting(), Waiting()
    started = time.monotonic()
    deadlines.set(short, 0.05)
    deadlines.set(long, 0.25)
    await asyncio.sleep(0.7)
    assert [len(short.told), len(long.told)] == [1, 1]
    assert short.told[0] - started >= 0.05
    assert long.told[0] - started >= 0.25
    assert short.told < long.told


async def test_who_has_stopped_waiting_is_not_told() -> None:
    deadlines, waiting = Deadlines(), Waiting()
    deadlines.set(waiting, 0.05)
    deadlines.clear(waiting)
    await asyncio.sleep(0.05 + 2 * LATE)
    assert not waiting.told


async def test_a_new_limit_takes_the_place_of_the_old_one() -> None:
    deadlines, waiting = Deadlines(), Waiting()
    started = time.monotonic()
    deadlines.set(waiting, 0.05)
    deadlines.set(waiting, 0.3)
    await asyncio.sleep(0.3 + 3 * LATE)
    assert len(waiting.told) == 1
    assert waiting.told[0] - started >= 0.3


async def test_one_whose_time_is_up_can_clear_another() -> None:
    deadlines, other = Deadlines(), Waiting()

    class Clearing:
        def time_is_up(self) -> None:
            deadlines.clear(other)

    deadlines.set(Clearing(), 0.01)
    deadlines.set(other, 0.01)
    await asyncio.sleep(0.01 + 2 * LATE)
    assert not other.told


async def test_a_limit_ends_what_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError), Deadlines().limit(0.05):
        await asyncio.sleep(10)
    assert 0.05 <= time.monotonic() - started < 5
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_limit_leaves_alone_what_ends_in_time() -> None:
    deadlines = Deadlines()
    with deadlines.limit(0.05):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05 + 2 * LATE)  # would be interrupted


async def test_a_limit_leaves_cancellations_by_others_what_they_are() -> None:
    async def wait() -> None:
        with Deadlines().limit(0.05):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.05 + LATE / 2, task.cancel)
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.shield(asyncio.sleep(2 * LATE))  # the time is up in here, or was before

    task = asyncio.create_task(wait())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_an_error_of_what_is_awaited_comes_through() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Deadlines().limit(0.05):
        await fail()


async def test_all_can_be_ended_at_once_and_new_ones_have_their_time() -> None:
    deadlines, first, second = Deadlines(), Waiting(), Waiting()
    deadlines.set(first, 100)
    deadlines.set(second, 100)
    deadlines.end()
    assert [len(first.told), len(second.told)] == [1, 1]
    deadlines.set(first, 100)
    await asyncio.sleep(2 * LATE)
    assert [len(first.told), len(second.told)] == [1, 1]


class TestInTime:
    def test_what_does_not_wait_sets_no_limit(self) -> None:
        """A limit needs a task of a running loop, and there is none here."""

        async def at_once() -> str:
            return "done"

        async def in_time() -> str:
            return await Deadlines().in_time(at_once(), 1)

        with pytest.raises(StopIteration) as done:
            in_time().send(None)
        assert done.value.value == "done"

    async def test_what_waits_for_long_is_ended(self) -> None:
        ended = []

        async def for_ever() -> None:
            await asyncio.sleep(0)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

        with pytest.raises(TimeoutError):
            await Deadlines().in_time(for_ever(), 0.01)
        assert ended == [True]

    async def test_each_step_gets_its_result_and_its_error(self) -> None:
        async def waits() -> str:
            first = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(first.set_result, "one")
            second = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(second.set_exception, ValueError("two"))
            found: str = await first
            try:
                await second
            except ValueError as error:
                found += f" {error}"
            await asyncio.sleep(0)
            return found

        assert await Deadlines().in_time(waits(), 30) == "one two"

    async def test_an_error_comes_through(self) -> None:
        async def fails(after: float | None) -> None:
            if after is not None:
                await asyncio.sleep(after)
            raise ZeroDivisionError

        for after in (None, 0, 0.001):
            with pytest.raises(ZeroDivisionError):
                await Deadlines().in_time(fails(after), 30)

    async def test_a_cancellation_of_the_task_goes_on(self) -> None:
        task = asyncio.ensure_future(Deadlines().in_time(asyncio.sleep(30), 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
