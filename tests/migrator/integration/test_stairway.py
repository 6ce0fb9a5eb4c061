"""Every revision, one stair at a time, with rows in every table: up, down and up again loses nothing.

The way down is taken twice: through `downgrade()`, and as a release takes it that lacks the file, through the SQL that
the ledger keeps.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from gasket.installation import migrator_config
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.catalog.read import Catalog, read_catalog
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import RevisionFile

ROOT = Path(__file__).parents[3]
REVISIONS = configured_revisions(ROOT / "alembic.ini")
CHAIN = REVISIONS.in_order(REVISIONS)

# Rows for tables as soon as they are there; a new table needs a line here. A column that a later revision adds gets
# its value from SEEDED_COLUMNS.
SEEDS = {
    "openai_backends": "INSERT INTO openai_backends (name, base_url) VALUES ('a', 'http://a/'), ('b', 'https://b/v1')",
    "backend_models": (
        "INSERT INTO backend_models (backend_id, position, name, backend_model, weight, priority) "
        "SELECT id, 0, 'm', 'm:latest', 5, 0 FROM openai_backends"
    ),
    "backend_profiles": "INSERT INTO backend_profiles (name, description) VALUES ('p', 'words'), ('q', NULL)",
    "profile_backends": (
        "INSERT INTO profile_backends (profile_id, backend_id, position) "
        "SELECT p.id, b.id, b.id FROM backend_profiles AS p CROSS JOIN openai_backends AS b"
    ),
    "api_keys": (
        "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) "
        "SELECT 'ann@example.org', name, md5(name), 'gsk_...' || id, id FROM backend_profiles"
    ),
    "previous_api_keys": (
        "INSERT INTO previous_api_keys (key_id, key_value, expires_at, last_used_at) "
        "SELECT id, repeat('e', 64), '2031-01-01T00:00:00Z', '2028-01-01T00:00:00Z' FROM api_keys LIMIT 1"
    ),
    "limit_windows": (
        "INSERT INTO limit_windows (subject, kind, starts_at, ends_at, used) "
        "VALUES ('key:1', 'tokens', '2030-01-01T00:00:00Z', '2030-01-01T00:01:00Z', 5000000000)"
    ),
    "limit_slots": (
        "INSERT INTO limit_slots (subject, replica, slots, expires_at) "
        "VALUES ('key:1', '00000000-0000-0000-0000-000000000000', 0, 'infinity')"
    ),
    "access_tokens": (
        "INSERT INTO access_tokens (name, role, digest, preview, created_by) "
        "SELECT 't' || n, 'viewer', md5(n::text), 'p', 'root' FROM generate_series(1, 3) AS n"
    ),
    "people": (
        "INSERT INTO people (issuer, subject, name, email, groups) "
        "VALUES ('https://login.example', '1', 'ann@example.org', 'ann@example.org', '{staff}')"
    ),
    "browser_sessions": (
        "INSERT INTO browser_sessions (digest, name, role, token_id, address) "
        "SELECT md5(name), name, role, id, '192.0.2.1' FROM access_tokens"
    ),
    "audit_log": (
        "INSERT INTO audit_log (actor, actor_kind, how, action, object_kind, object_id, changed, before, after) "
        "VALUES ('root', 'root', 'api', 'change', 'key', '1', '{name}', '{\"name\": \"a\"}', '{\"name\": \"b\"}')"
    ),
    "audit_outbox": "INSERT INTO audit_outbox VALUES (5000000000)",
    "usage_records": (
        "INSERT INTO usage_records SELECT md5(n::text)::uuid, '2029-01-01T00:00:00Z', n, 'ann@example.org', 1, NULL, "
        "'m', '/v1/embeddings', 200, 'ok', NULL, 1.5, 1, 2, 3, 4, false, 0 FROM generate_series(1, 3) AS n"
    ),
    "usage_days": (
        "INSERT INTO usage_days SELECT by, 1, '2029-01-01', 'ann@example.org', 3, 9, 12 "
        "FROM unnest('{all,user,changed}'::text[]) AS by"
    ),
    "usage_slots": "INSERT INTO usage_slots SELECT '2029-01-01T00:00:00Z', n, 1, 0, 7 FROM generate_series(1, 3) AS n",
    "usage_totals": (
        "INSERT INTO usage_totals SELECT '2029-01-01T00:00:00Z', n, 1, 0, 'm', 'ann@example.org', 1, 3, 4 "
        "FROM generate_series(1, 3) AS n"
    ),
}
SEEDED_COLUMNS = {
    ("api_keys", "expires_at"): "'2030-01-01T00:00:00Z'",
    ("api_keys", "revoked_at"): "'2029-01-01T00:00:00Z'",
    ("api_keys", "revoked_by"): "'root'",
    ("api_keys", "last_used_at"): "'2028-01-01T00:00:00Z'",
    ("api_keys", "person_id"): "(SELECT min(id) FROM people)",
    ("api_keys", "orphaned_at"): "'2029-01-01T00:00:00Z'",
    ("backend_profiles", "open_to_groups"): "'{\"another group\"}'",
    ("openai_backends", "max_concurrency"): "7",
    ("openai_backends", "connect_timeout"): "0.5",
    ("openai_backends", "first_byte_timeout"): "2",
    ("openai_backends", "chunk_timeout"): "86400",
    ("openai_backends", "headers"): "'token'",
    ("openai_backends", "credential_header"): "'api-key'",
    ("openai_backends", "proxy_url"): "'token'",
    ("openai_backends", "set_aside_at"): "'2029-01-01T00:00:00Z'",
    ("openai_backends", "client_certificate"): "'token'",
    ("openai_backends", "credential_scheme"): "''",
    ("openai_backends", "response_headers"): "'{x-served-by}'",
    ("backend_profiles", "allow_stateful_endpoints"): "true",
    ("backend_profiles", "routing"): "'sticky'",
    ("backend_profiles", "user_header"): "'x-end-user'",
    ("backend_profiles", "claim_rules"): """'[{"issuer": "https://i", "claim": "sub", "pattern": "*"}]'""",
    ("api_keys", "issuer"): "'https://i'",
    ("usage_records", "end_user"): "'bob'",
    ("browser_sessions", "person_id"): "(SELECT min(id) FROM people)",
    ("backend_profiles", "requests_per_minute"): "60",
    ("backend_profiles", "tokens_per_window"): "5000000000",
    ("backend_profiles", "token_window"): "86400",
    ("backend_profiles", "max_concurrency"): "9",
    ("api_keys", "requests_per_minute"): "6",
    ("api_keys", "tokens_per_window"): "5000000000",
    ("api_keys", "token_window"): "3600",
    ("api_keys", "max_concurrency"): "2",
}
_TABLES = """
SELECT tablename FROM pg_tables WHERE schemaname = 'public'
AND tablename <> 'alembic_version' AND NOT starts_with(tablename, 'migration_')
"""

_COLUMNS = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"

State = tuple[Catalog, dict[str, list[tuple[Any, ...]]]]


@pytest.fixture
def alembic_config(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return Config(str(ROOT / "alembic.ini"))


async def seed(database_url: str) -> None:
    """Rows in every table that has none, values in every column that a revision has just added."""
    connection = await asyncpg.connect(database_url)
    try:
        present = {row[0] for row in await connection.fetch(_TABLES)}
        assert present <= SEEDS.keys(), f"no rows to seed for {present - SEEDS.keys()}"
        for table, insert in SEEDS.items():
            if table in present and not await connection.fetchval(f"SELECT count(*) FROM {table}"):
                await connection.execute(insert)
        columns = {tuple(row) for row in await connection.fetch(_COLUMNS)}
        for (table, column), value in SEEDED_COLUMNS.items():
            if (table, column) in columns:
                await connection.execute(
                    f"UPDATE {table} SET {column} = {value} WHERE {column} IS DISTINCT FROM {value}"
                )
        assert all([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in present])
    finally:
        await connection.close()


async def look(database_url: str) -> State:
    connection = await asyncpg.connect(database_url)
    try:
        rows = {
            table: sorted(
                (tuple(sorted(row.items())) for row in await connection.fetch(f"SELECT * FROM {table}")), key=repr
            )
            for (table,) in await connection.fetch(_TABLES)
        }
        return await read_catalog(connection, "public"), rows
    finally:
        await connection.close()


def older_release(folder: Path, file: RevisionFile) -> Path:
    """The ini of a copy of the migrations that ends before `file`."""
    shutil.copytree(ROOT / "migrations", folder / "migrations")  # compiled files, too: each of them is loaded
    shutil.copy(ROOT / "alembic.ini", folder / "alembic.ini")
    for later in CHAIN[CHAIN.index(file) :]:
        (folder / "migrations" / "versions" / later.path.name).unlink()
    return folder / "alembic.ini"


@pytest.mark.parametrize("through", ["downgrade()", "stored SQL"])
def test_every_stair_with_rows_in_every_table(
    alembic_config: Config, database_url: str, tmp_path: Path, through: str
) -> None:
    below = asyncio.run(look(database_url))
    for number, file in enumerate(CHAIN):
        command.upgrade(alembic_config, file.revision)
        asyncio.run(seed(database_url))
        above = asyncio.run(look(database_url))
        # No release is older than the first revision, and one without any file is refused.
        if through == "stored SQL" and file.down_revisions:
            ini = older_release(tmp_path / str(number), file)
            older = replace(migrator_config(), ini=ini)
            assert asyncio.run(rollback(older, file.down_revisions[0], StepOptions())) == [file.revision]
        else:
            command.downgrade(alembic_config, "-1")
        assert asyncio.run(look(database_url))[0] == below[0], f"the way down of {file.path.name} leaves something"
        command.upgrade(alembic_config, file.revision)
        assert asyncio.run(look(database_url)) == above, f"{file.path.name} does not bring everything back"
        below = above


@pytest.mark.parametrize("steps", [3, len(CHAIN)])
def test_several_stairs_at_once_with_rows_in_every_table(alembic_config: Config, database_url: str, steps: int) -> None:
    command.upgrade(alembic_config, "head")
    asyncio.run(seed(database_url))
    above = asyncio.run(look(database_url))
    command.downgrade(alembic_config, f"-{steps}")
    command.upgrade(alembic_config, "head")
    assert asyncio.run(look(database_url)) == above
