"""backend limits

Revises: fc754342f710
Created: 2026-11-25 16:00:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "53b6b9d12251"
down_revision: str | None = "fc754342f710"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A nullable column, and three with defaults that stay: a release that lacks them neither reads nor writes them.
backward_compatible: bool = True

TIMEOUTS = {"connect_timeout": "5", "first_byte_timeout": "300", "chunk_timeout": "60"}


def upgrade() -> None:
    op.add_column(
        "openai_backends",
        sa.Column(
            "max_concurrency", sa.Integer(), nullable=True, comment="Requests at once of a replica; null: unlimited"
        ),
    )
    for name, seconds in TIMEOUTS.items():
        op.add_column(
            "openai_backends",
            sa.Column(name, sa.Double(), server_default=sa.text(seconds), nullable=False, comment="Seconds"),
        )
    op.create_check_constraint(
        op.f("ck_openai_backends_max_concurrency_positive"),
        "openai_backends",
        "max_concurrency > 0",
        postgresql_not_valid=True,
    )
    for name in TIMEOUTS:
        op.create_check_constraint(
            op.f(f"ck_openai_backends_{name}_bounded"),
            "openai_backends",
            f"{name} > 0 AND {name} <= 86400",
            postgresql_not_valid=True,
        )


def downgrade() -> None:
    for name in reversed(TIMEOUTS):
        op.drop_column("openai_backends", name)
    op.drop_column("openai_backends", "max_concurrency")
