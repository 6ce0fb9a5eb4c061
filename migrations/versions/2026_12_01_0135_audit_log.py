"""audit log

Revises: 8d24b6f01c9a
Created: 2026-12-01 01:35:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision: str = "a64e0d93b17c"
down_revision: str | None = "8d24b6f01c9a"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# New tables, and triggers that only add rows to them: whatever release makes a change, its statements are the same as
# before. What a release that lacks this changes is recorded as SQL of its database role.
backward_compatible: bool = True

# By table: the kind of the object that a row belongs to, the column with its id, and the columns that are left out.
AUDITED = {
    "openai_backends": ("backend", "id", "api_key", "headers", "proxy_url", "client_certificate"),
    "backend_models": ("backend", "backend_id"),
    "backend_profiles": ("profile", "id"),
    "profile_backends": ("profile", "profile_id"),
    "api_keys": ("key", "id", "key_value"),
    "previous_api_keys": ("key", "key_id", "key_value"),
    "access_tokens": ("token", "id", "digest"),
    "browser_sessions": ("session", "id", "digest", "root_proof"),
}

# A use is no change.
WITHOUT_USE = "to_jsonb({row}) - '{{last_used_at, last_seen_at}}'::text[]"

# Several functions run with the owner's rights: a role that may change keys need not have a right to the log. With
# pg_temp last in its search_path, nobody puts a temporary table or type in the place of what such a function names.
FUNCTIONS = {
    # For the triggers below. The caller's transaction says in gasket.audit who it is, as a JSON object.
    "add_audit_entry(text, text, text, text, text, text[], jsonb, jsonb)": """
        CREATE FUNCTION add_audit_entry(
            space text, action text, object_kind text, object_id text, table_name text, changed text[],
            before jsonb, after jsonb
        ) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            origin jsonb := nullif(current_setting('gasket.audit', true), '')::jsonb;
        BEGIN
            IF origin IS NULL THEN
                origin := jsonb_build_object(
                    'actor', session_user, 'kind', 'role', 'how', 'sql', 'source', host(inet_client_addr()));
            END IF;
            EXECUTE format(
                'INSERT INTO %I.audit_log (actor, actor_kind, how, source, request_id, action, object_kind, object_id, '
                'table_name, changed, before, after) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)', space
            ) USING origin ->> 'actor', origin ->> 'kind', origin ->> 'how', origin ->> 'source',
                origin ->> 'request_id', action, object_kind, object_id, table_name, changed, before, after;
        END $$
        """,
    # The trigger's arguments: the kind of the object, the column with its id, and the columns that are left out.
    "record_change()": """
        CREATE FUNCTION record_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            before jsonb;
            after jsonb;
            changed text[];
            left_out text[] := coalesce(TG_ARGV[2:], '{}');
        BEGIN
            IF TG_OP IN ('UPDATE', 'DELETE') THEN
                before := to_jsonb(OLD);
            END IF;
            IF TG_OP IN ('INSERT', 'UPDATE') THEN
                after := to_jsonb(NEW);
            END IF;
            IF TG_OP = 'UPDATE' THEN
                changed := array(
                    SELECT key FROM jsonb_each(after) WHERE value IS DISTINCT FROM before -> key ORDER BY key
                );
            END IF;
            EXECUTE format('SELECT %I.add_audit_entry($1, $2, $3, $4, $5, $6, $7, $8)', TG_TABLE_SCHEMA) USING
                TG_TABLE_SCHEMA::text,
                CASE TG_OP WHEN 'INSERT' THEN 'create' WHEN 'UPDATE' THEN 'change' ELSE lower(TG_OP) END,
                TG_ARGV[0], coalesce(after, before) ->> TG_ARGV[1], TG_TABLE_NAME::text, changed,
                before - left_out, after - left_out;
            RETURN NULL;
        END $$
        """,
    # Time and role are always those of the transaction. The outbox is for those who write log lines.
    "complete_audit_entry()": """
        CREATE FUNCTION complete_audit_entry() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            NEW.at := now();
            NEW.database_role := session_user;
            EXECUTE format('INSERT INTO %I.audit_outbox (entry_id) VALUES ($1)', TG_TABLE_SCHEMA) USING NEW.id;
            RETURN NEW;
        END $$
        """,
    "protect_audit_log()": """
        CREATE FUNCTION protect_audit_log() RETURNS trigger
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            exception text := coalesce(current_setting('gasket.audit_exception', true), '');
        BEGIN
            IF (TG_OP = 'DELETE' AND exception = 'retention') OR (TG_OP = 'UPDATE' AND exception = 'erasure') THEN
                RETURN NULL;
            END IF;
            RAISE EXCEPTION 'audit_log takes new entries only: % is refused', TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
        """,
    # What retention and erasure have done is an entry, too, which nobody can leave out.
    "record_retention()": """
        CREATE FUNCTION record_retention() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            summary jsonb;
        BEGIN
            SELECT jsonb_build_object('entries', count(*), 'from', min(at), 'to', max(at)) INTO summary FROM gone;
            IF summary ->> 'entries' <> '0' THEN
                EXECUTE format('SELECT %I.add_audit_entry($1, $2, $3, $4, $5, $6, $7, $8)', TG_TABLE_SCHEMA) USING
                    TG_TABLE_SCHEMA::text, 'retention', 'audit', NULL::text, TG_TABLE_NAME::text, NULL::text[],
                    NULL::jsonb, summary;
            END IF;
            RETURN NULL;
        END $$
        """,
    "record_erasure()": """
        CREATE FUNCTION record_erasure() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            entries bigint;
            kept bigint;
            erasable text[] := '{actor, source, object_id, before, after}';
        BEGIN
            SELECT count(*) INTO entries FROM new_rows;
            SELECT count(*) INTO kept FROM old_rows AS o JOIN new_rows AS n USING (id)
            WHERE to_jsonb(o) - erasable = to_jsonb(n) - erasable;
            IF kept <> entries THEN
                RAISE EXCEPTION 'of audit_log, erasure may change only %', array_to_string(erasable, ', ')
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            IF entries > 0 THEN
                EXECUTE format('SELECT %I.add_audit_entry($1, $2, $3, $4, $5, $6, $7, $8)', TG_TABLE_SCHEMA) USING
                    TG_TABLE_SCHEMA::text, 'erasure', 'audit', NULL::text, TG_TABLE_NAME::text, NULL::text[],
                    NULL::jsonb, jsonb_build_object('entries', entries);
            END IF;
            RETURN NULL;
        END $$
        """,
}

TRIGGERS_OF_THE_LOG = (
    "CREATE TRIGGER complete_audit_entry BEFORE INSERT ON audit_log FOR EACH ROW "
    "EXECUTE FUNCTION complete_audit_entry()",
    "CREATE TRIGGER protect_audit_log BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log FOR EACH STATEMENT "
    "EXECUTE FUNCTION protect_audit_log()",
    "CREATE TRIGGER record_retention AFTER DELETE ON audit_log REFERENCING OLD TABLE AS gone FOR EACH STATEMENT "
    "EXECUTE FUNCTION record_retention()",
    "CREATE TRIGGER record_erasure AFTER UPDATE ON audit_log REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows "
    "FOR EACH STATEMENT EXECUTE FUNCTION record_erasure()",
)


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False, comment="Who: a name, an address, or a database role"),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("how", sa.Text(), nullable=False, comment="api, page, command or sql"),
        sa.Column("source", sa.Text(), nullable=True, comment="An address; of a command the host's name"),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_kind", sa.Text(), nullable=True),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("table_name", sa.Text(), nullable=True, comment="Where the row is that was changed"),
        sa.Column("changed", ARRAY(sa.Text()), nullable=True, comment="Names of columns, of secret ones, too"),
        sa.Column("before", JSONB(), nullable=True, comment="The row without its secrets and digests"),
        sa.Column("after", JSONB(), nullable=True, comment="The row without its secrets and digests"),
        sa.Column(
            "database_role",
            sa.Text(),
            server_default=sa.text("SESSION_USER"),
            nullable=False,
            comment="Whose session it was, whatever the other columns say",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
    op.create_index("ix_audit_log_object_kind_object_id", "audit_log", ["object_kind", "object_id"])
    op.create_table(
        "audit_outbox",
        sa.Column("entry_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_audit_outbox"),
    )
    for name, statement in FUNCTIONS.items():
        op.execute(statement)
        # Whoever may execute it could let triggers of tables of their own add entries.
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
    for statement in TRIGGERS_OF_THE_LOG:
        op.execute(statement)
    for table, arguments in AUDITED.items():
        call = f"EXECUTE FUNCTION record_change({', '.join(repr(argument) for argument in arguments)})"
        op.execute(f"CREATE TRIGGER record_change AFTER INSERT OR DELETE ON {table} FOR EACH ROW {call}")
        # Not with a list of columns: a later column would be missed, and a column in such a list cannot be dropped.
        op.execute(
            f"CREATE TRIGGER record_update AFTER UPDATE ON {table} FOR EACH ROW WHEN "
            f"({WITHOUT_USE.format(row='OLD')} IS DISTINCT FROM {WITHOUT_USE.format(row='NEW')}) {call}"
        )
        op.execute(f"CREATE TRIGGER record_truncation AFTER TRUNCATE ON {table} FOR EACH STATEMENT {call}")


def downgrade() -> None:
    for table in reversed(AUDITED):
        for name in ("record_truncation", "record_update", "record_change"):
            op.execute(f"DROP TRIGGER {name} ON {table}")
    op.drop_table("audit_outbox")
    op.drop_table("audit_log")
    for name in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {name}")
