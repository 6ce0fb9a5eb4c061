"""previous api keys

Revises: 5e91d7c4b08a
Created: 2026-11-30 15:07:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "b7c41e0d52f6"
down_revision: str | None = "5e91d7c4b08a"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table: a release that lacks it does not ask for it, and knows the new keys only.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "previous_api_keys",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("key_value", sa.Text(), nullable=False, comment="Hex SHA-256 of the key before the rotation"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False, comment="The end of its grace"),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name="fk_previous_api_keys_key_id_api_keys", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key_id", name="pk_previous_api_keys"),
        sa.UniqueConstraint("key_value", name="uq_previous_api_keys_key_value"),
    )
    op.execute(
        "CREATE TRIGGER notify_of_change AFTER INSERT OR DELETE OR UPDATE OF key_value, expires_at "
        "ON previous_api_keys FOR EACH ROW EXECUTE FUNCTION notify_of_change('key', 'key_value')"
    )
    # Both keys are in the replicas' memory, and a change of the row is about both.
    op.execute(
        """
        CREATE FUNCTION notify_of_previous_key() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
        DECLARE
            previous text;
        BEGIN
            EXECUTE pg_catalog.format('SELECT key_value FROM %I.previous_api_keys WHERE key_id = $1', TG_TABLE_SCHEMA)
                INTO previous USING NEW.id;
            IF previous IS NOT NULL THEN
                PERFORM pg_catalog.pg_notify('gasket_' || TG_TABLE_SCHEMA, 'key:' || previous);
            END IF;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER notify_of_previous_key AFTER UPDATE OF profile_id, expires_at, revoked_at ON api_keys "
        "FOR EACH ROW EXECUTE FUNCTION notify_of_previous_key()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER notify_of_previous_key ON api_keys")
    op.execute("DROP FUNCTION notify_of_previous_key()")
    op.drop_table("previous_api_keys")
