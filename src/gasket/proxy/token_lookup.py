"""What a signed token may do at `/v1`: as a key of the profile whose claim rules take it.

The subject of a token has a row among the keys, which stands for it: its usage, its limits, and whether it is revoked.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256

import asyncpg
import msgspec

from gasket.access.bearers import Bearers, SignedToken, TokenRefusedError
from gasket.access.people import profile_of
from gasket.errors import IdentityProviderAwayError
from gasket.origin import Origin
from gasket.postgres.quoting import quote_identifier
from gasket.proxy.access import Access
from gasket.proxy.claim_rules import Rule, read_rules, takes
from gasket.proxy.errors import BusyError, TokenNotValidError, TokenNotWantedError, UnknownKeyError
from gasket.proxy.lookup import KeyLookup

log = logging.getLogger("gasket.gateway")

_RETRY_AFTER = 5.0
_MOST_NAMES = 5

_RULES = """
SELECT id, name, claim_rules::text AS rules FROM {schema}.backend_profiles
WHERE claim_rules @> jsonb_build_array(jsonb_build_object('issuer', $1::text)) ORDER BY name
"""
# In one statement, for it may go through a pooler: for the audit's trigger the setting holds as long as the statement.
_MEET = """
INSERT INTO {schema}.api_keys (user_email, name, key_value, key_preview, profile_id, issuer)
SELECT $1, $2, $3, '', $4, $5 FROM (SELECT set_config('gasket.audit', $6, true) AS told) AS audit WHERE told IS NOT NULL
ON CONFLICT (key_value) DO NOTHING
"""


class TokenLookup:
    """Checks tokens, and asks the database what their subjects may do, over the connections of `keys`."""

    def __init__(self, bearers: Bearers, keys: KeyLookup, *, schema: str) -> None:
        self._bearers = bearers
        self._keys = keys
        name = quote_identifier(schema)
        self._rules, self._meet = _RULES.format(schema=name), _MEET.format(schema=name)
        self._unreadable: dict[int, str] = {}

    async def find(self, token: bytes) -> Access:
        """The rights of the token.

        Raises:
            TokenNotValidError: it does not count.
            TokenNotWantedError: it counts, and no profile takes it, or more than one.
            KeyRefusedError: an administrator has revoked the subject.
            BusyError: its issuer or the database does not answer.
        """
        try:
            signed = await self._bearers.check(token)
        except TokenRefusedError as error:
            raise TokenNotValidError(str(error), guessed=error.guessed) from None
        except IdentityProviderAwayError as error:
            raise BusyError(
                f"The token cannot be checked now. {error}", code="issuer_unavailable", retry_after=_RETRY_AFTER
            ) from None
        profile_id = await self._profile_for(signed)
        digest = sha256(f"{signed.issuer}\n{signed.subject}\n{profile_id}".encode()).hexdigest()
        try:
            access = await self._keys.find(digest)
        except UnknownKeyError:
            await self._meet_subject(signed, digest, profile_id)
            access = await self._keys.find(digest)
        expires_at = time.monotonic() + signed.expires_at - time.time()
        if access.expires_at is not None:
            expires_at = min(expires_at, access.expires_at)
        return msgspec.structs.replace(access, expires_at=expires_at, subject_digest=digest)

    async def _profile_for(self, signed: SignedToken) -> int:
        """The one profile that takes the token. Which of several it were would depend on their names, or their age."""
        rows = await self._keys.ask(self._rules, signed.issuer)
        taking = [row for row in rows if takes(self._rules_of(row), signed.issuer, signed.claims)]
        if not taking:
            raise TokenNotWantedError(
                "The token counts, but no profile takes it: an administrator has to change the claim rules of one."
            )
        if len(taking) > 1:
            names = ", ".join(repr(row["name"]) for row in taking[:_MOST_NAMES])
            words = "More than one profile takes this token: an administrator has to make their claim rules narrower."
            raise TokenNotWantedError(words, code="ambiguous_token", detail=f"{words} They are {names}.")
        profile_id: int = taking[0]["id"]
        return profile_id

    def _rules_of(self, profile: asyncpg.Record) -> list[Rule]:
        """None at all where they cannot be read, which is logged once: the profile then takes no token."""
        profile_id, stored = profile["id"], profile["rules"]
        rules = read_rules(stored)
        if rules is not None:
            return rules
        if self._unreadable.get(profile_id) != stored:
            self._unreadable[profile_id] = stored
            log.error(
                "the claim rules of profile %d are not a list of objects with the texts issuer, claim and pattern: it "
                "takes no signed token; set them again with PATCH /api/profiles/%d",
                profile_id,
                profile_id,
            )
        return []

    async def _meet_subject(self, signed: SignedToken, digest: str, profile_id: int) -> None:
        """Make the row of a subject that comes for the first time.

        A person of the identity provider is known by the address, as in keys: so usage and erasure find it.
        """
        user = profile_of(signed.claims, groups_claim="").name if signed.own else signed.subject
        name = f"tokens of {signed.issuer}"[:100]
        origin = msgspec.json.encode(Origin(actor=user, kind="subject", how="api")).decode()
        await self._keys.ask(self._meet, user, name, digest, profile_id, signed.issuer, origin)
