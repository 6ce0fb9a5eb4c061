"""notify of changes

Revises: d3121a6501f0
Created: 2026-11-25 16:15:00+00:00
"""

from __future__ import annotations

from alembic import op

revision: str = "5ac776fa6b6c"
down_revision: str | None = "d3121a6501f0"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Whatever release makes a change, its statements are the same as before.
backward_compatible: bool = True

# Which changes of a table the replicas hear of; the subject; and the column that says which one. Of keys only what
# decides about a request: columns that are written with each request must not wake everybody.
TRIGGERS = {
    "api_keys": ("INSERT OR DELETE OR UPDATE OF key_value, profile_id, expires_at, revoked_at", "key", "key_value"),
    "backend_profiles": ("UPDATE OR DELETE", "profile", "id"),
    "profile_backends": ("INSERT OR UPDATE OR DELETE", "profile", "profile_id"),
    "openai_backends": ("UPDATE OR DELETE", "backend", "id"),
}


def upgrade() -> None:
    # The channel bears the schema's name: installations that share a database do not hear each other. Of equal
    # notifications in one transaction PostgreSQL sends one.
    op.execute(
        """
        CREATE FUNCTION notify_of_change() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
        DECLARE
            channel text := 'gasket_' || TG_TABLE_SCHEMA;
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                PERFORM pg_catalog.pg_notify(channel, TG_ARGV[0] || ':' || (pg_catalog.to_jsonb(OLD) ->> TG_ARGV[1]));
            END IF;
            IF TG_OP <> 'DELETE' THEN
                PERFORM pg_catalog.pg_notify(channel, TG_ARGV[0] || ':' || (pg_catalog.to_jsonb(NEW) ->> TG_ARGV[1]));
            END IF;
            RETURN NULL;
        END $$
        """
    )
    for table, (changes, subject, column) in TRIGGERS.items():
        op.execute(
            f"CREATE TRIGGER notify_of_change AFTER {changes} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION notify_of_change('{subject}', '{column}')"
        )


def downgrade() -> None:
    for table in reversed(TRIGGERS):
        op.execute(f"DROP TRIGGER notify_of_change ON {table}")
    op.execute("DROP FUNCTION notify_of_change()")
