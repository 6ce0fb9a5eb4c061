"""What a statement names."""

from __future__ import annotations

import pytest

from gasket.migrator.sql.sqltext import created_names, squeeze


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("CREATE TABLE t (id int)", ["t"]),
        ('create unlogged table if not exists public . "My ""T" (id int)', ['My "T']),
        ("CREATE TABLE elsewhere.t (id int)", []),
        ("CREATE TEMP TABLE t (id int)", []),
        ("CREATE TABLE t AS SELECT 'CREATE TABLE u'", ["t"]),
        ("/* CREATE TABLE u */ CREATE -- TYPE v\n TYPE Mood AS ENUM ('a')", ["mood"]),
        ("CREATE DOMAIN d AS int", ["d"]),
        ("CREATE SEQUENCE s", ["s"]),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", ["v"]),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1", ["m"]),
        (
            "DO $gasket$ BEGIN CREATE TYPE mood AS ENUM ('a'); EXCEPTION WHEN duplicate_object THEN NULL; END $gasket$",
            ["mood"],
        ),
        ("ALTER TABLE IF EXISTS ONLY t RENAME TO u", ["u"]),
        ("ALTER TABLE t RENAME COLUMN a TO b", []),
        ("CREATE INDEX i ON t (a)", []),
        ("INSERT INTO t VALUES ('CREATE TABLE u (id int)')", []),
        ("COMMENT ON TABLE t IS $$CREATE TABLE u$$", []),
    ],
)
def test_the_names_that_a_statement_makes(sql: str, names: list[str]) -> None:
    assert created_names(sql, "public") == names


def test_what_a_text_says_is_not_read() -> None:
    assert squeeze("ALTER  TABLE ONLY a . \"B\" SET (x = 'y, z');") == "alter table only a.\"B\" set (x = '')"
