from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.limits.windows import SlidingWindow, remaining

MINUTE = 60
START = 1_700_000_040.0  # a whole number of minutes since 1970


def test_what_was_used_fades_out_within_the_next_window() -> None:
    window = SlidingWindow(MINUTE)
    window.count(60, START + 59)
    assert window.used(START + 59) == 60
    assert window.used(START + 60) == 60
    assert window.used(START + 90) == 30
    assert window.used(START + 119) == pytest.approx(1)
    assert window.used(START + 120) == 0


def test_what_others_have_used_counts_once_with_what_is_being_told() -> None:
    window = SlidingWindow(MINUTE)
    window.count(5, START)
    assert window.unreported == 5
    assert window.to_report() == {int(START): 5}
    window.count(2, START + 1)
    assert window.used(START + 1) == 7
    window.reported()
    assert window.used(START + 1) == 7, "the sum is on its way, or never comes: the database may be away by now"
    window.learn(int(START), 5 + 30)
    assert window.used(START + 1) == 37
    assert window.to_report() == {int(START): 2}


def test_what_could_not_be_told_is_told_with_the_next() -> None:
    window = SlidingWindow(MINUTE)
    window.count(5, START)
    window.to_report()
    window.count(1, START)
    assert window.to_report() == {int(START): 6}


def test_what_came_before_the_border_is_told_for_its_own_window() -> None:
    window = SlidingWindow(MINUTE)
    window.count(1, START + 59.9)
    window.count(2, START + 60.1)
    assert window.to_report() == {int(START): 1, int(START) + 60: 2}


def test_old_windows_are_forgotten() -> None:
    window = SlidingWindow(MINUTE)
    window.count(1, START)
    window.learn(int(START), 9)
    window.forget_old(START + 120)
    assert window.used(START + 60) == 0
    assert window.unreported == 0


@given(
    uses=st.lists(st.tuples(st.floats(0, 119), st.integers(1, 50)), max_size=20),
    at=st.floats(0, 180),
    limit=st.integers(1, 200),
)
def test_after_the_wait_one_more_may_come_and_not_sooner(uses: list[tuple[float, int]], at: float, limit: int) -> None:
    window = SlidingWindow(MINUTE)
    for when, amount in uses:
        if when <= at:
            window.count(amount, START + when)
    wait = window.wait(limit, START + at)
    assert window.used(START + at + wait) <= limit + 1e-6
    if wait > 0.01:
        assert window.used(START + at + wait - 0.01) >= limit - 1e-6
    elif wait == 0:
        assert window.used(START + at) <= limit


@pytest.mark.parametrize("limit", [1, 2, 60])
@pytest.mark.parametrize("offset", [0.01, 0.5, 0.99])
def test_what_comes_evenly_at_the_limit_passes(limit: int, offset: float) -> None:
    window, passed = SlidingWindow(MINUTE), 0
    for number in range(60 * limit):
        now = START + (number + offset) * MINUTE / limit
        if window.used(now) < limit:
            window.count(1, now)
            passed += 1
    assert passed == 60 * limit


@given(gaps=st.lists(st.floats(0, 5), max_size=200), limit=st.integers(1, 20))
def test_one_at_a_time_exceeds_the_limit_by_less_than_one(gaps: list[float], limit: int) -> None:
    window, now = SlidingWindow(MINUTE), START
    for gap in gaps:
        now += gap
        if window.used(now) < limit:
            window.count(1, now)
        assert window.used(now) < limit + 1


@given(amounts=st.binary(min_size=180, max_size=180))  # 180 numbers in one draw: lists take ten times as long
def test_it_never_counts_less_than_the_current_window_nor_more_than_both(amounts: bytes) -> None:
    window = SlidingWindow(MINUTE)
    for second, amount in enumerate(amounts):
        window.count(amount, START + second)
    current, both = sum(amounts[120:]), sum(amounts[60:])
    assert current <= window.used(START + 179.5) <= both


@pytest.mark.parametrize(("used", "left"), [(0, 10), (0.1, 10), (9, 1), (9.5, 1), (10, 0), (12, 0)])
def test_what_remains_is_what_may_come_now(used: float, left: int) -> None:
    assert remaining(10, used) == left
