from __future__ import annotations

import pytest

from gasket.proxy.errors import BusyError, LimitedError
from gasket.proxy.shares import Room, Shares


def refused(error: LimitedError) -> tuple[int, str, bool]:
    return error.status, error.code, error.retry_after is not None


def test_one_key_has_its_share_of_requests_and_the_others_theirs() -> None:
    shares = Shares(Room(100), most_requests=2, most_bytes=50)
    first, second = shares.enter(1), shares.enter(1)
    with pytest.raises(LimitedError) as error:
        shares.enter(1)
    assert refused(error.value) == (429, "concurrency_limit_exceeded", True)
    shares.enter(2)
    first.leave()
    assert shares.enter(1) is second


def test_one_key_has_its_share_of_the_bytes_and_the_others_theirs() -> None:
    shares = Shares(Room(100), most_requests=10, most_bytes=50)
    one, same, other = shares.enter(1), shares.enter(1), shares.enter(2)
    one.take(30)
    same.take(20)
    with pytest.raises(LimitedError) as error:
        one.take(1)
    assert refused(error.value) == (429, "concurrency_limit_exceeded", True)
    other.take(50)
    with pytest.raises(BusyError):
        shares.enter(3).take(1)
    one.give_back(30)
    same.take(10)
    shares.enter(3).take(20)


def test_a_key_that_has_no_request_is_forgotten() -> None:
    shares = Shares(Room(100), most_requests=1, most_bytes=50)
    for key in range(1000):
        share = shares.enter(key)
        share.take(50)
        share.give_back(50)
        share.leave()
    assert shares._keys == {}
    shares.room.take(100)
