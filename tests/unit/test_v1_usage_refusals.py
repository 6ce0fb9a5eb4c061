from __future__ import annotations

import pytest

from gasket.proxy.usage_refusals import UsageRefusals
from tests.access import a_backend


def test_it_is_remembered_of_the_backend_as_it_was() -> None:
    refusals = UsageRefusals()
    refuser, changed, other = a_backend(), a_backend(base_url="http://c"), a_backend(id=2)
    assert refuser not in refusals
    refusals.add(refuser)
    assert refuser in refusals
    assert changed not in refusals
    assert other not in refusals


def test_and_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("gasket.proxy.usage_refusals.time.monotonic", lambda: now)
    refusals = UsageRefusals()
    first, second = a_backend(), a_backend(id=2)
    refusals.add(first)
    now += 599
    assert first in refusals
    refusals.add(second)
    assert first in refusals
    now += 2
    assert first not in refusals
    assert second in refusals
