"""people

Revises: b7f0c2d95e13
Created: 2026-12-01 02:10:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "c5708e3fa216"
down_revision: str | None = "b7f0c2d95e13"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table and a nullable column. To a release that lacks it, a person's session is nobody's, and is refused.
backward_compatible: bool = True

allowed_findings = {
    "blocking-index": "a session lasts a day, so the table is small",
    "blocking-constraint": "a session lasts a day, so the table is small",
    "squawk/adding-foreign-key-constraint": "a session lasts a day, so the table is small",
    "squawk/constraint-missing-not-valid": "a session lasts a day, so the table is small",
    "squawk/require-concurrent-index-creation": "a session lasts a day, so the table is small",
}

# Who signs in once more has not changed.
WITHOUT_USE = "to_jsonb({row}) - 'signed_in_at'"


def upgrade() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("groups", ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("signed_in_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("issuer", "subject", name="uq_people_issuer_subject"),
    )
    op.add_column("browser_sessions", sa.Column("person_id", sa.Integer(), nullable=True))
    op.create_foreign_key(
        "fk_browser_sessions_person_id_people", "browser_sessions", "people", ["person_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index("ix_browser_sessions_person_id", "browser_sessions", ["person_id"])
    call = "EXECUTE FUNCTION record_change('person', 'id')"
    op.execute(f"CREATE TRIGGER record_change AFTER INSERT OR DELETE ON people FOR EACH ROW {call}")
    op.execute(
        "CREATE TRIGGER record_update AFTER UPDATE ON people FOR EACH ROW WHEN "
        f"({WITHOUT_USE.format(row='OLD')} IS DISTINCT FROM {WITHOUT_USE.format(row='NEW')}) {call}"
    )
    op.execute(f"CREATE TRIGGER record_truncation AFTER TRUNCATE ON people FOR EACH STATEMENT {call}")


def downgrade() -> None:
    op.drop_column("browser_sessions", "person_id")
    op.drop_table("people")
