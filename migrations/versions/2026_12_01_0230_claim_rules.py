"""claim rules

Revises: d41c7b90a6e2
Created: 2026-12-01 02:30:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "e7a3915c40bd"
down_revision: str | None = "d41c7b90a6e2"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A column with a default that stays, and a nullable one: a release that lacks them neither reads nor writes them. To it
# the row of a subject is a key that nobody has. That it hears of new profiles, too, does it no harm.
backward_compatible: bool = True


def upgrade() -> None:
    op.add_column(
        "backend_profiles",
        sa.Column(
            "claim_rules",
            JSONB(),
            server_default=sa.text("'[]'"),
            nullable=False,
            comment="Whose signed tokens it takes: a list of objects with issuer, claim and pattern",
        ),
    )
    op.add_column(
        "api_keys",
        sa.Column(
            "issuer",
            sa.Text(),
            nullable=True,
            comment="Of the subject's signed tokens, for which the row stands; null: it is a key",
        ),
    )
    # A new profile may take tokens that were refused before, or that another one takes, too.
    _notify_after("INSERT OR UPDATE OR DELETE")


def downgrade() -> None:
    _notify_after("UPDATE OR DELETE")
    op.drop_column("api_keys", "issuer")
    op.drop_column("backend_profiles", "claim_rules")


def _notify_after(changes: str) -> None:
    op.execute("DROP TRIGGER notify_of_change ON backend_profiles")
    op.execute(
        f"CREATE TRIGGER notify_of_change AFTER {changes} ON backend_profiles "
        "FOR EACH ROW EXECUTE FUNCTION notify_of_change('profile', 'id')"
    )
