"""The metrics of requests below `/v1`. A request is counted when it has ended.

No client can make series without end: routes are the endpoints that are known, profiles and backends have the names of
our rows, a model has its name only once a backend has answered for it, and of all of these there is a largest number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gasket.proxy.endpoints import OTHER_ROUTE, find_route
from gasket.proxy.exchange import Exchange

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds: from an answer of the gateway's own to a long generation."""
NONE = ""
"""The label of what a request has not: no profile before its key is known, no backend when it was refused."""
OTHER = "other"
MOST_MODELS = 100
MOST_NAMES = 500
MOST_SERIES = 10_000

_LONGEST_MODEL = 100
_MOST_RECENT = 1000
_BOUNDS = [*map(str, BUCKETS), "+Inf"]
_CLASSES = {0: "none", 1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}


class _Names:
    """The first `most` names that came, each as it is; all later ones are `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str, *, may_be_new: bool = True) -> str:
        if name in self._known:
            return name
        if not may_be_new or len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


class _Labels(NamedTuple):
    route: str
    profile: str
    backend: str
    model: str
    outcome: str
    status_class: str


class _Durations:
    """A histogram: how many durations fell into each bucket, the last of which has no end, and their sum in seconds."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: _Durations) -> None:
        self.buckets = list(map(add, self.buckets, other.buckets))
        self.seconds += other.seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each bucket has what the smaller ones have, too."""
        return list(zip(_BOUNDS, accumulate(self.buckets), strict=True))


class _Series:
    """What requests with the same labels came to. prometheus-client's own objects, of which each addition takes a lock
    and several calls, took a twentieth of a request's CPU time.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "completion_tokens",
        "durations",
        "first_bytes",
        "prompt_tokens",
        "requests",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.durations = _Durations()
        self.first_bytes = _Durations()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.bytes_in = 0
        self.bytes_out = 0


class GatewayMetrics(Collector):
    """Told each request that has ended. A scrape sums up what was counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models = _Names(MOST_MODELS)
        self._profiles = _Names(MOST_NAMES)
        self._backends = _Names(MOST_NAMES)
        self._series: dict[_Labels, _Series] = {}
        self._recent: dict[tuple[object, ...], _Series] = {}
        """By what requests have instead of labels: most requests are like one before."""
        self._errors: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def __call__(self, exchange: Exchange) -> None:
        """Count it."""
        series = self._series_of(exchange)
        series.requests += 1
        series.durations.observe(exchange.ended - exchange.started)
        if exchange.first_byte is not None:
            series.first_bytes.observe(exchange.first_byte - exchange.started)
        series.bytes_in += exchange.bytes_in
        series.bytes_out += exchange.bytes_out
        series.prompt_tokens += exchange.prompt_tokens
        series.completion_tokens += exchange.completion_tokens
        for backend, kind in exchange.failures:
            self._errors[self._backends.label(backend.name), kind] += 1

    def collect(self) -> Iterable[Metric]:
        """prometheus-client calls this at each scrape, in a thread of its own."""
        series = list(self._series.items())
        requests = CounterMetricFamily("gasket_gateway_requests", "Requests that have ended", labels=_Labels._fields)
        durations: defaultdict[tuple[str, str], _Durations] = defaultdict(_Durations)
        first_bytes: defaultdict[tuple[str, str], _Durations] = defaultdict(_Durations)
        tokens: Counter[tuple[str, str, str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for labels, counted in series:
            where = labels.backend, labels.model
            requests.add_metric(labels, counted.requests)
            durations[where].add(counted.durations)
            first_bytes[where].add(counted.first_bytes)
            tokens[labels.profile, *where, "prompt"] += counted.prompt_tokens
            tokens[labels.profile, *where, "completion"] += counted.completion_tokens
            sizes[labels.backend, "in"] += counted.bytes_in
            sizes[labels.backend, "out"] += counted.bytes_out
        yield requests
        yield _histogram(
            "gasket_gateway_request_duration_seconds",
            "From a request's head to the end of its answer",
            durations,
        )
        yield _histogram(
            "gasket_gateway_time_to_first_byte_seconds",
            "From a request's head to the first byte of its answer; requests without an answer do not count",
            first_bytes,
        )
        yield _counter(
            "gasket_gateway_tokens",
            "Tokens: `prompt` or `completion`; estimated where the backend did not tell",
            ["profile", "backend", "model", "kind"],
            tokens,
        )
        yield _counter(
            "gasket_gateway_bytes",
            "Bytes of bodies: `in` from clients, `out` to them",
            ["backend", "direction"],
            sizes,
        )
        yield _counter(
            "gasket_backend_errors",
            "Tries that failed, also those that another backend made good: `not_connected`, `timeout`, `broken_off`, "
            "`rate_limited` (429), `server_error` (5xx), `error_in_success` (an error with status 200), `redirected`, "
            "`unreadable` (a Content-Encoding that the client does not accept)",
            ["backend", "kind"],
            dict(self._errors),
        )

    def _series_of(self, exchange: Exchange) -> _Series:
        access, backend = exchange.access, exchange.backend
        like = (
            exchange.method,
            exchange.path,
            access and access.profile.name,
            backend and backend.name,
            exchange.model,
            exchange.outcome,
            exchange.status,
        )
        series = self._recent.get(like)
        if series is None:
            labels = self._labels(exchange)
            series = self._find_series(labels)
            if labels.model != OTHER:  # it may get its name later
                if len(self._recent) >= _MOST_RECENT:
                    self._recent.clear()
                self._recent[like] = series
        return series

    def _labels(self, exchange: Exchange) -> _Labels:
        access, backend = exchange.access, exchange.backend
        return _Labels(
            find_route(exchange.method, exchange.path),
            NONE if access is None else self._profiles.label(access.profile.name),
            NONE if backend is None else self._backends.label(backend.name),
            self._model(exchange),
            exchange.outcome,
            _CLASSES.get(exchange.status // 100, OTHER),
        )

    def _model(self, exchange: Exchange) -> str:
        """Clients may ask for anything; only a backend's answer shows that there is such a model."""
        model = exchange.model
        if model is None:
            return NONE
        answered = exchange.backend is not None and 200 <= exchange.status < 300
        presentable = len(model) <= _LONGEST_MODEL and model.isprintable()
        return self._models.label(model, may_be_new=answered and presentable)

    def _find_series(self, labels: _Labels) -> _Series:
        """Of too many only what is known to be little stays apart."""
        if labels not in self._series and len(self._series) >= MOST_SERIES:
            labels = _Labels(OTHER_ROUTE, OTHER, OTHER, OTHER, labels.outcome, labels.status_class)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series()
        return series


def _histogram(name: str, meaning: str, counted: Mapping[tuple[str, str], _Durations]) -> Metric:
    family = HistogramMetricFamily(name, meaning, labels=["backend", "model"])
    for where, durations in counted.items():
        family.add_metric(where, durations.cumulative(), durations.seconds)
    return family


def _counter(name: str, meaning: str, labels: Sequence[str], counted: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, number in counted.items():
        family.add_metric(values, number)
    return family
