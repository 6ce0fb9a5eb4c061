"""My keys: what somebody who has signed in at the identity provider has for themselves, and how much it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from advanced_alchemy.filters import LimitOffset, OrderBy
from litestar import Controller, get, post
from litestar.params import FromPath
from litestar.response import Redirect, Template
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.backends.service import ProfileService
from gasket.errors import GasketError
from gasket.http import describe
from gasket.keys.own import OwnKeyService
from gasket.keys.schemas import KeyRotate, OpenProfile, OwnKeyCreate
from gasket.limits.use import LimitUseService
from gasket.ui.forms import REFUSED, Form, convert, read_form
from gasket.ui.keys import expiry_values, issued_page
from gasket.ui.limits import limits_of
from gasket.ui.lists import listing, whole_number
from gasket.ui.pages import PageRequest, Session, Transaction, page, to
from gasket.ui.usage import PLAIN_RANGE, RANGES, Range, charts, last_days
from gasket.usage.schemas import NUMBERS, Group, UsageSum
from gasket.usage.service import UsageService

_MOST_PROFILES = 100
_MOST_SUMS = 100_000
_MODELS = 10


class MyKeyPages(Controller):
    """The first page, of keys and usage; the page of each key; and the forms."""

    path = "/ui/my-keys"

    @get()
    async def show_all(self, request: PageRequest, db_session: Session) -> Template:
        """Keys, the newest first; usage; and the profiles that are open."""
        own = _service(request, db_session)
        wanted = listing(request, "days")
        keys, total = await own.get_many_and_count(*wanted.filters())
        profiles = await _profiles(own)
        days = whole_number(wanted.query["days"], max(RANGES))
        chosen = last_days(days if days in RANGES else PLAIN_RANGE, "key", datetime.now(UTC).date())
        used = await _use(db_session, chosen, await own.ids())
        return page(
            request,
            "my_keys.html",
            keys=keys,
            names=await ProfileService(db_session).names({key.profile_id for key in keys}),
            pager=wanted.pager(total, "key"),
            profiles=profiles,
            groups=await own.groups(),
            words=RANGES[chosen.days].lower(),
            ranges=[(name, f"{self.path}?days={days}#usage", days == chosen.days) for days, name in RANGES.items()],
            total=_added(used),
            used={sums.key: sums for sums in _by(used, "key")},
            models=sorted(_by(used, "model"), key=lambda sums: -sums.total_tokens)[:_MODELS],
            charts=charts(chosen, _by(used, chosen.unit)),
        )

    @get("/new")
    async def new_key(self, request: PageRequest, db_session: Session) -> Template:
        """The form. `profile` in the query is the one that is chosen in it."""
        return await _new(request, db_session, Form({"profile_id": request.query_params.get("profile", "")}))

    @post(status_code=200)
    async def issue(self, request: PageRequest, transaction: Transaction, db_session: Session) -> Template:
        """The key itself is on this page and nowhere else, so this does not lead on to another one."""
        form = await read_form(request)
        try:
            data = _new_key(form.values)
            async with transaction() as session:
                row, secret = await _service(request, session).issue(data)
        except REFUSED as error:
            return await _new(request, db_session, form.refused(error), describe(error).status)
        return await issued_page(request, db_session, row, secret, of=self.path)

    @get("/{key_id:int}")
    async def show(self, request: PageRequest, db_session: Session, key_id: FromPath[int]) -> Template:
        """One key, and what can be done to it."""
        return await _show(request, db_session, key_id)

    @post("/{key_id:int}/rotate", status_code=200)
    async def rotate(
        self, request: PageRequest, transaction: Transaction, db_session: Session, key_id: FromPath[int]
    ) -> Template:
        """The new key is on this page and nowhere else."""
        form = await read_form(request)
        try:
            grace = convert(form.given_of("grace_seconds"), KeyRotate).grace_seconds
            async with transaction() as session:
                row, secret = await _service(request, session).rotate(key_id, timedelta(seconds=grace))
        except REFUSED as error:
            return await _show(request, db_session, key_id, error=error)
        return await issued_page(request, db_session, row, secret, of=self.path, rotated=True)

    @post("/{key_id:int}/revoke")
    async def revoke(self, request: PageRequest, transaction: Transaction, key_id: FromPath[int]) -> Redirect:
        """The key is void at once."""
        async with transaction() as session:
            await _service(request, session).revoke(key_id)
        return to(f"{self.path}/{key_id}")

    @post("/{key_id:int}/restore")
    async def restore(
        self, request: PageRequest, transaction: Transaction, db_session: Session, key_id: FromPath[int]
    ) -> Template | Redirect:
        """Take one's own revocation back."""
        try:
            async with transaction() as session:
                await _service(request, session).restore(key_id)
        except REFUSED as error:
            return await _show(request, db_session, key_id, error=error)
        return to(f"{self.path}/{key_id}")


def _service(request: PageRequest, session: AsyncSession) -> OwnKeyService:
    return OwnKeyService(session, identity_of(request))


async def _profiles(own: OwnKeyService) -> list[OpenProfile]:
    """Those that are open, by name."""
    found = await own.open_profiles(OrderBy("name", "asc"), LimitOffset(limit=_MOST_PROFILES, offset=0))
    return list(found.items)


async def _use(session: AsyncSession, chosen: Range, keys: tuple[int, ...]) -> list[UsageSum]:
    """One question for all that the page shows; it adds up by itself."""
    groups: tuple[Group, ...] = ("key", "model", chosen.unit)
    query = msgspec.structs.replace(chosen.query("key"), groups=groups, keys=keys)
    sums, _ = await UsageService(session).sums(query, order="asc", limit=_MOST_SUMS, offset=0)
    return sums


def _by(sums: Iterable[UsageSum], group: Group) -> list[UsageSum]:
    """The same by one group alone, in the order in which its values come first."""
    found: dict[Any, list[UsageSum]] = {}
    for entry in sums:
        found.setdefault(getattr(entry, group), []).append(entry)
    return [_added(entries, **{group: value}) for value, entries in found.items()]


def _added(sums: Collection[UsageSum], **group: Any) -> UsageSum:
    """All of them together."""
    return UsageSum(**group, **{name: sum(getattr(entry, name) for entry in sums) for name in NUMBERS})


async def _new(request: PageRequest, session: AsyncSession, form: Form, status: int = 200) -> Template:
    options = [(profile.id, profile.name) for profile in await _profiles(_service(request, session))]
    return page(request, "my_key_new.html", status=status, form=form, profiles=options)


async def _show(
    request: PageRequest, session: AsyncSession, key_id: int, *, error: GasketError | None = None
) -> Template:
    """`error` is what was wrong with a form of this page."""
    own = _service(request, session)
    row = await own.fetch(key_id)
    profile = await ProfileService(session).fetch(row.profile_id)
    use = await LimitUseService(session).of({f"key:{row.id}": limits_of(row)})
    return page(
        request,
        "my_key.html",
        status=describe(error).status if error else 200,
        key=row,
        profile=profile,
        use=use[f"key:{row.id}"],
        is_open=await own.opens(row),
        restorable=own.has_revoked(row),
        form=Form(),
        refused=str(error) if error else None,
    )


def _new_key(values: Mapping[str, str]) -> OwnKeyCreate:
    """The form of a new key: an empty time leaves the expiry to the profile."""
    fields = {name: values.get(name, "") for name in ("name", "profile_id")}
    return convert(fields | expiry_values(values), OwnKeyCreate)
