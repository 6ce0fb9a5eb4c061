"""What the functions that an expression calls tell about it.

`tests/.../test_expressions.py` asks PostgreSQL whether the lists are right (`pg_proc.provolatile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gasket.migrator.sql.lexer import Token


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STABLE = _words(
    """
    abs age array_agg array_append array_length array_to_json array_to_string avg bool_and bool_or btrim cardinality
    ceil char_length chr concat concat_ws count current_schema current_setting date_part date_trunc decode dense_rank
    encode first_value floor format generate_series json_agg json_array_elements json_build_array json_build_object
    jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_object_agg jsonb_set jsonb_strip_nulls jsonb_typeof lag last_value lead left length lower
    lpad ltrim make_date make_interval make_time make_timestamp make_timestamptz max md5 min mod now pg_typeof power
    rank regexp_match regexp_matches regexp_replace repeat replace reverse right round row_number rpad rtrim sha256
    sha512 sign split_part sqrt statement_timestamp string_agg string_to_array strpos substr sum timezone to_char
    to_date to_json to_jsonb to_number to_regclass to_regtype to_timestamp to_tsvector transaction_timestamp translate
    trunc unnest upper
    """
)
"""Functions of PostgreSQL that give the same value for all rows of a statement when their arguments do."""

VOLATILE = _words(
    """
    clock_timestamp currval gen_random_uuid lastval nextval pg_sleep random setseed setval timeofday
    uuidv4 uuidv7
    """
)
"""Functions of PostgreSQL whose value may differ from row to row; they write no rows."""

_EXTENSIONS_VOLATILE = _words(
    """
    gen_random_bytes gen_salt uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4
    """
)

OUTSIDE = _words(
    """
    lo_export pg_backup_start pg_backup_stop pg_cancel_backend pg_copy_logical_replication_slot
    pg_copy_physical_replication_slot pg_create_logical_replication_slot pg_create_physical_replication_slot
    pg_create_restore_point pg_drop_replication_slot pg_log_standby_snapshot pg_promote pg_reload_conf
    pg_replication_origin_create pg_replication_origin_drop pg_replication_slot_advance pg_rotate_logfile
    pg_switch_wal pg_terminate_backend pg_wal_replay_pause pg_wal_replay_resume
    """
)
"""Functions of PostgreSQL that act on the cluster, or on the server's disk."""

_ANOTHER_SERVER = ("dblink", "postgres_fdw", "pg_file_")

# Words before "(" that call nothing: keywords, what SQL writes like a function, and types that have a size.
_NO_CALL = _words(
    """
    all and any array as between bit bpchar by case cast char character check coalesce collate conflict cube
    current_time current_timestamp dec decimal default distinct else except exists extract filter float from generated
    greatest grouping having ilike in int interval into is isfinite isnull join key lateral least like limit localtime
    localtimestamp materialized normalize not notnull nullif numeric offset on or order over overlay partition
    position precision primary references returning rollup row select set sets similar some substring table then time
    timestamp timestamptz timetz to trim union unique using values varbit varchar varying when where window with
    within xmlelement
    """
)


def _called(words: Sequence[Token]) -> Iterator[str]:
    """The functions that are called, by their names; with the schema when it is not pg_catalog."""
    for position, token in enumerate(words[:-1]):
        if not token.is_identifier or not words[position + 1].is_symbol("("):
            continue
        qualified = position >= 2 and words[position - 1].is_symbol(".")
        if qualified and words[position - 2].text != "pg_catalog":
            yield f"{words[position - 2].text}.{token.text}"
        elif qualified or not token.is_word(*_NO_CALL):
            yield token.text


def varies(expression: Sequence[Token]) -> bool | None:
    """Whether its value may differ from row to row, where it names no column. None: an unknown function decides."""
    names = set(_called(expression))
    if names & (VOLATILE | _EXTENSIONS_VOLATILE):
        return True
    return None if names - STABLE else False


def acts_outside(words: Sequence[Token]) -> bool | None:
    """Whether a function that is called acts outside of the database. None: an unknown function decides."""
    names = set(_called(words))
    if any(name in OUTSIDE or name.rpartition(".")[2].startswith(_ANOTHER_SERVER) for name in names):
        return True
    return None if told_of_functions(words) else False


def told_of_functions(words: Sequence[Token]) -> tuple[str, ...]:
    """Phrases for the functions that are called and of which it is not known what they do."""
    known = STABLE | VOLATILE | _EXTENSIONS_VOLATILE | OUTSIDE | {"set_config"}
    return tuple(f"what {name}() does" for name in sorted(set(_called(words)) - known))
