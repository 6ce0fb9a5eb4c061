"""What is kept of one person, as one JSON document. It is written while it is read, for it may be long."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.service import AuditService
from gasket.db import Transactions
from gasket.migrator.archive.schema import stored
from gasket.origin import Origin
from gasket.users.addresses import Person, check_address, person
from gasket.users.tables import (
    AUDIT,
    OF_PERSON,
    RECORDS,
    SECRETS,
    TOTALS,
    Large,
    end_of_window,
    find_archived,
    people_of,
    qualified,
    run,
    within,
)

_SMALL = {
    "api_keys": "lower(user_email) = $1 OR lower(revoked_by) = $1 OR person_id IN {people}",
    "access_tokens": "lower(name) = $1 OR lower(created_by) = $1",
    "people": OF_PERSON,
    "browser_sessions": "lower(email) = $1 OR lower(name) = $1",
    "usage_days": "by = 'user' AND name = $1",
}
_LARGE = {
    TOTALS: "lower(user_email) = $1",
    RECORDS: "lower(user_email) = $1 OR lower(end_user) = $1",
}
_OF_AUDIT = "lower(actor) = $1 OR object_id ~* $4 OR before::text ~* $4 OR after::text ~* $4"


class Export:
    """Reads what is kept of a person. No connection is held while a part of the document is sent."""

    def __init__(self, transaction: Transactions, schema: str) -> None:
        self._transaction = transaction
        self._schema = schema

    async def begin(self, address: str, origin: Origin) -> AsyncIterator[bytes]:
        """The parts of the document: an object with a list of rows for each table. Secrets and digests are not in it.

        Before the first rows are shown there is an entry of the audit: to whom. Where nothing is kept there is none, or
        an address that was erased would be back.

        Raises:
            InvalidInputError: it is no address.
        """
        check_address(address)
        async with self._transaction() as session:
            folded: str = (await run(session, "SELECT lower($1::text)", address)).scalar_one()
        return self._document(person(folded, lambda _: ()), origin)

    async def _document(self, found: Person, origin: Origin) -> AsyncIterator[bytes]:
        recorded = False
        yield b'{"email":%s' % msgspec.json.encode(found.address)
        tables = [(name, self._small(name, found)) for name in _SMALL]
        tables += [(large.table, self._large(large, found)) for large in (*_LARGE, AUDIT)]
        for name, parts in [*tables, ("archives", self._archives(found))]:
            yield b',"%s":[' % name.encode()
            separator = ""
            async for rows in parts:
                if rows:
                    if not recorded:
                        await self._record(found, origin)
                        recorded = True
                    yield (separator + ",".join(rows)).encode()
                    separator = ","
            yield b"]"
        yield b"}"

    async def _record(self, found: Person, origin: Origin) -> None:
        async with self._transaction() as session:
            await AuditService(session).record(origin, "export", object_kind="person", object_id=found.address)

    async def _small(self, name: str, found: Person) -> AsyncIterator[list[str]]:
        async with self._transaction() as session:
            condition = _SMALL[name].format(people=people_of(self._schema))
            rows = await _read(session, qualified(self._schema, name), condition, found.address)
        yield rows

    async def _large(self, large: Large, found: Person) -> AsyncIterator[list[str]]:
        table, after = qualified(self._schema, large.table), large.start
        arguments = (found.pattern,) if large is AUDIT else ()
        condition = f"{within(large, 2)} AND ({_LARGE.get(large, _OF_AUDIT)})"
        while True:
            async with self._transaction() as session:
                end = await end_of_window(session, self._schema, large, after)
                if end is None:
                    return
                rows = await _read(session, table, condition, found.address, after, end, *arguments)
            yield rows
            after = end

    async def _archives(self, found: Person) -> AsyncIterator[list[str]]:
        async with self._transaction() as session:
            archived = await find_archived(session, self._schema)
        for one in archived:
            if one.allowed:
                async with self._transaction() as session:
                    rows = await _read(session, stored(self._schema, one.table), one.condition, found.pattern)
                yield rows


async def _read(session: AsyncSession, table: str, condition: str, *arguments: object) -> list[str]:
    """Rows as JSON."""
    left_out = ", ".join(f"'{name}'" for name in SECRETS)
    sql = f"SELECT (to_jsonb(t) - ARRAY[{left_out}])::text FROM {table} AS t WHERE {condition}"
    return list((await run(session, sql, *arguments)).scalars())
