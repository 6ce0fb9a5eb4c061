"""Who used how much: sums and charts by key, user, profile, model or backend, and the same as CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Response, get
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.backends.service import BackendService, ProfileService
from gasket.db import is_any_of
from gasket.errors import InvalidInputError
from gasket.keys.models import ApiKey
from gasket.keys.service import KeyService
from gasket.ui.charts import Chart, Point, bar_chart
from gasket.ui.csv_files import csv_file
from gasket.ui.forms import Form
from gasket.ui.pages import PageRequest, Session, page
from gasket.usage.schemas import NUMBERS, Group, UsageQuery, UsageSum
from gasket.usage.service import UsageService

GROUPS: dict[Group, str] = {"key": "Key", "user": "User", "profile": "Profile", "model": "Model", "backend": "Backend"}
"""What can be summed by, and its name."""
RANGES = {1: "Today", 7: "7 days", 30: "30 days", 365: "365 days"}
"""Days up to today that are often asked for, and what they are called."""
PLAIN_RANGE = 7
"""The days that are shown where nobody has chosen."""

_SHOWN = 100
_MOST_IN_FILE = 100_000
_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens")
_DAY = timedelta(days=1)
_HOURS_UNTIL, _DAYS_UNTIL = 2, 92
"""Days of a range up to which its bars are hours, and days; longer ones have months."""


class Range(msgspec.Struct, frozen=True):
    """Days of UTC from `first` to `last`, both in it."""

    by: Group
    first: date
    last: date

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1

    @property
    def unit(self) -> Group:
        """What a bar of the charts stands for."""
        return "hour" if self.days <= _HOURS_UNTIL else "day" if self.days <= _DAYS_UNTIL else "month"

    def query(self, group: Group) -> UsageQuery:
        """For sums by this group."""
        start, end = (datetime.combine(day, time(), UTC) for day in (self.first, self.last + _DAY))
        return UsageQuery(groups=(group,), start=start, end=end)

    def address(self, path: str) -> str:
        """The page, or the file, of this range."""
        return f"{path}?{urlencode({'by': self.by, 'from': self.first.isoformat(), 'to': self.last.isoformat()})}"


def last_days(days: int, by: Group, today: date) -> Range:
    """So many days, of which today is the last."""
    return Range(by, today - (days - 1) * _DAY, today)


class Line(msgspec.Struct, frozen=True):
    """A group: its name, more about it, and its sums. `name` is None where the requests had none."""

    name: str | None
    more: str
    sums: UsageSum


@get("/ui/usage")
async def usage(request: PageRequest, db_session: Session) -> Response[Any]:
    """The largest groups; the file has all of them."""
    today = datetime.now(UTC).date()
    form = _form(request, today)
    try:
        chosen = read_range(form)
    except InvalidInputError as error:
        return page(request, "usage.html", status=400, form=form.refused(error), groups=GROUPS, chosen=None, ranges=[])
    service = UsageService(db_session)
    largest = await service.largest(chosen.query(chosen.by), limit=_SHOWN)
    bars = await _bars(service, chosen, today, largest.total)
    return page(
        request,
        "usage.html",
        form=form,
        groups=GROUPS,
        chosen=chosen,
        ranges=_ranges(chosen, today),
        largest=largest,
        lines=await _lines(db_session, chosen.by, largest.rows),
        charts=charts(chosen, bars),
        csv=chosen.address("/ui/usage.csv"),
    )


@get("/ui/usage.csv")
async def usage_csv(request: PageRequest, db_session: Session) -> Response[bytes]:
    """All groups of the range.

    Raises:
        InvalidInputError: the range is none.
    """
    chosen = read_range(_form(request, datetime.now(UTC).date()))
    largest = await UsageService(db_session).largest(chosen.query(chosen.by), limit=_MOST_IN_FILE)
    lines = await _lines(db_session, chosen.by, largest.rows)
    rows = [["id", "name", "about", *_SUMS]] + [_row(line, chosen.by) for line in lines]
    return csv_file(f"usage-by-{chosen.by}-{chosen.first}-{chosen.last}.csv", rows)


def read_range(form: Form) -> Range:
    """What the form asks for.

    Raises:
        InvalidInputError: a field is not what it has to be.
    """
    by = form.values["by"]
    if by not in GROUPS:
        raise InvalidInputError(f"Choose one of {', '.join(GROUPS)}.", field="by")
    first, last = (_day(form, name) for name in ("from", "to"))
    if last < first:
        raise InvalidInputError("The last day must not be before the first.", field="to")
    return Range(next(group for group in GROUPS if group == by), first, last)


def _day(form: Form, name: str) -> date:
    try:
        day = date.fromisoformat(form.values[name])
    except ValueError:
        raise InvalidInputError("Give a day, such as 2026-12-01.", field=name) from None
    if not 2000 <= day.year <= 2999:
        raise InvalidInputError("Give a year between 2000 and 2999.", field=name)
    return day


def _form(request: PageRequest, today: date) -> Form:
    """The query; without it the last week by key."""
    week = last_days(PLAIN_RANGE, "key", today)
    plain = {"by": week.by, "from": week.first.isoformat(), "to": week.last.isoformat()}
    return Form({name: (request.query_params.get(name) or value).strip() for name, value in plain.items()})


def _ranges(chosen: Range, today: date) -> list[tuple[str, str, bool]]:
    """Names and addresses of ranges that are often asked for, and whether this is the one shown."""
    found = []
    for days, name in RANGES.items():
        offered = last_days(days, chosen.by, today)
        found.append((name, offered.address("/ui/usage"), offered == chosen))
    return found


async def _bars(service: UsageService, chosen: Range, today: date, total: UsageSum) -> list[UsageSum]:
    """The sums of each hour, day or month of the range, whose sums together are `total`.

    Today's are what the days before it leave of the total: a day that is not over has no sums of its own yet, and to
    add its totals up once more would take as long as all the other days.
    """
    query = chosen.query(chosen.unit)
    if chosen.unit == "hour" or not chosen.first < today <= chosen.last:
        return await _in_order(service, query)
    before = await _in_order(service, msgspec.structs.replace(query, end=datetime.combine(today, time(), UTC)))
    # Late records may come in between the two questions.
    left = {name: max(0, getattr(total, name) - sum(getattr(bar, name) for bar in before)) for name in NUMBERS}
    return [*before, UsageSum(day=today, month=f"{today:%Y-%m}", **left)]


async def _in_order(service: UsageService, query: UsageQuery) -> list[UsageSum]:
    sums, _ = await service.sums(query, order="asc", limit=_MOST_IN_FILE, offset=0)
    return sums


async def _lines(session: AsyncSession, by: Group, sums: Collection[UsageSum]) -> list[Line]:
    ids = [getattr(entry, by) for entry in sums]
    names = await _names(session, by, [found for found in ids if isinstance(found, int)])
    return [Line(*_named(by, found, names), entry) for found, entry in zip(ids, sums, strict=True)]


def _named(by: Group, found: str | int | None, names: dict[int, tuple[str, str]]) -> tuple[str | None, str]:
    if isinstance(found, int):
        return names.get(found) or (f"{by} {found}", "deleted")
    return found, ""


async def _names(session: AsyncSession, by: Group, ids: list[int]) -> dict[int, tuple[str, str]]:
    """Of the ids that are still there: the name, and what else tells it from others."""
    match by:
        case "key":
            keys = KeyService(session, profiles=ProfileService(session))
            return {row.id: (row.name, row.user_email) for row in await keys.get_many(is_any_of(ApiKey.id, ids))}
        case "profile":
            names = await ProfileService(session).names(ids)
        case "backend":
            names = await BackendService(session).names(ids)
        case _:
            return {}
    return {item_id: (name, "") for item_id, name in names.items()}


def _row(line: Line, by: Group) -> list[Any]:
    return [getattr(line.sums, by), line.name, line.more, *(getattr(line.sums, name) for name in _SUMS)]


def charts(chosen: Range, sums: Collection[UsageSum]) -> list[Chart]:
    """Requests and tokens over the range, a bar for each hour, day or month, also where nothing was used."""
    unit = chosen.unit
    slots = list(_slots(chosen))
    begin, end = slots[0], slots[-1]

    def chart(title: str, field: str) -> Chart:
        found: Counter[str] = Counter()
        for entry in sums:
            found[_slot_name(unit, getattr(entry, unit))] += getattr(entry, field)
        return bar_chart(title, [Point(slot, found[slot]) for slot in slots], begin=begin, end=end)

    return [chart(f"Requests by {unit}", "requests"), chart(f"Tokens by {unit}", "total_tokens")]


def _slots(chosen: Range) -> Iterator[str]:
    for number in range(chosen.days):
        day = chosen.first + number * _DAY
        if chosen.unit == "hour":
            for hour in range(24):
                yield _slot_name("hour", datetime.combine(day, time(hour), UTC))
        elif chosen.unit == "day":
            yield _slot_name("day", day)
        elif day.day == 1 or number == 0:
            yield _slot_name("month", f"{day:%Y-%m}")


def _slot_name(unit: Group, slot: datetime | date | str) -> str:
    return f"{slot:%b %d, %H:%M}" if unit == "hour" else f"{slot:%b %d}" if unit == "day" else str(slot)
