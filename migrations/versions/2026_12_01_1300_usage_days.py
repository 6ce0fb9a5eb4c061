"""usage by the day

Revises: e93a5c20d718
Created: 2026-12-01 13:00:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "5b8e20f7c4d1"
down_revision: str | None = "e93a5c20d718"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table, which a release that lacks it neither reads nor writes. The triggers work for its writes, too.
backward_compatible: bool = True

SUMS = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "audio_tokens",
)

# A change to the totals of a day that is over leaves a mark: the sums of that day are void until they are made again.
# A mark is a row more and no change of a row: a transaction adds it whatever its isolation level lets it see, and two
# transactions never wait for each other's. It is the clock's day, not that in which the transaction began: a
# transaction that goes on over midnight writes into a day that is over. With TRUNCATE all sums go, by TRUNCATE as well:
# a DELETE would miss those that its snapshot lacks.
FUNCTION = """
CREATE FUNCTION mark_usage_days() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
    changed timestamptz[];
BEGIN
    CASE TG_OP
        WHEN 'INSERT' THEN
            changed := ARRAY(SELECT DISTINCT hour FROM new_rows WHERE hour < today);
        WHEN 'UPDATE' THEN
            changed := ARRAY(
                SELECT hour FROM old_rows WHERE hour < today UNION SELECT hour FROM new_rows WHERE hour < today
            );
        WHEN 'DELETE' THEN
            changed := ARRAY(SELECT DISTINCT hour FROM old_rows WHERE hour < today);
        ELSE
            EXECUTE format('TRUNCATE %I.usage_days', TG_TABLE_SCHEMA);
    END CASE;
    IF cardinality(changed) > 0 THEN
        EXECUTE format(
            'INSERT INTO %I.usage_days (by, days, day, name) '
            'SELECT DISTINCT ''changed'', 1, (hour AT TIME ZONE ''UTC'')::date, $2 FROM unnest($1) AS hour '
            'ON CONFLICT DO NOTHING', TG_TABLE_SCHEMA
        ) USING changed, pg_current_xact_id()::text;
    END IF;
    RETURN NULL;
END $$
"""

TRIGGERS = {
    "mark_days_of_insert": "INSERT ON usage_totals REFERENCING NEW TABLE AS new_rows",
    "mark_days_of_update": "UPDATE ON usage_totals REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "mark_days_of_delete": "DELETE ON usage_totals REFERENCING OLD TABLE AS old_rows",
    "mark_days_of_truncate": "TRUNCATE ON usage_totals",
}


def upgrade() -> None:
    op.create_table(
        "usage_days",
        sa.Column(
            "by",
            sa.Text(),
            nullable=False,
            comment="all, key, user, profile, model or backend; changed: the day has to be summed again",
        ),
        sa.Column(
            "days", sa.Integer(), autoincrement=False, nullable=False, comment="How many there are: 1, 4, 16 or 64"
        ),
        sa.Column("day", sa.Date(), nullable=False, comment="The first one, of UTC"),
        sa.Column(
            "name",
            sa.Text(),
            nullable=False,
            comment="An id, an address in lower case, or a model; of all, the oid of this table",
        ),
        *(sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("by", "days", "day", "name", name="pk_usage_days"),
    )
    op.execute(FUNCTION)
    for name, event in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} AFTER {event} FOR EACH STATEMENT EXECUTE FUNCTION mark_usage_days()")


def downgrade() -> None:
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON usage_totals")
    op.execute("DROP FUNCTION mark_usage_days()")
    op.drop_table("usage_days")
