"""The locks that statements take, from their text alone: where they cannot be run on a scratch database. Pure.

The modes are those of the PostgreSQL manual: "Explicit Locking", and for each form of ALTER TABLE its own page. What
depends on the data or on the catalog is taken for the worse: a new type rewrites, SET NOT NULL scans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from gasket.migrator.scratch.effects import Effects, IndexBuild, LockMode, Statement
from gasket.migrator.sql.sqltext import NAME, created_names, plain_name, squeeze

_AE, _SRE, _SUE, _SHARE = (
    LockMode.ACCESS_EXCLUSIVE,
    LockMode.SHARE_ROW_EXCLUSIVE,
    LockMode.SHARE_UPDATE_EXCLUSIVE,
    LockMode.SHARE,
)


class Work(Enum):
    """What is done to the rows while the lock is held."""

    NONE = auto()
    SCAN = auto()
    REWRITE = auto()
    BUILD = auto()


@dataclass(frozen=True, slots=True)
class Touch:
    """One table that a statement locks; `index` is what BUILD builds."""

    table: str
    mode: LockMode
    work: Work = Work.NONE
    index: str = ""


@cache
def _pattern(text: str) -> re.Pattern[str]:
    for group in ("table", "index"):
        text = text.replace(f"@{group}", f"(?P<{group}>{NAME})")
    return re.compile(text.replace("@name", NAME), re.IGNORECASE)


# Of a whole statement; the first that matches counts. Compiled when it is asked for: a start does not need them.
_STATEMENTS = [
    (
        r"CREATE (UNIQUE )?INDEX CONCURRENTLY (IF NOT EXISTS )?(?!ON )(@index )?ON (ONLY )?@table",
        _SUE,
        Work.BUILD,
    ),
    (r"CREATE (UNIQUE )?INDEX (IF NOT EXISTS )?((?!ON )@index )?ON (ONLY )?@table", _SHARE, Work.BUILD),
    (r"DROP INDEX CONCURRENTLY (IF EXISTS )?@table", _SUE, Work.NONE),
    (r"REINDEX (\([^)]*\) ?)?(TABLE|INDEX) CONCURRENTLY @table", _SUE, Work.BUILD),
    (r"REINDEX (\([^)]*\) ?)?(TABLE|INDEX) @table", _AE, Work.BUILD),
    (r"ALTER INDEX (IF EXISTS )?@table", _SUE, Work.NONE),
    (r"ALTER SEQUENCE (IF EXISTS )?@table (RENAME|OWNER|SET SCHEMA)", _AE, Work.NONE),
    (r"ALTER SEQUENCE (IF EXISTS )?@table", _SRE, Work.NONE),
    (r"ALTER (MATERIALIZED )?VIEW (IF EXISTS )?@table", _AE, Work.NONE),
    (r"CREATE OR REPLACE (RECURSIVE )?VIEW @table", _AE, Work.NONE),
    (r"CREATE (OR REPLACE )?(CONSTRAINT )?TRIGGER .*? ON @table", _SRE, Work.NONE),
    (r"DROP TRIGGER (IF EXISTS )?@name ON @table", _AE, Work.NONE),
    (r"ALTER TRIGGER @name ON @table", _AE, Work.NONE),
    (r"CREATE (OR REPLACE )?RULE .*? TO @table", _AE, Work.NONE),
    (r"(ALTER|DROP) RULE (IF EXISTS )?@name ON @table", _AE, Work.NONE),
    (r"(CREATE|ALTER|DROP) POLICY (IF EXISTS )?@name ON @table", _AE, Work.NONE),
    (r"CREATE STATISTICS .*? FROM @table", _SUE, Work.NONE),
    (r"COMMENT ON (TABLE|VIEW|MATERIALIZED VIEW|INDEX|SEQUENCE) @table", _SUE, Work.NONE),
    (rf"COMMENT ON COLUMN (?P<table>{NAME}) ?\. ?(\"(?:[^\"]|\"\")+\"|\w+) IS", _SUE, Work.NONE),
    (r"INSERT INTO @table", LockMode.ROW_EXCLUSIVE, Work.NONE),
    (r"COPY @table .*?\bFROM\b", LockMode.ROW_EXCLUSIVE, Work.NONE),
    (r"UPDATE (ONLY )?@table", LockMode.ROW_EXCLUSIVE, Work.SCAN),
    (r"DELETE FROM (ONLY )?@table", LockMode.ROW_EXCLUSIVE, Work.SCAN),
    (r"MERGE INTO (ONLY )?@table", LockMode.ROW_EXCLUSIVE, Work.SCAN),
    (r"REFRESH MATERIALIZED VIEW CONCURRENTLY @table", LockMode.EXCLUSIVE, Work.NONE),
    (r"REFRESH MATERIALIZED VIEW @table", _AE, Work.REWRITE),
    (r"CLUSTER (\([^)]*\) ?)?(VERBOSE )?@table", _AE, Work.REWRITE),
    (r"VACUUM (\([^)]*\bFULL\b[^)]*\)|FULL)( (FREEZE|VERBOSE|ANALYZE))* @table", _AE, Work.REWRITE),
    (r"VACUUM (\([^)]*\) ?)?((FREEZE|VERBOSE|ANALYZE) )*@table", _SUE, Work.SCAN),
    (r"ANALYZE (\([^)]*\) ?)?(VERBOSE )?@table", _SUE, Work.NONE),
]
_ALTER_TABLE = _pattern(r"ALTER (FOREIGN )?TABLE (IF EXISTS )?(ONLY )?@table( ?\*)? (?P<actions>.*)")
_DROP = _pattern(
    r"DROP (TABLE|INDEX(?! CONCURRENTLY)|VIEW|MATERIALIZED VIEW|FOREIGN TABLE|SEQUENCE) (IF EXISTS )?"
    r"(?P<names>.*?)( CASCADE| RESTRICT)?$"
)
_TRUNCATE = _pattern(r"TRUNCATE (TABLE )?(?P<names>.*?)(?= RESTART | CONTINUE | CASCADE| RESTRICT|$)")
_LOCK = _pattern(r"LOCK (TABLE )?(?P<names>.*?)( IN (?P<mode>[A-Z ]+) MODE)?( NOWAIT)?$")
_CREATE_TABLE = _pattern(r"CREATE ((GLOBAL |LOCAL )?(TEMP|TEMPORARY|UNLOGGED) )?(FOREIGN )?TABLE ")
_REFERENCES = _pattern(r"\bREFERENCES (?:ONLY )?@table")
_PARTITION_OF = _pattern(r"\bPARTITION OF @table")
_INHERITS = _pattern(r"\bINHERITS ?\((?P<names>[^)]*)\)")
_PARTITION = _pattern(r"(?P<verb>ATTACH|DETACH) PARTITION @table")

# Of one action of ALTER TABLE; the first that matches counts, and ACCESS EXCLUSIVE where none does.
_CONSTRAINT = r"ADD (CONSTRAINT @index )?"
_COLUMN = r"ALTER (COLUMN )?@name "
_ACTIONS = [
    (r"VALIDATE CONSTRAINT ", _SUE, Work.SCAN),
    (_CONSTRAINT + r"FOREIGN KEY.* NOT VALID$", _SRE, Work.NONE),
    (_CONSTRAINT + r"FOREIGN KEY", _SRE, Work.SCAN),
    (_CONSTRAINT + r"UNIQUE USING INDEX", _AE, Work.NONE),
    (_CONSTRAINT + r"PRIMARY KEY USING INDEX", _AE, Work.SCAN),
    (_CONSTRAINT + r"(UNIQUE|PRIMARY KEY|EXCLUDE)\b", _AE, Work.BUILD),
    (_CONSTRAINT + r"(CHECK|NOT NULL).* NOT VALID$", _AE, Work.NONE),
    (_CONSTRAINT + r"(CHECK|NOT NULL)\b", _AE, Work.SCAN),
    (_COLUMN + r"(SET DATA )?TYPE ", _AE, Work.REWRITE),
    (_COLUMN + r"SET NOT NULL", _AE, Work.SCAN),
    (_COLUMN + r"SET EXPRESSION", _AE, Work.REWRITE),
    (_COLUMN + r"(SET STATISTICS|(RE)?SET ?\()", _SUE, Work.NONE),
    (r"(CLUSTER ON|SET WITHOUT CLUSTER|(RE)?SET ?\(|ATTACH PARTITION)", _SUE, Work.NONE),
    (r"DETACH PARTITION @name (CONCURRENTLY|FINALIZE)", _SUE, Work.NONE),
    (r"(ENABLE|DISABLE) ((ALWAYS|REPLICA) )?TRIGGER", _SRE, Work.NONE),
    (r"SET (LOGGED|UNLOGGED|TABLESPACE|ACCESS METHOD)\b", _AE, Work.REWRITE),
]
_ADD_COLUMN = re.compile(r"ADD (COLUMN )?", re.IGNORECASE)
# A default that is computed for each row, and is not known to be the same for all, has to be written to each.
_FILLED_ROW_BY_ROW = re.compile(
    r"GENERATED ALWAYS AS ?\(.*\) STORED|AS IDENTITY|\b(small|big)?serial\b"
    r"|DEFAULT [^,]*?\b(?!now\b|statement_timestamp\b|transaction_timestamp\b|coalesce\b|cast\b)\w+ ?\(",
    re.IGNORECASE,
)
_VERIFIED = re.compile(r"\bCHECK ?\(|\bDEFAULT\b.*\bREFERENCES\b|\bREFERENCES\b.*\bDEFAULT\b", re.IGNORECASE)
_HARMLESS = re.compile(
    r"(CREATE|ALTER|DROP|COMMENT ON) (OR REPLACE )?(TYPE|DOMAIN|SEQUENCE|SCHEMA|EXTENSION|FUNCTION|PROCEDURE|AGGREGATE"
    r"|OPERATOR|COLLATION|CAST|ROLE|STATISTICS|VIEW|RECURSIVE VIEW|MATERIALIZED VIEW|TEXT SEARCH|DATABASE|CONSTRAINT"
    r"|TRIGGER|DEFAULT PRIVILEGES)\b|(GRANT|REVOKE|SET|RESET|SHOW|ALTER DEFAULT PRIVILEGES)\b|SELECT [^(]*$",
    re.IGNORECASE,
)


def touched_tables(sql: str, schema: str, part_of: Mapping[str, str]) -> list[Touch] | None:
    """The tables that the statement locks, by their names as `plain_name` gives them; None if it is not understood.

    `part_of` says of which table an index or a sequence is a part.
    """
    text = squeeze(sql)
    touches = [*_of_alter_table(text), *_of_lists(text), *_of_create_table(text)]
    if not touches:
        touches = [*_of_statement(text)]
    if not touches and not (_CREATE_TABLE.match(text) or _HARMLESS.match(text)):
        return None
    plain = [
        Touch(plain_name(touch.table, schema), touch.mode, touch.work, plain_name(touch.index, schema))
        for touch in touches
    ]
    return [Touch(part_of.get(t.table, t.table), t.mode, t.work, t.index) for t in plain]


def estimate(statements: Iterable[Statement], schema: str, part_of: Mapping[str, str]) -> Effects:
    """The effects of one revision, as far as its SQL tells them."""
    effects = Effects()
    made: set[str] = set()
    for statement in statements:
        effects.statements.append(statement)
        touches = touched_tables(statement.sql, schema, part_of)
        if touches is None:
            effects.unknown.append(f"Statement {len(effects.statements)}: its locks cannot be told from its text.")
        for touch in touches or ():
            if touch.table not in made:
                _add(effects, touch)
        made.update(created_names(statement.sql, schema))
    return effects


def _add(effects: Effects, touch: Touch) -> None:
    effects.add_lock(touch.table, touch.mode, estimated=True)
    if touch.work is Work.REWRITE:
        effects.add_rewrite(touch.table)
    elif touch.work is not Work.NONE:
        effects.add_scan(touch.table)
    if touch.work is Work.BUILD:
        effects.index_builds.append(IndexBuild(touch.index, touch.table))


def _of_statement(text: str) -> Iterator[Touch]:
    for pattern, mode, work in _STATEMENTS:
        if match := _pattern(pattern).match(text):
            index = match.groupdict().get("index") or ""
            yield Touch(match["table"], mode, work, index)
            return


def _of_alter_table(text: str) -> Iterator[Touch]:
    statement = _ALTER_TABLE.match(text)
    if not statement:
        return
    table = statement["table"]
    for action in _split(statement["actions"]):
        yield _of_action(table, action)
        if match := _PARTITION.match(action):
            attached = match["verb"].upper() == "ATTACH"
            concurrently = re.search(r" (CONCURRENTLY|FINALIZE)$", action, re.IGNORECASE)
            yield Touch(match["table"], _SUE if concurrently else _AE, Work.SCAN if attached else Work.NONE)
        for reference in _REFERENCES.finditer(action):
            yield Touch(reference["table"], _SRE)


def _of_action(table: str, action: str) -> Touch:
    for pattern, mode, work in _ACTIONS:
        if match := _pattern(pattern).match(action):
            return Touch(table, mode, work, match.groupdict().get("index") or "")
    if not _ADD_COLUMN.match(action):
        return Touch(table, _AE)
    if re.search(r"\b(UNIQUE|PRIMARY KEY)\b", action, re.IGNORECASE):
        return Touch(table, _AE, Work.BUILD)
    if _FILLED_ROW_BY_ROW.search(action):
        return Touch(table, _AE, Work.REWRITE)
    return Touch(table, _AE, Work.SCAN if _VERIFIED.search(action) else Work.NONE)


def _of_lists(text: str) -> Iterator[Touch]:
    """Statements that may name several tables."""
    match = _LOCK.match(text) or _TRUNCATE.match(text) or _DROP.match(text)
    if not match:
        return
    mode = LockMode((match.groupdict().get("mode") or _AE).upper())
    for name in _split(match["names"]):
        yield Touch(re.sub(r"^ONLY |\*$", "", name, flags=re.IGNORECASE).strip(), mode)


def _of_create_table(text: str) -> Iterator[Touch]:
    if not _CREATE_TABLE.match(text):
        return
    for reference in _REFERENCES.finditer(text):
        yield Touch(reference["table"], _SRE)
    if parent := _PARTITION_OF.search(text):
        yield Touch(parent["table"], _AE)
    if parents := _INHERITS.search(text):
        yield from (Touch(name, _SUE) for name in _split(parents["names"]))


def _split(text: str) -> list[str]:
    """At the commas that are in no parentheses and no quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character == "," and not depth:
                parts.append(text[start:position])
                start = position + 1
    return [part.strip() for part in [*parts, text[start:]]]
