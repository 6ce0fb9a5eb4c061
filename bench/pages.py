"""What each page for people takes of the server and how large it is, on a large installation; and what their room costs
a start.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from unittest.mock import patch

import asyncpg
import httpx
from cryptography.fernet import Fernet

from bench.harness import database, open_folder, program, server, verdict
from bench.migrated import at_head
from bench.project import REPOSITORY, write_revisions
from gasket.app import create_app
from gasket.migrator.revisions.scripts import script_directory
from gasket.settings import read_settings
from gasket.usage.summing import DaySums

TITLE = "Pages of an installation with 10,000 keys, 10 million usage records and a chain of 1,000 revisions"
REPEATS = 15
GOAL_MS, GOAL_KB, GOAL_START_MS = 100.0, 100.0, 20.0
"""Milliseconds of the server and kilobytes, as they are sent, of a page; milliseconds of a start."""

RECORDS = 10_000_000
_REVISIONS = 1_000
_FILL_LIMIT = 1_200.0
_TOKEN = "an-admin-token-for-the-bench"

# What people have set up. Triggers write an entry of the audit for each row.
_OBJECTS = """
INSERT INTO openai_backends (name, base_url)
SELECT 'backend ' || n, 'http://backend-' || n || '.internal:8000/v1' FROM generate_series(1, 300) AS n;
INSERT INTO backend_models (backend_id, position, name, backend_model, priority)
SELECT b, n, 'model-' || n, 'org/model-' || n, 0 FROM generate_series(1, 300) AS b, generate_series(1, 20) AS n;
INSERT INTO backend_profiles (name, description, requests_per_minute)
SELECT 'profile ' || n, 'Made for team ' || n, 600 FROM generate_series(1, 200) AS n;
INSERT INTO profile_backends (profile_id, backend_id, position)
SELECT p, (p + n * 7) % 300 + 1, n FROM generate_series(1, 200) AS p, generate_series(0, 9) AS n;
INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, requests_per_minute, tokens_per_window,
    last_used_at, revoked_at)
SELECT 'user' || n % 2000 || '@example.com', 'key ' || n, md5(n::text) || md5('k' || n), 'gsk_...' || n, n % 200 + 1,
    60, 100000, now() - make_interval(mins => n), CASE WHEN n % 10 = 0 THEN now() END
FROM generate_series(1, 10000) AS n;
INSERT INTO limit_windows (subject, kind, starts_at, ends_at, used)
SELECT 'key:' || n, 'requests', date_trunc('minute', now()), date_trunc('minute', now()) + interval '1 minute', 7
FROM generate_series(1, 10000) AS n;
INSERT INTO access_tokens (name, digest, preview, role, created_by)
SELECT 'token ' || n, md5(n::text) || md5('t' || n), 'gat_...' || n, 'viewer', 'root' FROM generate_series(1, 500) AS n
"""
# A month of requests: some keys are used a hundred times as much as others, each in one hour of twelve, with two models
# and two backends. What this would put into the future is of the last hour.
_RECORDS = f"""
INSERT INTO usage_records (request_id, started_at, key_id, user_email, profile_id, backend_id, model, path, status,
    outcome, first_byte_ms, duration_ms, bytes_in, bytes_out, prompt_tokens, completion_tokens, estimated, retries)
SELECT ('019a0000' || lpad(to_hex(n), 24, '0'))::uuid,
    least(date_bin('12 hours', at, '2000-01-01Z') + make_interval(hours => key % 12, secs => 3600 * random()),
        now() - make_interval(secs => 3600 * random())),
    key, 'user' || key % 2000 || '@example.com', key % 200 + 1, (key + (random() < 0.2)::int) % 300 + 1,
    'model-' || (key + (random() < 0.3)::int) % 20 + 1, '/v1/chat/completions',
    CASE WHEN failed THEN 503 ELSE 200 END, CASE WHEN failed THEN 'upstream_error' ELSE 'ok' END,
    50, exp(6 + 2 * random()), 384, 1024, (random() * 2000)::int, (random() * 500)::int, false, 0
FROM (
    SELECT n, now() - make_interval(secs => ({RECORDS} - n) * 0.2592) AS at,
        1 + floor(10000 * random() ^ 2)::int AS key, random() < 0.02 AS failed
    FROM generate_series(1, {RECORDS}) AS n
) AS requests
"""
# As the writer of usage sums them: the rows of an hour are beside each other.
_SUMS = """
INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens,
    completion_tokens)
SELECT date_trunc('hour', started_at, 'UTC'), key_id, profile_id, backend_id,
    CASE WHEN status < 400 THEN model ELSE '' END, min(user_email), count(*), sum(prompt_tokens), sum(completion_tokens)
FROM usage_records GROUP BY 1, 2, 3, 4, 5 ORDER BY 1;
INSERT INTO usage_slots (slot, bucket, requests, failed, tokens)
SELECT date_bin('5 minutes', started_at, '2000-01-01Z'), floor(8 * ln(duration_ms) / ln(2))::smallint, count(*),
    count(*) FILTER (WHERE status >= 400), sum(prompt_tokens + completion_tokens)
FROM usage_records WHERE started_at > now() - interval '8 days' GROUP BY 1, 2
"""
_LONG = """\
from alembic import op

revision = "long"
down_revision = "{down}"
branch_labels = depends_on = None
backward_compatible = True


def upgrade() -> None:
    for number in range(20):
        op.execute(f"COMMENT ON TABLE table1 IS '{{number}} {{'x' * 100_000}}'")


def downgrade() -> None:
    op.execute("COMMENT ON TABLE table1 IS NULL")
"""
# All that the room needs of others is there already, as it is when the application has imported it.
_ROOM = """
import sys, time
import gasket.app
for name in [name for name in sys.modules if name.startswith("gasket.ui")]:
    del sys.modules[name]
started = time.process_time()
import gasket.ui.assets, gasket.ui.door, gasket.ui.headers
print(time.process_time() - started)
"""
_PAGES = {
    "Overview": "/ui",
    "Schema": "/ui/schema",
    "Schema, the last page": "/ui/schema?revisions=60",
    "A revision": f"/ui/schema/revisions/{500:012x}",
    "A revision with 2 MB of SQL": "/ui/schema/revisions/long",
    "Backends": "/ui/backends",
    "A backend": "/ui/backends/1",
    "A backend, to change": "/ui/backends/1/change",
    "Profiles": "/ui/profiles",
    "A profile": "/ui/profiles/1",
    "New profile": "/ui/profiles/new",
    "Keys": "/ui/keys",
    "Keys, the last page": "/ui/keys?page=200",
    "Keys, a search": "/ui/keys?search=key+77&state=active",
    "A key": "/ui/keys/5000",
    "New key": "/ui/keys/new",
    "Usage of a week by key": "/ui/usage",
    "Usage of a month by key": "/ui/usage?by=key&from={month}",
    "Usage of a month by user": "/ui/usage?by=user&from={month}",
    "Usage of a month by model": "/ui/usage?by=model&from={month}",
    "Usage of a year by backend": "/ui/usage?by=backend&from={year}",
    "Access": "/ui/access",
    "Audit": "/ui/audit",
    "Audit of a person": "/ui/audit?who=nobody&object=key&action=create",
    "API reference": "/ui/reference",
    "API reference of keys": "/ui/reference/keys",
}


async def measure(repeats: int) -> str:
    """A row a page, and one for the start."""
    with open_folder() as folder, server(folder) as server_url:
        ini = chain(folder / "project")
        async with database(server_url) as url:
            await fill(url, ini)
            async with client_of(url, ini) as client:
                pages = await _measure_pages(client, repeats)
    return f"{pages}\n\n{await _measure_start(repeats)}"


def chain(folder: Path) -> Path:
    """Gasket's own migrations with many more on top, the last of which has much SQL; returns the ini file."""
    shutil.copytree(REPOSITORY / "migrations", folder / "migrations")
    ini = Path(shutil.copy(REPOSITORY / "alembic.ini", folder))
    versions = folder / "migrations" / "versions"
    newest = write_revisions(versions, _REVISIONS, down=script_directory(ini).get_current_head())
    (versions / "2030_01_01_long.py").write_text(_LONG.format(down=newest))
    return ini


async def fill(url: str, ini: Path) -> None:
    """Bring the database to the head of this chain, and fill it."""
    with patch.dict(os.environ, ALEMBIC_CONFIG=str(ini)):
        await at_head(url)
    connection = await asyncpg.connect(url)
    try:
        for statements in (_OBJECTS, _RECORDS, _SUMS):
            await connection.execute(statements, timeout=_FILL_LIMIT)
        await sum_days(connection)
        await connection.execute("VACUUM ANALYZE", timeout=_FILL_LIMIT)
    finally:
        await connection.close()


async def sum_days(connection: asyncpg.Connection) -> None:
    """As the writer does it in the background, until nothing is left to do."""
    sums = DaySums("public", first=(0.0, 0.0))
    async with asyncio.timeout(_FILL_LIMIT):
        while sums.due():
            await sums.step(connection)


def client_of(url: str, ini: Path) -> httpx.AsyncClient:
    """An administrator's, of an application in this process."""
    settings = {
        "DATABASE_URL": url,
        "GASKET_ADMIN_TOKEN": _TOKEN,
        "GASKET_SECRET_KEY": Fernet.generate_key().decode(),
    }
    with patch.dict(os.environ, ALEMBIC_CONFIG=str(ini)):
        app = create_app(read_settings(settings))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),  # type: ignore[arg-type]  # the same protocol, spelt with other types
        base_url="http://gasket",
        headers={"Authorization": f"Bearer {_TOKEN}"},
        timeout=60,
    )


async def _measure_pages(client: httpx.AsyncClient, repeats: int) -> str:
    today = datetime.now(UTC).date()
    days = {"month": today - timedelta(days=29), "year": today - timedelta(days=364)}
    lines = ["| page | server, ms | its own CPU, ms | sent, kB | goal |", "| --- | ---: | ---: | ---: | --- |"]
    for name, path in _PAGES.items():
        milliseconds, cpu, kilobytes = await _measure_page(client, path.format(**days), repeats)
        goal = f"at most {GOAL_MS:.0f} ms and {GOAL_KB:.0f} kB"
        met = verdict(goal, milliseconds <= GOAL_MS and kilobytes <= GOAL_KB)
        lines.append(f"| {name} | {milliseconds:.0f} | {cpu:.0f} | {kilobytes:.1f} | {met} |")
    return "\n".join(lines)


async def _measure_page(client: httpx.AsyncClient, path: str, repeats: int) -> tuple[float, float, float]:
    """Medians of milliseconds, as a clock has them and as this process worked; and the kilobytes.

    Nothing is compressed, so they are what is sent. PostgreSQL's work is in the first figure alone.
    """
    taken, worked = [], []
    for number in range(-1, repeats):
        gc.collect()
        started, worked_before = time.perf_counter(), time.process_time()
        answer = await client.get(path)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked_before
        answer.raise_for_status()
        if number >= 0:  # the first one does not count
            taken.append(seconds)
            worked.append(cpu)
    return median(taken) * 1000, median(worked) * 1000, len(answer.content) / 1000


async def _measure_start(repeats: int) -> str:
    """What a start imports of the room, in CPU time: the pages themselves are imported when the first one is wanted."""
    seconds = [float(await program(sys.executable, "-c", _ROOM)) for _ in range(repeats)]
    milliseconds = median(seconds) * 1000
    goal = verdict(f"at most {GOAL_START_MS:.0f} ms", milliseconds <= GOAL_START_MS)
    return f"| | CPU, ms | goal |\n| --- | ---: | --- |\n| The room in a start | {milliseconds:.1f} | {goal} |"
