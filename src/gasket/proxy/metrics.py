"""The metrics of requests below `/v1`. A request is counted when it has ended.

No client can make series without end: routes are the endpoints that are known, profiles and backends have the names of
our rows, a model has its name only once a backend has answered for it, and of all of these there is a largest number.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

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


class _Series(NamedTuple):
    """The counters of one combination of labels. They are kept: looking them up would take longer than counting."""

    requests: Counter
    duration: Histogram
    first_byte: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    bytes_in: Counter
    bytes_out: Counter


class GatewayMetrics:
    """Told each request that has ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "gasket_gateway_requests_total",
            "Requests that have ended",
            _Labels._fields,
            registry=registry,
        )
        self._duration = Histogram(
            "gasket_gateway_request_duration_seconds",
            "From a request's head to the end of its answer",
            ["backend", "model"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._first_byte = Histogram(
            "gasket_gateway_time_to_first_byte_seconds",
            "From a request's head to the first byte of its answer; requests without an answer do not count",
            ["backend", "model"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "gasket_gateway_tokens_total",
            "Tokens: `prompt` or `completion`; estimated where the backend did not tell",
            ["profile", "backend", "model", "kind"],
            registry=registry,
        )
        self._bytes = Counter(
            "gasket_gateway_bytes_total",
            "Bytes of bodies: `in` from clients, `out` to them",
            ["backend", "direction"],
            registry=registry,
        )
        self._errors = Counter(
            "gasket_backend_errors_total",
            "Tries that failed, also those that another backend made good: `not_connected`, `timeout`, `broken_off`, "
            "`rate_limited` (429), `server_error` (5xx), `error_in_success` (an error with status 200), `redirected`, "
            "`unreadable` (a Content-Encoding that the client does not accept)",
            ["backend", "kind"],
            registry=registry,
        )
        self._models = _Names(MOST_MODELS)
        self._profiles = _Names(MOST_NAMES)
        self._backends = _Names(MOST_NAMES)
        self._series: dict[_Labels, _Series] = {}

    def __call__(self, exchange: Exchange) -> None:
        """Count it."""
        labels = self._labels(exchange)
        series = self._series.get(labels) or self._new_series(labels)
        series.requests.inc()
        series.duration.observe(exchange.ended - exchange.started)
        if exchange.first_byte is not None:
            series.first_byte.observe(exchange.first_byte - exchange.started)
        if exchange.bytes_in:
            series.bytes_in.inc(exchange.bytes_in)
        if exchange.bytes_out:
            series.bytes_out.inc(exchange.bytes_out)
        if exchange.prompt_tokens:
            series.prompt_tokens.inc(exchange.prompt_tokens)
        if exchange.completion_tokens:
            series.completion_tokens.inc(exchange.completion_tokens)
        for backend, kind in exchange.failures:
            self._errors.labels(self._backends.label(backend.name), kind).inc()

    def _labels(self, exchange: Exchange) -> _Labels:
        access, backend = exchange.access, exchange.backend
        return _Labels(
            find_route(exchange.method, exchange.path),
            NONE if access is None else self._profiles.label(access.profile.name),
            NONE if backend is None else self._backends.label(backend.name),
            self._model(exchange),
            exchange.outcome.value,
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

    def _new_series(self, labels: _Labels) -> _Series:
        """Bind what a request with these labels adds to. Of too many only what is known to be little stays apart."""
        if len(self._series) >= MOST_SERIES:
            labels = _Labels(OTHER_ROUTE, OTHER, OTHER, OTHER, labels.outcome, labels.status_class)
            if (known := self._series.get(labels)) is not None:
                return known
        where = labels.backend, labels.model
        series = self._series[labels] = _Series(
            requests=self._requests.labels(*labels),
            duration=self._duration.labels(*where),
            first_byte=self._first_byte.labels(*where),
            prompt_tokens=self._tokens.labels(labels.profile, *where, "prompt"),
            completion_tokens=self._tokens.labels(labels.profile, *where, "completion"),
            bytes_in=self._bytes.labels(labels.backend, "in"),
            bytes_out=self._bytes.labels(labels.backend, "out"),
        )
        return series
