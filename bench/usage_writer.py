"""How many records of usage a replica writes a second for as long as it likes, against a COPY of the same rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
from msgspec import structs

from bench.harness import Row, alternate, database, markdown, open_folder, server, timed
from bench.migrated import at_head
from gasket.request_ids import new_request_id
from gasket.usage.entry import UsageEntry
from gasket.usage.writer import UsageWriter

TITLE = "Writing usage, with its totals, against a COPY of the records alone"
REPEATS = 7
ENTRIES = 20_000
KEYS = (1, 300)
_POLL, _POLLS = 0.005, 12_000


async def measure(repeats: int) -> str:
    """One row for each number of keys that the requests are of."""
    with open_folder() as folder, server(folder) as server_url:
        return markdown([await _of_keys(server_url, keys, repeats) for keys in KEYS])


async def _of_keys(server_url: str, keys: int, repeats: int) -> Row:
    async with database(server_url) as url:
        await at_head(url)

        async def copied() -> float:
            entries = _entries(keys)
            connection = await asyncpg.connect(url)
            try:
                return await timed(_copy(connection, entries))
            finally:
                await connection.close()

        async def written() -> float:
            entries = _entries(keys)
            writer = UsageWriter(url, schema="public", application_name="gasket-bench")
            return await timed(_write(writer, entries))

        seconds = await alternate(repeats, {"COPY": copied, "writer": written})
    rate = ENTRIES / sorted(seconds["writer"])[len(seconds["writer"]) // 2]
    return Row(f"{ENTRIES:,} of {keys} keys: {rate:,.0f} a second", seconds)


def _entries(keys: int) -> list[UsageEntry]:
    now = datetime.now(UTC)
    return [
        UsageEntry(
            request_id=new_request_id(),
            started_at=now,
            key_id=(key := random.randint(1, keys)),
            user_email=f"user{key}@example.com",
            profile_id=key % 10 + 1,
            backend_id=random.randint(1, 2),
            model=random.choice(("small", "large")),
            path="/v1/chat/completions",
            status=200,
            outcome="ok",
            first_byte_ms=12.5,
            duration_ms=250.0,
            bytes_in=384,
            bytes_out=1024,
            prompt_tokens=random.randint(1, 2000),
            completion_tokens=random.randint(1, 500),
            estimated=False,
            retries=0,
        )
        for _ in range(ENTRIES)
    ]


async def _copy(connection: asyncpg.Connection, entries: Sequence[UsageEntry]) -> None:
    await connection.copy_records_to_table("usage_records", records=map(structs.astuple, entries))


async def _write(writer: UsageWriter, entries: Sequence[UsageEntry]) -> None:
    for entry in entries:
        writer.put(entry)
    for _ in range(_POLLS):
        if writer.written == len(entries):
            break
        await asyncio.sleep(_POLL)
    if left := await writer.close():
        raise RuntimeError(f"{left} entries were not written in time")
