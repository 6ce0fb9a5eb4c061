"""Erasing a person: keys and sessions end, and everywhere a pseudonym takes the place of the address.

First, in one transaction, what matters at once: keys, sessions, tokens and the audit. Usage and archives follow in
parts, each committed by itself: one long transaction would keep the usage of everybody from being written meanwhile.
Cut short, it is done again from the beginning, and finds what is left.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.service import AuditService
from gasket.db import Transactions
from gasket.migrator.archive.schema import stored
from gasket.origin import Origin
from gasket.usage.summing import LOCK_KEY
from gasket.users.addresses import Person, Sign, check_address, person
from gasket.users.schemas import Erased
from gasket.users.tables import (
    AUDIT,
    OF_PERSON,
    RECORDS,
    TOTALS,
    Archived,
    end_of_window,
    find_archived,
    people_of,
    qualified,
    run,
    windows,
    within,
)

_USED = """
SELECT user_email FROM {keys} WHERE lower(user_email) = ANY ($1::text[])
UNION ALL SELECT user_email FROM {totals} WHERE user_email = ANY ($1::text[]) LIMIT 1
"""
_KEYS = """
WITH found AS (
        SELECT id, revoked_at IS NULL AS active FROM {keys} WHERE lower(user_email) = $1 OR person_id IN {people}
        ORDER BY id FOR NO KEY UPDATE
    ),
    ended AS (DELETE FROM {previous} WHERE key_id IN (SELECT id FROM found)),
    changed AS (
        UPDATE {keys} AS k SET user_email = $2, name = regexp_replace(k.name, $3, $2, 'gi'),
            revoked_at = coalesce(k.revoked_at, now()),
            revoked_by = CASE WHEN k.revoked_at IS NULL THEN $4 ELSE k.revoked_by END
        FROM found WHERE k.id = found.id
    )
SELECT count(*) AS keys, count(*) FILTER (WHERE active) AS active FROM found
"""
_AUDIT = """
UPDATE {table} SET actor = CASE WHEN lower(actor) = $1 THEN $2 ELSE actor END,
    source = CASE WHEN lower(actor) = $1 THEN NULL ELSE source END,
    object_id = regexp_replace(object_id, $3, $2, 'gi'),
    before = regexp_replace(before::text, $3, $2, 'gi')::jsonb,
    after = regexp_replace(after::text, $3, $2, 'gi')::jsonb
WHERE {within} AND (lower(actor) = $1 OR object_id ~* $3 OR before::text ~* $3 OR after::text ~* $3)
"""
_RECORDS = """
UPDATE {table} SET user_email = CASE WHEN lower(user_email) = $1 THEN $2 ELSE user_email END,
    end_user = CASE WHEN lower(end_user) = $1 THEN $2 ELSE end_user END
WHERE {within} AND (lower(user_email) = $1 OR lower(end_user) = $1)
"""
_TOTALS = "UPDATE {table} SET user_email = $2 WHERE {within} AND lower(user_email) = $1"
_DAYS = "DELETE FROM {table} WHERE by = 'user' AND name = $1"


class Eraser:
    """Erases people. `sign` is of the installation's keys; `origin` is who does it."""

    def __init__(self, transaction: Transactions, schema: str, sign: Sign, origin: Origin) -> None:
        self._transaction = transaction
        self._schema = schema
        self._sign = sign
        self._origin = origin
        self._changed: Counter[str] = Counter()

    async def erase(self, address: str) -> Erased:
        """Put a pseudonym in the place of the address, whatever the case of its letters.

        Raises:
            InvalidInputError: it is no address, or a pseudonym.
        """
        check_address(address)
        found, pseudonym, revoked = await self._end_access(address)
        await self._change_usage(found, pseudonym)
        left = await self._change_archives(found, pseudonym)
        changed = dict(sorted((+self._changed).items()))
        async with self._transaction() as session:
            details = {"changed": changed, "left": left}
            audit = AuditService(session)
            await audit.record(self._origin, "erasure", object_kind="person", object_id=pseudonym, details=details)
        return Erased(pseudonym=pseudonym, keys_revoked=revoked, changed=changed, left=left)

    async def _end_access(self, address: str) -> tuple[Person, str, int]:
        """Keys, tokens, sessions and the audit; in the log, too, the audit's new entries have the pseudonym alone."""
        schema = self._schema
        async with self._transaction() as session:
            folded: str = (await run(session, "SELECT lower($1::text)", address)).scalar_one()
            found = person(folded, self._sign)
            keys, previous = qualified(schema, "api_keys"), qualified(schema, "previous_api_keys")
            pseudonym = await self._pseudonym(session, found)
            by = (folded, pseudonym, found.pattern)
            people = people_of(schema)
            # First, as in a sign-in: who is making a key holds the person, and here is waited for that key.
            locked = f"SELECT id FROM {qualified(schema, 'people')} WHERE id IN {people} ORDER BY id FOR UPDATE"
            await run(session, locked, folded)
            ends = _KEYS.format(keys=keys, previous=previous, people=people)
            one = (await run(session, ends, *by, self._origin.actor)).one()
            self._changed["api_keys"] += one.keys
            others = (
                ("api_keys", f"UPDATE {keys} SET revoked_by = $2 WHERE lower(revoked_by) = $1"),
                ("people", f"DELETE FROM {{}} WHERE {OF_PERSON}"),
                ("browser_sessions", "DELETE FROM {} WHERE lower(email) = $1 OR lower(name) = $1"),
                ("access_tokens", "DELETE FROM {} WHERE lower(name) = $1"),
                ("access_tokens", "UPDATE {} SET created_by = $2 WHERE lower(created_by) = $1"),
            )
            for table, sql in others:
                arguments = (folded, pseudonym) if "$2" in sql else (folded,)
                done = await run(session, sql.format(qualified(schema, table)), *arguments)
                self._changed[table] += done.rowcount
            await self._change_audit(session, by)
        return found, pseudonym, one.active

    async def _pseudonym(self, session: AsyncSession, found: Person) -> str:
        """While the installation's key is replaced by another, one that was used before stays."""
        if len(found.pseudonyms) > 1:
            keys, totals = (qualified(self._schema, table) for table in ("api_keys", TOTALS.table))
            used = await run(session, _USED.format(keys=keys, totals=totals), list(found.pseudonyms))
            if before := used.scalar_one_or_none():
                return str(before)
        return found.pseudonyms[0]

    async def _change_audit(self, session: AsyncSession, by: tuple[str, str, str]) -> None:
        table = qualified(self._schema, AUDIT.table)
        await run(session, "SELECT set_config('gasket.audit_exception', 'erasure', true)")
        last = (await run(session, f"SELECT coalesce(max(id), 0) FROM {table}")).scalar_one()
        after = AUDIT.start
        while int(after) < last:  # not to its end: each change adds an entry
            end = await end_of_window(session, self._schema, AUDIT, after)
            if end is None:
                break
            done = await run(session, _AUDIT.format(table=table, within=within(AUDIT, 4)), *by, after, end)
            self._changed[AUDIT.table] += done.rowcount
            after = end

    async def _change_usage(self, found: Person, pseudonym: str) -> None:
        for large, sql in ((RECORDS, _RECORDS), (TOTALS, _TOTALS)):
            statement = sql.format(table=qualified(self._schema, large.table), within=within(large, 3))
            async for session, after, end in windows(self._transaction, self._schema, large):
                done = await run(session, statement, found.address, pseudonym, after, end)
                self._changed[large.table] += done.rowcount
        # The change of the totals has marked these days, and they will be summed again. A sum that has begun before it
        # may still bring the address: it is waited for.
        async with self._transaction() as session:
            await run(session, f"SELECT pg_advisory_xact_lock({LOCK_KEY})", self._schema)
            done = await run(session, _DAYS.format(table=qualified(self._schema, "usage_days")), found.address)
            self._changed["usage_days"] += done.rowcount

    async def _change_archives(self, found: Person, pseudonym: str) -> list[str]:
        """Returns the tables that this role may not change."""
        async with self._transaction() as session:
            archived = await find_archived(session, self._schema)
        for one in archived:
            if one.allowed:
                async with self._transaction() as session:
                    done = await run(session, _of_archived(one, self._schema), found.pattern, pseudonym)
                    self._changed[f"archive {one.table}"] += done.rowcount
        return [one.table for one in archived if not one.allowed]


def _of_archived(one: Archived, schema: str) -> str:
    """Of the pattern and the pseudonym. Archived keys, too, are revoked: they may be put back."""
    changes = [f"{name} = regexp_replace({name}::text, $1, $2, 'gi')::{type_}" for name, type_ in one.columns.items()]
    if one.ends_keys:
        changes.append("revoked_at = CASE WHEN user_email ~* $1 THEN coalesce(revoked_at, now()) ELSE revoked_at END")
    return f"UPDATE {stored(schema, one.table)} SET {', '.join(changes)} WHERE {one.condition}"
