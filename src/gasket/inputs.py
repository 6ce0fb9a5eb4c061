"""What clients of `/api` may send: strict bodies, and the query parameters of lists."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from advanced_alchemy.filters import LimitOffset, OrderBy, SearchFilter, StatementFilter
from litestar import Request
from litestar.datastructures import State
from litestar.di import Provide
from litestar.params import QueryParameter

from gasket.errors import InvalidInputError

_LIST_PARAMETERS = frozenset({"currentPage", "pageSize", "orderBy", "sortOrder", "searchString", "searchIgnoreCase"})
CurrentPage = Annotated[
    int, QueryParameter(name="currentPage", ge=1, le=1_000_000, description="Which page; the first is 1")
]
PageSize = Annotated[int, QueryParameter(name="pageSize", ge=1, le=200, description="Items of a page")]
SortOrder = Annotated[
    Literal["asc", "desc"], QueryParameter(name="sortOrder", description="Up or down; null comes last")
]
_SearchString = Annotated[
    str | None, QueryParameter(name="searchString", max_length=200, description="Items that contain this text")
]
_SearchIgnoreCase = Annotated[bool, QueryParameter(name="searchIgnoreCase", description="Whether `a` finds `A`")]
Moment = Annotated[datetime, msgspec.Meta(tz=True, description="With a UTC offset", examples=["2030-01-01T00:00:00Z"])]
_WithOffset = Annotated[datetime, msgspec.Meta(tz=True)]
# Unicode's categories of control characters, surrogates, and line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


class Input(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request's body. Text is one printable line; in the fields of `multiline` it may have several lines.

    Raises:
        InvalidInputError: a text is not that, or has a character that PostgreSQL cannot store (U+0000, lone
            surrogates).
    """

    multiline: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    _check_text(field, text, multiline=field in self.multiline)

    def given(self) -> dict[str, Any]:
        """The fields that the client sent; in a PATCH, the fields to change."""
        return {
            field: value for field in self.__struct_fields__ if (value := getattr(self, field)) is not msgspec.UNSET
        }


def _check_text(field: str, text: str, *, multiline: bool) -> None:
    if not multiline and text != text.strip():
        raise InvalidInputError(f"{field} must not begin or end with a space.", field=field)
    allowed = "\n\r\t" if multiline else ""
    if any(unicodedata.category(c) in _UNPRINTABLE and c not in allowed for c in text):
        raise InvalidInputError(f"{field} must not contain control characters.", field=field)


class StrictRequest(Request[Any, Any, State]):
    """A request whose body is converted strictly: `"1"` is not a number, and a number is not a date.

    Litestar converts leniently, which query parameters need.
    """

    async def json(self) -> Any:
        """The body, converted to the type of the handler's parameter `data`.

        Raises:
            InvalidInputError: it is not JSON, or not of that type.
        """
        field = self.route_handler.parsed_data_field
        if field is None:
            return await super().json()
        try:
            return msgspec.json.decode(await self.body(), type=field.annotation)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            name = path.strip(".`") or "body"
            raise InvalidInputError(f"{name}: {message}", field=name) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"The body is not JSON: {error}") from None


def list_filters(*sortable: str, search: frozenset[str], more: frozenset[str] = frozenset()) -> Provide:
    """A dependency: the page, the order and the search of a list, as Advanced Alchemy's filters.

    The parameters have the names of Advanced Alchemy's own dependencies. Those have no largest page, sort by any
    attribute, and ignore a misspelt parameter.

    `search` names the attributes that are searched, `more` further query parameters of the list.
    """
    parameters = _LIST_PARAMETERS | more

    def filters(
        request: Request[Any, Any, State],
        current_page: CurrentPage = 1,
        page_size: PageSize = 20,
        order_by: str = "id",
        sort_order: SortOrder = "asc",
        search_string: _SearchString = None,
        search_ignore_case: _SearchIgnoreCase = True,
    ) -> list[StatementFilter]:
        check_query(request, parameters)
        chosen: list[StatementFilter] = [
            LimitOffset(limit=page_size, offset=page_size * (current_page - 1)),
            OrderBy(order_by, sort_order, nulls="last"),
            OrderBy("id"),  # equal rows keep their order from page to page
        ]
        if search_string:
            chosen.append(
                SearchFilter(set(search), search_string, ignore_case=search_ignore_case, escape_wildcards=True)
            )
        return chosen

    filters.__annotations__["order_by"] = Annotated[
        Literal[sortable], QueryParameter(name="orderBy", description="What to sort by")
    ]
    return Provide(filters, sync_to_thread=False)


def check_query(request: Request[Any, Any, State], parameters: frozenset[str]) -> None:
    """Refuse unknown query parameters: a misspelt one must not be ignored.

    Raises:
        InvalidInputError: a parameter is unknown, or its value has a character that PostgreSQL cannot store.
    """
    for name, value in request.query_params.multi_items():
        if name not in parameters:
            known = ", ".join(sorted(parameters))
            raise InvalidInputError(f"{name!r} is not a parameter of this list; it takes {known}.", field=name)
        if "\0" in value:
            raise InvalidInputError(f"{name} must not contain control characters.", field=name)


def read_range(start: str | None, end: str | None) -> tuple[datetime | None, datetime | None]:
    """The query parameters `from` and `to`, as `_read_moment` reads each.

    Raises:
        InvalidInputError: one is no time, or `to` is not after `from`.
    """
    first, last = _read_moment("from", start), _read_moment("to", end)
    if first is not None and last is not None and last <= first:
        raise InvalidInputError("to must be later than from.", field="to")
    return first, last


def _read_moment(name: str, text: str | None) -> datetime | None:
    """The query parameter of this name as a time in UTC; None where it is not given.

    Raises:
        InvalidInputError: it is no timestamp with an offset (RFC 3339), or out of range.
    """
    if text is None:
        return None
    try:
        return msgspec.convert(text, _WithOffset).astimezone(UTC)
    except msgspec.ValidationError:
        raise InvalidInputError(
            f"{name} must be a timestamp with an offset, such as 2026-11-25T00:00:00Z (the + of another: %2B).",
            field=name,
        ) from None
    except OverflowError:
        raise InvalidInputError(f"{name} is out of range.", field=name) from None
