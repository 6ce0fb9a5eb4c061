"""The triggers of the audit: what they record of statements of anybody, and that nobody changes the entries."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from gasket.models import metadata

LOOKS_SECRET = re.compile(
    r"secret|password|credential|digest|hash|token|key|certificate|proxy|headers|cipher|cookie|proof"
)
NOT_SECRET = {
    "openai_backends": {"credential_header", "credential_scheme", "response_headers"},
    "backend_profiles": {"max_keys_per_user", "tokens_per_window", "token_window"},
    "api_keys": {"key_preview", "tokens_per_window", "token_window"},
    "previous_api_keys": {"key_id"},
    "browser_sessions": {"token_id"},
}
"""Columns whose names look secret and whose values are not. Look at them one by one before you add one."""
NOT_AUDITED = {
    "usage_days",
    "usage_records",
    "usage_slots",
    "usage_totals",
    "limit_windows",
    "limit_slots",
    "audit_log",
    "audit_outbox",
}
ROWS = {
    "openai_backends": "INSERT INTO openai_backends (id, name, base_url) VALUES (2001, 'a', 'http://a')",
    "backend_models": "INSERT INTO backend_models VALUES (2001, 0, 'm', 'm', NULL, 0)",
    "backend_profiles": "INSERT INTO backend_profiles (id, name) VALUES (2001, 'p')",
    "profile_backends": "INSERT INTO profile_backends VALUES (2001, 2001, 0)",
    "api_keys": (
        "INSERT INTO api_keys (id, user_email, name, key_value, key_preview, profile_id) "
        "VALUES (2001, 'ada@example.com', 'laptop', 'the digest', 'gsk_...1234', 2001)"
    ),
    "previous_api_keys": "INSERT INTO previous_api_keys VALUES (2001, 'another digest', now())",
    "access_tokens": (
        "INSERT INTO access_tokens (id, name, role, digest, preview, created_by) "
        "VALUES (2001, 't', 'viewer', 'the digest', 'gst_...1234', 'root')"
    ),
    "people": "INSERT INTO people (id, issuer, subject, name) VALUES (2001, 'https://login.example', 's', 'p')",
    "browser_sessions": (
        "INSERT INTO browser_sessions (id, digest, name, role, token_id, root_proof) "
        "VALUES (2001, 'the digest', 't', 'viewer', 2001, 'the digest of the token')"
    ),
}
"""A row in each audited table, parents first; a table that is audited needs one here."""
RETENTION = "SET LOCAL gasket.audit_exception = 'retention'"
ERASURE = "SET LOCAL gasket.audit_exception = 'erasure'"


@pytest.fixture
async def tried(database: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that is rolled back, with a row in every audited table."""
    transaction = database.transaction()
    await transaction.start()
    for statement in ROWS.values():
        await database.execute(statement)
    yield database
    await transaction.rollback()


async def last_entry(connection: asyncpg.Connection) -> dict[str, Any]:
    row = await connection.fetchrow("SELECT * FROM audit_log ORDER BY id DESC LIMIT 1")
    assert row is not None
    return {name: json.loads(value) if name in ("before", "after") and value else value for name, value in row.items()}


async def count(connection: asyncpg.Connection) -> int:
    number: int = await connection.fetchval("SELECT count(*) FROM audit_log")
    return number


async def arguments(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """By table: the arguments of its trigger, that is, the object's kind, the column with its id, what is left out."""
    rows = await connection.fetch(
        "SELECT tgrelid::regclass::text AS of, tgname, string_to_array(encode(tgargs, 'escape'), E'\\\\000') AS given "
        "FROM pg_trigger WHERE tgfoid = 'record_change'::regproc"
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        given = [argument for argument in row["given"] if argument]
        assert found.setdefault(row["of"], given) == given, "the triggers of a table leave out the same columns"
    return found


class TestWhatIsRecorded:
    async def test_a_new_row(self, tried: asyncpg.Connection) -> None:
        await tried.execute("INSERT INTO backend_profiles (id, name) VALUES (2002, 'q')")
        entry = await last_entry(tried)
        assert (entry["action"], entry["object_kind"], entry["object_id"]) == ("create", "profile", "2002")
        assert (entry["table_name"], entry["changed"], entry["before"]) == ("backend_profiles", None, None)
        assert entry["after"]["name"] == "q"
        assert entry["at"] == await tried.fetchval("SELECT now()")

    async def test_a_change_with_the_names_of_what_changed(self, tried: asyncpg.Connection) -> None:
        await tried.execute("UPDATE api_keys SET name = 'desk', key_value = 'other' WHERE id = 2001")
        entry = await last_entry(tried)
        assert (entry["action"], entry["object_kind"], entry["object_id"]) == ("change", "key", "2001")
        assert entry["changed"] == ["key_value", "name"]
        assert (entry["before"]["name"], entry["after"]["name"]) == ("laptop", "desk")
        assert "key_value" not in entry["before"] | entry["after"]

    async def test_a_secret_s_change_is_told_by_name_alone(self, tried: asyncpg.Connection) -> None:
        await tried.execute("UPDATE openai_backends SET api_key = 'ciphertext' WHERE id = 2001")
        entry = await last_entry(tried)
        assert entry["changed"] == ["api_key"]
        assert entry["before"] == entry["after"]
        assert "ciphertext" not in str(entry)

    async def test_a_deletion_and_what_goes_with_it(self, tried: asyncpg.Connection) -> None:
        before = await count(tried)
        await tried.execute("DELETE FROM api_keys WHERE id = 2001")
        rows = await tried.fetch("SELECT * FROM audit_log ORDER BY id DESC LIMIT $1", await count(tried) - before)
        assert {(row["action"], row["table_name"]) for row in rows} == {
            ("delete", "api_keys"),
            ("delete", "previous_api_keys"),
        }
        assert {(row["object_kind"], row["object_id"]) for row in rows} == {("key", "2001")}

    async def test_what_belongs_to_an_object_counts_as_that_object(self, tried: asyncpg.Connection) -> None:
        await tried.execute("UPDATE profile_backends SET position = 7")
        entry = await last_entry(tried)
        assert (entry["object_kind"], entry["object_id"]) == ("profile", "2001")
        await tried.execute("DELETE FROM backend_models")
        entry = await last_entry(tried)
        assert (entry["object_kind"], entry["object_id"]) == ("backend", "2001")

    @pytest.mark.parametrize("table", ROWS)
    async def test_a_truncated_table(self, tried: asyncpg.Connection, table: str) -> None:
        await tried.execute(f"TRUNCATE {table} CASCADE")
        actions = await tried.fetch(
            "SELECT action FROM audit_log WHERE table_name = $1 ORDER BY id DESC LIMIT 1", table
        )
        assert [row[0] for row in actions] == ["truncate"]

    @pytest.mark.parametrize(
        ("table", "column"),
        [
            ("api_keys", "last_used_at"),
            ("previous_api_keys", "last_used_at"),
            ("access_tokens", "last_used_at"),
            ("browser_sessions", "last_seen_at"),
        ],
    )
    async def test_a_use_is_not_recorded(self, tried: asyncpg.Connection, table: str, column: str) -> None:
        before = await count(tried)
        await tried.execute(f"UPDATE {table} SET {column} = now() + interval '1 s'")
        assert await count(tried) == before

    async def test_nor_what_changes_nothing(self, tried: asyncpg.Connection) -> None:
        before = await count(tried)
        await tried.execute("UPDATE api_keys SET name = name")
        assert await count(tried) == before

    async def test_a_change_cannot_hide_behind_a_use(self, tried: asyncpg.Connection) -> None:
        await tried.execute("UPDATE api_keys SET last_used_at = now(), expires_at = 'infinity'")
        assert (await last_entry(tried))["changed"] == ["expires_at", "last_used_at"]

    async def test_what_is_rolled_back_has_no_entry(self, tried: asyncpg.Connection) -> None:
        before = await count(tried)
        await tried.execute("SAVEPOINT before; DELETE FROM api_keys")
        assert await count(tried) > before
        await tried.execute("ROLLBACK TO SAVEPOINT before")
        assert await count(tried) == before

    async def test_later_columns_are_recorded_without_a_new_trigger(self, tried: asyncpg.Connection) -> None:
        await tried.execute("ALTER TABLE api_keys ADD COLUMN later int")
        await tried.execute("UPDATE api_keys SET later = 1")
        assert (await last_entry(tried))["changed"] == ["later"]
        await tried.execute("ALTER TABLE api_keys DROP COLUMN later")


class TestWho:
    async def test_sql_is_of_its_database_role(self, tried: asyncpg.Connection) -> None:
        await tried.execute("DELETE FROM browser_sessions")
        entry = await last_entry(tried)
        role = await tried.fetchval("SELECT session_user")
        assert (entry["actor"], entry["actor_kind"], entry["how"]) == (role, "role", "sql")
        assert entry["database_role"] == role
        assert entry["source"] == await tried.fetchval("SELECT host(inet_client_addr())")

    async def test_it_is_the_role_that_has_signed_in(self, tried: asyncpg.Connection) -> None:
        """Not the one of SET ROLE, nor the tables' owner, with whose rights the triggers run."""
        await tried.execute(
            "CREATE ROLE gasket_test_other; CREATE ROLE gasket_test_mask; GRANT gasket_test_mask TO gasket_test_other"
        )
        await tried.execute("GRANT DELETE, SELECT ON browser_sessions TO gasket_test_mask")
        await tried.execute("SET LOCAL SESSION AUTHORIZATION gasket_test_other; SET LOCAL ROLE gasket_test_mask")
        await tried.execute("DELETE FROM browser_sessions")  # with no right to the log, and without need of one
        await tried.execute("RESET ROLE; RESET SESSION AUTHORIZATION")
        entry = await last_entry(tried)
        assert (entry["actor"], entry["database_role"]) == ("gasket_test_other", "gasket_test_other")

    async def test_the_transaction_says_who_it_is(self, tried: asyncpg.Connection) -> None:
        origin = {"actor": "ada", "kind": "token", "how": "api", "source": "192.0.2.1", "request_id": "r-1"}
        await tried.execute("SELECT set_config('gasket.audit', $1, true)", json.dumps(origin))
        await tried.execute("DELETE FROM browser_sessions")
        entry = await last_entry(tried)
        told = {name: entry[name] for name in ("actor", "how", "source", "request_id")} | {"kind": entry["actor_kind"]}
        assert told == origin
        assert entry["database_role"] == await tried.fetchval("SELECT session_user")

    async def test_what_one_transaction_said_is_not_believed_in_the_next(self, database: asyncpg.Connection) -> None:
        async with database.transaction():
            await database.execute("""SELECT set_config('gasket.audit', '{"actor": "ada"}', true)""")
        async with database.transaction():
            await database.execute("INSERT INTO backend_profiles (name) VALUES ('next')")
            await database.execute("DELETE FROM backend_profiles WHERE name = 'next'")
            assert (await last_entry(database))["actor_kind"] == "role"

    async def test_time_and_role_of_an_entry_cannot_be_invented(self, tried: asyncpg.Connection) -> None:
        await tried.execute(
            "INSERT INTO audit_log (actor, actor_kind, how, action, at, database_role) "
            "VALUES ('x', 'x', 'x', 'x', '2001-01-01', 'somebody')"
        )
        entry = await last_entry(tried)
        assert entry["at"] == await tried.fetchval("SELECT now()")
        assert entry["database_role"] == await tried.fetchval("SELECT session_user")

    async def test_a_temporary_table_does_not_catch_the_entries(self, api_database_url: str) -> None:
        connection = await asyncpg.connect(api_database_url, timeout=30)  # where no function is compiled yet
        try:
            await connection.execute("CREATE TEMP TABLE audit_log (LIKE public.audit_log)")
            await connection.execute("CREATE DOMAIN pg_temp.jsonb AS text CHECK (false)")
            before = await connection.fetchval("SELECT count(*) FROM public.audit_log")
            await connection.execute("BEGIN; INSERT INTO backend_profiles (name) VALUES ('caught')")
            assert await connection.fetchval("SELECT count(*) FROM public.audit_log") == before + 1
            assert await connection.fetchval("SELECT count(*) FROM pg_temp.audit_log") == 0
        finally:
            await connection.close(timeout=10)

    async def test_nobody_else_may_let_triggers_add_entries(self, database: asyncpg.Connection) -> None:
        open_to_all = await database.fetch(
            "SELECT proname FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl "
            "WHERE pronamespace = 'public'::regnamespace AND prosecdef AND acl.grantee = 0"
        )
        assert not open_to_all


class TestWhatNobodyChanges:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE audit_log SET actor = 'somebody'",
            "UPDATE audit_log SET actor = 'somebody' WHERE false",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log",
            "TRUNCATE audit_log, api_keys CASCADE",
            "WITH gone AS (DELETE FROM audit_log RETURNING id) SELECT count(*) FROM gone",
            "MERGE INTO audit_log USING (SELECT 1) AS x ON true WHEN MATCHED THEN DELETE",
            f"{RETENTION}; TRUNCATE audit_log",
            f"{RETENTION}; UPDATE audit_log SET actor = 'somebody'",
            f"{ERASURE}; DELETE FROM audit_log",
            f"{ERASURE}; TRUNCATE audit_log",
            "SET LOCAL gasket.audit_exception = 'because'; DELETE FROM audit_log",
            "SET LOCAL gasket.audit_exception = ''; DELETE FROM audit_log",
            "INSERT INTO audit_log (id, actor, actor_kind, how, action) OVERRIDING SYSTEM VALUE "
            "SELECT id, 'x', 'x', 'x', 'x' FROM audit_log LIMIT 1 ON CONFLICT (id) DO UPDATE SET actor = 'somebody'",
        ],
    )
    async def test_not_even_the_owner(self, tried: asyncpg.Connection, statement: str) -> None:
        if statement.startswith("MERGE") and await tried.fetchval("SHOW server_version_num") < "150000":
            pytest.skip("PostgreSQL 15 brought MERGE")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="audit_log takes new entries only"):
            async with tried.transaction():
                await tried.execute(statement)

    @pytest.mark.parametrize("column", ["at", "how", "actor_kind", "action", "object_kind", "database_role", "id"])
    async def test_erasure_changes_nothing_else(self, tried: asyncpg.Connection, column: str) -> None:
        value = "now() + interval '1 s'" if column == "at" else "id + 1000000" if column == "id" else "'x'"
        identity = "ALTER TABLE audit_log ALTER COLUMN id SET GENERATED BY DEFAULT;" if column == "id" else ""
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="erasure may change only actor, source"):
            async with tried.transaction():
                await tried.execute(f"{identity} {ERASURE}; UPDATE audit_log SET {column} = {value}")


class TestTheWaysRound:
    async def test_retention_is_an_entry_itself(self, tried: asyncpg.Connection) -> None:
        await tried.execute(f"{RETENTION}; DELETE FROM audit_log WHERE actor_kind = 'role'")
        entry = await last_entry(tried)
        assert (entry["action"], entry["object_kind"], entry["table_name"]) == ("retention", "audit", "audit_log")
        assert entry["after"]["entries"] >= len(ROWS)
        assert entry["after"].keys() == {"entries", "from", "to"}

    async def test_retention_that_finds_nothing_is_none(self, tried: asyncpg.Connection) -> None:
        before = await count(tried)
        await tried.execute(f"{RETENTION}; DELETE FROM audit_log WHERE false")
        assert await count(tried) == before

    async def test_erasure_is_an_entry_itself(self, tried: asyncpg.Connection) -> None:
        await tried.execute(
            f"{ERASURE}; UPDATE audit_log SET before = '{{}}', after = '{{}}' "
            "WHERE audit_log::text LIKE '%ada@example.com%'"
        )
        entry = await last_entry(tried)
        assert (entry["action"], entry["object_kind"]) == ("erasure", "audit")
        assert entry["after"]["entries"] >= 1
        # Not in the whole row: other tests of the session may have left entries of which she is the actor.
        left = "SELECT count(*) FROM audit_log WHERE concat(before, after) LIKE '%ada@example.com%'"
        assert await tried.fetchval(left) == 0

    async def test_a_way_round_ends_with_its_transaction(self, database: asyncpg.Connection) -> None:
        async with database.transaction():
            await database.execute(f"{RETENTION}; DELETE FROM audit_log WHERE false")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("DELETE FROM audit_log WHERE false")


class TestEveryColumn:
    async def test_every_table_is_audited_or_known_not_to_be(self, database: asyncpg.Connection) -> None:
        assert (await arguments(database)).keys() == {*metadata.tables} - NOT_AUDITED == ROWS.keys()
        fired = await database.fetch(
            "SELECT tgrelid::regclass::text AS of, bit_or(tgtype) AS events FROM pg_trigger "
            "WHERE tgfoid = 'record_change'::regproc GROUP BY 1"
        )
        # INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32 (PostgreSQL's catalog/pg_trigger.h)
        assert {row["of"] for row in fired if row["events"] & 60 == 60} == ROWS.keys()

    async def test_every_column_that_looks_secret_is_left_out(self, database: asyncpg.Connection) -> None:
        for table, (_kind, id_column, *left_out) in (await arguments(database)).items():
            columns = metadata.tables[table].columns.keys()
            assert {id_column, *left_out} <= {*columns}, table
            shown = {name for name in columns if LOOKS_SECRET.search(name)} - {*left_out}
            assert shown == NOT_SECRET.get(table, set()), (
                f"{table}: if a column is a secret or a digest, make its triggers anew in the migration that adds it, "
                "with the column among those left out; if it is not, name it in NOT_SECRET"
            )

    @pytest.mark.parametrize("table", ROWS)
    async def test_what_is_left_out_is_in_no_entry(self, tried: asyncpg.Connection, table: str) -> None:
        _kind, _id, *left_out = (await arguments(tried))[table]
        for column in left_out:
            await tried.execute(f"UPDATE {table} SET {column} = 'a well-kept secret'")
            assert (await last_entry(tried))["changed"] == [column]
        await tried.execute(f"DELETE FROM profile_backends; DELETE FROM {table}")
        assert not await tried.fetchval("SELECT count(*) FROM audit_log WHERE audit_log::text LIKE '%well-kept%'")
        digests = "SELECT count(*) FROM audit_log WHERE audit_log::text LIKE '%the digest%'"
        assert not await tried.fetchval(digests)
