"""Rendering a revision's function to SQL: what is noted, and what is refused."""

from __future__ import annotations

import contextlib
import enum
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import alembic.context
import alembic.op
import pytest
import sqlalchemy as sa
from alembic import context, op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from gasket.migrator.sql.render import Rendering, Statement, from_json, render, to_json

Body = Callable[[], object]
BY_MISTAKE: Any = "SELECT 1"
T = sa.table("t", sa.column("id", sa.Integer), sa.column("name", sa.Text), sa.column("at", sa.DateTime(timezone=True)))


def sql(body: Body, metadata: sa.MetaData | None = None) -> list[str]:
    rendering = render(body, metadata=metadata)
    assert rendering.reason is None
    return [statement.sql for statement in rendering.statements]


def one(body: Body) -> str:
    [statement] = sql(body)
    return statement


# What is noted


def test_operations_become_statements_in_order() -> None:
    def downgrade() -> None:
        op.drop_index("ix_t_a", "t")
        op.drop_constraint("uq_t_a", "t", type_="unique")
        op.alter_column("t", "a", nullable=True, server_default=None, new_column_name="b")
        op.drop_table("u")

    assert sql(downgrade) == [
        "DROP INDEX ix_t_a",
        "ALTER TABLE t DROP CONSTRAINT uq_t_a",
        "ALTER TABLE t ALTER COLUMN a DROP NOT NULL",
        "ALTER TABLE t ALTER COLUMN a DROP DEFAULT",
        "ALTER TABLE t RENAME a TO b",
        "DROP TABLE u",
    ]


def test_a_text_is_kept_to_the_letter() -> None:
    body = "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS $body$\n\tSELECT $1 % 7;  -- 100%\n$body$"
    assert one(lambda: op.execute(body)) == body
    assert one(lambda: op.get_bind().exec_driver_sql("SELECT '%s :x \\: '")) == "SELECT '%s :x \\: '"
    assert one(lambda: op.execute(r"SELECT ' \:x ', '5%', 'a'::text")) == "SELECT ' :x ', '5%', 'a'::text"


def test_statements_of_an_autocommit_block_are_flagged() -> None:
    def downgrade() -> None:
        op.execute("SELECT 1")
        with op.get_context().autocommit_block():
            op.drop_index("ix", postgresql_concurrently=True)
        op.execute("SELECT 2")

    assert render(downgrade).statements == (
        Statement("SELECT 1"),
        Statement("DROP INDEX CONCURRENTLY ix", autocommit=True),
        Statement("SELECT 2"),
    )


def test_names_follow_the_naming_convention() -> None:
    metadata = sa.MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_name)s"})
    [named] = sql(lambda: op.create_unique_constraint(None, "t", ["a"]), metadata)
    assert named == "ALTER TABLE t ADD CONSTRAINT uq_t_a UNIQUE (a)"


def test_enums_do_not_depend_on_what_was_there_before() -> None:
    mood = postgresql.ENUM("ok", "$gasket$", name="mood")

    def body() -> None:
        op.create_table("a", sa.Column("m", mood))
        op.create_table("b", sa.Column("m", mood))
        mood.drop(op.get_bind(), checkfirst=False)

    created, _, _, dropped = sql(body)
    assert created == (
        "DO $gasket_$ BEGIN CREATE TYPE mood AS ENUM ('ok', '$gasket$'); "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $gasket_$"
    )
    assert dropped == "DROP TYPE IF EXISTS mood"


def test_domains_do_not_either() -> None:
    positive = postgresql.DOMAIN("positive", sa.Integer(), check="VALUE > 0")

    def body() -> None:
        positive.create(op.get_bind())
        positive.drop(op.get_bind())

    created, dropped = sql(body)
    assert created.startswith("DO $gasket$ BEGIN CREATE DOMAIN positive AS INTEGER CHECK (VALUE > 0); EXCEPTION")
    assert dropped == "DROP DOMAIN IF EXISTS positive"


def test_a_check_before_create_or_drop_is_in_the_statement() -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.Text))
    index = sa.Index("ix", table.c.x)

    def body() -> None:
        bind = op.get_bind()
        table.drop(bind, checkfirst=True)
        table.drop(bind, checkfirst=False)
        index.create(bind, checkfirst=True)
        sa.Sequence("s").create(bind)
        table.metadata.drop_all(bind)

    assert sql(body) == [
        "DROP TABLE IF EXISTS t",
        "DROP TABLE t",
        "CREATE INDEX IF NOT EXISTS ix ON t (x)",
        "CREATE SEQUENCE IF NOT EXISTS s",
        "DROP TABLE IF EXISTS t",
    ]


def test_rows_are_written_out_one_by_one() -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "name": "it's 5% :x"}, {"id": 2, "name": None}]
    assert (
        sql(lambda: op.bulk_insert(T, rows))
        == sql(lambda: op.get_bind().execute(T.insert(), rows))
        == [
            "INSERT INTO t (id, name) VALUES (1::INTEGER, 'it''s 5% :x'::VARCHAR)",
            "INSERT INTO t (id, name) VALUES (2::INTEGER, NULL::VARCHAR)",
        ]
    )


@pytest.mark.parametrize(
    "statement",
    [
        sa.text("DELETE FROM t WHERE id = :i").bindparams(i=7),
        sa.delete(T).where(T.c.id == 7),
        sa.delete(T).where(T.c.id == sa.bindparam("i", 7)),
    ],
    ids=["text", "delete", "delete with bindparam"],
)
def test_parameters_of_a_statement_are_written_out(statement: sa.Executable) -> None:
    assert one(lambda: op.execute(statement)).endswith("id = 7::INTEGER")


def test_parameters_given_to_execute_are_written_out() -> None:
    update = sa.update(T).where(T.c.id == sa.bindparam("which"))
    values = {"which": 3, "name": "x"}
    assert one(lambda: op.get_bind().execute(update, values)) == (
        "UPDATE t SET name='x'::VARCHAR WHERE t.id = 3::INTEGER"
    )
    # No type is known, as none is known to the driver: PostgreSQL takes it from where the value stands.
    assert one(lambda: op.get_bind().execute(sa.text("SELECT :a || :b"), {"a": "x", "b": 5})) == "SELECT 'x' || '5'"


def test_lists_of_in_are_written_out() -> None:
    assert one(lambda: op.execute(sa.delete(T).where(T.c.id.in_([1, 2])))).endswith("id IN (1::INTEGER, 2::INTEGER)")
    assert one(lambda: op.execute(sa.delete(T).where(T.c.id.in_([])))).endswith("id IN (NULL) AND (1 != 1)")
    expanding = sa.text("DELETE FROM t WHERE id IN :ids").bindparams(sa.bindparam("ids", expanding=True))
    assert one(lambda: op.get_bind().execute(expanding, {"ids": [4]})).endswith("IN ('4')")


def test_an_inline_literal_stays_what_alembic_makes_of_it() -> None:
    assert one(lambda: op.execute(T.update().values(name=op.inline_literal("x")))) == "UPDATE t SET name='x'"


def test_the_type_that_a_column_had_is_kept_beside() -> None:
    def upgrade() -> None:
        op.alter_column("t", "a", type_=sa.String(20), existing_type=sa.String(10))

    [statement] = render(upgrade).statements
    assert (statement.sql, statement.was) == ("ALTER TABLE t ALTER COLUMN a TYPE VARCHAR(20)", "VARCHAR(10)")


def test_a_batch_without_recreation_is_plain_alter_table() -> None:
    def downgrade() -> None:
        with op.batch_alter_table("t") as batch:
            batch.drop_column("a")
            batch.drop_column("b")

    assert sql(downgrade) == ["ALTER TABLE t DROP COLUMN a", "ALTER TABLE t DROP COLUMN b"]


class Mood(enum.Enum):
    ok = "fine"


@pytest.mark.parametrize(
    ("value", "type_", "literal"),
    [
        (True, sa.Boolean(), "true::BOOLEAN"),
        (5, sa.Integer(), "5::INTEGER"),
        (-(2**31), sa.Integer(), "'-2147483648'::INTEGER"),
        (2**40, sa.BigInteger(), "1099511627776::BIGINT"),
        (1.5, sa.Float(), "'1.5'::FLOAT"),
        (Decimal("1.50"), sa.Numeric(10, 2), "'1.50'::NUMERIC(10, 2)"),
        ("a", sa.String(9), "'a'::VARCHAR"),
        ("it's", sa.Text(), "'it''s'::VARCHAR"),
        ("C:\\:x\\", sa.Text(), r"E'C:\x5c:x\x5c'::VARCHAR"),
        (b"\x00\xff'", sa.LargeBinary(), r"E'\x5cx00ff27'::BYTEA"),
        (date(2026, 1, 31), sa.Date(), "'2026-01-31'::DATE"),
        (time(1, 2, 3, 4), sa.Time(), "'01:02:03.000004'::TIME WITHOUT TIME ZONE"),
        (datetime(2026, 1, 31, 5), sa.DateTime(), "'2026-01-31 05:00:00'::TIMESTAMP WITHOUT TIME ZONE"),
        (
            datetime(2026, 1, 31, 5, tzinfo=UTC),
            sa.DateTime(timezone=True),
            "'2026-01-31 05:00:00+00:00'::TIMESTAMP WITH TIME ZONE",
        ),
        (timedelta(days=-1, microseconds=5), sa.Interval(), "'-1 days 0.000005 seconds'::INTERVAL"),
        (UUID(int=1), sa.Uuid(), "'00000000-0000-0000-0000-000000000001'::UUID"),
        (str(UUID(int=1)), postgresql.UUID(as_uuid=False), "'00000000-0000-0000-0000-000000000001'::UUID"),
        ({"a": ["it's", 1, None]}, postgresql.JSONB(), """'{"a": ["it''s", 1, null]}'::JSONB"""),
        (None, sa.JSON(), "'null'::JSON"),
        (None, sa.JSON(none_as_null=True), "NULL::JSON"),
        (ip_network("10.0.0.0/8"), postgresql.CIDR(), "'10.0.0.0/8'"),
        (Mood.ok, sa.Enum(Mood, name="mood"), "'ok'::mood"),
        (["a", 'b"\\,{}', None], postgresql.ARRAY(sa.Text()), 'E\'{"a","b\\x5c"\\x5c\\x5c,{}",NULL}\'::TEXT[]'),
        ([[1, 2], [3, 4]], postgresql.ARRAY(sa.Integer()), """'{{"1","2"},{"3","4"}}'::INTEGER[]"""),
        ([], postgresql.ARRAY(sa.Integer()), "'{}'::INTEGER[]"),
    ],
)
def test_a_literal_has_the_value_and_the_type_of_the_parameter(value: object, type_: object, literal: str) -> None:
    statement = sa.text("SELECT :v").bindparams(sa.bindparam("v", value, type_=type_))  # type: ignore[arg-type]
    assert one(lambda: op.execute(statement)) == f"SELECT {literal}"


def test_a_type_that_wraps_its_parameters_still_does() -> None:
    class Lower(sa.TypeDecorator[str]):
        impl = sa.Text
        cache_ok = True

        def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str:
            return f"<{value}>"

        def bind_expression(self, bindparam: sa.BindParameter[str]) -> sa.ColumnElement[str]:
            return sa.func.lower(bindparam)

    statement = sa.text("SELECT :v").bindparams(sa.bindparam("v", "X", type_=Lower()))
    assert one(lambda: op.execute(statement)) == "SELECT lower('<X>'::VARCHAR)"


@pytest.mark.parametrize(("text", "literal"), [("it's", "'it''s'"), ("\\'", r"E'\x5c'''")])
def test_quoting(text: str, literal: str) -> None:
    assert one(lambda: op.execute(sa.text("SELECT :v").bindparams(v=text))) == f"SELECT {literal}::VARCHAR"


# What is refused


def read(query: str = "SELECT 1") -> sa.CursorResult[object]:
    return op.get_bind().execute(sa.text(query))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda: read().scalar(), "uses the result of a statement"),
        (lambda: list(read()), "uses the result of a statement"),
        (lambda: read().rowcount > 0, "uses the result of a statement"),
        (lambda: 1 if read() else 0, "uses the result of a statement"),
        (lambda: next(iter(read())), "uses the result of a statement"),
        (lambda: op.get_bind().scalar(sa.text("SELECT 1")), "uses .scalar of the connection"),
        (lambda: sa.inspect(op.get_bind()), "inspects the database"),
        (lambda: sa.Table("t", sa.MetaData(), autoload_with=op.get_bind()), "inspects the database"),
        (lambda: sa.MetaData().reflect(op.get_bind()), "inspects the database"),
        (lambda: op.get_bind().dialect.has_table(op.get_bind(), "t"), "uses .scalar of the connection"),
        (
            lambda: orm.Session(op.get_bind()).execute(sa.text("SELECT 1")),
            "uses .in_nested_transaction of the connection",
        ),
        (lambda: orm.Session(op.get_bind()).query(sa.text("x")).all(), "uses .in_nested_transaction of the connection"),
        (lambda: op.get_bind().engine.connect(), "uses .connect of the connection"),
        (lambda: op.get_bind().commit(), "uses .commit of the connection"),
        (lambda: op.get_bind().begin_nested(), "uses .begin_nested of the connection"),
        (lambda: op.get_bind().execution_options(isolation_level="AUTOCOMMIT"), "sets execution options"),
        (lambda: op.execute("SELECT 1", execution_options={"schema_translate_map": {}}), "sets execution options"),
        (lambda: op.execute("  COMMIT"), r"controls the transaction \(COMMIT\)"),
        (lambda: op.execute("/* so */ -- and\n savepoint x"), "controls the transaction"),
        (lambda: op.execute("DELETE FROM t WHERE id = :id"), "gives parameter :id no value"),
        (lambda: op.execute("COMMENT ON TABLE t IS 'see :this'"), "gives parameter :this no value"),
        (lambda: op.execute(T.update().values(name=sa.bindparam("n"))), "gives parameter :n no value"),
        (lambda: op.get_bind().exec_driver_sql("SELECT $1", (1,)), "gives exec_driver_sql parameters"),
        (lambda: op.get_bind().execute(BY_MISTAKE), "executes a str, which is no statement"),
        (lambda: op.execute(sa.text("SELECT :v").bindparams(v=object())), "has a parameter of type object"),
        (lambda: op.execute("SELECT '\x00'"), "has a character in its SQL that cannot be stored"),
        (lambda: op.execute("SELECT '\ud800'"), "has a character in its SQL that cannot be stored"),
        (lambda: op.run_async(BY_MISTAKE), "calls op.run_async"),
        (lambda: context.get_bind().execute(sa.text("DROP TABLE t")), "uses alembic.context.get_bind"),
        (lambda: context.execute("DROP TABLE t"), "uses alembic.context.execute"),
        (lambda: op.get_context().get_current_revision(), "uses .scalar of the connection"),
        (lambda: vars(op)["gone"], "raises KeyError: 'gone'"),
        (lambda: getattr(op, "no_" + "such")(), "raises AttributeError: .*no_such"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(body: Body, reason: str) -> None:
    rendering = render(body)
    assert re.match(reason, rendering.reason or "nothing"), rendering.reason


def test_a_batch_that_recreates_the_table_is_refused() -> None:
    def downgrade() -> None:
        with op.batch_alter_table("t", recreate="always") as batch:
            batch.drop_column("a")

    assert "inspects the database" in str(render(downgrade).reason)


def test_a_value_that_python_computes_is_refused() -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("x", sa.Text, default=lambda: "now"))
    assert render(lambda: op.bulk_insert(table, [{"id": 1}])).reason == (
        "leaves a value to be computed by Python at run time (x)"
    )


def test_a_refusal_that_is_caught_still_counts() -> None:
    def downgrade() -> None:
        op.execute("SELECT 1")
        try:
            names = sa.inspect(op.get_bind()).get_table_names()
        except Exception:
            names = []
        op.execute(f"SELECT {len(names)}")

    assert str(render(downgrade).reason).startswith("inspects the database")


def test_the_first_reason_counts() -> None:
    def downgrade() -> None:
        with contextlib.suppress(Exception):
            read().all()
        raise ValueError("because of that")

    assert render(downgrade).reason == "uses the result of a statement"


def test_what_was_noted_before_the_refusal_is_there() -> None:
    def upgrade() -> None:
        op.execute("SELECT 1")
        read().all()
        op.execute("SELECT 2")

    assert [statement.sql for statement in render(upgrade).statements] == ["SELECT 1", "SELECT 1"]


def test_a_reason_is_one_short_line_that_can_be_stored() -> None:
    def downgrade() -> None:
        raise ValueError("one\n two\x00\ud800" + "x" * 1_000)

    reason = render(downgrade).reason
    assert reason is not None
    assert reason.startswith("raises ValueError: one two ?x")
    assert len(reason) == 200


def test_what_stops_the_process_is_not_swallowed() -> None:
    def downgrade() -> None:
        raise KeyboardInterrupt

    before = vars(alembic.op).get("_proxy")  # Alembic leaves one behind when a migration of an earlier test has failed
    with pytest.raises(KeyboardInterrupt):
        render(downgrade)
    assert vars(alembic.op).get("_proxy") is before


def test_a_branch_on_offline_mode_goes_the_way_of_a_real_run() -> None:
    def downgrade() -> None:
        op.execute("offline" if context.is_offline_mode() or op.get_context().as_sql else "online")

    assert sql(downgrade) == ["online"]


# In the middle of another run


@pytest.fixture
def outer() -> Iterator[list[str]]:
    """An outer run of Alembic, whose statements are listed."""
    executed: list[str] = []
    running = MigrationContext(PGDialect_asyncpg(), None, {})  # type: ignore[no-untyped-call]
    running.impl.execute = lambda statement, *_args, **_options: executed.append(str(statement))  # type: ignore[method-assign]
    with Operations.context(running):
        yield executed


def test_the_outer_run_goes_on_as_before(outer: list[str]) -> None:
    proxy = vars(alembic.op)["_proxy"]
    op.execute("outer 1")
    assert one(lambda: op.execute("SELECT 'inner'")) == "SELECT 'inner'"
    op.execute("outer 2")
    assert render(lambda: 1 // 0).reason
    op.execute("outer 3")
    assert outer == ["outer 1", "outer 2", "outer 3"]
    assert vars(alembic.op)["_proxy"] is proxy


def test_rendering_does_not_see_what_another_rendering_did() -> None:
    mood = postgresql.ENUM("ok", name="mood")

    def body() -> None:
        op.create_table("a", sa.Column("m", mood))

    assert sql(body) == sql(body)
    assert len(sql(body)) == 2


@pytest.mark.parametrize("before", [{}, {"_proxy": None}])
@pytest.mark.parametrize("body", [lambda: op.execute("SELECT 1"), lambda: 1 // 0])
def test_without_an_outer_run_all_is_as_before(
    before: dict[str, None], body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (alembic.op, alembic.context):
        monkeypatch.delattr(module, "_proxy", raising=False)
        vars(module).update(before)
    render(body)
    for module in (alembic.op, alembic.context):
        assert {name: value for name, value in vars(module).items() if name == "_proxy"} == before
        vars(module).pop("_proxy", None)


def test_the_names_of_alembic_that_are_not_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """`alembic.op` and `alembic.context` reach what they call through one global and have nothing else to put back."""
    names, modules = Operations._setups[Operations]
    assert not names
    assert [globals_["__name__"] for globals_, _ in modules] == ["alembic.op"]
    monkeypatch.setitem(vars(alembic.context), "_proxy", SimpleNamespace(get_bind=lambda: "proxied"))
    assert str(context.get_bind()) == "proxied"


# Stored


@pytest.mark.parametrize(
    ("rendering", "stored"),
    [
        (Rendering(()), {"sql": []}),
        (Rendering((Statement("DROP TABLE t"),)), {"sql": ["DROP TABLE t"]}),
        (
            Rendering((Statement("a"), Statement("ü", True), Statement('"', True))),
            {"sql": ["a", "ü", '"'], "autocommit": [1, 2]},
        ),
        (Rendering((), "raises KeyError: 'x'"), {"reason": "raises KeyError: 'x'"}),
    ],
)
def test_a_rendering_is_stored_and_read_back(rendering: Rendering, stored: dict[str, object]) -> None:
    assert json.loads(to_json(rendering)) == stored
    assert from_json(to_json(rendering)) == rendering


def test_only_the_reason_is_stored_of_what_cannot_be_replayed() -> None:
    assert to_json(Rendering((Statement("half"),), "x")) == '{"reason":"x"}'


def test_a_key_of_a_newer_release_does_no_harm() -> None:
    assert from_json('{"sql":["a"],"newer":1}') == Rendering((Statement("a"),))
