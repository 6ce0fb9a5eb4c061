"""Keys: who may do what, how much of their limits is used, and all that can be done to a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from litestar import Controller, get, post
from litestar.params import FromPath
from litestar.response import Redirect, Template
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.backends.service import ProfileService
from gasket.db import MAX_ID
from gasket.errors import GasketError
from gasket.http import describe
from gasket.keys.controller import provide_key_filters
from gasket.keys.models import ApiKey
from gasket.keys.schemas import KeyCreate, KeyRotate, KeyUpdate
from gasket.keys.service import KeyService
from gasket.limits.subjects import Limits
from gasket.limits.use import LimitUse, LimitUseService
from gasket.ui.clients import UNNAMED_MODEL, own_origin, snippets
from gasket.ui.forms import REFUSED, Form, convert, moment, read_form, shown_moment
from gasket.ui.limits import limit_texts, limit_values, limits_of
from gasket.ui.lists import listing, whole_number
from gasket.ui.pages import PageRequest, Session, Transaction, page, to
from gasket.ui.profiles import example_model, profile_options

STATES = ("active", "expired", "revoked")
ORPHANED = "orphaned"
"""Not a state of its own, but looked for like one."""


class KeyPages(Controller):
    """The list, the page of each key, and the forms on both."""

    path = "/ui/keys"

    @get()
    async def list_keys(self, request: PageRequest, db_session: Session) -> Template:
        """The newest first. What is searched for is in the path, so that it can be sent to somebody."""
        wanted = listing(request, "state", "profile")
        state = wanted.query["state"] if wanted.query["state"] in STATES else None
        orphaned = True if wanted.query["state"] == ORPHANED else None
        profile = _number(wanted.query["profile"])
        keys = _service(db_session)
        rows, total = await keys.get_many_and_count(
            *provide_key_filters(None, profile, state, orphaned),  # type: ignore[arg-type]  # it is one of STATES
            *wanted.filters("name", "user_email", "key_preview"),
        )
        return page(
            request,
            "keys.html",
            keys=rows,
            profiles=await ProfileService(db_session).names({row.profile_id for row in rows} | {profile or 0}),
            use=await _use(db_session, rows),
            listing=wanted,
            pager=wanted.pager(total, "key"),
            form=Form(wanted.query),
        )

    @get("/new")
    async def new_key(self, request: PageRequest, db_session: Session) -> Template:
        """The form. `profile` in the query is the one that is chosen in it."""
        chosen = request.query_params.get("profile", "")
        return await _new(request, db_session, Form({"profile_id": chosen, "token_window": "60"}))

    @post(status_code=200)
    async def issue(self, request: PageRequest, transaction: Transaction, db_session: Session) -> Template:
        """The key itself is on this page and nowhere else, so this does not lead on to another one."""
        form = await read_form(request)
        try:
            data = _new_key(form.values)
            async with transaction() as session:
                row, secret = await _service(session).issue(data)
        except REFUSED as error:
            return await _new(request, db_session, form.refused(error), describe(error).status)
        return await issued_page(request, db_session, row, secret, of=self.path)

    @get("/{key_id:int}")
    async def show(self, request: PageRequest, db_session: Session, key_id: FromPath[int]) -> Template:
        """One key, and what can be done to it."""
        return await _show(request, db_session, key_id)

    @post("/{key_id:int}")
    async def change(
        self, request: PageRequest, transaction: Transaction, db_session: Session, key_id: FromPath[int]
    ) -> Template | Redirect:
        """Change what is different from what the form was shown with."""
        form = await read_form(request)
        try:
            async with transaction() as session:
                keys = _service(session)
                changed = form.changed(_texts(await keys.fetch(key_id)))
                await keys.change(key_id, convert(_values(changed), KeyUpdate))
        except REFUSED as error:
            return await _show(request, db_session, key_id, form=form.refused(error), error=error)
        return _to(key_id)

    @post("/{key_id:int}/rotate", status_code=200)
    async def rotate(
        self, request: PageRequest, transaction: Transaction, db_session: Session, key_id: FromPath[int]
    ) -> Template:
        """The new key is on this page and nowhere else."""
        form = await read_form(request)
        try:
            grace = convert(form.given_of("grace_seconds"), KeyRotate).grace_seconds
            async with transaction() as session:
                row, secret = await _service(session).rotate(key_id, timedelta(seconds=grace))
        except REFUSED as error:
            return await _show(request, db_session, key_id, error=error)
        return await issued_page(request, db_session, row, secret, of=self.path, rotated=True)

    @post("/{key_id:int}/revoke")
    async def revoke(self, request: PageRequest, transaction: Transaction, key_id: FromPath[int]) -> Redirect:
        """The key is void at once."""
        async with transaction() as session:
            await _service(session).revoke(key_id, identity_of(request).name)
        return _to(key_id)

    @post("/{key_id:int}/restore")
    async def restore(
        self, request: PageRequest, transaction: Transaction, db_session: Session, key_id: FromPath[int]
    ) -> Template | Redirect:
        """Take a revocation back."""
        try:
            async with transaction() as session:
                await _service(session).restore(key_id)
        except REFUSED as error:
            return await _show(request, db_session, key_id, error=error)
        return _to(key_id)

    @post("/{key_id:int}/delete")
    async def delete(self, transaction: Transaction, key_id: FromPath[int]) -> Redirect:
        """Nothing of it remains."""
        async with transaction() as session:
            await _service(session).remove(key_id)
        return to(self.path)


def _service(session: AsyncSession) -> KeyService:
    return KeyService(session, profiles=ProfileService(session))


def _to(key_id: int) -> Redirect:
    return to(f"{KeyPages.path}/{key_id}")


async def _new(request: PageRequest, session: AsyncSession, form: Form, status: int = 200) -> Template:
    options = await profile_options(session, chosen=_number(form.values.get("profile_id", "")))
    return page(request, "key_new.html", status=status, form=form, profiles=options)


async def issued_page(
    request: PageRequest, session: AsyncSession, row: ApiKey, secret: str, *, of: str, rotated: bool = False
) -> Template:
    """The key itself, with ready settings of clients. `of` is the path of the list that the key is in."""
    model = await example_model(session, row.profile_id)
    return page(
        request,
        "key_issued.html",
        of=of,
        key=row,
        secret=secret,
        rotated=rotated,
        snippets=snippets(own_origin(request.scope), secret, model),
        stands_for_another=UNNAMED_MODEL if model is None else None,
    )


async def _show(
    request: PageRequest,
    session: AsyncSession,
    key_id: int,
    *,
    form: Form | None = None,
    error: GasketError | None = None,
) -> Template:
    """`error` is what was wrong with a form of this page; with `form` it is shown in that one."""
    row = await _service(session).fetch(key_id)
    profile = await ProfileService(session).fetch(row.profile_id)
    use = await LimitUseService(session).of(
        {f"key:{row.id}": limits_of(row), f"profile:{profile.id}": limits_of(profile)}
    )
    return page(
        request,
        "key.html",
        status=describe(error).status if error else 200,
        key=row,
        profile=profile,
        use=use[f"key:{row.id}"],
        profile_use=use[f"profile:{profile.id}"],
        form=form or Form(_texts(row)),
        refused=str(error) if error and form is None else None,
    )


def _new_key(values: Mapping[str, str]) -> KeyCreate:
    """The form of a new key: an empty time leaves the expiry to the profile."""
    fields = {name: values.get(name, "") for name in ("user_email", "name", "profile_id")}
    return convert(fields | limit_values(values) | expiry_values(values), KeyCreate)


def expiry_values(values: Mapping[str, str]) -> dict[str, str | None]:
    """The expiry that the form of a new key says; without a field the profile decides."""
    if values.get("never") == "true":
        return {"expires_at": None}
    when = moment(values.get("expires_at", ""))
    return {"expires_at": when} if when else {}


def _texts(row: ApiKey) -> dict[str, str]:
    """What the form of a key shows."""
    return {"name": row.name, "expires_at": shown_moment(row.expires_at)} | limit_texts(row)


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    """What the form says, as `KeyUpdate` takes it: an empty time is "never"."""
    values = limit_values(texts)
    if "name" in texts:
        values["name"] = texts["name"]
    if "expires_at" in texts:
        values["expires_at"] = moment(texts["expires_at"])
    return values


def _number(text: str) -> int | None:
    """An id in a query; None: there can be no such one."""
    return whole_number(text, MAX_ID) or None


async def _use(session: AsyncSession, rows: Iterable[ApiKey]) -> dict[int, LimitUse]:
    limits: dict[int, Limits] = {row.id: limits_of(row) for row in rows}
    use = await LimitUseService(session).of({f"key:{key_id}": limit for key_id, limit in limits.items()})
    return {key_id: use[f"key:{key_id}"] for key_id in limits}
