"""Tokens that an issuer has signed (RFC 7519, JWT), which count in place of a token or a key of Gasket's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gasket.access.base64url import decode_json
from gasket.access.provider import Provider
from gasket.errors import GasketError, IdentityProviderAwayError

JWT_PREFIX = b"eyJ"
"""Of every such token: `{"` in base64url."""

_LONGEST = 16_384
_LONGEST_SUBJECT = 512
_LATEST = 2.0**40
_MOST_WAITING = 200
"""Tokens of one issuer that are checked at once. While it does not answer they wait, up to ten seconds."""


class SignedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that counts. `own`: of GASKET_OIDC_ISSUER. `expires_at` is in seconds since 1970."""

    issuer: str
    subject: str
    own: bool
    claims: Mapping[str, Any]
    expires_at: float

    def __repr__(self) -> str:
        return f"SignedToken(issuer={self.issuer!r})"


class TokenRefusedError(GasketError):
    """The token does not count. The message says why, without a value of the token.

    `guessed`: it may be anybody's invention. A token that has expired is not: its issuer has signed it.
    """

    def __init__(self, message: str, *, guessed: bool = True) -> None:
        super().__init__(message)
        self.guessed = guessed


class Bearers:
    """Checks the tokens of the issuers that are taken: of the identity provider's, and of those that are trusted.

    `client_id` is that of the identity provider; `audience` is whom the tokens of all issuers must be for.
    """

    def __init__(
        self, own: Provider | None, trusted: Iterable[Provider], *, audience: str, client_id: str | None
    ) -> None:
        self.own = own
        self._providers = {provider.issuer: provider for provider in [*trusted, *([own] if own else [])]}
        self._audience = audience
        # An ID token is for one client. Where the audience is not the client but an API, others get tokens for it.
        self._party = client_id if client_id == audience else None
        self._waiting: Counter[str] = Counter()

    async def close(self) -> None:
        """End the connections to the issuers."""
        for provider in self._providers.values():
            await provider.close()

    async def check(self, token: bytes) -> SignedToken:
        """The token, if one of the issuers has signed it for Gasket and it counts now.

        Raises:
            TokenRefusedError: it does not count.
            IdentityProviderAwayError: the issuer's keys are not known, or too many of its tokens are being checked.
        """
        if len(token) > _LONGEST:
            raise TokenRefusedError(f"The token is longer than {_LONGEST} bytes.")
        text = token.decode("ascii", "replace")
        provider = self._providers.get(_issuer_of(text))
        if provider is None:
            raise TokenRefusedError("The token's issuer is not one whose tokens are taken here.")
        if self._waiting[provider.issuer] >= _MOST_WAITING:
            raise IdentityProviderAwayError(f"Too many tokens of {provider.issuer} are being checked; try again soon.")
        self._waiting[provider.issuer] += 1
        try:
            return await self._check(text, provider)
        finally:
            self._waiting[provider.issuer] -= 1

    async def _check(self, text: str, provider: Provider) -> SignedToken:
        jwts = await provider.load_jwts()
        try:
            claims = await provider.verify(text, self._audience)
            if provider is self.own and self._party is not None:
                jwts.check_party(claims, self._party)
        except jwts.ExpiredTokenError:
            raise TokenRefusedError("The token has expired.", guessed=False) from None
        except jwts.InvalidTokenError as error:
            raise TokenRefusedError(f"The token does not count: {error}.") from None
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT or not subject.isprintable():
            raise TokenRefusedError(f"The token's subject is not text of at most {_LONGEST_SUBJECT} characters.")
        return SignedToken(
            issuer=provider.issuer,
            subject=subject,
            own=provider is self.own,
            claims=claims,
            expires_at=min(claims["exp"], _LATEST) + jwts.SKEW,
        )


class _Payload(msgspec.Struct):
    iss: str


def _issuer_of(token: str) -> str:
    """Who the token says has issued it. It only chooses whose keys decide."""
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise TokenRefusedError("The token does not have three parts.")
    try:
        return decode_json(parts[1], _Payload).iss
    except ValueError:
        raise TokenRefusedError("The token does not say who has issued it.") from None
