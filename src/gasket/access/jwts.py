"""Signed tokens of an identity provider (RFC 7519, JWT): which key signed one, and whether it counts here and now.

Only what verifies a token imports this: joserfc takes some time to load.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from joserfc import errors, jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key
from joserfc.jws import JWSRegistry

from gasket.access.base64url import decode_json

SKEW = 60
"""Seconds by which the provider's clock may differ from ours."""
MOST_KEYS = 100

Claims = Mapping[str, Any]

_KEY_TYPE = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "EC",
    "ES384": "EC",
    "ES512": "EC",
    "EdDSA": "OKP",
    "Ed25519": "OKP",
}
"""The algorithms that are taken at all: neither `none` nor one whose key the client has, too (HS256 and the like)."""


class InvalidTokenError(Exception):
    """The token does not count. The message says why, without a value of the token."""


class UnknownKeyError(InvalidTokenError):
    """No known key has signed it; perhaps the provider has a new one."""


class ExpiredTokenError(InvalidTokenError):
    """The provider has signed it, and its time is over."""


def read_keys(document: bytes) -> list[Key]:
    """The keys of a JWK Set (RFC 7517) that verify signatures; those of another use or kind are left out.

    Raises:
        ValueError: it is no JWK Set, or has more than `MOST_KEYS` keys.
    """
    entries = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        raise ValueError(f"it must have a list of at most {MOST_KEYS} keys")
    keys = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in set(_KEY_TYPE.values()):
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SecurityWarning)  # of RSA keys below 2048 bits
                keys.append(JWKRegistry.import_key(entry))
        except Exception:  # one key that is broken, or newer than this library, must not disable the others
            continue
    return keys


def verify(token: str, keys: list[Key], algorithms: frozenset[str]) -> Claims:
    """The claims of a token that one of the keys has signed with one of the algorithms; nothing else is checked.

    Raises:
        UnknownKeyError: there is no such key, or more than one that could be meant.
        InvalidTokenError: it is no such token, or its signature is wrong.
    """
    header = _header(token)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in _KEY_TYPE or algorithm not in algorithms:
        raise InvalidTokenError("its algorithm is not one that the provider says it uses")
    fitting = [key for key in keys if key.key_type == _KEY_TYPE[algorithm] and key.get("alg") in (None, algorithm)]
    if kid is not None:
        fitting = [key for key in fitting if key.get("kid") == kid]
    if len(fitting) != 1:
        raise UnknownKeyError("none of the provider's keys is the one that it names")
    registry = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # of the name EdDSA, which providers go on using
            return jwt.decode(token, fitting[0], registry=registry).claims
    except Exception as error:  # whatever a hostile token trips over: it does not count
        raise InvalidTokenError(f"its signature or form is wrong ({type(error).__name__})") from None


def check(claims: Claims, *, issuer: str, audience: str, now: Callable[[], float] = time.time) -> None:
    """Check that a token was issued by this issuer, for this audience, and that it counts now.

    The rules are those of OpenID Connect Core 1.0, 3.1.3.7.

    Raises:
        ExpiredTokenError: its time is over.
        InvalidTokenError: another rule does not hold.
    """
    registry = jwt.JWTClaimsRegistry(
        now=int(now()),
        leeway=SKEW,
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": audience},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except errors.ExpiredTokenError:
        raise ExpiredTokenError("it has expired") from None
    except JoseError as error:
        raise InvalidTokenError(f"a claim does not hold: {error.error}, {_name_of_claim(error)}") from None


def check_party(claims: Claims, client_id: str) -> None:
    """Check that an ID token was made for this client, and not for another that shares the audience.

    Raises:
        InvalidTokenError: it was not, or it does not say.
    """
    party = claims.get("azp")
    several = isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
    if party != client_id and (party is not None or several):
        raise InvalidTokenError("its claim azp is not GASKET_OIDC_CLIENT_ID")


def _header(token: str) -> dict[str, Any]:
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidTokenError("it does not have three parts")
    try:
        return decode_json(parts[0], dict[str, Any])
    except ValueError:
        raise InvalidTokenError("its header is not JSON in base64url") from None


def _name_of_claim(error: JoseError) -> str:
    return str(getattr(error, "claim", None) or "")
