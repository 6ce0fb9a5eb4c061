"""Lists that are too long for one page: which part is asked for, and the links to the parts before and behind it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec
from advanced_alchemy.filters import LimitOffset, OrderBy, SearchFilter, StatementFilter

from gasket.ui.formats import number, plural
from gasket.ui.pages import PageRequest

SIZE = 50
_LONGEST_SEARCH = 200
_LAST_PAGE = 1_000_000


class Listing(msgspec.Struct, frozen=True):
    """A part of a list. `query` has what was searched for, by the names of the form's fields."""

    path: str
    page: int
    query: Mapping[str, str]
    parameter: str = "page"

    @property
    def search(self) -> str:
        """The text that is searched for; empty: none."""
        return self.query.get("search", "")

    def filters(self, *searched: str, order: str = "id", newest_first: bool = True) -> list[StatementFilter]:
        """For the service: this part of the list, and the search in these attributes."""
        chosen: list[StatementFilter] = [
            LimitOffset(limit=SIZE, offset=SIZE * (self.page - 1)),
            OrderBy(order, "desc" if newest_first else "asc"),
        ]
        if self.search and searched:
            chosen.append(SearchFilter(set(searched), self.search, ignore_case=True, escape_wildcards=True))
        return chosen

    def pager(self, total: int, noun: str) -> Pager:
        """What stands below the list, of which there are `total` in all."""
        first, last = SIZE * (self.page - 1) + 1, min(SIZE * self.page, total)
        words = plural(total, noun)
        if total > SIZE and first <= last:
            words = f"{number(first)} to {number(last)} of {words}"
        return Pager(words, self._to(self.page - 1), self._to(self.page + 1) if SIZE * self.page < total else None)

    def _to(self, page: int) -> str | None:
        if page < 1:
            return None
        query = {name: value for name, value in self.query.items() if value} | (
            {self.parameter: str(page)} if page > 1 else {}
        )
        return f"{self.path}?{urlencode(query)}" if query else self.path


class Pager(msgspec.Struct, frozen=True):
    """Words, and the paths of the parts before and behind this one; None: there is none."""

    words: str
    previous: str | None
    next: str | None


def listing(request: PageRequest, *fields: str, parameter: str = "page") -> Listing:
    """What the query of the request asks for. `fields` are the form's beside `search`; what is unknown is ignored.

    `parameter` has the number of the part; where a page has two lists, each has its own and keeps the other's.
    """
    given = request.query_params
    query = {name: clean(given.get(name, "")) for name in ("search", *fields)}
    page = whole_number(given.get(parameter, ""), _LAST_PAGE) or 1
    return Listing(request.url.path, page, query, parameter)


def whole_number(text: str, largest: int) -> int | None:
    """The number from 0 to `largest` that a query or a form has sent; None: it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(largest))):
        return None
    number = int(text)
    return number if number <= largest else None


def clean(text: str) -> str:
    """Without what PostgreSQL cannot store, and not longer than a search may be."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:_LONGEST_SEARCH].strip()
