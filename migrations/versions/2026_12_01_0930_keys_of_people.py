"""keys that people make themselves

Revises: e7a3915c40bd
Created: 2026-12-01 09:30:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "e93a5c20d718"
down_revision: str | None = "e7a3915c40bd"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Nullable columns: a release that lacks them neither reads nor writes them. The triggers work for its sign-ins, too.
backward_compatible: bool = True

allowed_findings = {
    "blocking-index": "a new column has no value; a million keys are read in a second",
    "blocking-constraint": "a new column has no value; a million keys are read in a second",
    "squawk/adding-foreign-key-constraint": "a new column has no value; a million keys are read in a second",
    "squawk/constraint-missing-not-valid": "a new column has no value; a million keys are read in a second",
    "squawk/require-concurrent-index-creation": "a new column has no value; a million keys are read in a second",
}

# Groups and profiles may change in two transactions at once, and neither would see what the other has changed. So they
# take turns, until they are committed; what comes after it sees all.
TAKE_TURNS = "PERFORM pg_advisory_xact_lock(hashtextextended('gasket open profiles ' || TG_TABLE_SCHEMA, 0));"

# Keys that a person has made in a profile: orphaned while none of the person's groups opens it. In the order of their
# ids, so that two transactions do not wait for each other.
MARK_KEYS = """
            EXECUTE format(
                'UPDATE %1$I.api_keys SET orphaned_at = CASE WHEN orphaned_at IS NULL THEN now() END WHERE id IN ('
                'SELECT k.id FROM %1$I.api_keys AS k JOIN %1$I.people AS p ON p.id = k.person_id '
                'JOIN %1$I.backend_profiles AS b ON b.id = k.profile_id WHERE {which}.id = $1 '
                'AND (k.orphaned_at IS NULL) <> coalesce(b.open_to_groups && p.groups, false) '
                'ORDER BY k.id FOR NO KEY UPDATE OF k)', TG_TABLE_SCHEMA
            ) USING NEW.id;
"""

FUNCTIONS = (
    # A sign-in: who has lost the last group that opened a profile loses all sessions; a new one begins after this.
    f"""
        CREATE FUNCTION follow_groups() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
        BEGIN
            {TAKE_TURNS}
            EXECUTE format(
                'DELETE FROM %1$I.browser_sessions WHERE person_id = $1 AND EXISTS ('
                'SELECT FROM %1$I.backend_profiles WHERE open_to_groups && $2 AND NOT open_to_groups && $3)',
                TG_TABLE_SCHEMA
            ) USING NEW.id, OLD.groups, NEW.groups;
            {MARK_KEYS.format(which="p")}
            RETURN NULL;
        END $$
    """,
    # A profile is closed to somebody: whose session is good for own keys alone loses it.
    f"""
        CREATE FUNCTION follow_open_profile() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
        BEGIN
            {TAKE_TURNS}
            EXECUTE format(
                'DELETE FROM %1$I.browser_sessions AS s USING %1$I.people AS p WHERE p.id = s.person_id '
                'AND s.role = ''user'' AND p.groups && $1 AND NOT coalesce(p.groups && $2, false)', TG_TABLE_SCHEMA
            ) USING OLD.open_to_groups, NEW.open_to_groups;
            {MARK_KEYS.format(which="b")}
            RETURN NULL;
        END $$
    """,
)


def upgrade() -> None:
    op.add_column(
        "backend_profiles",
        sa.Column(
            "open_to_groups",
            ARRAY(sa.Text()),
            nullable=True,
            comment="Whose people make keys for themselves; null: nobody",
        ),
    )
    op.add_column(
        "api_keys",
        sa.Column("person_id", sa.Integer(), nullable=True, comment="Who made it for themselves; null: nobody did"),
    )
    op.add_column(
        "api_keys",
        sa.Column(
            "orphaned_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Since when no group of the person opens the profile; null: one does, or there is no person",
        ),
    )
    op.create_foreign_key(
        "fk_api_keys_person_id_people", "api_keys", "people", ["person_id"], ["id"], ondelete="SET NULL"
    )
    op.create_index("ix_api_keys_person_id", "api_keys", ["person_id"])
    for statement in FUNCTIONS:
        op.execute(statement)
    op.execute(
        "CREATE TRIGGER follow_groups AFTER UPDATE ON people FOR EACH ROW "
        "WHEN (OLD.groups IS DISTINCT FROM NEW.groups) EXECUTE FUNCTION follow_groups()"
    )
    op.execute(
        "CREATE TRIGGER follow_open_profile AFTER UPDATE ON backend_profiles FOR EACH ROW "
        "WHEN (OLD.open_to_groups IS DISTINCT FROM NEW.open_to_groups) EXECUTE FUNCTION follow_open_profile()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER follow_open_profile ON backend_profiles")
    op.execute("DROP TRIGGER follow_groups ON people")
    op.execute("DROP FUNCTION follow_open_profile()")
    op.execute("DROP FUNCTION follow_groups()")
    op.drop_column("api_keys", "orphaned_at")
    op.drop_column("api_keys", "person_id")
    op.drop_column("backend_profiles", "open_to_groups")
