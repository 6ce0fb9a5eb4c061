"""routing

Revises: 8a5be03d7c41
Created: 2026-11-30 15:20:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "d92f6a18c3b5"
down_revision: str | None = "8a5be03d7c41"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table, nullable columns, and one with a default that stays: a release that lacks them neither reads nor writes
# them. It asks backends for their lists of models, and takes them in the profile's order.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "backend_models",
        sa.Column("backend_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="What clients ask for"),
        sa.Column("backend_model", sa.Text(), nullable=False, comment="What the backend calls it"),
        sa.Column("weight", sa.Integer(), nullable=True, comment="Share within one priority; null: none is given"),
        sa.Column("priority", sa.Integer(), nullable=False, comment="A lower one is asked first"),
        sa.CheckConstraint("weight > 0", name=op.f("ck_backend_models_weight_positive")),
        sa.ForeignKeyConstraint(
            ["backend_id"],
            ["openai_backends.id"],
            name="fk_backend_models_backend_id_openai_backends",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("backend_id", "position", name="pk_backend_models"),
    )
    op.execute(
        "CREATE TRIGGER notify_of_change AFTER INSERT OR UPDATE OR DELETE ON backend_models "
        "FOR EACH ROW EXECUTE FUNCTION notify_of_change('backend', 'backend_id')"
    )
    op.add_column(
        "backend_profiles", sa.Column("routing", sa.Text(), server_default=sa.text("'ordered'"), nullable=False)
    )
    op.add_column(
        "backend_profiles",
        sa.Column("user_header", sa.Text(), nullable=True, comment="The header that names the end user"),
    )
    op.add_column("usage_records", sa.Column("end_user", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("usage_records", "end_user")
    op.drop_column("backend_profiles", "user_header")
    op.drop_column("backend_profiles", "routing")
    op.drop_table("backend_models")
