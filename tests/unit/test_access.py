"""Roles, and how guessing is slowed."""

from __future__ import annotations

import logging

import pytest

from gasket.access.guesses import Guesses
from gasket.access.roles import allowed_roles
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def guesses(clock: Clock) -> Guesses:
    return Guesses(clock)


def waits(guesses: Guesses, count: int, address: str | None = "192.0.2.1") -> list[float]:
    return [guesses.count(address) for _ in range(count)]


def test_ten_in_a_minute_are_free_and_then_each_pause_is_twice_as_long(guesses: Guesses, clock: Clock) -> None:
    pauses = []
    for _ in range(8):
        *free, wait = waits(guesses, 11)
        assert free == [0.0] * 10
        pauses.append(wait)
        clock.now += wait
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_during_a_pause_a_client_is_told_what_is_left_of_it(guesses: Guesses, clock: Clock) -> None:
    waits(guesses, 11)
    clock.now += 45
    assert waits(guesses, 3) == [15.0] * 3


def test_slow_mistakes_are_free_and_a_quiet_hour_forgets(guesses: Guesses, clock: Clock) -> None:
    for _ in range(5):
        assert waits(guesses, 10) == [0.0] * 10
        clock.now += 60
    assert waits(guesses, 11)[-1] == 60
    clock.now += 60 + 3600
    assert waits(guesses, 11)[-1] == 60


def test_addresses_are_told_apart_and_an_ipv6_network_is_one_client(guesses: Guesses) -> None:
    waits(guesses, 11, "2001:db8::1")
    assert waits(guesses, 1, "2001:db8::ffff") == [60.0]
    assert waits(guesses, 1, "2001:db8:0:1::1") == waits(guesses, 1, "192.0.2.9") == waits(guesses, 1, None) == [0.0]


def test_a_flood_of_addresses_costs_bounded_memory(guesses: Guesses) -> None:
    for number in range(10_100):
        guesses.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guesses._guessers) == 10_000


def test_the_log_names_the_address_once_a_minute(
    guesses: Guesses, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    waits(guesses, 50, "192.0.2.7")
    assert len(caplog.messages) == 1
    assert "192.0.2.7" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    clock.now += 60
    waits(guesses, 11, "192.0.2.7")
    assert len(caplog.messages) == 2


def test_a_route_that_nobody_has_put_into_the_table_is_for_administrators() -> None:
    assert allowed_roles("POST", "/api/made-up") == {"admin"}
