"""The parameters and answers of `/api/usage`."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gasket.errors import InvalidInputError
from gasket.inputs import read_range

Group = Literal["key", "user", "profile", "model", "backend", "end_user", "hour", "day", "month"]

_HOUR = timedelta(hours=1)


class UsageSum(msgspec.Struct, kw_only=True):
    """The sums of one group; of the first nine fields it has those that it was grouped by."""

    key: Annotated[int, Meta(description="The key's id, though it may be deleted")] | UnsetType = UNSET
    user: Annotated[str, Meta(description="The address, in lower case")] | UnsetType = UNSET
    profile: Annotated[int, Meta(description="The profile's id, though it may be deleted")] | UnsetType = UNSET
    model: Annotated[str | None, Meta(description="Null: none was named, or the request failed")] | UnsetType = UNSET
    backend: Annotated[int | None, Meta(description="Null: the request reached none")] | UnsetType = UNSET
    end_user: (
        Annotated[str | None, Meta(description="As the `user_header` of the profile says; null: none")] | UnsetType
    ) = UNSET
    hour: Annotated[datetime, Meta(description="Its beginning")] | UnsetType = UNSET
    day: Annotated[date, Meta(description="A day of UTC")] | UnsetType = UNSET
    month: Annotated[str, Meta(pattern="^[0-9]{4,}-[0-9]{2}$", description="A month of UTC", examples=["2026-11"])] | (
        UnsetType
    ) = UNSET
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: Annotated[int, Meta(description="Part of `prompt_tokens`")]
    reasoning_tokens: Annotated[int, Meta(description="Part of `completion_tokens`")]
    audio_tokens: Annotated[int, Meta(description="Part of `prompt_tokens` and `completion_tokens`")]
    total_tokens: int


NUMBERS = tuple(name for name in UsageSum.__struct_fields__ if name not in get_args(Group))
"""The fields of a sum that can be added up."""


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What is summed: the requests of whole hours, from `start` on and before `end`, that are all of what is given."""

    groups: tuple[Group, ...]
    start: datetime | None = None
    end: datetime | None = None
    key: int | None = None
    keys: tuple[int, ...] | None = None
    user: str | None = None
    profile: int | None = None
    model: str | None = None
    backend: int | None = None
    end_user: str | None = None


def whole_hours(start: str | None, end: str | None) -> tuple[datetime | None, datetime | None]:
    """The range, widened to whole hours of UTC, since it is by the hour that totals are kept.

    Raises:
        InvalidInputError: what is given is no timestamp (RFC 3339), or the end is not after the start.
    """
    first, last = read_range(start, end)
    try:
        return _floor(first), _ceiling(last)
    except OverflowError:
        raise InvalidInputError("to is out of range.", field="to") from None


def _floor(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(minute=0, second=0, microsecond=0)


def _ceiling(moment: datetime | None) -> datetime | None:
    hour = _floor(moment)
    return hour if hour is None or hour == moment else hour + _HOUR
