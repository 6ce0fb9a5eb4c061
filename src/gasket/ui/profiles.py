"""Profiles: what their keys may use, and how much of it together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from litestar import Controller, get, post
from litestar.params import FromPath
from litestar.response import Redirect, Template
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.backends.models import BackendProfile
from gasket.backends.schemas import ProfileCreate, ProfileUpdate
from gasket.backends.service import BackendService, ProfileService
from gasket.db import MAX_ID
from gasket.errors import GasketError, InvalidInputError
from gasket.http import describe
from gasket.limits.use import LimitUseService
from gasket.ui.forms import REFUSED, Form, convert, lines, read_form
from gasket.ui.limits import limit_texts, limit_values, limits_of
from gasket.ui.lists import listing, whole_number
from gasket.ui.pages import PageRequest, Session, Transaction, page, to

ROUTINGS = (
    ("ordered", "In order: the first one that works"),
    ("weighted", "By weight"),
    ("least_busy", "Least busy: the one with the fewest requests now"),
    ("sticky", "Sticky: the same one for the same end user or conversation"),
)
_MOST_OPTIONS = 500
_PLACE = "place-"
_LAST_PLACE = 9999
_RULE = ("issuer", "claim", "pattern")
_FLAGS = ("enforce_expiry", "allow_stateful_endpoints")
_OPTIONAL = ("description", "default_expiry_days", "max_keys_per_user", "user_header")


class ProfilePages(Controller):
    """The list, the page of each profile, and the forms on both."""

    path = "/ui/profiles"

    @get()
    async def list_profiles(self, request: PageRequest, db_session: Session) -> Template:
        """In the order of their names."""
        wanted = listing(request)
        rows, total = await ProfileService(db_session).get_many_and_count(
            *wanted.filters("name", "description", order="name", newest_first=False)
        )
        shown = {backend_id for row in rows for backend_id in row.backends}
        return page(
            request,
            "profiles.html",
            profiles=rows,
            backends=await BackendService(db_session).names(shown),
            listing=wanted,
            pager=wanted.pager(total, "profile"),
            form=Form(wanted.query),
        )

    @get("/new")
    async def new_profile(self, request: PageRequest, db_session: Session) -> Template:
        """The form."""
        return await _new(request, db_session, Form({"token_window": "60", "routing": "ordered"}))

    @post()
    async def add(self, request: PageRequest, transaction: Transaction, db_session: Session) -> Template | Redirect:
        """Make a profile."""
        form = await read_form(request)
        try:
            data = convert(_values(form.values), ProfileCreate)
            async with transaction() as session:
                row = await ProfileService(session).add(data)
        except REFUSED as error:
            return await _new(request, db_session, form.refused(error, "backends"), describe(error).status)
        return _to(row.id)

    @get("/{profile_id:int}")
    async def show(self, request: PageRequest, db_session: Session, profile_id: FromPath[int]) -> Template:
        """One profile, and what can be done to it."""
        return await _show(request, db_session, profile_id)

    @post("/{profile_id:int}")
    async def change(
        self, request: PageRequest, transaction: Transaction, db_session: Session, profile_id: FromPath[int]
    ) -> Template | Redirect:
        """Change what is different from what the form was shown with."""
        form = await read_form(request)
        try:
            async with transaction() as session:
                profiles = ProfileService(session)
                shown = _texts(await profiles.fetch(profile_id), await BackendService(session).names())
                changed = form.changed(shown)
                if any(name.startswith(_PLACE) for name in changed):  # the order is one value
                    changed |= {name: form.values.get(name, "") for name in shown if name.startswith(_PLACE)}
                await profiles.change(profile_id, convert(_values(changed), ProfileUpdate))
        except REFUSED as error:
            return await _show(request, db_session, profile_id, form=form.refused(error, "backends"), error=error)
        return _to(profile_id)

    @post("/{profile_id:int}/delete")
    async def delete(
        self, request: PageRequest, transaction: Transaction, db_session: Session, profile_id: FromPath[int]
    ) -> Template | Redirect:
        """Only a profile without keys can be deleted."""
        try:
            async with transaction() as session:
                await ProfileService(session).remove(profile_id)
        except REFUSED as error:
            return await _show(request, db_session, profile_id, error=error)
        return to(self.path)


async def profile_options(session: AsyncSession, *, chosen: int | None) -> list[tuple[int, str]]:
    """The profiles for a list to choose from, by name; the chosen one is in it, however many there are."""
    profiles = ProfileService(session)
    options = await profiles.names(limit=_MOST_OPTIONS)
    if chosen is not None and chosen not in options:
        options = await profiles.names([chosen]) | options
    return list(options.items())


async def example_model(session: AsyncSession, profile_id: int) -> str | None:
    """A model that keys of this profile may ask for; None: Gasket knows none by name."""
    profile = await ProfileService(session).fetch(profile_id)
    named = [name for name in profile.allowed_models if not name.endswith("*")]
    if named:
        return named[0]
    patterns = tuple(name.removesuffix("*") for name in profile.allowed_models) or ("",)
    for backend_id in profile.backends:
        for model in (await BackendService(session).fetch(backend_id)).models or []:
            if model.name.startswith(patterns):
                return model.name
    return None


def _to(profile_id: int) -> Redirect:
    return to(f"{ProfilePages.path}/{profile_id}")


async def _new(request: PageRequest, session: AsyncSession, form: Form, status: int = 200) -> Template:
    backends = await BackendService(session).names()
    return page(request, "profile_new.html", status=status, form=form, backends=backends, routings=ROUTINGS)


async def _show(
    request: PageRequest,
    session: AsyncSession,
    profile_id: int,
    *,
    form: Form | None = None,
    error: GasketError | None = None,
) -> Template:
    """`error` is what was wrong with a form of this page; with `form` it is shown in that one."""
    row = await ProfileService(session).fetch(profile_id)
    names = await BackendService(session).names()
    in_use = [backend_id for backend_id in row.backends if backend_id in names]
    backends = {backend_id: names[backend_id] for backend_id in in_use} | names
    subject = f"profile:{row.id}"
    return page(
        request,
        "profile.html",
        status=describe(error).status if error else 200,
        profile=row,
        use=(await LimitUseService(session).of({subject: limits_of(row)}))[subject],
        backends=backends,
        routings=ROUTINGS,
        form=form or Form(_texts(row, backends)),
        refused=str(error) if error and form is None else None,
    )


def _texts(row: BackendProfile, backends: Collection[int]) -> dict[str, str]:
    """What the form of a profile shows: each backend has its place in the order, or none."""
    places = {backend_id: str(place) for place, backend_id in enumerate(row.backends, start=1)}
    texts = {"name": row.name, "routing": row.routing, "allowed_models": "\n".join(row.allowed_models)}
    texts["claim_rules"] = "\n".join(" ".join(rule[part] for part in _RULE) for rule in row.claim_rules)
    texts["open_to_groups"] = "\n".join(row.open_to_groups or ())
    for name in _OPTIONAL:
        value = getattr(row, name)
        texts[name] = "" if value is None else str(value).replace("\r\n", "\n").strip()
    for name in _FLAGS:
        texts[name] = "true" if getattr(row, name) else ""
    for backend_id in backends:
        texts[f"{_PLACE}{backend_id}"] = places.get(backend_id, "")
    return texts | limit_texts(row)


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    """What the form says, as the structs of `/api` take it."""
    values: dict[str, Any] = limit_values(texts)
    values |= {name: texts[name] for name in ("name", "routing") if name in texts}
    values |= {name: texts[name] or None for name in _OPTIONAL if name in texts}
    values |= {name: texts[name] == "true" for name in _FLAGS if name in texts}
    if "allowed_models" in texts:
        values["allowed_models"] = lines(texts["allowed_models"])
    if "claim_rules" in texts:
        values["claim_rules"] = _rules(texts["claim_rules"])
    if "open_to_groups" in texts:
        values["open_to_groups"] = lines(texts["open_to_groups"]) or None
    places = {name.removeprefix(_PLACE): text for name, text in texts.items() if name.startswith(_PLACE)}
    if places:
        values["backends"] = _in_order(places)
    return values


def _rules(text: str) -> list[dict[str, str]]:
    """`issuer claim pattern`, one rule a line; only the pattern may have spaces inside.

    Raises:
        InvalidInputError: a line has fewer parts.
    """
    rules = [line.split(maxsplit=2) for line in lines(text)]
    if any(len(parts) < len(_RULE) for parts in rules):
        raise InvalidInputError(
            "Each line is an issuer, a claim and a pattern, with spaces between.", field="claim_rules"
        )
    return [dict(zip(_RULE, (part.strip() for part in parts), strict=True)) for parts in rules]


def _in_order(places: Mapping[str, str]) -> list[int]:
    """The ids of the backends that have a place, in the order of the places.

    Raises:
        InvalidInputError: a place is no number, or two backends have the same one.
    """
    taken: dict[int, int] = {}
    for of_backend, text in places.items():
        if not text:
            continue
        place, backend_id = whole_number(text, _LAST_PLACE), whole_number(of_backend, MAX_ID)
        if not place or not backend_id:
            raise InvalidInputError(
                f"A place is a whole number from 1 to {_LAST_PLACE}; 1 is asked first.", field="backends"
            )
        if place in taken:
            raise InvalidInputError(f"Two backends have the place {place}.", field="backends")
        taken[place] = backend_id
    return [taken[place] for place in sorted(taken)]
