"""Signing in at an identity provider: OpenID Connect Core 1.0, authorization code flow, with PKCE (RFC 7636).

Nothing is stored until the provider has told who it is. The browser keeps meanwhile what belongs to its sign-in, in a
cookie that no script and no other host can set.
"""

from __future__ import annotations

import base64
import hmac
import logging
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import msgspec
from litestar.datastructures import Cookie
from sqlalchemy.ext.asyncio import AsyncSession

from gasket import db
from gasket.access import base64url
from gasket.access.authentication import Authenticator
from gasket.access.cookies import cookie_value, make_cookie, own_url, session_cookie
from gasket.access.origins import origin_as
from gasket.access.people import PersonService, Profile, RoleGroups, no_role, profile_of
from gasket.access.provider import Metadata, Provider
from gasket.access.roles import Identity
from gasket.access.sessions import SessionService
from gasket.errors import IdentityProviderAwayError, NotFoundError, SignInError
from gasket.origin import acting

CALLBACK_PATH = "/auth/callback"
HOME = "/"

_log = logging.getLogger("gasket.access")

_COOKIE = "gasket-sign-in"
_MINUTES = 10
_FORM = "application/x-www-form-urlencoded"


class OidcClient(msgspec.Struct, frozen=True, kw_only=True):
    """Gasket as the provider knows it."""

    client_id: str
    client_secret: str | None
    scopes: str
    groups_claim: str
    roles: RoleGroups

    def __repr__(self) -> str:
        return f"OidcClient(client_id={self.client_id!r})"


class _Begun(msgspec.Struct, array_like=True):
    """A sign-in that a browser has begun, as its cookie has it."""

    state: str
    nonce: str
    verifier: str
    next: str


class Answer(NamedTuple):
    """Where the browser goes, and the cookies that it gets."""

    location: str
    cookies: list[Cookie]


class SignIn:
    """The sign-in of people; without a provider there is none."""

    def __init__(
        self,
        provider: Provider | None,
        client: OidcClient | None,
        *,
        authenticator: Authenticator,
        transaction: db.Transactions,
    ) -> None:
        self._provider = provider
        self._client = client
        self._authenticator = authenticator
        self._transaction = transaction

    @property
    def offered(self) -> bool:
        """Whether people can sign in at a provider."""
        return self._provider is not None

    async def close(self) -> None:
        """End the connections to the provider."""
        if self._provider is not None:
            await self._provider.close()

    async def begin(self, scope: Any, *, following: str | None) -> Answer:
        """Send a browser to the provider; afterwards it goes to the path `following`, if that is one of ours.

        Raises:
            NotFoundError: there is no provider.
            IdentityProviderAwayError: it cannot be asked.
        """
        provider, client = self._parts()
        metadata = await provider.metadata()
        begun = _Begun(
            secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), own_path(following)
        )
        challenge = sha256(begun.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": client.client_id,
            "redirect_uri": own_url(scope) + CALLBACK_PATH,
            "scope": client.scopes,
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": base64url.encode(challenge),
            "code_challenge_method": "S256",
        }
        return Answer(
            _with_query(_endpoint(metadata.authorization_endpoint, provider), query),
            [make_cookie(scope, _COOKIE, _packed(begun), max_age=_MINUTES * 60)],
        )

    async def finish(self, scope: Any, query: Mapping[str, list[str]]) -> Answer:
        """Begin the session of who comes back from the provider.

        Raises:
            NotFoundError: there is no provider.
            SignInError: the browser has not begun this sign-in, or the provider's answer does not hold.
            GuessingError: it is one of too many wrong ones from this address.
            ForbiddenError: the person's groups give no role.
            IdentityProviderAwayError: the provider cannot be asked.
        """
        provider, client = self._parts()
        try:
            begun = self._begun(scope, query, provider)
            profile = await self._ask(provider, client, begun, _single(query, "code"), own_url(scope))
        except SignInError as error:
            _log.warning("a sign-in was refused: %s", error)
            self._authenticator.count_guess(scope)
            raise
        value = await self._begin_session(scope, profile, client)
        cleared = make_cookie(scope, _COOKIE, "", max_age=0)
        return Answer(own_path(begun.next), [session_cookie(scope, value), cleared])

    async def place_after_end(self, scope: Any) -> str:
        """Where a browser goes that has signed out: to the provider if that ends sessions, too.

        That is OpenID Connect RP-Initiated Logout 1.0. A provider that cannot be asked keeps nobody from signing out.
        """
        if self._provider is None or self._client is None:
            return HOME
        try:
            metadata = await self._provider.metadata()
        except IdentityProviderAwayError:
            return HOME
        if metadata.end_session_endpoint is None:
            return HOME
        query = {"client_id": self._client.client_id, "post_logout_redirect_uri": own_url(scope) + HOME}
        return _with_query(metadata.end_session_endpoint, query)

    def _parts(self) -> tuple[Provider, OidcClient]:
        if self._provider is None or self._client is None:
            raise NotFoundError("GASKET_OIDC_ISSUER is not set, so people sign in with an access token.")
        return self._provider, self._client

    def _begun(self, scope: Any, query: Mapping[str, list[str]], provider: Provider) -> _Begun:
        """What the browser's cookie says it has begun, if the answer belongs to that."""
        begun = _unpacked(cookie_value(scope, _COOKIE))
        state = _single(query, "state")
        if begun is None or state is None or not hmac.compare_digest(begun.state.encode(), state.encode()):
            raise SignInError("This browser has not begun this sign-in, or too long ago; begin it again.")
        issuer = _single(query, "iss")
        if issuer is not None and issuer != provider.issuer:  # RFC 9207
            raise SignInError("The answer comes from another identity provider; begin the sign-in again.")
        if "error" in query:
            raise SignInError("The identity provider has refused the sign-in.")
        return begun

    async def _ask(
        self, provider: Provider, client: OidcClient, begun: _Begun, code: str | None, origin: str
    ) -> Profile:
        """What the provider tells of the person for this code."""
        if code is None:
            raise SignInError("The identity provider's answer has no code; begin the sign-in again.")
        metadata = await provider.metadata()
        tokens = await _redeem(provider, client, metadata, begun.verifier, code, origin + CALLBACK_PATH)
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise SignInError("The identity provider has sent no ID token.")
        jwts = await provider.load_jwts()
        try:
            claims = await provider.verify(token, client.client_id)
            jwts.check_party(claims, client.client_id)
        except jwts.InvalidTokenError as error:
            raise SignInError(f"The identity provider's ID token does not count: {error}.") from None
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), begun.nonce.encode()):
            raise SignInError("The identity provider's ID token belongs to another sign-in.")
        if client.groups_claim not in claims or "email" not in claims:
            claims = {**await _userinfo(provider, metadata, tokens.get("access_token"), claims["sub"]), **claims}
        return profile_of(claims, groups_claim=client.groups_claim)

    async def _begin_session(self, scope: Any, profile: Profile, client: OidcClient) -> str:
        """The cookie's value, for the role that the groups give. The person's other sessions follow, or end.

        In one transaction, which holds the person's row. In two, another sign-in could come between them, take a role
        away, and miss the session that begins with it.
        """
        role = client.roles.role_of(profile.groups)
        who = Identity(profile.name, role or "user", email=profile.email, person_id=0)  # for the audit

        async def admit(session: AsyncSession) -> Identity:
            person = await PersonService(session).record(profile)
            identity = msgspec.structs.replace(who, person_id=person.id)
            await SessionService(session).follow(identity)
            return identity

        if role is not None:
            value = await self._authenticator.begin_session(scope, who, admit=admit)
            _log.info("%s has signed in with the role %s", who.name, role)
            return value
        with acting(origin_as(scope, who, by_page=True)):
            async with self._transaction() as session:
                person = await PersonService(session).record(profile)
                await SessionService(session).end_of_person(person.id)
        raise no_role(profile)


async def _redeem(
    provider: Provider, client: OidcClient, metadata: Metadata, verifier: str, code: str, redirect_uri: str
) -> Mapping[str, Any]:
    """The tokens for a code (RFC 6749, 4.1.3)."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "client_id": client.client_id,
        "code_verifier": verifier,
    }
    fields = {"accept": "application/json", "content-type": _FORM}
    if client.client_secret is not None:
        if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"  # RFC 6749, 2.3.1
            fields["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form["client_secret"] = client.client_secret
    endpoint = _endpoint(metadata.token_endpoint, provider)
    status, body = await provider.ask("POST", endpoint, fields, urlencode(form).encode())
    if status >= 500:
        raise IdentityProviderAwayError(f"{provider.issuer} answered with status {status}.")
    if status != 200:
        raise SignInError(f"The identity provider does not take the code (status {status}); begin the sign-in again.")
    return _decoded(body)


async def _userinfo(provider: Provider, metadata: Metadata, token: object, subject: object) -> Mapping[str, Any]:
    """Further claims about the same person (OpenID Connect Core 1.0, 5.3); none where the provider has none."""
    if metadata.userinfo_endpoint is None or not isinstance(token, str) or not token.isascii():
        return {}
    fields = {"accept": "application/json", "authorization": f"Bearer {token}"}
    status, body = await provider.ask("GET", metadata.userinfo_endpoint, fields)
    if status != 200:
        return {}
    claims = _decoded(body)
    if claims.get("sub") != subject:
        raise SignInError("The identity provider tells of another person; begin the sign-in again.")
    return claims


def own_path(text: str | None) -> str:
    """The path, if a browser takes it for one of ours, else the first page's (CWE-601, open redirect)."""
    plain = text is not None and text.isascii() and all("!" <= c <= "~" for c in text) and "\\" not in text
    return text if text and plain and text.startswith("/") and not text.startswith("//") else HOME


def _endpoint(url: str | None, provider: Provider) -> str:
    if url is None:
        raise IdentityProviderAwayError(f"{provider.issuer} does not say where people sign in.")
    return url


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _single(query: Mapping[str, list[str]], name: str) -> str | None:
    """The parameter's value; an empty one is none, and so are several (RFC 6749, 3.1)."""
    values = query.get(name, [])
    return values[0] if len(values) == 1 and values[0] and values[0].isascii() else None


def _packed(begun: _Begun) -> str:
    return base64url.encode(msgspec.json.encode(begun))


def _unpacked(value: str | None) -> _Begun | None:
    if value is None:
        return None
    try:
        return base64url.decode_json(value, _Begun)
    except ValueError:
        return None


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise SignInError("The identity provider's answer is not JSON.") from None
