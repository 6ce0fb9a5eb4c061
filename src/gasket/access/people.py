"""People of the identity provider: what a sign-in tells of them, and the role that their groups give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from gasket.access.models import Person
from gasket.access.roles import Role
from gasket.db import Service
from gasket.errors import ForbiddenError

_LONGEST = 254
_MOST_GROUPS = 1000
_VERIFIED = (True, "true")
"""Some providers send booleans as strings (Amazon Cognito's userinfo)."""

Groups = frozenset[str]


class RoleGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Which groups give which role. Without groups for `user`, whoever can sign in is one."""

    admin: Groups = frozenset()
    operator: Groups = frozenset()
    viewer: Groups = frozenset()
    user: Groups = frozenset()

    def role_of(self, groups: Iterable[str]) -> Role | None:
        """The role that may do most of those that the groups give; None: none of them gives one."""
        theirs = frozenset(groups)
        if theirs & self.admin:
            return "admin"
        if theirs & self.operator:
            return "operator"
        if theirs & self.viewer:
            return "viewer"
        return "user" if not self.user or theirs & self.user else None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider tells of a person."""

    issuer: str
    subject: str
    name: str
    email: str | None
    groups: tuple[str, ...]


def profile_of(claims: Mapping[str, Any], *, groups_claim: str) -> Profile:
    """What verified claims tell. An address counts if the provider has verified it, or does not say.

    `name` is the address, without one the subject: what else the provider has, people can often choose themselves.
    """
    subject = str(claims["sub"])
    email = claims.get("email")
    verified = claims.get("email_verified", True) in _VERIFIED
    if not isinstance(email, str) or "@" not in email or not _is_plain(email) or not verified:
        email = None
    return Profile(
        issuer=str(claims["iss"]),
        subject=subject,
        name=email or subject,
        email=email,
        groups=_groups(claims.get(groups_claim)),
    )


def no_role(profile: Profile) -> ForbiddenError:
    """The refusal of a person whose groups give no role."""
    return ForbiddenError(f"None of the groups of {profile.name!r} gives a role here; ask an administrator.")


def _groups(claim: object) -> tuple[str, ...]:
    names = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return tuple(sorted({name for name in names if isinstance(name, str) and _is_plain(name)}))[:_MOST_GROUPS]


def _is_plain(text: str) -> bool:
    return 0 < len(text) <= _LONGEST and text.isprintable()


class PersonService(Service[Person]):
    """People who have signed in. Nothing here commits."""

    class Repository(SQLAlchemyAsyncRepository[Person]):
        model_type = Person

    repository_type = Repository
    noun = "person"

    async def record(self, profile: Profile) -> Person:
        """Note a sign-in: the row, as the provider tells it now."""
        told = _told(profile)
        statement = (
            insert(Person)
            .values(issuer=profile.issuer, subject=profile.subject, **told)
            .on_conflict_do_update(constraint="uq_people_issuer_subject", set_={**told, "signed_in_at": func.now()})
            .returning(Person)
        )
        # Without this a row that the session has read before would keep its old values.
        options = {"populate_existing": True}
        return (await self.session.execute(statement, execution_options=options)).scalar_one()

    async def meet(self, profile: Profile) -> int:
        """The id of somebody who comes with a token. A row that is there stays: a sign-in since may know better."""
        known = select(Person.id).where(Person.issuer == profile.issuer, Person.subject == profile.subject)
        found = await self.session.scalar(known)
        if found is None:
            row = insert(Person).values(issuer=profile.issuer, subject=profile.subject, **_told(profile))
            await self.session.execute(row.on_conflict_do_nothing(constraint="uq_people_issuer_subject"))
            found = await self.session.scalar(known)
        assert found is not None
        return found


def _told(profile: Profile) -> dict[str, Any]:
    """The columns of a person that each sign-in tells anew."""
    return {"name": profile.name, "email": profile.email, "groups": list(profile.groups)}
