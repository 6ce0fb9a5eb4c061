"""The rules for revisions: each found, each kept, each allowed with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import op

from gasket.migrator.revisions.files import RevisionFile, read_folders
from gasket.migrator.revisions.rules.check import Finding, check_revision, verdict_on
from gasket.migrator.revisions.rules.rulebook import FILE_RULES, SQL_RULES
from gasket.migrator.revisions.rules.source import made_extensions
from gasket.migrator.revisions.rules.sql_rules import find_problems
from gasket.migrator.sql.lexer import Kind, tokens
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.render import Rendering, Statement, render
from gasket.migrator.sql.widening import rewrites, widens

HEAD = 'revision = "r1"\ndown_revision = None\nbackward_compatible = True\n'
BOTH = "def upgrade():\n    op.x()\ndef downgrade():\n    op.y()\n"

ReadFile = Callable[[str], RevisionFile]


@pytest.fixture
def read_file(tmp_path: Path) -> ReadFile:
    (tmp_path / "versions").mkdir()

    def read(source: str) -> RevisionFile:
        (tmp_path / "versions" / "2026_one.py").write_text(source)
        return read_folders([tmp_path / "versions"])["r1"]

    return read


def check_file(file: RevisionFile) -> list[Finding]:
    """The findings of the file alone: nothing of it is run."""
    return check_revision(file, lambda: None)


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
    assert check_file(read_file(source)) == []


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
        (HEAD + BOTH + "needs_background = 'r0'", ["needs-background"]),
        (HEAD + BOTH + "allowed_findings = {'drops': ''}", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = {'drop': 'x'}", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = dict(drops='x')", ["allowed-findings"]),
        (HEAD + BOTH + "allowed_findings = {'empty-downgrade': 'x'}", ["allowed-findings"]),
    ],
)
def test_a_file_that_breaks_a_rule(source: str, found: list[str], read_file: ReadFile) -> None:
    findings = check_file(read_file(source))
    assert rules(findings) == found
    assert set(found) <= FILE_RULES.keys()
    assert all((f.revision, f.file, f.allowed, f.warning) == ("r1", "2026_one.py", None, False) for f in findings)


def test_nothing_of_a_file_is_run(read_file: ReadFile) -> None:
    assert check_file(read_file(HEAD + BOTH + "raise SystemExit('run')")) == []


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


@pytest.mark.parametrize(
    ("statement", "is_found"),
    [
        ("UPDATE t SET a = 1", True),
        ("UPDATE t SET a = 1 WHERE t.a IS NULL;", True),
        ("DELETE FROM t", True),
        ("UPDATE t SET a = 1 WHERE id = 7", False),
        ("DELETE FROM t WHERE id = 7 AND a IS NULL", False),
        ("INSERT INTO t SELECT 1", False),
    ],
)
def test_what_writes_every_row_belongs_into_the_background(statement: str, *, is_found: bool) -> None:
    assert found(statement) == (["writes-all-rows"] if is_found else [])
    assert found("CREATE TABLE t (id int, a int)", statement) == []


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
        (["REINDEX TABLE t"], "blocking-index"),
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
        ["REFRESH MATERIALIZED VIEW CONCURRENTLY m", "SELECT 'CONCURRENTLY'"],
        [Statement("ALTER TABLE t ALTER a TYPE VARCHAR(20)", was="VARCHAR(10)")],
    ],
)
def test_what_makes_nobody_wait(statements: list[str | Statement]) -> None:
    assert found(*statements) == []


def test_set_not_null_reads_all_rows() -> None:
    assert found("ALTER TABLE t ALTER a SET NOT NULL", compatible=False) == ["blocking-constraint"]


def dropped_and_added(upgrade: str, downgrade: str) -> list[str]:
    def rendering(sql: str) -> Rendering:
        return Rendering(tuple(Statement(statement) for statement in sql.split("; ")))

    problems = find_problems(rendering(upgrade), compatible=False, downgrade=rendering(downgrade))
    return [message for rule, message in problems if rule == "drop-and-add"]


@pytest.mark.parametrize(
    ("upgrade", "downgrade", "remedy"),
    [
        (
            "ALTER TABLE t ADD b VARCHAR(20); ALTER TABLE t DROP COLUMN a",
            "ALTER TABLE t ADD a VARCHAR(20); ALTER TABLE t DROP COLUMN b",
            'op.alter_column("t", "a", new_column_name="b")',
        ),
        (
            "ALTER TABLE s.t DROP a; ALTER TABLE s.t ADD b character varying(20) NOT NULL",
            "ALTER TABLE s.t ADD a varchar(20)",
            'op.alter_column("t", "a", new_column_name="b", schema="s")',
        ),
        (
            "ALTER TABLE t DROP a, ADD x int, ADD b text",
            "ALTER TABLE t ADD a text, DROP b",
            'op.alter_column("t", "a", new_column_name="b")',
        ),
        (
            "ALTER TABLE t ADD b text; UPDATE other SET c = 1; ALTER TABLE t DROP a",
            "ALTER TABLE t ADD a text",
            'op.alter_column("t", "a", new_column_name="b")',
        ),
        (
            "ALTER TABLE t DROP a; ALTER TABLE t ADD b text",
            "SELECT 1",
            "b, text, and downgrade() does not tell the type of the old one",
        ),
        (
            "CREATE TABLE new (id SERIAL NOT NULL, word TEXT, PRIMARY KEY (id)); DROP TABLE old",
            "CREATE TABLE old (id INTEGER NOT NULL, word TEXT, CONSTRAINT k PRIMARY KEY (id)); DROP TABLE new",
            'op.rename_table("old", "new")',
        ),
        (
            "DROP TABLE s.old; CREATE TABLE s.new (word text, id int)",
            "CREATE TABLE s.old (id int, word text)",
            'op.rename_table("old", "new", schema="s")',
        ),
    ],
)
def test_a_rename_that_is_a_drop_and_an_add(upgrade: str, downgrade: str, remedy: str) -> None:
    [message] = dropped_and_added(upgrade, downgrade)
    assert remedy in message
    assert "The values of the rows are lost." in message
    assert SQL_RULES["drop-and-add"].warning


@pytest.mark.parametrize(
    ("upgrade", "downgrade"),
    [
        ("ALTER TABLE t ADD b int; ALTER TABLE t DROP a", "ALTER TABLE t ADD a text"),
        ("ALTER TABLE t ADD b varchar(5); ALTER TABLE t DROP a", "ALTER TABLE t ADD a varchar(6)"),
        ("ALTER TABLE u ADD b text; ALTER TABLE t DROP a", "ALTER TABLE t ADD a text"),
        ("ALTER TABLE x.t ADD b text; ALTER TABLE y.t DROP a", "ALTER TABLE y.t ADD a text"),
        ("ALTER TABLE t RENAME a TO b", "ALTER TABLE t RENAME b TO a"),
        ("ALTER TABLE t ADD b text; UPDATE t SET b = a; ALTER TABLE t DROP a", "ALTER TABLE t ADD a text"),
        ("ALTER TABLE t ADD b text; SELECT copy_values(); ALTER TABLE t DROP a", "ALTER TABLE t ADD a text"),
        ("ALTER TABLE t DROP a; ALTER TABLE t ADD a text", "ALTER TABLE t DROP a; ALTER TABLE t ADD a text"),
        ("CREATE TABLE t (a int, b int); ALTER TABLE t ADD c int; ALTER TABLE t DROP a", "DROP TABLE t"),
        ("CREATE TABLE new (id int, word text); DROP TABLE old", "CREATE TABLE old (id int)"),
        ("CREATE TABLE new (id int); DROP TABLE old", "CREATE TABLE old (id bigint)"),
        ("CREATE TABLE new (id int); DROP TABLE old", "CREATE TABLE old (LIKE another)"),
        ("CREATE TABLE new (id int); INSERT INTO new SELECT id FROM old; DROP TABLE old", "CREATE TABLE old (id int)"),
        ("DROP TABLE old; CREATE TABLE old (id int)", "DROP TABLE old; CREATE TABLE old (id int)"),
    ],
)
def test_a_drop_and_an_add_that_are_no_rename(upgrade: str, downgrade: str) -> None:
    assert dropped_and_added(upgrade, downgrade) == []


def test_two_renames_are_two_pairs() -> None:
    upgrade = "ALTER TABLE t ADD c text, ADD d text; ALTER TABLE t DROP a, DROP b"
    first, second = dropped_and_added(upgrade, "ALTER TABLE t ADD a text, ADD b text")
    assert '"a", new_column_name="c"' in first
    assert '"b", new_column_name="d"' in second


def test_an_autogenerated_rename_is_found_in_the_file_and_may_be_allowed(read_file: ReadFile) -> None:
    def upgrade() -> None:
        op.add_column("t", sa.Column("label", sa.String(20), nullable=True))
        op.drop_column("t", "name")

    def downgrade() -> None:
        op.add_column("t", sa.Column("name", sa.VARCHAR(length=20), autoincrement=False, nullable=True))
        op.drop_column("t", "label")

    source = (HEAD + BOTH).replace("= True", "= False")
    [finding] = check_revision(read_file(source), upgrade, downgrade=downgrade)
    assert (finding.rule, finding.warning, finding.allowed) == ("drop-and-add", True, None)
    allowed = read_file(source + "allowed_findings = {'drop-and-add': 'the old names were never shown'}")
    [finding] = check_revision(allowed, upgrade, downgrade=downgrade)
    assert finding.allowed == "the old names were never shown"


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (["SET ROLE a", "CREATE TABLE t (id int)"], "leaves role set"),
        (["SET SESSION AUTHORIZATION a"], "leaves session authorization set"),
        (["SET search_path = a, b; CREATE TABLE t (id int)"], "leaves search_path set"),
        (["SELECT set_config('search_path', 'a', false)"], "leaves search_path set"),
        (["DO $$ BEGIN SET ROLE a; END $$"], "leaves role set"),
        (["SET LOCAL ROLE a", "SET statement_timeout = 0"], "leaves statement_timeout set"),
        (["SET ROLE a", "RESET ROLE", "SET ROLE b"], "leaves role set"),
        (["RESET ALL"], "resets all settings"),
        (["SET ROLE a", "!DISCARD ALL"], "resets all settings"),
    ],
)
def test_a_setting_that_is_left_on(statements: list[str], named: str) -> None:
    rendering = Rendering(tuple(Statement(s.removeprefix("!"), s.startswith("!")) for s in statements))
    [message] = [text for rule, text in find_problems(rendering, compatible=False) if rule == "session-setting"]
    assert message.startswith(f"It {named}")
    assert "SET LOCAL" in message
    assert SQL_RULES["session-setting"].warning


@pytest.mark.parametrize(
    "statements",
    [
        ["SET LOCAL ROLE a", "CREATE TABLE t (id int)"],
        ["SET ROLE a", "CREATE TABLE t (id int)", "RESET ROLE"],
        ["SET ROLE a", "CREATE TABLE t (id int)", "SET ROLE NONE"],
        ["SET search_path = a", "SET search_path TO DEFAULT"],
        ["SELECT set_config('search_path', 'a', true)"],
        ["SET CONSTRAINTS ALL IMMEDIATE"],
        ["DO $$ BEGIN SET ROLE a; RESET ROLE; END $$"],
        ["CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = '' AS 'SELECT 1'"],
        ["ALTER ROLE a SET search_path = b", "COMMENT ON TABLE t IS 'SET ROLE a'"],
    ],
)
def test_a_session_that_is_left_as_it_was(statements: list[str]) -> None:
    assert found(*statements, compatible=False) == []


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


# What the rules stand on


def test_sql_is_cut_into_tokens() -> None:
    sql = """SELECT "a""B".c::Int, 'it''s -- x', E'a\\'b', $$ $1 $$, $t$ $$ $t$, $1 /* a /* b */ c */ + .5e3 -- end"""
    assert [(token.kind.name, token.text) for token in tokens(sql)] == [
        ("WORD", "select"),
        ("NAME", 'a"B'),
        ("SYMBOL", "."),
        ("WORD", "c"),
        ("SYMBOL", "::"),
        ("WORD", "int"),
        ("SYMBOL", ","),
        ("STRING", "it's -- x"),
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
    [change] = read(f"ALTER TABLE t ADD a {written} NOT NULL DEFAULT 5")[0].changes
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
    ("was", "now", "rewritten"),
    [
        ("bigint", "integer", True),
        ("text", "varchar", False),
        ("text", "varchar(100)", True),
        ("varchar(20)", "varchar(10)", True),
        ("varchar", "varchar(10)", True),
        ("char(10)", "char(20)", True),
        ("numeric(10,2)", "numeric(10,4)", True),
        ("numeric(10,2)", "numeric(9,2)", True),
        ("numeric(10,4)", "numeric(12,2)", True),
        ("numeric", "numeric(9,2)", True),
        ("integer", "numeric", True),
        ("integer", "text", True),
        ("timestamp", "timestamptz", None),
        ("timestamptz", "timestamptz(3)", True),
        ("text", "text[]", True),
        ("json", "jsonb", True),
        ("mood", "new_mood", None),
        ("((", "text", None),
        (None, "text", None),
    ],
)
def test_not_a_wider_type(was: str | None, now: str, rewritten: bool | None) -> None:
    assert was is None or not widens(was, now)
    assert rewrites(was, now) is rewritten


# Transactions

UP = "def upgrade():\n    {up}\ndef downgrade():\n    {down}\n"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('op.execute("COMMIT")', "COMMIT"),
        ('op.execute("  /* done */ commit and chain; ")', "commit and chain"),
        ('op.execute("ALTER TABLE u ADD x int; COMMIT; ALTER TABLE u ADD y int")', "COMMIT"),
        ('op.execute(sa.text("ROLLBACK"))', "ROLLBACK"),
        ('op.get_bind().exec_driver_sql("BEGIN")', "BEGIN"),
        ("op.execute(END)", "END TRANSACTION"),
        ('op.execute("SAVE" "POINT a")', "SAVEPOINT a"),
        ("op.execute('PREPARE ' + \"TRANSACTION 'x'\")", "PREPARE TRANSACTION"),
        ('op.execute(f"ROLLBACK TO {name}")', "ROLLBACK TO _"),
        (r'op.execute("SELECT 1;\nCOMMIT")', "SELECT 1; COMMIT"),
        (r'op.execute("SELECT 1;\x0aCOMMIT")', "SELECT 1; COMMIT"),
        (r'op.execute("SELECT 1;\12COMMIT")', "SELECT 1; COMMIT"),
        (r'op.execute("SELECT 1;\u000aCOMMIT")', "SELECT 1; COMMIT"),
        ('[op.execute(sql) for sql in ("SELECT 1", "COMMIT")]', "COMMIT"),
        ('for sql in ["START TRANSACTION"]: op.execute(sql)', "START TRANSACTION"),
        ("op.get_bind().commit()", "op.get_bind().commit()"),
        ("bind = op.get_bind(); bind.rollback()", "bind.rollback()"),
        ("op.get_context().connection.commit()", "op.get_context().connection.commit()"),
    ],
)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_file_leaves_its_transaction_to_alembic(line: str, named: str, direction: str, read_file: ReadFile) -> None:
    body = UP.format(**{"up": "op.x()", "down": "op.y()", direction: line})
    file = read_file(HEAD + 'END = "END TRANSACTION"\n' + body)
    [finding] = check_file(file)
    assert (finding.rule, finding.warning) == ("transaction-control", False)
    assert named in finding.message
    assert verdict_on(file).broken == finding.message


@pytest.mark.parametrize(
    "line",
    [
        "op.execute(\"INSERT INTO words VALUES ('COMMIT')\")",
        'op.execute("DO $$ BEGIN PERFORM 1; END $$")',
        'op.create_table("commit", sa.Column("end", sa.Enum("begin", "end", name="mood")))',
        'op.execute("PREPARE x AS SELECT 1")',
        "session = Session(op.get_bind()); session.commit()",
        "with op.get_bind().begin_nested(): op.x()",
        'print("COMMIT")',
    ],
)
def test_a_file_that_only_speaks_of_transactions(line: str, read_file: ReadFile) -> None:
    assert check_file(read_file(HEAD + UP.format(up=line, down="op.y()"))) == []


def test_transaction_control_that_only_rendering_shows(read_file: ReadFile) -> None:
    file = read_file(HEAD + BOTH)
    found = check_revision(file, lambda: op.execute("".join(["COM", "MIT"])))
    assert "transaction-control" in rules(found)
    assert not next(finding for finding in found if finding.rule == "transaction-control").warning


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ('op.execute("CREATE EXTENSION vector")', ["vector"]),
        (
            "op.execute('create extension if not exists \"uuid-ossp\" SCHEMA tools; CREATE TABLE t (id int)')",
            ["uuid-ossp"],
        ),
        ('MAKE = ("CREATE EXTENSION IF NOT EXISTS "\n  "hstore", "SELECT 1")', ["hstore"]),
        ('op.execute(sa.text("DO $$ BEGIN CREATE EXTENSION citext; END $$"))', ["citext"]),
        ('"""Needs what CREATE EXTENSION vector makes."""\n# CREATE EXTENSION vector', []),
        ("op.execute(\"COMMENT ON TABLE t IS 'CREATE EXTENSION vector'\")", []),
        ('op.execute("-- CREATE EXTENSION vector\\nSELECT 1")', []),
        ('op.execute("DROP EXTENSION vector; ALTER EXTENSION hstore UPDATE")', []),
        ('op.execute("CREATE EXTENSION vector"', []),
    ],
)
def test_the_extensions_that_a_revision_makes(source: str, made: list[str]) -> None:
    assert list(made_extensions(source.encode())) == made


TEMPLATE = """
def upgrade():
    with warnings.catch_warnings():
        with op.get_context().autocommit_block():
            schema_upgrades()
            data_upgrades()
def downgrade():
    op.y()
def schema_upgrades():
    {line}
def data_upgrades():
    pass
"""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('op.add_column("t", sa.Column("a", sa.Integer()))', "op.add_column"),
        ('op.execute("ALTER TABLE t ADD a int")', "ALTER TABLE t ADD a int"),
        ('op.create_index("i", "t", ["a"])', "op.create_index"),
        ('op.create_index("i", "t", ["a"], postgresql_concurrently=False)', "op.create_index"),
        ('op.execute("CREATE INDEX CONCURRENTLY i ON t (a)"); op.drop_table("u")', "op.drop_table"),
    ],
)
def test_a_block_that_needs_no_autocommit_is_pointed_out(line: str, named: str, read_file: ReadFile) -> None:
    file = read_file(HEAD + TEMPLATE.format(line=line))
    [finding] = check_file(file)
    assert (finding.rule, finding.warning) == ("autocommit-block", True)
    assert f"It runs {named} in an autocommit block." in finding.message
    assert (verdict_on(file).broken, verdict_on(file).advice) == (None, finding.message)


@pytest.mark.parametrize(
    "line",
    [
        'op.create_index("i", "t", ["a"], postgresql_concurrently=True)',
        'op.execute("DROP INDEX CONCURRENTLY i")',
        "op.execute(\"ALTER TYPE mood ADD VALUE 'ugly'\")",
        'op.execute("VACUUM t")',
        "op.execute(made_at_run_time())",
        "pass",
    ],
)
def test_a_block_that_is_needed(line: str, read_file: ReadFile) -> None:
    assert verdict_on(read_file(HEAD + TEMPLATE.format(line=line))).advice is None


def test_a_block_that_only_rendering_shows(read_file: ReadFile) -> None:
    def upgrade() -> None:
        with op.get_context().autocommit_block():
            op.add_column("t", sa.Column("a", sa.Integer()))

    assert rules(check_revision(read_file(HEAD + BOTH), upgrade)) == ["autocommit-block"]


def test_a_block_is_allowed_with_its_reason(read_file: ReadFile) -> None:
    source = HEAD + "allowed_findings = {'autocommit-block': 'rows are filled in batches'}\n"
    file = read_file(source + TEMPLATE.format(line='op.execute("UPDATE t SET a = 1")'))
    assert verdict_on(file).advice is None
    assert [(f.rule, f.allowed) for f in check_file(file)] == [("autocommit-block", "rows are filled in batches")]
