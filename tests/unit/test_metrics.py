"""What is counted of a request, and that no client makes series without end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import get
from litestar.params import FromPath
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gasket.backends.breaker import FAILURES, Breaker, Breakers
from gasket.db import PoolUse
from gasket.metrics.administration import AdministrationMetrics
from gasket.metrics.exposition import make_registry
from gasket.metrics.start import start_metrics
from gasket.metrics.state import Sources, StateCollector
from gasket.migrator.ledger.background import State
from gasket.migrator.monitor import Readiness
from gasket.migrator.starting import StartReport
from gasket.proxy.access import Access, Backend
from gasket.proxy.endpoints import find_route
from gasket.proxy.exchange import Exchange, Outcome
from gasket.proxy.metrics import BUCKETS, MOST_MODELS, MOST_NAMES, MOST_SERIES, GatewayMetrics
from gasket.startup import Gasket
from tests.access import a_backend, a_profile, an_access

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
REQUESTS = "gasket_gateway_requests_total"


def backend_of(name: str) -> Backend:
    return a_backend(name=name)


def access_of(profile: str) -> Access:
    return an_access(a_profile(LARGE, name=profile))


LARGE = a_backend(name="large")
ACCESS = access_of("staff")


def ended(**fields: Any) -> Exchange:
    """A request that took 2 s, of which 0.2 to its first byte."""
    known: dict[str, Any] = {
        "request_id": "1",
        "method": "POST",
        "path": "/chat/completions",
        "started": 100.0,
        "access": ACCESS,
        "backend": LARGE,
        "model": "llama",
        "status": 200,
        "first_byte": 100.2,
        "ended": 102.0,
    }
    return Exchange(**known | fields)


def refused(**fields: Any) -> Exchange:
    """A request whose key is not valid."""
    unknown = {"access": None, "backend": None, "model": None, "first_byte": None}
    return ended(**unknown | {"status": 401, "outcome": Outcome.REFUSED} | fields)


def counted(*exchanges: Exchange) -> CollectorRegistry:
    registry = CollectorRegistry()
    count = GatewayMetrics(registry)
    for exchange in exchanges:
        count(exchange)
    return registry


def labels_of(registry: CollectorRegistry, name: str, label: str) -> set[str]:
    return {s.labels[label] for metric in registry.collect() for s in metric.samples if s.name == name}


def test_one_request_counts_once_everywhere() -> None:
    registry = counted(
        ended(bytes_in=70, bytes_out=500, prompt_tokens=10, completion_tokens=20, streamed=True),
        refused(),
    )
    value = registry.get_sample_value
    where = {"backend": "large", "model": "llama"}
    request = {"route": "/v1/chat/completions", "profile": "staff", "outcome": "ok", "status_class": "2xx", **where}
    assert value(REQUESTS, request) == 1
    assert value("gasket_gateway_request_duration_seconds_sum", where) == 2.0
    assert value("gasket_gateway_request_duration_seconds_bucket", {**where, "le": "1.0"}) == 0
    assert value("gasket_gateway_request_duration_seconds_bucket", {**where, "le": "2.5"}) == 1
    assert value("gasket_gateway_time_to_first_byte_seconds_sum", where) == pytest.approx(0.2)
    assert value("gasket_gateway_tokens_total", {"profile": "staff", "kind": "prompt", **where}) == 10
    assert value("gasket_gateway_tokens_total", {"profile": "staff", "kind": "completion", **where}) == 20
    assert value("gasket_gateway_bytes_total", {"backend": "large", "direction": "in"}) == 70
    assert value("gasket_gateway_bytes_total", {"backend": "large", "direction": "out"}) == 500

    nowhere = {"backend": "", "model": ""}
    request |= {"profile": "", "outcome": "refused", "status_class": "4xx", **nowhere}
    assert value(REQUESTS, request) == 1
    assert value("gasket_gateway_request_duration_seconds_count", nowhere) == 1
    assert value("gasket_gateway_time_to_first_byte_seconds_count", nowhere) == 0


def test_the_buckets_go_from_milliseconds_to_minutes() -> None:
    assert BUCKETS[0] == 0.005
    assert BUCKETS[-1] == 600
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_tries_that_another_backend_made_good_are_counted() -> None:
    exchange = ended()
    exchange.note_failure(a_backend(name="small"), "timeout")
    exchange.note_failure(a_backend(name="small"), "timeout")
    exchange.note_failure(LARGE, "server_error")
    registry = counted(exchange, ended())
    value = registry.get_sample_value
    assert value("gasket_backend_errors_total", {"backend": "small", "kind": "timeout"}) == 2
    assert value("gasket_backend_errors_total", {"backend": "large", "kind": "server_error"}) == 1


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/audio/speech", "/v1/audio/speech"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/models/org/model", "/v1/models"),
        ("DELETE", "/models/mine", "other"),
        ("GET", "/chat/completions", "other"),
        ("POST", "/chat/completions/", "other"),
        ("POST", "/images/invented", "other"),
        ("GET", "/files/file-1", "other"),
        ("BREW", "/\x00", "other"),
    ],
)
def test_routes(method: str, path: str, route: str) -> None:
    assert find_route(method, path) == route


class TestModels:
    def test_a_model_has_its_name_once_a_backend_has_answered_for_it(self) -> None:
        missing = ended(status=404)
        count = GatewayMetrics(registry := CollectorRegistry())
        count(missing)
        assert labels_of(registry, REQUESTS, "model") == {"other"}
        count(ended())
        count(missing)
        assert Counter(
            (s.labels["model"], s.labels["status_class"], s.value)
            for metric in registry.collect()
            for s in metric.samples
            if s.name == REQUESTS
        ) == Counter([("other", "4xx", 1), ("llama", "2xx", 1), ("llama", "4xx", 1)])

    @pytest.mark.parametrize(
        "invented",
        [
            {"status": 404},
            {"status": 404, "backend": None, "outcome": Outcome.REFUSED},
            {"status": 502, "outcome": Outcome.UPSTREAM_FAILED},
            {"status": 499, "outcome": Outcome.CLIENT_GONE},
            {"backend": None},
        ],
    )
    def test_inventing_names_makes_no_series(self, invented: dict[str, Any]) -> None:
        registry = counted(*(ended(model=f"invented-{n}", **invented) for n in range(300)))
        assert labels_of(registry, REQUESTS, "model") == {"other"}

    def test_of_a_backend_that_answers_for_any_name_so_many_are_told_apart(self) -> None:
        registry = counted(*(ended(model=f"invented-{n}") for n in range(300)))
        models = labels_of(registry, REQUESTS, "model")
        assert len(models) == MOST_MODELS + 1
        assert "other" in models

    @pytest.mark.parametrize("name", ["x" * 101, "two\nlines", "\x1b[2J", "\ud800"])
    def test_names_that_are_not_for_people_are_other(self, name: str) -> None:
        assert labels_of(counted(ended(model=name)), REQUESTS, "model") == {"other"}

    def test_a_request_without_a_model_has_none(self) -> None:
        assert labels_of(counted(ended(model=None)), REQUESTS, "model") == {""}


def test_profiles_and_backends_that_come_and_go_are_no_more_than_so_many() -> None:
    registry = counted(
        *(ended(access=access_of(f"profile-{n}"), backend=backend_of(f"backend-{n}")) for n in range(MOST_NAMES + 50))
    )
    for label in ("profile", "backend"):
        assert len(labels_of(registry, REQUESTS, label)) == MOST_NAMES + 1


def test_there_is_a_largest_number_of_series() -> None:
    """Each label alone may be within its bounds, and their combinations still too many."""
    accesses = [access_of(f"profile-{n}") for n in range(40)]
    combinations = product(accesses, [f"model-{n}" for n in range(MOST_MODELS)], Outcome)
    exchanges = [ended(access=a, model=m, outcome=o) for a, m, o in combinations]
    assert len(exchanges) > 2 * MOST_SERIES
    registry = counted(*exchanges)
    samples = [s for metric in registry.collect() for s in metric.samples if s.name == REQUESTS]
    assert MOST_SERIES <= len(samples) <= MOST_SERIES + len(Outcome)
    assert sum(s.value for s in samples) == len(exchanges)


text = st.text(max_size=120)


@settings(deadline=None)  # the machine may have other work
@given(
    st.lists(
        st.builds(
            ended,
            method=text,
            path=st.one_of(st.sampled_from(["/chat/completions", "/models", "/models/x"]), text),
            access=st.one_of(st.none(), text.map(access_of)),
            backend=st.one_of(st.none(), text.map(backend_of)),
            model=st.one_of(st.none(), text),
            status=st.integers(0, 999),
            outcome=st.sampled_from(Outcome),
            first_byte=st.one_of(st.none(), st.floats(100, 1000)),
            prompt_tokens=st.integers(0, 10**12),
            bytes_in=st.integers(0, 2**30),
        ),
        max_size=8,
    )
)
def test_whatever_is_asked_for_the_text_can_be_read(exchanges: list[Exchange]) -> None:
    registry = counted(*exchanges)
    opened = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]  # prometheus-client's
    plain = generate_latest(registry).decode()
    for found in (
        text_string_to_metric_families(plain),
        parse_openmetrics(opened),  # type: ignore[no-untyped-call]  # prometheus-client's
    ):
        samples = [s for metric in found for s in metric.samples if s.name == REQUESTS]
        assert sum(s.value for s in samples) == len(exchanges)
        assert {s.labels["profile"] for s in samples} == {e.access.profile.name if e.access else "" for e in exchanges}
        assert {s.labels["route"] for s in samples} <= {"/v1/chat/completions", "/v1/models", "other"}
        assert {s.labels["model"] for s in samples} <= {e.model for e in exchanges if e.model} | {"", "other"}


@get("/things/{thing:int}")
async def thing(thing: FromPath[int]) -> int:
    return thing


async def ask(app: Gasket, method: str, path: str) -> None:
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "state": {},
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        pass

    await app(scope, receive, send)


async def test_the_administration_is_counted_by_path_template() -> None:
    app = Gasket([thing], logging_config=None, openapi_config=None)
    registry = CollectorRegistry()
    app.measure = AdministrationMetrics(registry).measure
    for n in range(3):
        await ask(app, "GET", f"/things/{n}")
        await ask(app, "GET", f"/invented/{n}")
        await ask(app, f"BREW{n}", "/things/1")
    samples = [s for metric in registry.collect() for s in metric.samples if s.name == "gasket_api_requests_total"]
    assert Counter({tuple(s.labels.values()): s.value for s in samples}) == {
        ("GET", "/things/{thing}", "200"): 3,
        ("GET", "other", "404"): 3,
        ("other", "other", "405"): 3,
    }
    assert (
        registry.get_sample_value(
            "gasket_api_request_duration_seconds_count", {"method": "GET", "route": "/things/{thing}"}
        )
        == 3
    )


def fail(breaker: Breaker) -> None:
    admission = breaker.admit()
    assert admission is not None
    admission.failed()


def sources(**other: Any) -> Sources:
    breakers = Breakers()
    breakers.of(1, "large")
    for _ in range(FAILURES):
        fail(breakers.of(2, "small").whole)

    async def readiness() -> Readiness:
        return Readiness(True, "at_head", "b2", "b2")

    known: dict[str, Any] = {
        "release": "r1",
        "under_way": lambda: 7,
        "backends": breakers.states,
        "keys": lambda: SimpleNamespace(hits=5, misses=2, size=1),
        "pools": lambda: {"api": PoolUse(8, 3, 1), "keys": PoolUse(2, 0, 0)},
        "readiness": readiness,
        "pending": lambda: 0,
        "drift": lambda: 2,
        "seconds_at_start": lambda: 0.25,
        "background": lambda: [
            SimpleNamespace(
                id=7, revision="b2", table_name="api_keys", state=State.RUNNING, rows_done=250, rows_estimated=1000
            )
        ],
        "usage": lambda: SimpleNamespace(waiting=4, written=30, dropped=1),
    }
    return Sources(**known | other)


class TestState:
    async def test_it_is_what_the_sources_say(self) -> None:
        registry = CollectorRegistry()
        registry.register(state := StateCollector(sources()))
        await state.look()
        value = registry.get_sample_value
        assert value("gasket_gateway_requests_in_flight") == 7
        assert value("gasket_backend_state", {"backend": "large", "state": "available"}) == 1
        assert value("gasket_backend_state", {"backend": "small", "state": "available"}) == 0
        assert value("gasket_backend_state", {"backend": "small", "state": "set_aside"}) == 1
        assert value("gasket_key_cache_hits_total") == 5
        assert value("gasket_key_cache_misses_total") == 2
        assert value("gasket_key_cache_keys") == 1
        assert value("gasket_database_pool_size", {"pool": "api"}) == 8
        assert value("gasket_database_pool_in_use", {"pool": "api"}) == 3
        assert value("gasket_database_pool_waiting", {"pool": "api"}) == 1
        assert value("gasket_usage_queue_records") == 4
        assert value("gasket_usage_records_written_total") == 30
        assert value("gasket_usage_records_dropped_total") == 1
        assert value("gasket_schema_info", {"release": "r1", "head": "b2", "revision": "b2"}) == 1
        assert value("gasket_schema_state", {"state": "at_head"}) == 1
        assert value("gasket_schema_state", {"state": "database_away"}) == 0
        assert value("gasket_schema_pending_revisions") == 0
        assert value("gasket_schema_drift") == 2
        assert value("gasket_background_works", {"state": "running"}) == 1
        assert value("gasket_background_works", {"state": "failed"}) == 0
        work = {"work": "7", "revision": "b2", "table": "api_keys"}
        assert value("gasket_background_rows_done", work) == 250
        assert value("gasket_background_rows_estimated", work) == 1000
        assert value("gasket_schema_startup_seconds") == 0.25

    async def test_a_start_is_told_in_gauges(self) -> None:
        async def readiness() -> StartReport:
            return StartReport(
                state="migrating", detail="", revision="a1", number=3, total=7, elapsed=12.5, percent=40.0
            )

        registry = CollectorRegistry()
        registry.register(state := StateCollector(sources(readiness=readiness)))
        await state.look()
        value = registry.get_sample_value
        assert value("gasket_schema_state", {"state": "migrating"}) == 1
        assert value("gasket_schema_state", {"state": "waiting"}) == 0
        expected = {"number": 3, "revisions": 7, "elapsed_seconds": 12.5, "blockers": 0, "percent": 40}
        assert {name: value(f"gasket_start_{name}") for name in expected} == expected
        assert value("gasket_start_eta_seconds") is None
        labels = {"revision": "a1", "description": "", "holder_pid": "", "holder": ""}
        assert value("gasket_start_info", labels) == 1

    def test_what_nobody_knows_is_left_out(self) -> None:
        registry = CollectorRegistry()
        registry.register(StateCollector(sources(pending=lambda: None, drift=lambda: None)))
        names = {metric.name for metric in registry.collect()}
        assert [name for name in names if "schema" in name] == ["gasket_schema_startup_seconds"]

    def test_a_backend_that_took_an_old_name_counts_under_it_once(self) -> None:
        breakers = Breakers()
        for _ in range(FAILURES):
            fail(breakers.of(1, "large").whole)
        breakers.of(2, "large")
        assert breakers.states() == {"large": "available"}


def described(metric: Metric) -> str:
    """The row of the table in docs/metrics.md."""
    suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
    labels = [label for label in metric.samples[0].labels if label != "le"]
    shown = ", ".join(f"`{label}`" for label in labels)
    return f"| `{metric.name}{suffix}` | {metric.type} | {shown} | {metric.documentation} |"


def ours(metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in metrics if metric.name.startswith("gasket_")]


async def test_the_document_lists_every_metric_with_its_labels_and_meaning() -> None:
    """On failure, put the expected table in its place."""
    registry = make_registry()
    exchange = ended()
    exchange.note_failure(LARGE, "timeout")
    GatewayMetrics(registry)(exchange)
    app = Gasket([thing], logging_config=None, openapi_config=None)
    app.measure = AdministrationMetrics(registry).measure
    await ask(app, "GET", "/things/1")
    registry.register(state := StateCollector(sources()))
    await state.look()
    every = StartReport(state="", detail="", number=1, total=1, elapsed=1.0, percent=1.0, eta=1.0)
    metrics = [*ours(registry.collect()), *start_metrics(every)]
    table = "\n".join(described(metric) for metric in metrics)
    section = DOCUMENT.read_text()
    assert table in section, f"\n{table}"
    listed = re.findall(r"^\| `(gasket_\w+)`", section, re.MULTILINE)
    assert len(listed) == len(set(listed)) == len(metrics)


def test_names_follow_the_conventions() -> None:
    """Prometheus, "Metric and label naming": base units, and `_total` for what only grows."""
    registry = CollectorRegistry()
    GatewayMetrics(registry)
    AdministrationMetrics(registry)
    registry.register(StateCollector(sources()))
    for metric in (*registry.collect(), *start_metrics(StartReport(state="", detail="", elapsed=1.0))):
        assert re.fullmatch(r"gasket(_[a-z]+)+", metric.name)
        assert not metric.name.endswith(("_total", "_count", "_sum", "_ms"))
        assert metric.type != "histogram" or metric.name.endswith("_seconds")
        assert metric.documentation
