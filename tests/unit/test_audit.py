"""Refused sign-ins are counted in bounded memory."""

from __future__ import annotations

import pytest

from gasket.audit.refusals import MOST_ADDRESSES, Refused, RefusedSignIns


@pytest.fixture
def refused() -> RefusedSignIns:
    return RefusedSignIns()


def test_an_address_is_one_entry_however_often_it_guesses(refused: RefusedSignIns) -> None:
    for _ in range(1000):
        refused.count("192.0.2.1")
    refused.count(None)
    assert refused.take() == [Refused("192.0.2.1", 1000), Refused(None, 1)]
    assert refused.take() == []


def test_a_flood_of_addresses_is_a_few_entries_and_no_guess_is_lost(refused: RefusedSignIns) -> None:
    for number in range(100_000):
        refused.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    found = refused.take()
    assert len(found) == MOST_ADDRESSES + 1
    assert found[-1] == Refused(None, 100_000 - MOST_ADDRESSES, further=True)


def test_what_could_not_be_stored_is_counted_with_what_comes_later(refused: RefusedSignIns) -> None:
    for number in range(MOST_ADDRESSES + 5):
        refused.count(f"192.0.2.{number}")
    first = refused.take()
    for number in range(MOST_ADDRESSES):
        refused.count(f"198.51.100.{number}")
    refused.put_back(first)
    found = refused.take()
    assert len(found) == MOST_ADDRESSES + 1
    assert sum(one.count for one in found) == 2 * MOST_ADDRESSES + 5


def test_put_back_adds_up(refused: RefusedSignIns) -> None:
    refused.count("192.0.2.1")
    first = refused.take()
    refused.count("192.0.2.1")
    refused.put_back(first)
    assert refused.take() == [Refused("192.0.2.1", 2)]
