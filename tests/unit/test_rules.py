"""The rules for revisions: each found, each kept, each allowed with a reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa
from alembic import op

from gasket.db import Base
from gasket.migrator.revisions import RevisionFile, read_revisions
from gasket.migrator.rules.check import Finding, check_files, check_revision
from gasket.migrator.rules.rulebook import FILE_RULES, SQL_RULES
from gasket.migrator.rules.sql_rules import find_problems
from gasket.migrator.sql.ddl import read_changes, type_name
from gasket.migrator.sql.lexer import Kind, tokens
from gasket.migrator.sql.render import Rendering, Statement, render
from gasket.migrator.sql.widening import rewrites, widens

ROOT = Path(__file__).parents[2]
OWN = read_revisions(ROOT / "migrations")
HEAD = 'revision = "r1"\ndown_revision = None\nbackward_compatible = True\n'
BOTH = "def upgrade():\n    op.x()\ndef downgrade():\n    op.y()\n"

ReadFile = Callable[[str], RevisionFile]


@pytest.fixture
def read_file(tmp_path: Path) -> ReadFile:
    (tmp_path / "versions").mkdir()

    def read(source: str) -> RevisionFile:
        (tmp_path / "versions" / "2026_one.py").write_text(source)
        return read_revisions(tmp_path)["r1"]

    return read


def rules(found: list[Finding]) -> list[str]:
    return [finding.rule for finding in found]


# Files


@pytest.mark.parametrize(
    "source",
    [
        HEAD + BOTH,
        HEAD + "def upgrade(): pass\ndef downgrade(): pass",
        HEAD + "from .other import upgrade, take_back as downgrade",
        HEAD + "upgrade = downgrade = None",
        HEAD + BOTH + 'allowed_findings: dict[str, str] = {"drops": "nobody used it", "squawk/ban-char-field": "x"}',
        HEAD + 'downgrade_is_empty = "rows alone"\ndef upgrade():\n    op.x()\ndef downgrade():\n    """So."""\n',
    ],
)
def test_a_file_that_keeps_the_rules(source: str, read_file: ReadFile) -> None:
    assert check_files([read_file(source)]) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (HEAD, ["both-directions", "both-directions"]),
        (HEAD + "def upgrade(): op.x()", ["both-directions"]),
        (HEAD + "async def downgrade(): op.x()\ndef upgrade(): op.x()", ["both-directions"]),
        (HEAD + "if True:\n    def upgrade(): op.x()\ndef downgrade(): op.x()", ["both-directions"]),
        (HEAD.replace("backward_compatible = True", "backward_compatible: bool") + BOTH, ["undecided"]),
        (HEAD + "def upgrade(:", ["not-python"]),
        (HEAD + BOTH.replace("op.y()", "pass"), ["empty-downgrade"]),
        (HEAD + BOTH.replace("op.y()", "..."), ["empty-downgrade"]),
        (HEAD + BOTH.replace("op.y()", '"""Nothing."""\n    return None'), ["empty-downgrade"]),
        (HEAD + BOTH.replace("op.y()", "raise NotImplementedError"), ["empty-downgrade"]),
        (HEAD + "downgrade_is_empty = True\n" + BOTH.replace("op.y()", "pass"), ["empty-downgrade"]),
        (HEAD + "downgrade_is_empty = ' '\n" + BOTH.replace("op.y()", "pass"), ["empty-downgrade"]),
        (HEAD + BOTH + "allowed_findings = {'drops': ''}", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = {'drop': 'x'}", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = dict(drops='x')", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = {'empty-downgrade': 'x'}", ["allowed-findings"]),
    ],
)
def test_a_file_that_breaks_a_rule(source: str, found: list[str], read_file: ReadFile) -> None:
    findings = check_files([read_file(source)])
    assert rules(findings) == found
    assert set(found) <= FILE_RULES.keys()
    assert all((f.revision, f.file, f.allowed, f.warning) == ("r1", "2026_one.py", None, False) for f in findings)


def test_nothing_of_a_file_is_run(read_file: ReadFile) -> None:
    assert check_files([read_file(HEAD + BOTH + "raise SystemExit('run')")]) == []


# SQL


def found(*statements: str | Statement, compatible: bool = True) -> list[str]:
    """The rules that an upgrade of these statements breaks; a leading "!" is for an autocommit block."""
    rendering = Rendering(
        tuple(
            s if isinstance(s, Statement) else Statement(s.removeprefix("!"), autocommit=s.startswith("!"))
            for s in statements
        )
    )
    problems = find_problems(rendering, compatible=compatible)
    assert {rule for rule, _ in problems} <= SQL_RULES.keys()
    return [rule for rule, _ in problems]


def harmful(*statements: str | Statement) -> list[str]:
    """Without the advice."""
    return [rule for rule in found(*statements) if not SQL_RULES[rule].warning]


@pytest.mark.parametrize(
    ("statements", "rule"),
    [
        (["DROP TABLE t"], "drops"),
        (["drop table if exists public.t cascade"], "drops"),
        (['DROP TABLE "T", u'], "drops"),
        (["DROP VIEW v"], "drops"),
        (["DROP MATERIALIZED VIEW v"], "drops"),
        (["DROP TYPE mood"], "drops"),
        (["DROP FUNCTION f(int)"], "drops"),
        (["DROP SEQUENCE s"], "drops"),
        (["DROP SCHEMA s"], "drops"),
        (["ALTER TABLE t DROP COLUMN a"], "drops"),
        (["ALTER TABLE IF EXISTS ONLY t DROP IF EXISTS a CASCADE"], "drops"),
        (["ALTER TABLE t ADD x int, DROP a"], "drops"),
        (["ALTER TYPE pair DROP ATTRIBUTE a"], "drops"),
        (["/* new */ DROP -- it\n TABLE t"], "drops"),
        (["DROP TABLE t", "CREATE TABLE t (id int)"], "drops"),
        (["CREATE TABLE a.t (id int)", "DROP TABLE b.t"], "drops"),
        (["DO $x$ BEGIN IF true THEN ALTER TABLE t DROP COLUMN a; END IF; END $x$"], "drops"),
        (["ALTER TABLE t RENAME a TO b"], "renames"),
        (["ALTER TABLE t RENAME COLUMN a TO b"], "renames"),
        (["ALTER TABLE t RENAME TO u"], "renames"),
        (["ALTER TABLE t SET SCHEMA other"], "renames"),
        (["ALTER VIEW v RENAME TO w"], "renames"),
        (["ALTER TYPE mood RENAME TO old_mood"], "renames"),
        (["ALTER TYPE mood RENAME VALUE 'a' TO 'b'"], "renames"),
        (["ALTER TABLE t ALTER a TYPE text"], "narrows"),
        (["ALTER TABLE t ALTER COLUMN a SET DATA TYPE varchar(5) USING left(a, 5)"], "narrows"),
        ([Statement("ALTER TABLE t ALTER COLUMN a TYPE VARCHAR(5)", was="VARCHAR(10)")], "narrows"),
        ([Statement("ALTER TABLE t ALTER COLUMN a TYPE INTEGER", was="BIGINT")], "narrows"),
        (["ALTER TABLE t ADD a int NOT NULL"], "requires"),
        (["ALTER TABLE t ADD COLUMN a int CONSTRAINT nn NOT NULL DEFAULT NULL"], "requires"),
        (["ALTER TABLE t ADD a int NOT NULL DEFAULT 5", "ALTER TABLE t ALTER a DROP DEFAULT"], "requires"),
        (["ALTER TABLE t ADD a int", "UPDATE t SET a = 1", "ALTER TABLE t ALTER a SET NOT NULL"], "requires"),
        (["ALTER TABLE t ALTER a SET NOT NULL"], "requires"),
        (["ALTER TABLE t ALTER a DROP DEFAULT"], "requires"),
        (["ALTER TABLE t ADD CONSTRAINT c CHECK (a IS NOT NULL) NOT VALID"], "requires"),
    ],
)
def test_what_is_not_backward_compatible(statements: list[str | Statement], rule: str) -> None:
    assert set(harmful(*statements)) == {rule}
    assert rule not in found(*statements, compatible=False)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE t (id int NOT NULL)", "ALTER TABLE t DROP COLUMN a", "ALTER TABLE public.t ADD b int NOT NULL"],
        ["CREATE TABLE a (x int)", "ALTER TABLE a RENAME TO b", "ALTER TABLE b RENAME x TO y", "DROP TABLE b"],
        ["CREATE TEMPORARY TABLE IF NOT EXISTS t AS SELECT 1", "DROP TABLE t"],
        ["DROP VIEW v", "CREATE OR REPLACE VIEW v AS SELECT 1"],
        ["ALTER TABLE t ADD a text"],
        ["ALTER TABLE t ADD a text NOT NULL DEFAULT 'x'"],
        ["ALTER TABLE t ADD a int NOT NULL", "ALTER TABLE t ALTER a SET DEFAULT 5"],
        ["ALTER TABLE t ADD a int NOT NULL", "ALTER TABLE t ALTER a DROP NOT NULL"],
        ["ALTER TABLE t ADD a int", "ALTER TABLE t ALTER a TYPE text", "ALTER TABLE t RENAME a TO b"],
        ["ALTER TABLE t ADD a int", "ALTER TABLE t DROP a"],
        ["ALTER TABLE t ADD a serial NOT NULL"],
        ["ALTER TABLE t ADD a int GENERATED ALWAYS AS IDENTITY NOT NULL"],
        ["ALTER TABLE t ALTER a DROP NOT NULL", "ALTER TABLE t ALTER a SET DEFAULT 5"],
        ["ALTER TABLE t DROP CONSTRAINT c", "DROP INDEX i", "ALTER INDEX i RENAME TO j", "DROP TRIGGER g ON t"],
        ["ALTER TABLE t RENAME CONSTRAINT a TO b"],
        ["ALTER TYPE mood ADD VALUE 'drop'"],
        ["ALTER TYPE mood ADD VALUE IF NOT EXISTS 'drop' AFTER 'table'"],
        [Statement("ALTER TABLE t ALTER COLUMN a TYPE TEXT", was="VARCHAR(10)")],
        ["ALTER TABLE t ADD CONSTRAINT c CHECK (a IS NOT NULL OR b) NOT VALID"],
        ["INSERT INTO t VALUES ('DROP TABLE t', $$; DROP TABLE t; $$)", 'SELECT 1 AS "DROP TABLE t"'],
        ["COMMENT ON TABLE t IS 'x'; -- DROP TABLE t"],
        ["CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE t; END $$"],
    ],
)
def test_what_is_backward_compatible(statements: list[str | Statement]) -> None:
    assert harmful(*statements) == []


@pytest.mark.parametrize(
    ("statements", "rule"),
    [
        (["CREATE INDEX i ON t (a)"], "blocking-index"),
        (["CREATE UNIQUE INDEX ON public.t (a)"], "blocking-index"),
        (["!CREATE INDEX i ON t (a)"], "blocking-index"),
        (["ALTER TABLE t ADD CONSTRAINT u UNIQUE (a)"], "blocking-index"),
        (["ALTER TABLE t ADD PRIMARY KEY (a)"], "blocking-index"),
        (["ALTER TABLE t ADD a int UNIQUE"], "blocking-index"),
        (["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)"], "blocking-constraint"),
        (["ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES u (id)"], "blocking-constraint"),
        (["ALTER TABLE t ADD a int DEFAULT 5 REFERENCES u"], "blocking-constraint"),
        (["ALTER TABLE t ADD a uuid DEFAULT gen_random_uuid()"], "rewrites-table"),
        (["ALTER TABLE t ADD a timestamptz DEFAULT (clock_timestamp())"], "rewrites-table"),
        (["ALTER TABLE t ADD a serial"], "rewrites-table"),
        (["ALTER TABLE t ADD a int GENERATED ALWAYS AS IDENTITY"], "rewrites-table"),
        (["ALTER TABLE t ADD a int GENERATED ALWAYS AS (b * 2) STORED"], "rewrites-table"),
        ([Statement("ALTER TABLE t ALTER a TYPE BIGINT", was="INTEGER")], "rewrites-table"),
        (
            ["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", "ALTER TABLE t VALIDATE CONSTRAINT c"],
            "validates-at-once",
        ),
        (["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID, VALIDATE CONSTRAINT c"], "validates-at-once"),
        (["CREATE INDEX CONCURRENTLY i ON t (a)"], "concurrently-in-transaction"),
        (["!CREATE INDEX CONCURRENTLY i ON t (a)", "COMMENT ON TABLE t IS 'x'"], "concurrently-beside-others"),
        (
            ["!CREATE INDEX CONCURRENTLY i ON t (a)", "!CREATE INDEX CONCURRENTLY j ON t (b)"],
            "concurrently-beside-others",
        ),
        (["!DROP INDEX CONCURRENTLY j", "!CREATE INDEX CONCURRENTLY i ON t (a)"], "concurrently-beside-others"),
        (["!CREATE INDEX CONCURRENTLY i ON t (a)", "DROP INDEX IF EXISTS i"], "concurrently-beside-others"),
        (["!CREATE INDEX CONCURRENTLY ON t (a)", "!CREATE INDEX CONCURRENTLY ON t (b)"], "concurrently-beside-others"),
        (["ALTER TABLE p DETACH PARTITION q CONCURRENTLY"], "concurrently-in-transaction"),
    ],
)
def test_what_makes_others_wait(statements: list[str | Statement], rule: str) -> None:
    assert set(found(*statements)) == {rule}


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE t (id int)", "CREATE INDEX i ON t (id)", "ALTER TABLE t ADD CONSTRAINT c CHECK (id > 0)"],
        [
            "CREATE TABLE t (id int)",
            "ALTER TABLE t ADD a uuid DEFAULT gen_random_uuid()",
            "ALTER TABLE t ALTER id TYPE text",
        ],
        [
            "CREATE TABLE t (id int)",
            "ALTER TABLE t ADD CONSTRAINT c CHECK (id > 0) NOT VALID",
            "ALTER TABLE t VALIDATE CONSTRAINT c",
        ],
        ["!DROP INDEX CONCURRENTLY IF EXISTS i", "!CREATE INDEX CONCURRENTLY i ON t (a)", "!COMMENT ON INDEX i IS 'x'"],
        ["!CREATE INDEX CONCURRENTLY i ON t (a)"],
        ["ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (a) REFERENCES u NOT VALID"],
        [
            "ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (a) REFERENCES u NOT VALID",
            "ALTER TABLE t VALIDATE CONSTRAINT d",
        ],
        ["ALTER TABLE t VALIDATE CONSTRAINT c"],
        ["ALTER TABLE t ADD CONSTRAINT u UNIQUE USING INDEX i"],
        ["ALTER TABLE t ADD a timestamptz DEFAULT now()", "ALTER TABLE t ADD b varchar(5) DEFAULT 'x'::varchar(5)"],
        ["ALTER TABLE t ADD a int REFERENCES u"],
        ["REFRESH MATERIALIZED VIEW CONCURRENTLY m", "REINDEX TABLE t", "SELECT 'CONCURRENTLY'"],
        [Statement("ALTER TABLE t ALTER a TYPE VARCHAR(20)", was="VARCHAR(10)")],
    ],
)
def test_what_makes_nobody_wait(statements: list[str | Statement]) -> None:
    assert found(*statements) == []


def test_set_not_null_reads_all_rows() -> None:
    assert found("ALTER TABLE t ALTER a SET NOT NULL", compatible=False) == ["blocking-constraint"]


def test_a_message_says_what_why_and_what_to_do() -> None:
    [(_, message)] = find_problems(Rendering((Statement("ALTER TABLE s.t DROP a"),)), compatible=True)
    assert message == f"It drops column s.t.a. {SQL_RULES['drops'].why} {SQL_RULES['drops'].instead}"


def test_of_what_cannot_be_read_the_readable_part_is_checked() -> None:
    def upgrade() -> None:
        op.drop_table("t")
        op.get_bind().scalar(sa.text("SELECT 1"))

    problems = dict(find_problems(render(upgrade), compatible=True))
    assert problems.keys() == {"drops", "not-readable"}
    assert "up to its first 1 statements: it uses .scalar of the connection." in problems["not-readable"]


def test_alembic_operations_are_understood() -> None:
    def upgrade() -> None:
        op.add_column("t", sa.Column("a", sa.Integer(), nullable=False))
        op.alter_column("t", "b", type_=sa.BigInteger(), existing_type=sa.Integer())
        op.alter_column("t", "c", type_=sa.String(5), existing_type=sa.String(9), new_column_name="d")
        op.create_foreign_key("fk", "t", "u", ["a"], ["id"])
        op.create_check_constraint("ck", "t", "a > 0", postgresql_not_valid=True)

    assert sorted(rule for rule, _ in find_problems(render(upgrade), compatible=True)) == [
        "blocking-constraint",
        "narrows",
        "renames",
        "requires",
        "rewrites-table",
        "rewrites-table",
    ]


# Allowed


def test_a_finding_is_allowed_with_its_reason(read_file: ReadFile) -> None:
    file = read_file(HEAD + BOTH + "allowed_findings = {'drops': 'no release ever used it'}")

    def upgrade() -> None:
        op.drop_table("t")
        op.rename_table("u", "v")

    assert [(f.rule, f.allowed) for f in check_revision(file, upgrade)] == [
        ("drops", "no release ever used it"),
        ("renames", None),
    ]


def test_findings_of_the_file_come_with_those_of_the_sql(read_file: ReadFile) -> None:
    file = read_file(HEAD + BOTH.replace("op.y()", "pass"))
    assert rules(check_revision(file, lambda: op.drop_table("t"))) == ["empty-downgrade", "drops"]
    assert rules(check_revision(read_file(HEAD + "def x(:"), lambda: None)) == ["not-python"]


# This repository


def load(file: RevisionFile) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.path.stem, file.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", OWN.values(), ids=lambda file: file.path.stem)
def test_every_migration_of_this_repository_keeps_the_rules(file: RevisionFile) -> None:
    findings = check_revision(file, load(file).upgrade, metadata=Base.metadata)
    assert [finding for finding in findings if finding.allowed is None] == []


@pytest.mark.parametrize("file", OWN.values(), ids=lambda file: file.path.stem)
def test_every_migration_of_this_repository_can_be_taken_back_without_its_file(file: RevisionFile) -> None:
    assert render(load(file).downgrade, metadata=Base.metadata).reason is None


# What the rules stand on


def test_sql_is_cut_into_tokens() -> None:
    sql = """SELECT "a""B".c::Int, 'it''s -- x', E'a\\'b', $$ $1 $$, $t$ $$ $t$, $1 /* a /* b */ c */ + .5e3 -- end"""
    assert [(kind.name, text) for kind, text in tokens(sql)] == [
        ("WORD", "select"),
        ("NAME", 'a"B'),
        ("SYMBOL", "."),
        ("WORD", "c"),
        ("SYMBOL", "::"),
        ("WORD", "int"),
        ("SYMBOL", ","),
        ("STRING", "it''s -- x"),
        ("SYMBOL", ","),
        ("STRING", "a\\'b"),
        ("SYMBOL", ","),
        ("STRING", " $1 "),
        ("SYMBOL", ","),
        ("STRING", " $$ "),
        ("SYMBOL", ","),
        ("PARAMETER", "1"),
        ("SYMBOL", "+"),
        ("NUMBER", ".5e3"),
    ]
    assert list(tokens("/* no end")) == []
    assert [token.kind for token in tokens("'no end")] == [Kind.SYMBOL, Kind.WORD, Kind.WORD]


@pytest.mark.parametrize(
    "written",
    ["varchar(10)", "character varying(10)", "numeric(10,2)", "text[]", "timestamp(3) with time zone", "s.mood"],
)
def test_a_type_is_written_on_one_line(written: str) -> None:
    assert type_name(list(tokens(written))) == written
    [change] = read_changes(f"ALTER TABLE t ADD a {written} NOT NULL DEFAULT 5")
    assert getattr(change, "type") == written  # noqa: B009  # one of several classes


@pytest.mark.parametrize(
    ("was", "now", "free_of_rewriting"),
    [
        ("integer", "BIGINT", False),
        ("smallint", "int", False),
        ("real", "double precision", False),
        ("VARCHAR(10)", "varchar(20)", True),
        ("character varying(10)", "varchar", True),
        ("varchar(10)", "text", True),
        ("numeric(10, 2)", "numeric(12,2)", True),
        ("numeric(10, 2)", "numeric(12,4)", False),
        ("numeric(10, 2)", "decimal", True),
        ("timestamp(3) with time zone", "timestamptz", True),
        ("integer[]", "bigint[]", False),
        ("uuid", "UUID", True),
    ],
)
def test_a_wider_type(was: str, now: str, free_of_rewriting: bool) -> None:
    assert widens(was, now)
    assert rewrites(was, now) is not free_of_rewriting


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("bigint", "integer"),
        ("text", "varchar"),
        ("text", "varchar(100)"),
        ("varchar(20)", "varchar(10)"),
        ("varchar", "varchar(10)"),
        ("char(10)", "char(20)"),
        ("numeric(10,2)", "numeric(10,4)"),
        ("numeric(10,2)", "numeric(9,2)"),
        ("numeric(10,4)", "numeric(12,2)"),
        ("numeric", "numeric(9,2)"),
        ("integer", "numeric"),
        ("integer", "text"),
        ("timestamp", "timestamptz"),
        ("timestamptz", "timestamptz(3)"),
        ("text", "text[]"),
        ("json", "jsonb"),
        ("mood", "new_mood"),
        ("((", "text"),
    ],
)
def test_not_a_wider_type(was: str, now: str) -> None:
    assert not widens(was, now)
    assert rewrites(was, now)
