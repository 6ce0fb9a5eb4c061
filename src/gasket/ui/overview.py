"""The first page: how schema, backends and traffic are, each in a sentence; the last hour and day; the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from litestar.response import Template

from gasket.backends.breaker import Breakers
from gasket.backends.service import BackendService
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.monitor import Readiness, SchemaMonitor
from gasket.ui.charts import Chart, Point, bar_chart
from gasket.ui.formats import milliseconds, percent, plural
from gasket.ui.pages import PageRequest, Session, page
from gasket.usage.traffic import Traffic, TrafficService

_FIVE_MINUTES, _AN_HOUR = timedelta(minutes=5), timedelta(hours=1)
_REFRESH = 15


class Statement(msgspec.Struct, frozen=True):
    """How something stands, in a sentence. `kind` is good, warn, bad or nothing, as the macro `state` has it."""

    kind: str
    word: str
    sentence: str


class Range(msgspec.Struct, frozen=True):
    """The figures and charts of a time until now."""

    title: str
    traffic: Traffic
    charts: tuple[Chart, ...]


@get("/ui")
async def overview(
    request: PageRequest,
    db_session: Session,
    breakers: NamedDependency[SkipValidation[Breakers]],
    schema_monitor: NamedDependency[SkipValidation[SchemaMonitor]],
) -> Template:
    """Everything on it is of this moment; the charts are of the requests that have ended."""
    now = datetime.now(UTC)
    traffic = TrafficService(db_session)
    hour = await traffic.last(now, slots=12, width=_FIVE_MINUTES)
    day = await traffic.last(now, slots=24, width=_AN_HOUR)
    in_use, count = await BackendService(db_session).in_use()
    return page(
        request,
        "overview.html",
        refresh=_REFRESH,
        schema=schema_statement(await schema_monitor.readiness()),
        backends=backends_statement(in_use, count, breakers),
        traffic=traffic_statement(hour),
        ranges=[_range("Last hour", hour, "%H:%M"), _range("Last day", day, "%H:%M")],
        replicas=await schema_monitor.replicas(),
    )


def schema_statement(readiness: Readiness) -> Statement:
    """Whether this release can work with the schema, and why not."""
    if readiness.state == SchemaState.AT_HEAD:
        words = f"The schema is at {readiness.revision}, the newest revision of this release."
        return Statement(
            "warn" if readiness.detail else "good", "At head", " ".join(filter(None, [words, readiness.detail]))
        )
    if readiness.ready and readiness.state == SchemaState.AHEAD:
        words = f"The schema is at {readiness.revision}, newer than this release and compatible with it."
        return Statement("good", "Ahead", words)
    word = readiness.state.replace("_", " ").capitalize()
    return Statement("warn" if readiness.ready else "bad", word, readiness.detail or "This replica takes no requests.")


def backends_statement(in_use: Sequence[int], count: int, breakers: Breakers) -> Statement:
    """How many of so many backends take requests, as this replica has it. Those not `in_use` an operator set aside."""
    if not count:
        return Statement("", "None", "There is no backend yet, so no request can be answered.")
    available = sum(breakers.state(backend_id) == "available" for backend_id in in_use)
    failing, aside = len(in_use) - available, count - len(in_use)
    all_of_them = plural(count, "backend")
    words = []
    if failing:
        words.append(f"{failing} of {all_of_them} failed several times in a row: no request goes there for now.")
    if aside:
        words.append(f"An operator has set {aside} of {all_of_them} aside.")
    if not words:
        return Statement("good", "Available", f"{plural(count, 'backend takes', 'backends take')} requests.")
    return Statement("warn" if available else "bad", "Set aside", " ".join(words))


def traffic_statement(hour: Traffic) -> Statement:
    """The last hour."""
    if not hour.requests:
        return Statement("", "Quiet", "No request has ended in the last hour.")
    failed = f"{percent(hour.failed, hour.requests)} of them failed" if hour.failed else "none failed"
    words = (
        f"{plural(hour.requests, 'request')} in the last hour, {failed}; half took at most {milliseconds(hour.p50_ms)}."
    )
    share = hour.failed / hour.requests
    kind, word = ("bad", "Failing") if share > 0.5 else ("warn", "Errors") if share > 0.05 else ("good", "Flowing")
    return Statement(kind, word, words)


def _range(title: str, traffic: Traffic, form: str) -> Range:
    begin, end = f"{traffic.slots[0].start:{form}} UTC", "now"
    requests = [Point(f"{slot.start:{form}} UTC", slot.requests, slot.failed) for slot in traffic.slots]
    tokens = [Point(f"{slot.start:{form}} UTC", slot.tokens) for slot in traffic.slots]
    return Range(
        title,
        traffic,
        (
            bar_chart("Requests", requests, begin=begin, end=end),
            bar_chart("Tokens", tokens, begin=begin, end=end),
        ),
    )
