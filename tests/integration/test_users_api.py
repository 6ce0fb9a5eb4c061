"""`/api/users`: nothing of an erased person's address is left anywhere, and an export has what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet

from gasket.usage.store import BEGIN
from gasket.usage.summing import DaySums
from tests.acceptance.processes import until
from tests.integration.conftest import SECRET_KEY, ApiAt, Post, assert_problem

EMAIL = "Zoë.O'Neil+x@Example.org"
OTHER_CASE = "zoë.o'neil+X@eXAMPLE.ORG"
"""With the same ë: in a database with the locale C, lower() folds ASCII alone."""
LONGER = f"x{EMAIL}"
OTHERS = (LONGER, f"{EMAIL}.uk")
PATH = "/api/users/zo%C3%AB.o'neil%2Bx@example.org"
SOURCE = "203.0.113.99"
"""From where the person has acted."""
HOUR = datetime(2026, 11, 1, tzinfo=UTC)
ARCHIVE = """
CREATE SCHEMA IF NOT EXISTS gasket_archive;
CREATE TABLE gasket_archive.a_1 (id int, user_email text, revoked_at timestamptz, key_value text, note text);
INSERT INTO gasket_archive.a_1 VALUES (1, '{email}', NULL, 'a digest', 'x'), (2, '{longer}', NULL, 'another', 'y');
CREATE TABLE gasket_archive.a_2 (id int, "before" jsonb);
INSERT INTO gasket_archive.a_1 VALUES (3, '{email}.uk', NULL, 'a third', 'z');
INSERT INTO gasket_archive.a_2 VALUES (1, '{{"user_email": "{email}", "n": 1}}'), (2, NULL);
CREATE TABLE gasket_archive.a_3 (id int, colour text);
"""


@pytest.fixture(scope="module", autouse=True)
async def _empty_audit(database: asyncpg.Connection) -> None:
    """Each export reads all of it, and other files' tests have left some thousand entries."""
    await database.execute(
        "ALTER TABLE audit_log DISABLE TRIGGER USER; DELETE FROM audit_log; ALTER TABLE audit_log ENABLE TRIGGER USER"
    )


@pytest.fixture
async def archived(database: asyncpg.Connection) -> AsyncIterator[None]:
    """Archived rows of the person, of a longer address, and of neither."""
    await database.execute(ARCHIVE.format(email=EMAIL.replace("'", "''"), longer=LONGER.replace("'", "''")))
    yield
    await database.execute("DROP TABLE gasket_archive.a_1, gasket_archive.a_2, gasket_archive.a_3")


async def use(database: asyncpg.Connection, key_id: int, email: str, *, end_user: str | None = None) -> UUID:
    """One request in the records and in the totals."""
    request = uuid4()
    await database.execute(
        "INSERT INTO usage_records (request_id, started_at, key_id, user_email, profile_id, path, status, outcome, "
        "duration_ms, bytes_in, bytes_out, prompt_tokens, completion_tokens, estimated, retries, end_user) "
        "VALUES ($1, now(), $2, $3, 1, '/v1/x', 200, 'ok', 1, 1, 1, 1, 1, false, 0, $4)",
        *(request, key_id, email, end_user),
    )
    await database.execute(
        "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, prompt_tokens, "
        "completion_tokens) VALUES ($1, $2, 1, 0, '', $3, 1, 1, 1) ON CONFLICT DO NOTHING",
        *(HOUR, key_id, email),
    )
    return request


async def everything(database: asyncpg.Connection) -> str:
    """All rows of all tables, archived ones, too, in one text."""
    names = await database.fetch(
        "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE nspname IN ('public', 'gasket_archive') AND relkind = 'r'"
    )
    texts = [await database.fetchval(f"SELECT string_agg(t::text, ' ') FROM {name} AS t") for (name,) in names]
    return " ".join(filter(None, texts)).lower()


@pytest.fixture
async def kept(client: httpx.AsyncClient, post: Post, database: asyncpg.Connection, archived: None) -> dict[str, Any]:
    """A person with keys, usage, a session, a token, entries of the audit and archived rows; and another one."""
    profile = await post("/api/profiles", name="p")
    key = await post("/api/keys", user_email=EMAIL, name=f"of {EMAIL}", profile_id=profile["id"])
    await post(f"/api/keys/{key['id']}/rotate", grace_seconds=600)
    second = await post("/api/keys", user_email=OTHER_CASE, name="b", profile_id=profile["id"])
    revoked = await client.post(f"/api/keys/{second['id']}/revoke")
    assert revoked.is_success
    other = await post("/api/keys", user_email=LONGER, name="c", profile_id=profile["id"])
    await database.execute("UPDATE api_keys SET revoked_by = $1 WHERE id = $2", EMAIL, second["id"])
    await post("/api/tokens", name=EMAIL, role="viewer")
    await database.execute(
        "INSERT INTO browser_sessions (digest, name, role, email) VALUES ('x', $1, 'viewer', $1)", OTHER_CASE
    )
    await database.execute(
        "INSERT INTO people (issuer, subject, name, email) VALUES ('https://login.example', '1', $1, $1)", OTHER_CASE
    )
    await database.execute(
        "INSERT INTO people (issuer, subject, name) VALUES ('https://other.example', $1, 'known by another name')",
        OTHER_CASE,
    )
    await database.execute(
        "INSERT INTO audit_log (actor, actor_kind, how, source, action) VALUES ($1, 'person', 'page', $2, 'create')",
        *(OTHER_CASE, SOURCE),
    )
    await use(database, key["id"], EMAIL)
    await use(database, second["id"], OTHER_CASE)
    await use(database, other["id"], LONGER, end_user=EMAIL)
    return {"key": key["id"], "second": second["id"], "other": other["id"]}


async def test_an_erased_address_is_nowhere_any_more(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any]
) -> None:
    before = await everything(database)
    assert EMAIL.lower() in before
    assert SOURCE in before
    response = await client.delete(PATH)
    assert response.status_code == 200, response.text
    erased = response.json()
    pseudonym = erased["pseudonym"]
    assert erased["keys_revoked"] == 1
    assert erased["left"] == []
    assert erased["changed"] == {
        "access_tokens": 1,
        "api_keys": 3,
        "archive a_1": 1,
        "archive a_2": 1,
        "audit_log": erased["changed"]["audit_log"],
        "browser_sessions": 1,
        "people": 2,
        "usage_records": 3,
        "usage_totals": 2,
    }
    text = await everything(database)
    for other in OTHERS:
        assert other.lower() in text
        text = text.replace(other.lower(), "")
    assert EMAIL.lower() not in text
    assert SOURCE not in text
    assert text.count(pseudonym) > 10
    rows = await database.fetch("SELECT id, user_email, revoked_at, revoked_by FROM api_keys ORDER BY id")
    by_id = {row["id"]: row for row in rows}
    assert by_id[kept["key"]]["user_email"] == by_id[kept["second"]]["user_email"] == pseudonym
    assert by_id[kept["key"]]["revoked_by"] == "root"
    assert by_id[kept["second"]]["revoked_by"] == pseudonym
    assert by_id[kept["key"]]["revoked_at"] is not None
    assert by_id[kept["other"]]["revoked_at"] is None
    assert await database.fetchval("SELECT count(*) FROM previous_api_keys") == 0
    archived = await database.fetch("SELECT user_email, revoked_at, note FROM gasket_archive.a_1 ORDER BY id")
    assert [(row[0], row[1] is None, row[2]) for row in archived] == [
        (pseudonym, False, "x"),
        (LONGER, True, "y"),
        (f"{EMAIL}.uk", True, "z"),
    ]
    assert await database.fetchval("""SELECT "before" ->> 'n' FROM gasket_archive.a_2 WHERE id = 1""") == "1"

    entry = await database.fetchrow("SELECT * FROM audit_log WHERE action = 'erasure' ORDER BY id DESC LIMIT 1")
    assert entry is not None
    assert (entry["actor"], entry["object_id"]) == ("root", pseudonym)


async def test_to_erase_again_changes_nothing_but_what_has_come_since(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any]
) -> None:
    first = (await client.delete(PATH)).json()
    again = (await client.delete(PATH)).json()
    assert again["changed"] == {}
    assert again["pseudonym"] == first["pseudonym"]
    await use(database, kept["key"] + 1000, EMAIL)  # a request that was under way
    late = (await client.delete(PATH)).json()
    assert late["pseudonym"] == first["pseudonym"]
    assert late["changed"] == {"usage_records": 1, "usage_totals": 1}


async def test_the_pseudonym_stays_while_the_secret_key_is_replaced(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any], api_at: ApiAt, api_database_url: str
) -> None:
    first = (await client.delete(PATH)).json()["pseudonym"]
    await use(database, kept["key"] + 1000, EMAIL)
    async with api_at(api_database_url, secret_keys=f"{Fernet.generate_key().decode()},{SECRET_KEY}") as other:
        assert (await other.delete(PATH)).json()["pseudonym"] == first
    async with api_at(api_database_url, secret_keys=Fernet.generate_key().decode()) as other:
        assert (await other.delete(PATH)).json()["pseudonym"] != first


async def test_an_export_has_what_is_kept_and_no_secret(client: httpx.AsyncClient, kept: dict[str, Any]) -> None:
    response = await client.get(f"{PATH}/export")
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert {row["id"] for row in document["api_keys"]} == {kept["key"], kept["second"]}
    counts = {name: len(rows) for name, rows in document.items() if name not in ("email", "audit_log")}
    assert counts == {
        "api_keys": 2,
        "access_tokens": 1,
        "browser_sessions": 1,
        "people": 2,
        "usage_days": 0,
        "usage_totals": 2,
        "usage_records": 3,
        "archives": 2,
    }
    assert {row["object_kind"] for row in document["audit_log"]} >= {"key", "token", "session"}
    for rows in document.values():
        assert not [row for row in rows if isinstance(row, dict) and {"key_value", "digest", "root_proof"} & row.keys()]
    newest = (await client.get("/api/audit")).json()["items"][0]
    assert (newest["actor"], newest["how"], newest["action"]) == ("root", "api", "export")
    assert (newest["object_kind"], newest["object_id"]) == ("person", "zoë.o'neil+x@example.org")
    await client.delete(PATH)
    after = (await client.get(f"{PATH}/export")).json()
    assert {name for name, rows in after.items() if rows} == {"email"}


async def test_an_export_of_many_rows_is_whole(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.users.tables.ROWS_AT_ONCE", 2)
    for _ in range(5):
        await use(database, kept["key"], EMAIL)
    assert len((await client.get(f"{PATH}/export")).json()["usage_records"]) == 8
    assert (await client.delete(PATH)).json()["changed"]["usage_records"] == 8


async def sum_days(database: asyncpg.Connection) -> None:
    sums = DaySums("public", first=(0.0, 0.0))
    async with asyncio.timeout(60):  # other tests' transactions on the same server have to end
        while sums.due():
            await sums.step(database)


async def test_sums_of_days_are_shown_and_erased(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any]
) -> None:
    await sum_days(database)
    [row, *_] = (await client.get(f"{PATH}/export")).json()["usage_days"]
    assert (row["by"], row["name"], row["day"], row["requests"]) == ("user", EMAIL.lower(), "2026-11-01", 2)
    erased = (await client.delete(PATH)).json()
    assert erased["changed"]["usage_days"] > 0
    of_days = "SELECT count(*) FROM usage_days WHERE name = $1"
    assert await database.fetchval(of_days, EMAIL.lower()) == 0
    await sum_days(database)
    assert await database.fetchval(of_days, EMAIL.lower()) == 0
    assert await database.fetchval(of_days, erased["pseudonym"]) > 0


async def test_a_sum_that_has_begun_does_not_bring_an_address_back(
    client: httpx.AsyncClient, database: asyncpg.Connection, kept: dict[str, Any], api_database_url: str
) -> None:
    other = await asyncpg.connect(api_database_url, timeout=30)
    try:
        sums, block = DaySums("public", first=(0.0, 0.0)), None
        async with asyncio.timeout(60):
            while block is None or block.day != HOUR.date():
                await other.execute(f"COMMIT; {BEGIN}")
                block = await sums._step(other)
        erasing = asyncio.create_task(client.delete(PATH))

        async def waits() -> bool:
            return bool(
                await database.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            )

        await until(waits, 60, "the erasure to wait for the sum")
        await other.execute("COMMIT")
        assert (await erasing).is_success
        assert await database.fetchval("SELECT count(*) FROM usage_days WHERE name = $1", EMAIL.lower()) == 0
    finally:
        await other.close(timeout=10)


@pytest.mark.parametrize("address", ["nobody", "a%20b@example.org", "@example.org", "a@", f"{'a' * 250}@example.org"])
async def test_what_is_no_address_is_refused(client: httpx.AsyncClient, address: str) -> None:
    for response in (await client.delete(f"/api/users/{address}"), await client.get(f"/api/users/{address}/export")):
        assert_problem(response, 400, "invalid-input", field="email")


async def test_a_pseudonym_is_not_erased(client: httpx.AsyncClient, kept: dict[str, Any]) -> None:
    pseudonym = (await client.delete(PATH)).json()["pseudonym"]
    assert_problem(await client.delete(f"/api/users/{pseudonym}"), 400, "invalid-input", field="email")


async def test_the_log_does_not_name_who_is_erased(
    client: httpx.AsyncClient, kept: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        await client.delete(PATH)
        await client.get(f"{PATH}/export")
    told = [record.getMessage() for record in caplog.records if record.name.startswith("gasket")]
    assert len([line for line in told if "/api/users/..." in line]) == 2
    assert not [line for line in told if "neil" in line.lower()]
