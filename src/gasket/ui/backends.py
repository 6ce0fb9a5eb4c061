"""Backends: how they are, what they have seen, and all that can be done to one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, SkipValidation
from litestar.response import Redirect, Template

from gasket.backends.breaker import Breakers
from gasket.backends.controller import show_backend
from gasket.backends.models import OpenAIBackend
from gasket.backends.probe import probe
from gasket.backends.schemas import BackendOut, ProbeOut
from gasket.backends.service import BackendService
from gasket.errors import GasketError
from gasket.http import describe
from gasket.proxy.backend_figures import BackendFigures, Figures
from gasket.ui.backend_forms import BackendForm, changes, creation, form_of, new_form, shown_again
from gasket.ui.forms import REFUSED, Form, read_form
from gasket.ui.lists import listing
from gasket.ui.pages import PageRequest, Session, Transaction, page, to
from gasket.upstream.client import UpstreamClient

PATH = "/ui/backends"

_MOST_MODELS = 100
_KINDS = {"available": "good", "trying": "warn", "set_aside": "bad"}
_WORDS = {"available": "Available", "trying": "Being tried", "set_aside": "Set aside"}

States = NamedDependency[SkipValidation[Breakers]]
Seen = NamedDependency[SkipValidation[BackendFigures]]


class Row(msgspec.Struct, frozen=True):
    """A backend with what this replica has seen of it; `word` and `kind` are of its state, as the macro has them."""

    backend: BackendOut
    figures: Figures
    word: str
    kind: str


class BackendPages(Controller):
    """The list, the page of each backend, and the forms."""

    path = PATH

    @get()
    async def list_backends(
        self, request: PageRequest, db_session: Session, breakers: States, backend_figures: Seen
    ) -> Template:
        """In the order of their names."""
        wanted = listing(request)
        filters = wanted.filters("name", "base_url", order="name", newest_first=False)
        rows, total = await BackendService(db_session).get_many_and_count(*filters)
        return page(
            request,
            "backends.html",
            rows=[_row(row, breakers, backend_figures) for row in rows],
            listing=wanted,
            pager=wanted.pager(total, "backend"),
            form=Form(wanted.query),
        )

    @get("/new")
    async def new(self, request: PageRequest) -> Template:
        """The form."""
        return page(request, "backend_form.html", backend=None, form=new_form())

    @post()
    async def add(self, request: PageRequest, transaction: Transaction) -> Template | Redirect:
        """Make a backend, or show the form again."""
        sent = await read_form(request)
        if "more" in sent.values:
            return page(request, "backend_form.html", backend=None, form=shown_again(sent, more=True))
        try:
            data = creation(sent)
            async with transaction() as session:
                row = await BackendService(session).add(data)
        except REFUSED as error:
            return _again(request, None, shown_again(sent, error=error), error)
        return _to(row.id)

    @get("/{backend_id:int}")
    async def show(
        self,
        request: PageRequest,
        db_session: Session,
        breakers: States,
        backend_figures: Seen,
        backend_id: FromPath[int],
    ) -> Template:
        """One backend, and what can be done to it."""
        return _show(request, _row(await BackendService(db_session).fetch(backend_id), breakers, backend_figures))

    @get("/{backend_id:int}/change")
    async def edit(self, request: PageRequest, db_session: Session, backend_id: FromPath[int]) -> Template:
        """The form with what is stored."""
        row = await BackendService(db_session).fetch(backend_id)
        return page(request, "backend_form.html", backend=_of_form(row), form=form_of(row))

    @post("/{backend_id:int}")
    async def change(
        self, request: PageRequest, transaction: Transaction, db_session: Session, backend_id: FromPath[int]
    ) -> Template | Redirect:
        """Change what is not as it is stored, or show the form again."""
        sent = await read_form(request)
        row = await BackendService(db_session).fetch(backend_id)
        stored, editable = _of_form(row), form_of(row).editable_rows
        if "more" in sent.values:
            return page(
                request, "backend_form.html", backend=stored, form=shown_again(sent, more=True, editable=editable)
            )
        try:
            async with transaction() as session:
                backends = BackendService(session)
                data = changes(sent, await backends.fetch(backend_id))
                await backends.change(backend_id, data)
        except REFUSED as error:
            return _again(request, stored, shown_again(sent, error=error, editable=editable), error)
        return _to(backend_id)

    @post("/{backend_id:int}/test", status_code=200)
    async def test(
        self,
        request: PageRequest,
        transaction: Transaction,
        upstream: NamedDependency[SkipValidation[UpstreamClient]],
        breakers: States,
        backend_figures: Seen,
        backend_id: FromPath[int],
    ) -> Template:
        """Connect to it and list its models. What comes of it is on its page, and stored nowhere."""
        async with transaction() as session:
            row = await BackendService(session).fetch(backend_id)
            shown = _row(row, breakers, backend_figures)
        return _show(request, shown, result=await probe(row, upstream))

    @post("/{backend_id:int}/set-aside")
    async def set_aside(self, db_session: Session, backend_id: FromPath[int]) -> Redirect:
        """Let no request go to it."""
        await BackendService(db_session).set_aside(backend_id)
        return _to(backend_id)

    @post("/{backend_id:int}/take-back")
    async def take_back(self, db_session: Session, backend_id: FromPath[int]) -> Redirect:
        """Let requests go to it again."""
        await BackendService(db_session).take_back(backend_id)
        return _to(backend_id)

    @post("/{backend_id:int}/delete")
    async def delete(
        self,
        request: PageRequest,
        transaction: Transaction,
        db_session: Session,
        breakers: States,
        backend_figures: Seen,
        backend_id: FromPath[int],
    ) -> Template | Redirect:
        """Only a backend that is in no profile can be deleted."""
        try:
            async with transaction() as session:
                await BackendService(session).remove(backend_id)
        except REFUSED as error:
            row = await BackendService(db_session).fetch(backend_id)
            return _show(request, _row(row, breakers, backend_figures), error=error)
        breakers.forget(backend_id)
        return to(PATH)


def _to(backend_id: int) -> Redirect:
    return to(f"{PATH}/{backend_id}")


def _row(backend: OpenAIBackend, breakers: Breakers, figures: BackendFigures) -> Row:
    shown = show_backend(backend, breakers)
    by_operator = shown.set_aside_at is not None
    return Row(
        shown,
        figures.of(backend.id),
        "Set aside by an operator" if by_operator else _WORDS[shown.state],
        "warn" if by_operator else _KINDS[shown.state],
    )


def _show(
    request: PageRequest, row: Row, *, result: ProbeOut | None = None, error: GasketError | None = None
) -> Template:
    return page(
        request,
        "backend.html",
        status=describe(error).status if error else 200,
        row=row,
        backend=row.backend,
        models=(row.backend.models or [])[:_MOST_MODELS],
        result=result,
        found=result.models[:_MOST_MODELS] if result else [],
        refused=str(error) if error else None,
    )


def _again(request: PageRequest, stored: object, form: BackendForm, error: GasketError) -> Template:
    return page(request, "backend_form.html", status=describe(error).status, backend=stored, form=form)


class _Stored(msgspec.Struct, frozen=True):
    """What the form says of a stored backend's secrets."""

    id: int
    name: str
    has_api_key: bool
    header_names: Sequence[str]
    proxy: str | None
    has_client_certificate: bool


def _of_form(row: OpenAIBackend) -> _Stored:
    return _Stored(row.id, row.name, row.has_api_key, row.header_names, row.proxy, row.has_client_certificate)
