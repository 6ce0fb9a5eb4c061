"""The schema: its chain of revisions, what is pending, drift, background work, failures, and what is in the archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.params import FromPath, QueryParameter, SkipValidation
from litestar.response import Redirect, Template

from gasket.audit.schema_controller import RowCursor, Schema, provide_schema
from gasket.migrator.archive.entries import Archive
from gasket.migrator.chain import Chain, Link, Sql
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.plan_text import compatibility, facts, format_finding, headline, locks, remarks, size
from gasket.migrator.commands.status import StatusReport
from gasket.migrator.controller import refusals_answered
from gasket.migrator.ledger.background import OPEN, State
from gasket.migrator.operations import SchemaOperations
from gasket.ui.formats import number as in_digits
from gasket.ui.lists import Pager
from gasket.ui.pages import PageRequest, page, to

PATH = "/ui/schema"

_REVISIONS = 15
_ARCHIVES = 10
_ROWS = 50
_FAILURES = 10
_MOST_SQL = 20_000
"""Characters of one direction. A page has at most 100 kB, and an escaped character takes up to five bytes."""
_REFRESH = 10
_KINDS = {"at_head": "good", "ahead": "good", "behind": "warn", "edited": "warn", "drifted": "warn"}
_RUN_WORDS = {"upgrade": "applied", "downgrade": "taken back", "stamp": "stamped", "accept": "accepted"}

Operations = NamedDependency[SkipValidation[SchemaOperations]]
_PageNumber = Annotated[int, QueryParameter(ge=1, le=1_000_000, description="Which page; the first is 1")]
_LookForDrift = Annotated[bool, QueryParameter(description="Compare the live database with what it should be")]


class Copyable(msgspec.Struct, frozen=True):
    """A command that is shown ready to copy, and what it is for."""

    words: str
    command: str


class ShownSql(msgspec.Struct, frozen=True):
    """What a page shows of `Sql`: `cut` says that there is more."""

    text: str
    cut: bool
    reason: str | None


_DEPENDENCIES = {"audited_schema": Provide(provide_schema, sync_to_thread=False)}


class SchemaPages(Controller):
    """The pages below `/ui/schema`."""

    path = PATH
    dependencies = _DEPENDENCIES

    @get()
    async def schema(
        self,
        request: PageRequest,
        schema_operations: Operations,
        drift: _LookForDrift = False,
        revisions: _PageNumber = 1,
        archives: _PageNumber = 1,
    ) -> Template:
        """Everything of one glance; long lists page by page."""
        with refusals_answered():
            report = await schema_operations.report(rows=_FAILURES, drift=drift)
            chain = await schema_operations.chain(limit=_REVISIONS, offset=_REVISIONS * (revisions - 1))
        kept, no_archives = await _archives(report, schema_operations)
        moving = report.lock_holder or any(work.state in OPEN for work in report.background)
        return page(
            request,
            "schema.html",
            refresh=_REFRESH if moving and not drift else None,
            report=report,
            kind=_KINDS.get(report.state, "bad"),
            chain=chain,
            state_of=_state_of,
            revision_pages=_pager("revisions", revisions, _REVISIONS, chain.total, {"archives": archives}),
            drift=drift,
            pausable=OPEN,
            resumable={State.PAUSED, State.FAILED},
            archives=kept[_ARCHIVES * (archives - 1) : _ARCHIVES * archives],
            no_archives=no_archives,
            archive_pages=_pager("archives", archives, _ARCHIVES, len(kept), {"revisions": revisions}),
            commands=_commands(report, chain),
        )

    @get("/revisions/{revision:str}/sql")
    async def sql(self, schema_operations: Operations, revision: FromPath[str]) -> Response[str]:
        """All of its SQL as plain text, however long."""
        with refusals_answered():
            step = await schema_operations.step(revision)
        parts = [
            f"-- {title}\n" + (f"-- This is not all of it: it {sql.reason}\n" if sql.reason else "") + _text(sql)
            for title, sql in (("Upgrade", step.upgrade), ("Downgrade", step.downgrade))
            if sql is not None
        ]
        return Response("\n\n".join(parts) + "\n", media_type="text/plain")

    @get("/revisions/{revision:str}")
    async def revision(self, request: PageRequest, schema_operations: Operations, revision: FromPath[str]) -> Template:
        """One revision with its SQL."""
        with refusals_answered():
            step = await schema_operations.step(revision)
        link = step.link
        return page(
            request,
            "schema_revision.html",
            step=step,
            link=link,
            state=_state_of(link),
            words=_RUN_WORDS,
            commands=_commands_for(link),
            directions=[("Upgrade", _shown(step.upgrade)), ("Downgrade", _shown(step.downgrade))],
        )

    @post("/plan", status_code=200)
    async def plan(self, request: PageRequest, schema_operations: Operations) -> Template:
        """What an upgrade would do. It is made anew each time."""
        with refusals_answered():
            plan = await schema_operations.plan()
        return page(
            request,
            "schema_plan.html",
            plan=plan,
            headline=headline(plan),
            remarks=remarks(plan),
            compatibility=compatibility,
            locks=locks,
            size_of=size,
            facts=facts,
            finding=format_finding,
        )

    @post("/background/{work_id:int}/pause")
    async def pause(self, audited_schema: Schema, work_id: FromPath[int]) -> Redirect:
        """Pause background work."""
        with refusals_answered():
            await audited_schema.pause(work_id)
        return to(PATH)

    @post("/background/{work_id:int}/resume")
    async def resume(self, audited_schema: Schema, work_id: FromPath[int]) -> Redirect:
        """Resume background work."""
        with refusals_answered():
            await audited_schema.resume(work_id)
        return to(PATH)

    @get("/archives/{archive:int}/entries/{entry:int}")
    async def look(
        self,
        request: PageRequest,
        audited_schema: Schema,
        archive: FromPath[int],
        entry: FromPath[int],
        cursor: RowCursor = None,
    ) -> Template:
        """Rows of the archive, page by page; each page is an entry of the audit."""
        with refusals_answered():
            found = await audited_schema.archived_rows(archive, entry, cursor=cursor, limit=_ROWS)
        here = f"{PATH}/archives/{archive}/entries/{entry}"
        return page(
            request,
            "schema_archive.html",
            found=found,
            first=here if cursor else None,
            next=f"{here}?{urlencode({'cursor': found.next})}" if found.next else None,
        )


def _pager(name: str, number: int, size: int, total: int, others: Mapping[str, int]) -> Pager | None:
    """Below one of the lists. `name` is its parameter in the address; None: all of the list is shown."""
    if total <= size and number == 1:
        return None

    def to_page(wanted: int) -> str:
        query = {key: value for key, value in {**others, name: wanted}.items() if value > 1}
        return f"{PATH}?{urlencode(query)}#{name}" if query else f"{PATH}#{name}"

    first, last = size * (number - 1) + 1, min(size * number, total)
    words = f"{in_digits(first)} to {in_digits(last)} of {in_digits(total)}" if first <= last else "Nothing is here"
    return Pager(words, to_page(number - 1) if number > 1 else None, to_page(number + 1) if last < total else None)


async def _archives(report: StatusReport, operations: SchemaOperations) -> tuple[list[Archive], str | None]:
    """The archives, and why they cannot be shown: the rest of the page can."""
    if not report.archive_bytes:
        return [], None
    try:
        with refusals_answered():
            return await operations.archives(), None
    except HTTPException as refusal:
        return [], refusal.detail


def _shown(sql: Sql | None) -> ShownSql | None:
    if sql is None:
        return None
    text = _text(sql)
    return ShownSql(text[:_MOST_SQL], len(text) > _MOST_SQL, sql.reason)


def _text(sql: Sql) -> str:
    return "\n\n".join(f"{statement};" for statement in sql.statements)


def _state_of(link: Link) -> tuple[str, str]:
    """The word for how a revision stands, and the kind of the macro `state`."""
    if link.edited:
        return "Edited", "warn"
    if link.held:
        return "Held", "warn"
    if link.state == "pending":
        return ("Taken back", "warn") if link.last and link.last.direction == "downgrade" else ("Pending", "warn")
    if link.state == "ahead":
        return "Ahead", "good" if link.backward_compatible else "bad"
    return ("Stamped", "good") if link.last and link.last.direction == "stamp" else ("Applied", "good")


def _commands(report: StatusReport, chain: Chain) -> list[Copyable]:
    """What may be wanted now. They ask before they change anything, and say what they would take away."""
    found = [
        Copyable(f"Accept the file of {revision} as it is now", database_command(f"accept {revision}"))
        for revision in chain.edited
    ]
    if report.held or report.pending:
        found.append(Copyable("Apply what is pending, also what was taken back", database_command("upgrade")))
    if report.ahead:
        found.append(Copyable("Take back what this release lacks", database_command("rollback")))
    newest = next((link for link in chain.items if link.state == "applied"), None)
    if newest and not report.ahead and newest.revision in report.current:
        found.append(Copyable(f"Take {newest.revision} back, the newest revision", _downgrade_below(newest)))
    return found


def _commands_for(link: Link) -> list[Copyable]:
    found = []
    if link.edited and link.has_file:
        found.append(Copyable("Accept its file as it is now", database_command(f"accept {link.revision}")))
    if link.state == "pending":
        found.append(Copyable("Apply everything up to it", database_command(f"upgrade {link.revision}")))
    if link.state == "applied" and len(link.parents) < 2:
        found.append(Copyable("Take it back, and everything above it", _downgrade_below(link)))
    if link.state == "ahead":
        found.append(Copyable("Take back what this release lacks", database_command("rollback")))
    return found


def _downgrade_below(link: Link) -> str:
    return database_command(f"downgrade {link.parents[0] if link.parents else 'base'}")
