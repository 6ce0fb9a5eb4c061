"""Who sends a request: its bearer token (RFC 6750), or its session's cookie, before there is a route."""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, NamedTuple

from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.datastructures.secret_values import SecretBytes
from litestar.handlers import BaseRouteHandler
from litestar.types import HTTPScope
from sqlalchemy.ext.asyncio import AsyncSession

from gasket import db, http
from gasket.access import csrf
from gasket.access.bearers import JWT_PREFIX, Bearers, TokenRefusedError
from gasket.access.cookies import session_value
from gasket.access.guesses import Guesses
from gasket.access.origins import origin_as, origin_of
from gasket.access.people import PersonService, Profile, RoleGroups, no_role, profile_of
from gasket.access.roles import ROOT, Identity, Role, allowed_roles, is_of_people
from gasket.access.service import TOKEN_PREFIX, TokenService, digest
from gasket.access.sessions import SessionService
from gasket.errors import CsrfError, ForbiddenError, GuessingError, UnauthorizedError, UnavailableError
from gasket.origin import Origin, acting
from gasket.peers import Peers

_log = logging.getLogger("gasket.access")

_FRESH = 2.0
"""Seconds for which a token or a session is not looked up again; so long an ended one works on other replicas."""
_STALE = 300.0
"""Seconds for which a known one works while the database is away: `/metrics` matters most then."""
_MOST_KNOWN = 1000
_IDENTITY = "gasket_identity"


class _Known(NamedTuple):
    identity: Identity
    at: float


class Authenticator:
    """Finds out who sends a request. `on_refused` hears the address of each wrong credential."""

    root_tokens: tuple[SecretBytes, ...] = ()
    """GASKET_ADMIN_TOKEN, or what was made at the start of an embedded installation."""

    def __init__(
        self,
        transaction: db.Transactions,
        *,
        root_peers: Peers,
        clock: Callable[[], float] = time.monotonic,
        on_refused: Callable[[str | None], None] = lambda _address: None,
        bearers: Bearers | None = None,
        roles: RoleGroups | None = None,
        groups_claim: str = "",
    ) -> None:
        """`roles` and `groups_claim` are about the tokens of `bearers.own`, without which no signed token counts."""
        self._transaction = transaction
        self._root_peers = root_peers
        self._guesses = Guesses(clock)
        self._on_refused = on_refused
        self._bearers = bearers
        self._roles = roles or RoleGroups()
        self._groups_claim = groups_claim
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def put_identity(self, scope: HTTPScope) -> None:
        """Put who sends the request into the scope, or the error that says why that is not known.

        It is raised only by the guard: a route that needs nobody does not care.
        """
        state: dict[str, Any] = scope.setdefault("state", {})
        try:
            identity = await self._identify(scope)
        except Exception as error:  # the guard raises it again, where it becomes a response
            state[http.REFUSAL] = error
            return
        state[_IDENTITY] = identity
        if identity.csrf_token and scope["method"] not in http.SAFE_METHODS:
            csrf.expect_token(state, identity.csrf_token)

    async def sign_in(self, scope: HTTPScope, token: str) -> str:
        """Begin a session for who has this access token: the value of its cookie. The browser's session before ends.

        Raises:
            UnauthorizedError: it is a wrong one.
            GuessingError: it is one of too many wrong ones from this address.
            ForbiddenError: there are no pages for its role.
        """
        given = token.encode(errors="surrogatepass")
        identity = await self._of_token(given, _address_of(scope))
        return await self.begin_session(scope, identity, root_token=self._root_token(given))

    async def begin_session(
        self,
        scope: HTTPScope,
        identity: Identity,
        *,
        root_token: SecretBytes | None = None,
        admit: Callable[[AsyncSession], Awaitable[Identity]] | None = None,
    ) -> str:
        """Begin a session for this identity, as `SessionService.begin` does: the value of its cookie.

        `admit` comes first, in the same transaction, and says whose session it is to be.
        """
        before = session_value(scope)
        with acting(origin_as(scope, identity, by_page=True)):
            async with self._transaction() as session:
                if admit is not None:
                    identity = await admit(session)
                value = await SessionService(session).begin(
                    identity, address=_address_of(scope), root_token=root_token, replaces=before
                )
        self._forget(before)
        return value

    async def sign_out(self, scope: HTTPScope) -> bool:
        """End the request's session, if it has one: here at once, elsewhere within two seconds.

        It says whether the session was that of a person of the identity provider.
        """
        value = session_value(scope)
        if value is None:
            return False
        async with self._transaction() as session:
            of_person = await SessionService(session).end(value)
        self._forget(value)
        return of_person

    def count_guess(self, scope: HTTPScope) -> None:
        """Count a wrong credential of this client.

        Raises:
            GuessingError: it is one of too many.
        """
        self.count_guess_from(_address_of(scope))

    def count_guess_from(self, address: str | None) -> None:
        """The same by the client's address; None: it came over a Unix socket.

        Raises:
            GuessingError: it is one of too many.
        """
        self._on_refused(address)
        if wait := self._guesses.count(address):
            raise GuessingError(wait)

    async def _identify(self, scope: HTTPScope) -> Identity:
        """Who has the token or the session of this request; a token counts before a session.

        Raises:
            UnauthorizedError: there is neither, or it is a wrong one.
            GuessingError: it is one of too many wrong tokens from this address.
            ForbiddenError: the identity provider has signed the token, and its groups give no role.
            IdentityProviderAwayError: the provider cannot be asked about the token.
        """
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        scheme, _, token = (given or b"").partition(b" ")
        is_bearer = scheme.lower() == b"bearer"
        if not is_bearer and (cookie := session_value(scope)):
            return await self._of_session(cookie, _address_of(scope))
        if given is None:
            raise UnauthorizedError
        token = token.strip() if is_bearer else b""
        if token.startswith(JWT_PREFIX) and self._bearers and self._bearers.own and not self._root_token(token):
            return await self._of_signed(token, self._bearers, scope)
        return await self._of_token(token, _address_of(scope))

    async def _of_token(self, token: bytes, address: str | None) -> Identity:
        if self._root_token(token) and self._root_may_come_from(address):
            return ROOT
        if identity := await self._stored(token):
            return identity
        self.count_guess_from(address)
        raise UnauthorizedError

    async def _of_signed(self, token: bytes, bearers: Bearers, scope: HTTPScope) -> Identity:
        """Who has this token of the identity provider; the role is what the groups in the token give."""
        key = f"signed {sha256(token).hexdigest()}"
        if known := self._recall(key):
            return known
        try:
            signed = await bearers.check(token)
            if not signed.own:
                raise TokenRefusedError("The token's issuer is trusted for /v1 alone.")
        except TokenRefusedError as error:
            if error.guessed:
                self.count_guess_from(_address_of(scope))
            raise UnauthorizedError(str(error)) from None
        profile = profile_of(signed.claims, groups_claim=self._groups_claim)
        role = self._roles.role_of(profile.groups)
        if role is None:
            raise no_role(profile)
        who = Identity(profile.name, role, email=profile.email, person_id=0)  # for the audit
        with acting(origin_as(scope, who, by_page=False)):
            identity = await self._remembered(key, lambda session: _meet(session, profile, role))
        assert identity is not None
        return identity

    def _root_token(self, token: bytes) -> SecretBytes | None:
        """The one of GASKET_ADMIN_TOKEN that this is."""
        matching = [secret for secret in self.root_tokens if hmac.compare_digest(token, secret.get_secret())]
        return matching[0] if matching else None

    def _root_may_come_from(self, address: str | None) -> bool:
        if not self._root_peers or self._root_peers.has(address):
            return True
        _log.warning("GASKET_ADMIN_TOKEN came from %s, which is not in GASKET_ADMIN_TOKEN_NETWORKS", address)
        return False

    async def _stored(self, token: bytes) -> Identity | None:
        if not token.startswith(TOKEN_PREFIX.encode()) or not token.isascii():
            return None
        text = token.decode()
        return await self._remembered(digest(text), lambda session: TokenService(session).identify(text))

    async def _of_session(self, value: str, address: str | None) -> Identity:
        """A cookie that is not valid any more is no guess: browsers keep sending it."""
        identity = await self._remembered(
            _session_key(value), lambda session: SessionService(session).identify(value, self.root_tokens)
        )
        if identity is None or (identity.is_root and not self._root_may_come_from(address)):
            raise UnauthorizedError
        return identity

    async def _remembered(
        self, key: str, look_up: Callable[[AsyncSession], Awaitable[Identity | None]]
    ) -> Identity | None:
        if fresh := self._recall(key):
            return fresh
        now, known = self._clock(), self._known.get(key)
        try:
            async with self._transaction() as session:
                identity = await look_up(session)
        except Exception as error:
            away = isinstance(error, UnavailableError) or isinstance(db.explain(error), UnavailableError)
            if away and known and now - known.at < _STALE:
                return known.identity
            raise
        self._known.pop(key, None)
        if identity:
            self._known[key] = _Known(identity, now)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return identity

    def _recall(self, key: str) -> Identity | None:
        """Who has this token or session, if that was found out a moment ago."""
        known = self._known.get(key)
        return known.identity if known and self._clock() - known.at < _FRESH else None

    def _forget(self, session: str | None) -> None:
        if session:
            self._known.pop(_session_key(session), None)


async def _meet(session: AsyncSession, profile: Profile, role: Role) -> Identity:
    person_id = await PersonService(session).meet(profile)
    return Identity(profile.name, role, email=profile.email, person_id=person_id)


def _session_key(value: str) -> str:
    """Apart from tokens': neither counts in the place of the other."""
    return f"session {digest(value)}"


def _address_of(scope: HTTPScope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def origin_of_request(scope: HTTPScope) -> Origin | None:
    """Who changes something with the request, once `Authenticator.put_identity` has looked."""
    return origin_of(scope, scope["state"].get(_IDENTITY) if "state" in scope else None)


def is_known(connection: ASGIConnection[Any, Any, Any, State]) -> bool:
    """Whether somebody sends the request, be it forged or not."""
    return connection.scope["state"].get(_IDENTITY) is not None


def identity_of(connection: ASGIConnection[Any, Any, Any, State]) -> Identity:
    """Who sends the request.

    Raises:
        GasketError: that is not known, as `Authenticator.put_identity` has found.
        CsrfError: the request acts with a session, and no guard has checked its CSRF token.
    """
    identity: Identity | None = connection.scope["state"].get(_IDENTITY)
    if identity is None:
        raise http.refusal(connection)
    if csrf.is_unchecked(connection.scope["state"]):
        raise CsrfError
    return identity


async def require_role(connection: ASGIConnection[Any, Any, Any, State], _handler: BaseRouteHandler) -> None:
    """Litestar's guard for everything below `/api`, for `/metrics`, and for pages.

    Raises:
        GasketError: it is not known who sends the request.
        CsrfError: it would change something with a session, without that session's CSRF token.
        ForbiddenError: its role may not do this, or only people may.
    """
    await csrf.check(connection)
    identity = identity_of(connection)
    scope: Any = connection.scope
    allowed = allowed_roles(scope["method"], scope["path_template"])
    if identity.role not in allowed:
        raise ForbiddenError(
            f"{identity.name!r} has the role {identity.role}; this needs the role {' or '.join(sorted(allowed))}."
        )
    if is_of_people(scope["path_template"]) and not identity.is_person:
        raise ForbiddenError(f"{identity.name!r} has no keys of its own: this is for people who have signed in.")
