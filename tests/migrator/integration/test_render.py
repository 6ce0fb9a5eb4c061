"""A downgrade taken back through its rendered SQL leaves what the downgrade itself leaves, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import postgresql

from gasket.migrator.catalog.read import Catalog, read_catalog
from gasket.migrator.sql.render import from_json, render, replay, to_json
from gasket.migrator.synchronous import run_sync

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
SETUP = """
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE t (id int PRIMARY KEY, a text, b int, c numeric(10, 2), at timestamptz, doc jsonb, raw bytea, ok boolean);
CREATE SEQUENCE own_seq;
INSERT INTO parent VALUES (1, 'p'), (3, 'q'), (6, 'r');
INSERT INTO t VALUES (1, '12', 3, 4.5, '2026-01-31', '{"k": 1}', '\\x00ff', true);
INSERT INTO t VALUES (2, NULL, 6, 7, NULL, NULL, NULL, false);
"""
MOOD = postgresql.ENUM("ok", "it's", 'in "quotes"', name="mood")
Step = Callable[[], object]


@dataclass(frozen=True)
class Revision:
    """The way down from what `upgrade`, a function or SQL, made of the setup; not `of_catalog`: it changes rows."""

    downgrade: Step
    upgrade: Step | str = "SELECT"
    of_catalog: bool = True


def create_table_with_everything() -> None:
    op.create_table(
        "everything",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True, start=5, increment=2)),
        sa.Column("serial", sa.Integer(), sa.Sequence("own_seq"), server_default=sa.text("nextval('own_seq')")),
        sa.Column("parent_id", sa.Integer(), sa.ForeignKey("parent.id", ondelete="SET NULL"), index=True),
        sa.Column("text", sa.Text(), server_default='it\'s 5% of a:b \\ and "c"', comment="it's\n\t'so' 100% \\"),
        sa.Column("code", sa.String(10, collation="C"), nullable=False, unique=True),
        sa.Column("price", sa.Numeric(12, 4), sa.CheckConstraint("price > 0", name="positive")),
        sa.Column("total", sa.Numeric(), sa.Computed("price * 2", persisted=True)),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{a,b}'")),
        sa.Column("doc", postgresql.JSONB(), server_default=sa.text("""'{"a": "b:c"}'::jsonb""")),
        sa.Column("mood", MOOD, server_default="it's"),
        sa.Column("during", postgresql.TSTZRANGE()),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("Odd Name", sa.Uuid()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code", "mood", deferrable=True, initially="DEFERRED"),
        postgresql.ExcludeConstraint(("during", "&&"), name="no_overlap", using="gist"),
        comment="a table's comment",
        postgresql_with={"fillfactor": 70},
    )


def create_indexes() -> None:
    op.create_index(None, "t", ["a", sa.text("b DESC NULLS LAST")], unique=True)
    op.create_index("ix_expression", "t", [sa.text("lower(a)"), sa.text("(b % 7)")])
    op.create_index("ix_partial", "t", ["b"], postgresql_where=sa.text("a <> 'x:y' AND b % 2 = 0"))
    op.create_index("ix_doc", "t", ["doc"], postgresql_using="gin", postgresql_ops={"doc": "jsonb_path_ops"})
    op.create_index("ix_include", "t", ["b"], postgresql_include=["a", "c"], postgresql_with={"fillfactor": 60})


def drop_indexes() -> None:
    for name in (op.f("ix_t_a_b"), "ix_expression", "ix_partial", "ix_doc", "ix_include"):
        op.drop_index(name, table_name="t", if_exists=True)


def index_concurrently() -> None:
    with op.get_context().autocommit_block():
        op.create_index("ix_slow", "t", ["a"], postgresql_concurrently=True, if_not_exists=True)


def drop_index_concurrently() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_slow", table_name="t", postgresql_concurrently=True)
        op.execute("COMMENT ON TABLE t IS 'in the same block'")
    op.execute("COMMENT ON COLUMN t.a IS 'in a transaction again'")


def add_constraints() -> None:
    op.create_check_constraint("b_small", "t", sa.column("b") < 100)
    op.create_check_constraint("named", "t", "a NOT LIKE '5%' AND a <> 'it''s'")
    op.create_foreign_key(None, "t", "parent", ["b"], ["id"], ondelete="CASCADE", deferrable=True)
    op.create_unique_constraint(None, "t", ["a", "b"], postgresql_nulls_not_distinct=None)
    op.execute("ALTER TABLE t ADD CONSTRAINT later CHECK (b > 0) NOT VALID")


def drop_constraints() -> None:
    op.drop_constraint(op.f("later"), "t", type_="check")
    op.drop_constraint(op.f("uq_t_a_b"), "t", type_="unique")
    op.drop_constraint(op.f("fk_t_b_parent"), "t", type_="foreignkey", if_exists=True)
    op.drop_constraint("named", "t", type_="check")
    op.drop_constraint("b_small", "t", type_="check")


def alter_columns() -> None:
    op.alter_column("t", "a", type_=sa.Integer(), postgresql_using="a::integer", existing_type=sa.Text())
    op.alter_column("t", "b", nullable=False, server_default=sa.text("7"), comment="seven", type_=sa.BigInteger())
    op.alter_column("t", "c", new_column_name="amount", server_default="0.00")


def alter_columns_back() -> None:
    op.alter_column("t", "amount", new_column_name="c", server_default=None)
    op.alter_column("t", "b", nullable=True, server_default=None, comment=None, type_=sa.Integer())
    op.alter_column("t", "a", type_=sa.Text(), postgresql_using="a::text", existing_type=sa.Integer())


def swap_enum() -> None:
    """What removing a value from an enum takes."""
    op.execute("ALTER TYPE mood RENAME TO mood_old")
    postgresql.ENUM("ok", "it's", name="mood").create(op.get_bind(), checkfirst=False)
    op.execute("ALTER TABLE u ALTER COLUMN m TYPE mood USING m::text::mood")
    op.execute("DROP TYPE mood_old")


def trigger_and_function() -> None:
    op.execute(
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $body$\nDECLARE\n\tn int := 5 % 3;  -- 100%\n"
        "BEGIN\n\tIF NEW.a = '$1 $$ it''s' THEN\n\t\tRAISE NOTICE '% and %', NEW.a, n;\n\tEND IF;\n"
        "\tNEW.at := now();\n\tRETURN NEW;\nEND\n$body$"
    )
    op.execute("CREATE TRIGGER stamp BEFORE UPDATE OF a, b ON t FOR EACH ROW EXECUTE FUNCTION stamp()")
    op.execute("CREATE FUNCTION plus(int, int DEFAULT 1) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2'")
    op.execute(r"""CREATE VIEW seen AS SELECT id, a AS "A", E'x\\y' AS "50%" FROM t WHERE a ~ '^\w\:\d'""")


def drop_trigger_and_function() -> None:
    op.execute("DROP VIEW seen")
    op.execute("DROP FUNCTION plus(int, int)")
    op.execute("DROP TRIGGER stamp ON t")
    op.execute("DROP FUNCTION stamp()")


def change_rows() -> None:
    t = sa.table("t", sa.column("id", sa.Integer), sa.column("a", sa.Text), sa.column("doc", postgresql.JSONB()))
    bind = op.get_bind()
    op.execute("UPDATE t SET a = 'it''s 5% % %(a)s %s ' || a || ' \\:x' WHERE a IS NOT NULL")
    op.execute(sa.text("UPDATE t SET b = b + :n, a = coalesce(a, :x)").bindparams(n=-5, x="C:\\:tab\t\n'quoted' $1 %"))
    op.execute(t.update().where(t.c.id.in_([1, 9])).values(doc={"it's": [1, None, '\\ " %']}))
    parents: list[dict[str, object]] = [{"id": 7, "name": "s"}, {"id": 8, "name": None}]
    bind.execute(sa.text("INSERT INTO parent (id, name) VALUES (:id, :name)"), parents)
    bind.execute(sa.delete(t).where(t.c.id == sa.bindparam("which")), {"which": 2})
    bind.exec_driver_sql("UPDATE t SET at = at + interval '1 day' WHERE a LIKE '%it''s%'")
    op.execute(sa.text("SELECT set_config('gasket.note', :v, false)").bindparams(v="x"))


def insert_rows() -> None:
    op.bulk_insert(
        sa.table(
            "t",
            sa.column("id", sa.Integer),
            sa.column("a", sa.Text),
            sa.column("c", sa.Numeric(10, 2)),
            sa.column("at", sa.DateTime(timezone=True)),
            sa.column("doc", postgresql.JSONB()),
            sa.column("raw", sa.LargeBinary()),
            sa.column("ok", sa.Boolean()),
        ),
        [
            {
                "id": 10,
                "a": "é ' \\ :b %",
                "c": Decimal("-1.50"),
                "at": datetime(2026, 7, 1, tzinfo=UTC),
                "doc": {"a": None},
                "raw": b"\x00'\\",
                "ok": True,
            },
            {"id": 11, "a": None, "c": None, "at": None, "doc": None, "raw": None, "ok": None},
        ],
    )


def batch() -> None:
    with op.batch_alter_table("t") as t:
        t.add_column(sa.Column("x", sa.Integer(), server_default="4", nullable=False))
        t.alter_column("a", new_column_name="z")
        t.create_index("ix_z", ["z"])


def batch_back() -> None:
    with op.batch_alter_table("t") as t:
        t.drop_index("ix_z")
        t.alter_column("z", new_column_name="a")
        t.drop_column("x")


def drop_table_with_everything() -> None:
    op.drop_table("everything")
    MOOD.drop(op.get_bind())


def use_an_enum() -> None:
    MOOD.create(op.get_bind())
    there = postgresql.ENUM(name="mood", create_type=False)
    op.create_table("u", sa.Column("m", there, sa.CheckConstraint("m <> 'ok'", name="m")))


def exchange_sequences() -> None:
    op.execute(sa.schema.DropSequence(sa.Sequence("own_seq")))
    sa.Sequence("next_seq", start=-4, increment=-1, minvalue=-9).create(op.get_bind())


def comment() -> None:
    op.create_table_comment("t", "it's 100% :so \\ \t")
    op.alter_column("t", "a", comment="a:b")


def drop_comments() -> None:
    op.drop_table_comment("t")
    op.alter_column("t", "a", comment=None, existing_comment="y")


def make_identity() -> None:
    op.alter_column("t", "b", nullable=False)
    op.alter_column("t", "b", server_default=sa.Identity(start=50, cycle=True), existing_server_default=None)


def protect() -> None:
    op.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    op.execute("CREATE POLICY p ON t USING (a LIKE current_user || '%')")
    op.execute("GRANT SELECT (a), UPDATE ON t TO PUBLIC")
    op.execute("CREATE STATISTICS st ON a, b FROM t")
    op.execute("CREATE RULE r AS ON DELETE TO t WHERE OLD.b = 5 DO INSTEAD NOTHING")


def do() -> None:
    op.execute("DO $$ BEGIN EXECUTE format('ALTER TABLE %I ADD COLUMN %I int', 't', 'n\\:m'); END $$")


REVISIONS = {
    "drop table": Revision(drop_table_with_everything, create_table_with_everything),
    "create table": Revision(create_table_with_everything),
    "drop indexes": Revision(drop_indexes, create_indexes),
    "create indexes": Revision(create_indexes),
    "drop index concurrently": Revision(drop_index_concurrently, index_concurrently),
    "create index concurrently": Revision(index_concurrently),
    "drop constraints": Revision(drop_constraints, add_constraints),
    "add constraints": Revision(add_constraints),
    "alter columns back": Revision(alter_columns_back, alter_columns),
    "alter columns": Revision(alter_columns),
    "drop column": Revision(
        lambda: op.drop_column("t", "m", if_exists=True),
        lambda: op.add_column("t", sa.Column("m", sa.Integer(), sa.ForeignKey("parent.id"), comment="c", index=True)),
    ),
    "add column": Revision(
        lambda: op.add_column("t", sa.Column("n", sa.String(5), server_default="it's%", nullable=False, unique=False)),
    ),
    "change an enum": Revision(swap_enum, "CREATE TYPE mood AS ENUM ('ok', 'bad'); CREATE TABLE u (m mood)"),
    "use an enum that is there": Revision(use_an_enum, "CREATE TYPE mood AS ENUM ('ok', 'it''s', 'in \"quotes\"')"),
    "use an enum": Revision(use_an_enum),
    "drop an enum": Revision(lambda: MOOD.drop(op.get_bind()), lambda: MOOD.create(op.get_bind())),
    "drop an enum that is gone": Revision(lambda: MOOD.drop(op.get_bind()), of_catalog=False),
    "drop a domain": Revision(
        lambda: postgresql.DOMAIN("small", sa.Integer()).drop(op.get_bind()),
        lambda: postgresql.DOMAIN("small", sa.Integer(), check="VALUE < 5").create(op.get_bind()),
    ),
    "exchange sequences": Revision(exchange_sequences),
    "drop functions and triggers": Revision(drop_trigger_and_function, trigger_and_function),
    "create functions and triggers": Revision(trigger_and_function),
    "comment": Revision(comment),
    "drop comments": Revision(drop_comments, "COMMENT ON TABLE t IS 'x'; COMMENT ON COLUMN t.a IS 'y'"),
    "rename a table": Revision(lambda: op.rename_table("Odd t", "t"), lambda: op.rename_table("t", "Odd t")),
    "a batch back": Revision(batch_back, batch),
    "a batch": Revision(batch),
    "make a column identity": Revision(make_identity),
    "policies, privileges, rules": Revision(protect),
    "DO": Revision(do),
    "change rows": Revision(change_rows, "UPDATE t SET a = 'x' WHERE id = 1", of_catalog=False),
    "insert rows": Revision(insert_rows, of_catalog=False),
}


async def run(connection: asyncpg.Connection, work: Callable[[MigrationContext], object]) -> None:
    """Work in a transaction of Alembic's, as a step is."""

    def in_transaction(over: sa.Connection) -> None:
        context = MigrationContext.configure(over, opts={"target_metadata": METADATA})
        with context.begin_transaction(), Operations.context(context):
            work(context)

    await run_sync(connection, in_transaction)


async def contents(connection: asyncpg.Connection) -> dict[str, list[str]]:
    tables = await connection.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {
        name: [row[0] for row in await connection.fetch(f"SELECT x::text FROM {name} AS x ORDER BY 1")]
        for (name,) in tables
    }


async def take(
    connection: asyncpg.Connection, revision: Revision, back: Callable[[MigrationContext], object]
) -> tuple[Catalog, Catalog, dict[str, list[str]]]:
    """The catalog above, the catalog below and the rows below, when the way down is `back`."""
    await connection.execute(f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {SETUP}")
    upgrade = revision.upgrade
    if isinstance(upgrade, str):
        await connection.execute(upgrade)
    else:
        await run(connection, lambda _: upgrade())
    above = await read_catalog(connection, "public")
    await run(connection, back)
    return above, await read_catalog(connection, "public"), await contents(connection)


@pytest.mark.parametrize("revision", REVISIONS.values(), ids=REVISIONS)
async def test_the_rendered_downgrade_equals_the_downgrade(revision: Revision, connection: asyncpg.Connection) -> None:
    rendering = render(revision.downgrade, metadata=METADATA)
    assert rendering.reason is None
    stored = from_json(to_json(rendering))
    real = await take(connection, revision, lambda _: revision.downgrade())
    above, below, _rows = real
    assert (above != below) is revision.of_catalog
    assert await take(connection, revision, lambda context: replay(context, stored.statements)) == real


VALUES: list[tuple[object, Any]] = [
    (True, None),
    (-5, None),
    (2**31, None),
    (2**62, sa.BigInteger()),
    (-(2**15), sa.SmallInteger()),
    (1e-7, None),
    (float("inf"), sa.Float()),
    (Decimal("-0.00001"), None),
    (Decimal("1.005"), sa.Numeric(4, 2)),
    ('it\'s \\ \\: :x %s %% $1 "q" \n\t é', None),
    ("long", sa.String(2)),
    ("fixed", sa.CHAR(7)),
    (b"\x00\xff'\\", sa.LargeBinary()),
    (date(1, 1, 2), None),
    (date.min, None),
    (date.max, sa.Date()),
    (datetime.min, None),
    (datetime.max, sa.DateTime(timezone=True)),
    (datetime.max.replace(tzinfo=UTC), sa.DateTime(timezone=True)),
    (datetime.min.replace(tzinfo=UTC), sa.DateTime(timezone=True)),
    (time(23, 59, 59, 999_999), None),
    (datetime(2026, 7, 1, 12), None),
    (datetime(2026, 7, 1, 12), sa.DateTime(timezone=True)),
    (datetime(2026, 7, 1, 12, 0, 0, 5, tzinfo=UTC), sa.DateTime(timezone=True)),
    (timedelta(days=-3, seconds=7, microseconds=9), None),
    (UUID(int=5), None),
    ("00000000-0000-0000-0000-00000000000a", postgresql.UUID(as_uuid=False)),
    ({"a": ["it's", 1.5, None, "\\u0041 \\"]}, postgresql.JSONB()),
    ({"b": 1, "a": [{}]}, sa.JSON()),
    (None, sa.JSON()),
    (None, sa.Integer()),
    ("it's", MOOD),
    (["a", None, 'b"\\,{} ', "NULL", ""], postgresql.ARRAY(sa.Text())),
    ([[1, 2], [3, None]], postgresql.ARRAY(sa.Integer())),
    ([datetime(2026, 7, 1)], postgresql.ARRAY(sa.DateTime(timezone=True))),
    ([], postgresql.ARRAY(sa.Integer())),
]


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_a_literal_is_what_the_parameter_is(conforming: str, connection: asyncpg.Connection) -> None:
    """Value and type, as PostgreSQL sees them; in a session that is set otherwise than this process."""
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TYPE mood AS ENUM ('it''s')")
    await connection.execute("CREATE TABLE seen (type text, value text)")
    await connection.execute(f"SET timezone = 'Asia/Tokyo'; SET standard_conforming_strings = {conforming}")
    for value, type_ in VALUES:
        insert = sa.text("INSERT INTO seen SELECT pg_typeof(v), v FROM (SELECT :v AS v) AS given").bindparams(
            sa.bindparam("v", value, type_=type_)
        )
        rendering = render(lambda insert=insert: op.execute(insert))  # type: ignore[misc]
        assert rendering.reason is None
        await run(connection, lambda _, insert=insert: op.execute(insert))  # type: ignore[misc]
        await run(connection, lambda context, rendering=rendering: replay(context, rendering.statements))  # type: ignore[misc]
        sent, rendered = await connection.fetch("DELETE FROM seen RETURNING type, value")
        assert rendered == sent, (value, type_)
    await connection.execute("RESET ALL")


async def test_rendering_in_the_middle_of_a_run_touches_neither_run_nor_database(
    connection: asyncpg.Connection,
) -> None:
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    rendered: list[str] = []

    def step(_context: MigrationContext) -> None:
        op.execute("CREATE TABLE one (id int)")
        rendered.extend(statement.sql for statement in render(lambda: op.drop_table("one")).statements)
        assert render(lambda: op.execute("DELETE FROM :missing")).reason
        op.execute("CREATE TABLE two (id int)")

    await run(connection, step)
    assert rendered == ["DROP TABLE one"]
    assert await contents(connection) == {"one": [], "two": []}
