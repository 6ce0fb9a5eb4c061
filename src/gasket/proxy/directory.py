"""Keys in memory: for a short time, no longer than promised, and never longer than nothing has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import NamedTuple, TypeVar

from gasket.proxy.access import Access
from gasket.proxy.errors import KeyRefusedError, TokenNotValidError
from gasket.proxy.headers import KEY_SHAPE

T = TypeVar("T")

_MOST_KEYS = 20_000
_MOST_REFUSALS = 10_000
_REFUSAL_TTL = 5.0


class _Kept(NamedTuple):
    access: Access
    until: float


class KeyDirectory:
    """Answers for keys from memory, else by `find`, which is given the hex SHA-256 of a key.

    `ttl`, in seconds, may be changed at any time; it holds for what is looked up from then on.
    """

    def __init__(self, find: Callable[..., Awaitable[Access]], *, ttl: float) -> None:
        self.ttl = ttl
        self.hits = 0
        self.misses = 0
        self._find = find
        self._kept: dict[str, _Kept] = {}
        self._refused: dict[str, tuple[KeyRefusedError, float]] = {}
        self._looking: dict[str, asyncio.Task[Access]] = {}
        self._generation = 0

    @property
    def size(self) -> int:
        """How many keys are in memory, also those whose time is over."""
        return len(self._kept)

    def recall(self, key: bytes) -> Access | None:
        """The rights of a key that is in memory; None: ask `look_up`.

        Raises:
            KeyRefusedError: it is missing, or has not the form of a key, or has expired.
        """
        self._check_shape(key)
        kept = self._kept.get(sha256(key).hexdigest())
        now = time.monotonic()
        if kept is None or kept.until <= now:
            return None
        expires_at = kept.access.expires_at
        if expires_at is not None and expires_at <= now:
            raise self._expired()
        self.hits += 1
        return kept.access

    async def look_up(self, key: bytes) -> Access:
        """The rights of a key, from the database. Concurrent calls for one key share one query.

        Raises:
            KeyRefusedError, BusyError: as they say.
        """
        digest = sha256(key).hexdigest()
        error, until = self._refused.get(digest, (None, 0.0))
        if error is not None and until > time.monotonic():
            raise copy(error)
        looking = self._looking.get(digest)
        if looking is None:
            self.misses += 1
            looking = self._looking[digest] = asyncio.create_task(self._fetch(digest, key))
            looking.add_done_callback(partial(self._looked_up, digest))
        # Shielded: the one who asked first may leave, the others still want to know.
        return await asyncio.shield(looking)

    def forget_key(self, digest: str) -> None:
        """This key has changed."""
        self._generation += 1
        self._looking.pop(digest, None)
        self._kept.pop(digest, None)
        self._refused.pop(digest, None)

    def forget_profile(self, profile_id: int) -> None:
        """This profile has changed, or the list of its backends."""
        self._forget(lambda access: access.profile.id == profile_id)

    def forget_backend(self, backend_id: int) -> None:
        """This backend has changed."""
        self._forget(lambda access: any(backend.id == backend_id for backend in access.profile.backends))

    def forget_all(self) -> None:
        """Anything may have changed."""
        self._generation += 1
        self._looking.clear()
        self._kept.clear()
        self._refused.clear()

    def _forget(self, concerned: Callable[[Access], bool]) -> None:
        self._generation += 1
        self._looking.clear()
        self._kept = {digest: kept for digest, kept in self._kept.items() if not concerned(kept.access)}

    def _check_shape(self, key: bytes) -> None:
        if not KEY_SHAPE.fullmatch(key):
            raise _misshapen(key)

    def _expired(self) -> KeyRefusedError:
        return KeyRefusedError("This API key has expired.", code="expired_api_key")

    async def _ask(self, digest: str, _key: bytes) -> Access:
        return await self._find(digest)

    async def _fetch(self, digest: str, key: bytes) -> Access:
        """A look-up that a change has overtaken is good for those who asked before it, and is not kept.

        Nor is it handed to who asks after the change: `forget_...` has taken it out of `_looking`.
        """
        generation, started = self._generation, time.monotonic()
        try:
            access = await self._ask(digest, key)
        except KeyRefusedError as error:
            if generation == self._generation:
                # A copy: the error itself leads, by its traceback, to all that the look-up had in its hands.
                refusal = copy(error), started + min(_REFUSAL_TTL, self.ttl)
                _keep(self._refused, digest, refusal, most=_MOST_REFUSALS)
            raise
        if generation == self._generation:
            _keep(self._kept, digest, _Kept(access, started + self.ttl), most=_MOST_KEYS)
        return access

    def _looked_up(self, digest: str, done: asyncio.Task[Access]) -> None:
        if self._looking.get(digest) is done:
            del self._looking[digest]
        if not done.cancelled():
            done.exception()  # everybody who asked may have left


class TokenDirectory(KeyDirectory):
    """The same for signed tokens, each until it expires; `find` is given the token itself."""

    def forget_key(self, digest: str) -> None:
        """A subject's row has changed, if it is not that of a key."""
        self._refused.clear()
        self._forget(lambda access: access.subject_digest == digest)

    def forget_profile(self, profile_id: int) -> None:
        """This profile has changed, and with it perhaps which tokens it takes: also some that another one has taken."""
        self.forget_all()

    def _check_shape(self, key: bytes) -> None:
        """Nothing: its beginning has led here."""

    def _expired(self) -> KeyRefusedError:
        return TokenNotValidError("The token has expired.", guessed=False)

    async def _ask(self, _digest: str, key: bytes) -> Access:
        return await self._find(key)


def _keep(entries: dict[str, T], digest: str, entry: T, *, most: int) -> None:
    """Put it last; of a full dict, drop the tenth that came first.

    Not one at a time: to find the first entry of a dict takes longer the more have been dropped in front of it.
    """
    entries.pop(digest, None)
    if len(entries) >= most:
        for first in list(islice(entries, -(-most // 10))):
            del entries[first]
    entries[digest] = entry


def _misshapen(key: bytes) -> KeyRefusedError:
    if not key:
        return KeyRefusedError(
            "There is no API key: send `Authorization: Bearer gsk_...`, or `x-api-key: gsk_...`.",
            code="missing_api_key",
        )
    return KeyRefusedError("This is not an API key of this gateway: gsk_ and 48 hex digits.", code="malformed_api_key")
