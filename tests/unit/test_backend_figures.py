"""What a replica tells of its backends."""

from __future__ import annotations

from gasket.proxy.backend_figures import BackendFigures, Figures
from gasket.proxy.exchange import Exchange
from tests.access import a_backend


def an_exchange(**fields: object) -> Exchange:
    return Exchange(**{"request_id": "r", "method": "POST", "path": "/v1/x", "started": 10.0, **fields})  # type: ignore[arg-type]


def test_nothing_is_known_of_a_backend_that_was_never_asked() -> None:
    assert BackendFigures().of(1) == Figures()


def test_requests_errors_and_times_are_counted_for_each_backend() -> None:
    figures, one, other = BackendFigures(), a_backend(id=1), a_backend(id=2)
    for number in range(1, 101):
        figures(an_exchange(backend=one, first_byte=10.0 + number / 1000))
    figures(an_exchange(backend=other, failures=((one, "timeout"), (one, "timeout"), (other, "server_error"))))
    found = figures.of(1)
    assert (found.requests, found.errors) == (100, {"timeout": 2})
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert (round(found.p50_ms), round(found.p99_ms)) == (50, 99)
    assert figures.of(2) == Figures(requests=1, errors={"server_error": 1})


def test_only_the_newest_backends_are_remembered() -> None:
    figures = BackendFigures()
    for number in range(1500):
        figures(an_exchange(backend=a_backend(id=number), first_byte=10.5))
    assert figures.of(0) == Figures()
    assert figures.of(1499).requests == 1
