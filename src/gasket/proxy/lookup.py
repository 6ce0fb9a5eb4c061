"""The one query behind a key check, on a few connections of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import asyncpg
import msgspec
from asyncpg.prepared_stmt import PreparedStatement

from gasket.db import PoolUse
from gasket.limits.subjects import NO_LIMITS, Limits
from gasket.postgres.connections import open_connection
from gasket.postgres.errors import DRIVER_ERRORS, LOST, describe, lacks_object
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.quoting import quote_identifier
from gasket.proxy.access import Access, Backend, Profile, ServedModel
from gasket.proxy.errors import BusyError, KeyRefusedError, UnknownKeyError

log = logging.getLogger("gasket.gateway")

CONNECTIONS = 2
_ANSWER_TIMEOUT = 5.0
_LONGEST_QUEUE = 1000
_MOST_CREDENTIALS = 1000
_MOST_LISTS = 100
_SCHEMA_RETRY_AFTER = 5.0

_QUERY = """
SELECT k.id AS key_id, k.user_email, k.revoked_at IS NOT NULL AS revoked,
    extract(epoch FROM least(k.expires_at, found.grace_ends_at) - now())::float8 AS expires_in,
    found.grace_ends_at IS NOT NULL AS previous,
    k.requests_per_minute, k.tokens_per_window, k.token_window, k.max_concurrency,
    p.id AS profile_id, p.name AS profile_name, p.allowed_models, p.allow_stateful_endpoints,
    p.routing, p.user_header,
    p.requests_per_minute AS profile_requests_per_minute, p.tokens_per_window AS profile_tokens_per_window,
    p.token_window AS profile_token_window, p.max_concurrency AS profile_max_concurrency,
    b.id AS backend_id, b.name AS backend_name, b.base_url, b.api_key, b.skip_tls_verify,
    b.credential_header, b.credential_scheme, b.headers, b.response_headers,
    b.proxy_url, b.client_certificate, b.set_aside_at IS NOT NULL AS set_aside,
    b.max_concurrency AS backend_max_concurrency, b.connect_timeout, b.first_byte_timeout, b.chunk_timeout,
    (
        SELECT json_agg(json_build_array(m.name, m.backend_model, m.weight, m.priority) ORDER BY m.position)::text
        FROM {schema}.backend_models AS m WHERE m.backend_id = b.id
    ) AS models
FROM (
    SELECT id, NULL::timestamptz AS grace_ends_at FROM {schema}.api_keys WHERE key_value = $1
    UNION ALL
    SELECT key_id, expires_at FROM {schema}.previous_api_keys WHERE key_value = $1
) AS found
JOIN {schema}.api_keys AS k ON k.id = found.id
JOIN {schema}.backend_profiles AS p ON p.id = k.profile_id
LEFT JOIN {schema}.profile_backends AS l ON l.profile_id = p.id
LEFT JOIN {schema}.openai_backends AS b ON b.id = l.backend_id
ORDER BY l.position
"""
# The last two say that the DDL of a newer release has made the prepared query stale.
_LOST = (
    *LOST,
    asyncpg.InterfaceError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


class _Session(NamedTuple):
    """A connection, and the query prepared on it, which saves the server three quarters of its time.

    Behind a pooler in transaction mode, which may hand out another server connection each time, nothing is prepared.
    """

    connection: asyncpg.Connection
    prepared: PreparedStatement | None


class KeyLookup:
    """Asks the database what a key may do.

    `decrypt` opens a stored credential; None where no key of the ring does.
    """

    def __init__(
        self, database_url: str, *, schema: str, application_name: str, decrypt: Callable[[str], str | None]
    ) -> None:
        self._url = database_url
        self._application_name = application_name
        self._query = _QUERY.format(schema=quote_identifier(schema))
        self._decrypt = decrypt
        self._idle: list[_Session] = []
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._waiting = 0
        # Weak: what no key in memory has any more is forgotten, also where another replica has deleted it.
        self._profiles: WeakValueDictionary[int, Profile] = WeakValueDictionary()
        self._backends: WeakValueDictionary[int, Backend] = WeakValueDictionary()
        self._credentials: dict[str, str | None] = {}
        self._served: dict[str, tuple[ServedModel, ...]] = {}
        self._away = False

    @property
    def use(self) -> PoolUse:
        """How the connections are used."""
        return PoolUse(CONNECTIONS, min(self._waiting, CONNECTIONS), max(0, self._waiting - CONNECTIONS))

    async def find(self, digest: str) -> Access:
        """The rights of the key with this digest.

        Raises:
            KeyRefusedError: there is none, or it is revoked or has expired.
            BusyError: the database does not answer, or its schema lacks what this release needs.
        """
        return self._access(digest, await self.ask(self._query, digest))

    async def ask(self, statement: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """The rows of a statement, which may run twice.

        Raises:
            BusyError: the database does not answer, or its schema lacks what this release needs.
        """
        if self._waiting >= _LONGEST_QUEUE:
            raise BusyError("Too many keys are being looked up.")
        self._waiting += 1
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT), self._places:
                rows = await self._ask(statement, arguments)
        except DRIVER_ERRORS as error:
            if not self._away:
                self._away = True
                log.warning("keys that are not in memory get 503: %s", describe(error))
            raise _refusal(error) from None
        finally:
            self._waiting -= 1
        if self._away:
            self._away = False
            log.info("keys are looked up again")
        return rows

    async def close(self) -> None:
        """Give the connections back."""
        while self._idle:
            self._idle.pop().connection.terminate()

    async def _ask(self, statement: str, arguments: Sequence[object]) -> Sequence[asyncpg.Record]:
        """A pooled connection may have died unnoticed: then once more, on a fresh one."""
        if self._idle:
            try:
                return await self._ask_over(self._idle.pop(), statement, arguments)
            except _LOST:
                pass
        return await self._ask_over(await self._open_session(), statement, arguments)

    async def _ask_over(
        self, session: _Session, statement: str, arguments: Sequence[object]
    ) -> Sequence[asyncpg.Record]:
        rows: Sequence[asyncpg.Record]
        try:
            if statement is self._query and session.prepared is not None:
                rows = await session.prepared.fetch(*arguments)
            else:
                rows = await session.connection.fetch(statement, *arguments)
        except BaseException:
            session.connection.terminate()
            raise
        self._idle.append(session)
        return rows

    async def _open_session(self) -> _Session:
        connection = await open_connection(self._url, application_name=self._application_name)
        try:
            pooled = await leads_through_pooler(connection)
            return _Session(connection, None if pooled else await connection.prepare(self._query, name="gasket_key"))
        except BaseException:
            connection.terminate()
            raise

    def _access(self, digest: str, rows: Sequence[asyncpg.Record]) -> Access:
        if not rows:
            raise UnknownKeyError
        key = rows[0]
        if key["revoked"]:
            raise KeyRefusedError("This API key has been revoked.", code="revoked_api_key")
        if key["expires_in"] is not None and key["expires_in"] <= 0:
            raise KeyRefusedError("This API key has expired.", code="expired_api_key")
        return Access(
            key_id=key["key_id"],
            user_email=key["user_email"],
            profile=self._profile(rows),
            limits=_limits(key, ""),
            previous_digest=digest if key["previous"] else None,
            expires_at=None if key["expires_in"] is None else time.monotonic() + key["expires_in"],
        )

    def _profile(self, rows: Sequence[asyncpg.Record]) -> Profile:
        """One object for all keys of a profile, as long as its rows are the same."""
        row = rows[0]
        profile = Profile(
            id=row["profile_id"],
            name=row["profile_name"],
            allowed_models=frozenset(row["allowed_models"]),
            allow_stateful_endpoints=row["allow_stateful_endpoints"],
            limits=_limits(row, "profile_"),
            routing=row["routing"],
            user_header=None if row["user_header"] is None else row["user_header"].lower().encode(),
            backends=tuple(self._backend(row) for row in rows if row["backend_id"] is not None),
        )
        known = self._profiles.get(profile.id)
        if known != profile:
            self._profiles[profile.id] = known = profile
        return known

    def _backend(self, row: asyncpg.Record) -> Backend:
        tokens = row["api_key"], row["headers"], row["proxy_url"], row["client_certificate"]
        secrets = [None if token is None else self._open(token) for token in tokens]
        credential, headers, proxy_url, client_certificate = secrets
        backend = Backend(
            id=row["backend_id"],
            name=row["backend_name"],
            base_url=row["base_url"],
            credential=credential,
            credential_header=row["credential_header"],
            credential_scheme=row["credential_scheme"],
            headers=headers,
            credential_unreadable=secrets.count(None) > tokens.count(None),
            response_headers=tuple(name.lower().encode() for name in row["response_headers"]),
            skip_tls_verify=row["skip_tls_verify"],
            proxy_url=proxy_url,
            client_certificate=client_certificate,
            max_concurrency=row["backend_max_concurrency"],
            connect_timeout=row["connect_timeout"],
            first_byte_timeout=row["first_byte_timeout"],
            chunk_timeout=row["chunk_timeout"],
            set_aside=row["set_aside"],
            models=() if row["models"] is None else self._models(row["models"]),
        )
        known = self._backends.get(backend.id)
        if known != backend:
            self._backends[backend.id] = known = backend
        return known

    def _models(self, rows: str) -> tuple[ServedModel, ...]:
        """The models of a backend, one object as long as its rows are the same."""
        if rows not in self._served:
            if len(self._served) >= _MOST_LISTS:
                self._served.clear()
            self._served[rows] = msgspec.json.decode(rows, type=tuple[ServedModel, ...])
        return self._served[rows]

    def _open(self, token: str) -> str | None:
        """The credential; opening one takes longer than the rest of a look-up."""
        if token not in self._credentials:
            if len(self._credentials) >= _MOST_CREDENTIALS:
                self._credentials.clear()
            self._credentials[token] = self._decrypt(token)
        return self._credentials[token]


def _refusal(error: BaseException) -> BusyError:
    if lacks_object(error):
        return BusyError(
            "The gateway's schema is being changed or was taken back, and this key is not in memory; try again soon.",
            code="schema_not_ready",
            retry_after=_SCHEMA_RETRY_AFTER,
        )
    return BusyError(
        "The gateway's database does not answer, and this key is not in memory; try again soon.",
        code="database_unavailable",
    )


def _limits(row: asyncpg.Record, prefix: str) -> Limits:
    limits = Limits(**{name: row[prefix + name] for name in Limits.__struct_fields__})
    return limits if limits.any else NO_LIMITS
