"""An identity provider: what it says of itself (OpenID Connect Discovery 1.0), and the keys with which it signs."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gasket.errors import IdentityProviderAwayError
from gasket.upstream.address import address_of, request_target
from gasket.upstream.client import Timeouts, UpstreamClient
from gasket.upstream.failures import UpstreamError

_log = logging.getLogger("gasket.access")

_LIMIT = 10.0
"""Seconds for one request, its answer included."""
_LARGEST = 1_000_000
_KEPT = 3600.0
"""Seconds after which metadata and keys are read again: a key that the provider withdraws is void after that."""
_PAUSE = 60.0
"""Seconds between two looks for keys, and after a look for metadata that failed with metadata at hand."""
_PAUSE_AFTER_FAILURE = 5.0
"""Seconds for which the provider is not asked again after it failed."""
_TIMEOUTS = Timeouts(connect=_LIMIT, first_byte=_LIMIT, between_pieces=_LIMIT)
_JWTS = "gasket.access.jwts"


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What Gasket reads of a provider's metadata (OpenID Connect Discovery 1.0, 3)."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    id_token_signing_alg_values_supported: list[str] = msgspec.field(default_factory=lambda: ["RS256"])
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(default_factory=lambda: ["client_secret_basic"])


class Provider:
    """One issuer. What it says is read when it is first needed, and kept."""

    def __init__(self, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.issuer = issuer
        self._client = UpstreamClient()  # GASKET_BACKEND_NETWORKS is about backends
        self._clock = clock
        self._turn = asyncio.Lock()
        self._metadata: Metadata | None = None
        self._metadata_at = float("-inf")
        self._keys: list[Any] = []
        self._keys_at = float("-inf")
        self._keys_asked_at = float("-inf")
        self._failed_at = float("-inf")
        self._failure = ""
        self._checks = asyncio.Semaphore(1)
        self._jwts: Any = None

    async def metadata(self) -> Metadata:
        """What the provider says of itself.

        Raises:
            IdentityProviderAwayError: it cannot be asked, and has never been.
        """
        if self._clock() - self._metadata_at >= _KEPT:
            async with self._turn:
                if self._clock() - self._metadata_at >= _KEPT:
                    await self._read_metadata()
        assert self._metadata is not None
        return self._metadata

    async def verify(self, token: str, audience: str) -> Mapping[str, Any]:
        """The claims of a token that this issuer has signed for this audience, and that counts now.

        Raises:
            InvalidTokenError: it does not count; of `gasket.access.jwts`.
            IdentityProviderAwayError: the provider's keys are not known.
        """
        jwts = await self.load_jwts()
        metadata = await self.metadata()
        algorithms = frozenset(metadata.id_token_signing_alg_values_supported)
        if self._clock() - self._keys_at >= _KEPT:
            await self._read_keys(metadata)
        try:
            claims = await self._check_signature(token, algorithms)
        except jwts.UnknownKeyError:
            await self._read_keys(metadata)
            claims = await self._check_signature(token, algorithms)
        jwts.check(claims, issuer=self.issuer, audience=audience)
        return claims

    async def _check_signature(self, token: str, algorithms: frozenset[str]) -> Mapping[str, Any]:
        """In a thread, one at a time: it takes 0.3 ms and more, in which the loop has other things to do."""
        jwts = await self.load_jwts()
        async with self._checks:
            claims: Mapping[str, Any] = await asyncio.to_thread(jwts.verify, token, self._keys, algorithms)
        return claims

    async def ask(self, method: str, url: str, fields: Mapping[str, str], body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body of the provider's answer. Redirects are not followed.

        Raises:
            IdentityProviderAwayError: there is no answer, or it is too long.
        """
        try:
            async with asyncio.timeout(_LIMIT):
                response = await self._client.send(
                    method,
                    address_of(url),
                    request_target(url),
                    fields=[(name.encode(), value.encode()) for name, value in fields.items()],
                    body=body,
                    timeouts=_TIMEOUTS,
                )
                try:
                    return response.status, await response.read(_LARGEST)
                finally:
                    response.close()
        except TimeoutError:
            raise IdentityProviderAwayError(f"{self.issuer} did not answer within {_LIMIT:.0f} s.") from None
        except (UpstreamError, ValueError) as error:
            raise IdentityProviderAwayError(f"{self.issuer} cannot be asked: it {error}.") from None

    async def close(self) -> None:
        """End the connections to it."""
        await self._client.close()

    async def load_jwts(self) -> Any:
        """`gasket.access.jwts`, loaded in a thread when it is first needed: a start and other requests go on."""
        if self._jwts is None:
            self._jwts = await asyncio.to_thread(importlib.import_module, _JWTS)
        return self._jwts

    async def _read_metadata(self) -> None:
        try:
            document = await self._get(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            metadata = msgspec.json.decode(document, type=Metadata)
            if metadata.issuer != self.issuer:
                raise ValueError("it names another issuer: the setting must have it as the provider writes it")
        except (IdentityProviderAwayError, ValueError) as error:
            if self._metadata is None:
                raise self._failed(error) from None
            _log.warning("the metadata of %s stay as they were: %s", self.issuer, error)
            self._metadata_at = self._clock() - _KEPT + _PAUSE
        else:
            self._metadata, self._metadata_at = metadata, self._clock()

    async def _read_keys(self, metadata: Metadata) -> None:
        """Read the keys, unless this or another request has asked for them within the last minute."""
        async with self._turn:
            if self._clock() - self._keys_asked_at < _PAUSE:
                return
            jwts = await self.load_jwts()
            try:
                self._keys = jwts.read_keys(await self._get(metadata.jwks_uri))
            except (IdentityProviderAwayError, ValueError) as error:
                if not self._keys:
                    raise self._failed(error) from None
                _log.warning("the keys of %s stay as they were: %s", self.issuer, error)
            else:
                self._keys_at = self._clock()
            self._keys_asked_at = self._clock()

    async def _get(self, url: str) -> bytes:
        """The provider is left alone for a while after it failed: a crowd that signs in is told at once."""
        if self._clock() - self._failed_at < _PAUSE_AFTER_FAILURE:
            raise IdentityProviderAwayError(self._failure)
        status, body = await self.ask("GET", url, {"accept": "application/json"})
        if status != 200:
            raise IdentityProviderAwayError(f"{self.issuer} answered with status {status}.")
        return body

    def _failed(self, error: Exception) -> IdentityProviderAwayError:
        if self._clock() - self._failed_at >= _PAUSE_AFTER_FAILURE:
            self._failed_at = self._clock()
            self._failure = str(error)
            if not isinstance(error, IdentityProviderAwayError):
                self._failure = f"What {self.issuer} says of itself cannot be used: {error}."
            _log.warning("%s", self._failure)
        return IdentityProviderAwayError(self._failure)
