"""Audit: who did what, the newest first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import get
from litestar.response import Template

from gasket.access.roles import ROUTES
from gasket.audit.schemas import AuditEntryOut, AuditPage, AuditQuery
from gasket.audit.service import AuditService
from gasket.errors import InvalidInputError
from gasket.inputs import read_range
from gasket.ui.forms import Form, moment
from gasket.ui.lists import clean, whole_number
from gasket.ui.pages import PageRequest, Session, page

PATH = "/ui/audit"
KINDS = ("archive", "audit", "backend", "key", "profile", "session", "token")
ACTIONS = ("change", "command", "create", "delete", "erasure", "refused_sign_in", "retention", "truncate")

_SIZE = 40
_FIELDS = ("who", "object", "object_id", "action", "from", "to")
_LARGEST_ID = 2**63 - 1
_MOST_VALUES = 12
_LONGEST_VALUE = 80


class Value(msgspec.Struct, frozen=True):
    """A column of the row, before and after; None: the row was not there, or the column is not told."""

    name: str
    before: str | None
    after: str | None


class Entry(msgspec.Struct, frozen=True):
    """An entry as it is shown. `path` leads to the object, if it has a page and is not deleted."""

    entry: AuditEntryOut
    path: str | None
    values: list[Value]
    more: int


@get(PATH)
async def audit(request: PageRequest, db_session: Session) -> Template:
    """Filtered by what is in the query; `cursor` is where the part before has ended."""
    given = {name: clean(request.query_params.get(name, "")) for name in _FIELDS}
    form = Form(given)
    found, status = AuditPage(items=[], next=None), 200
    try:
        query = _query(given, request.query_params.get("cursor", ""))
        found = await AuditService(db_session).page(query, size=_SIZE)
    except InvalidInputError as error:
        form, status = form.refused(error), 400
    return page(
        request,
        "audit.html",
        status=status,
        entries=[_shown(entry) for entry in found.items],
        next=f"{PATH}?{urlencode(form.given() | {'cursor': str(found.next)})}" if found.next else None,
        filtered=bool(form.given()),
        later="cursor" in request.query_params,
        form=form,
        kinds=_options(KINDS),
        actions=_options(ACTIONS),
    )


def _options(values: Iterable[str]) -> list[tuple[str, str]]:
    return [(value, value.replace("_", " ").capitalize()) for value in values]


def _query(given: Mapping[str, str], cursor: str) -> AuditQuery:
    start, end = read_range(moment(given["from"]), moment(given["to"]))
    return AuditQuery(
        who=given["who"] or None,
        object_kind=given["object"] or None,
        object_id=given["object_id"] or None,
        action=given["action"] or None,
        start=start,
        end=end,
        before=whole_number(cursor, _LARGEST_ID),
    )


def _shown(entry: AuditEntryOut) -> Entry:
    before, after = entry.before or {}, entry.after or {}
    names = entry.changed if entry.changed is not None else [*{**before, **after}]
    values = [Value(name, _text(entry.before, name), _text(entry.after, name)) for name in names[:_MOST_VALUES]]
    return Entry(entry, _path(entry), values, max(len(names) - _MOST_VALUES, 0))


def _path(entry: AuditEntryOut) -> str | None:
    kind, object_id = entry.object_kind, entry.object_id or ""
    route = f"/ui/{kind}s/{{{kind}_id}}"
    if f"GET {route}" not in ROUTES or not object_id.isdigit() or entry.action == "delete":
        return None
    return f"/ui/{kind}s/{object_id}"


def _text(row: Mapping[str, Any] | None, name: str) -> str | None:
    if row is None or name not in row:
        return None
    value = row[name]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}\u2026"
