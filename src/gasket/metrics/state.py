"""The metrics of this replica's state. Nothing is kept: each scrape reads the current state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, get_args

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gasket.backends.schemas import BackendState
from gasket.db import PoolUse
from gasket.metrics.start import start_metrics
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.ledger.background import UNFINISHED, Work
from gasket.migrator.monitor import DATABASE_AWAY, LEAVING, Readiness
from gasket.migrator.starting import MIGRATING, WAITING, StartReport

_SCHEMA_STATES = (*SchemaState, DATABASE_AWAY, LEAVING, MIGRATING, WAITING)


class KeyCache(Protocol):
    """Keys in memory: how many, and how often one was found there or had to be looked up, since the start."""

    hits: int
    misses: int

    @property
    def size(self) -> int: ...


class UsageQueue(Protocol):
    """Usage records: those that wait for the database now, and since the start the written and the dropped ones."""

    @property
    def waiting(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def dropped(self) -> int: ...


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask. All but `readiness` are asked in a thread beside the loop's: they look, and change nothing."""

    release: str
    under_way: Callable[[], int]
    backends: Callable[[], Mapping[str, BackendState]]
    keys: Callable[[], KeyCache]
    pools: Callable[[], Mapping[str, PoolUse]]
    readiness: Callable[[], Awaitable[Readiness | StartReport]]
    pending: Callable[[], int | None]
    drift: Callable[[], int | None]
    background: Callable[[], Sequence[Work]]
    seconds_at_start: Callable[[], float]
    usage: Callable[[], UsageQueue]


class StateCollector(Collector):
    """Asks the sources. The schema is what `look` found: it takes a query, for which `collect` cannot wait."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._schema: Readiness | StartReport | None = None

    async def look(self) -> None:
        """Ask how the schema stands; with the database away this takes about two seconds, and says so."""
        self._schema = await self._sources.readiness()

    def collect(self) -> Iterable[Metric]:
        """prometheus-client calls this at each scrape."""
        yield _gauge("gasket_gateway_requests_in_flight", "Requests under way now", self._sources.under_way())
        yield _one_of(
            "gasket_backend_state",
            "1 for the state that the backend has for this replica; only backends that were asked are here",
            "backend",
            get_args(BackendState),
            self._sources.backends(),
        )
        yield from self._keys()
        yield from self._pools()
        yield from self._usage()
        yield from self._migrations()

    def _keys(self) -> Iterable[Metric]:
        keys = self._sources.keys()
        yield _counter("gasket_key_cache_hits_total", "Valid keys that were found in memory", keys.hits)
        yield _counter("gasket_key_cache_misses_total", "Keys that were looked up in the database", keys.misses)
        yield _gauge("gasket_key_cache_keys", "Keys in memory", keys.size)

    def _pools(self) -> Iterable[Metric]:
        pools = self._sources.pools()
        of = "; `pool`: `api`, or `keys` for looking up keys"
        for name, meaning in (
            ("size", "Connections to the database that there may be" + of),
            ("in_use", "Of these, in use now"),
            ("waiting", "Those who ask for a connection and have not got it yet"),
        ):
            family = GaugeMetricFamily(f"gasket_database_pool_{name}", meaning, labels=["pool"])
            for pool, use in pools.items():
                family.add_metric([pool], getattr(use, name))
            yield family

    def _usage(self) -> Iterable[Metric]:
        usage = self._sources.usage()
        yield _gauge("gasket_usage_queue_records", "Usage records that wait to be written", usage.waiting)
        yield _counter("gasket_usage_records_written_total", "Usage records that are in the database", usage.written)
        yield _counter("gasket_usage_records_dropped_total", "Usage records that were lost", usage.dropped)

    def _migrations(self) -> Iterable[Metric]:
        schema, pending = self._schema, self._sources.pending()
        if isinstance(schema, StartReport):
            yield from start_metrics(schema)
        elif schema is not None:
            yield InfoMetricFamily(
                "gasket_schema",
                "This release, the newest revision that it has, and the one that is applied",
                {"release": self._sources.release, "head": schema.head or "", "revision": schema.revision or ""},
            )
        if schema is not None:
            yield _one_of(
                "gasket_schema_state",
                "1 for the state that `/health/ready` tells",
                None,
                _SCHEMA_STATES,
                {"": schema.state},
            )
        yield from self._background()
        if pending is not None:
            yield _gauge("gasket_schema_pending_revisions", "Revisions of this release that are not applied", pending)
        if (drift := self._sources.drift()) is not None:
            yield _gauge(
                "gasket_schema_drift",
                "Points in which the live database is not what the revisions left; only of the replica that looks",
                drift,
            )
        yield _gauge(
            "gasket_schema_startup_seconds",
            "What this start took until the schema was right: looking, waiting for others, migrating",
            self._sources.seconds_at_start(),
        )

    def _background(self) -> Iterable[Metric]:
        works = self._sources.background()
        states = GaugeMetricFamily(
            "gasket_background_works", "Background work that is not complete, by its state", labels=["state"]
        )
        for state in sorted(UNFINISHED):
            states.add_metric([state], sum(work.state is state for work in works))
        yield states
        for name, meaning in (
            ("done", "Rows that background work has changed"),
            ("estimated", "Rows that background work has to change, as estimated when it began"),
        ):
            family = GaugeMetricFamily(f"gasket_background_rows_{name}", meaning, labels=["work", "revision", "table"])
            for work in works:
                rows = getattr(work, f"rows_{name}")
                if rows is not None:
                    family.add_metric([str(work.id), work.revision, work.table_name], rows)
            yield family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _one_of(name: str, meaning: str, whose: str | None, states: Iterable[str], found: Mapping[str, str]) -> Metric:
    """For each that was found and each state one series, of which one is 1. `whose` is the label of what was found."""
    family = GaugeMetricFamily(name, meaning, labels=["state"] if whose is None else [whose, "state"])
    for key, state in found.items():
        for possible in states:
            labels = [possible] if whose is None else [key, possible]
            family.add_metric(labels, possible == state)
    return family
