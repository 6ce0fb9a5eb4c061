"""limits of keys and profiles

Revises: 5ac776fa6b6c
Created: 2026-11-25 19:00:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0b1e6c1d7f42"
down_revision: str | None = "5ac776fa6b6c"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Nullable columns, and one with a default that stays: a release that lacks them neither reads nor writes them. What it
# lets pass is not counted.
backward_compatible: bool = True

TABLES = ("backend_profiles", "api_keys")
DECISIVE = "key_value, profile_id, expires_at, revoked_at"
LIMITS = "requests_per_minute, tokens_per_window, token_window, max_concurrency"


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("requests_per_minute", sa.Integer(), nullable=True, comment="Null: unlimited"))
        op.add_column(table, sa.Column("tokens_per_window", sa.BigInteger(), nullable=True, comment="Null: unlimited"))
        op.add_column(
            table,
            sa.Column("token_window", sa.Integer(), server_default=sa.text("60"), nullable=False, comment="Seconds"),
        )
        op.add_column(
            table,
            sa.Column("max_concurrency", sa.Integer(), nullable=True, comment="Requests at once; null: unlimited"),
        )
    _tell_of(f"{DECISIVE}, {LIMITS}")


def downgrade() -> None:
    _tell_of(DECISIVE)
    for table in reversed(TABLES):
        for column in ("max_concurrency", "token_window", "tokens_per_window", "requests_per_minute"):
            op.drop_column(table, column)


def _tell_of(columns: str) -> None:
    """A change of a key's limits has to be heard of like any other that decides about a request."""
    op.execute("DROP TRIGGER notify_of_change ON api_keys")
    op.execute(
        f"CREATE TRIGGER notify_of_change AFTER INSERT OR DELETE OR UPDATE OF {columns} ON api_keys "
        "FOR EACH ROW EXECUTE FUNCTION notify_of_change('key', 'key_value')"
    )
