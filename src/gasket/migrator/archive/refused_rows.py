"""Which archived rows the server refuses, found by trying them: each alone, where a chunk of them fails.

Exclusion constraints, checks, domains, partitions that are not there, values that a type does not know any more: what
refuses a row is known to the server alone. PL/pgSQL tries the rows, with a round trip for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from gasket.migrator.archive.copies import LEFT_BEHIND
from gasket.migrator.archive.faults import PASSING_SQL
from gasket.migrator.archive.live_table import Target

TOO_NEW = "its enum value was added in the same transaction"
_NO_PARTITION = "no partition takes it"
_MISFIT = "a value does not fit the type of its column"

_CHUNKS = 64
"""Into so many chunks a table is cut: one bad row costs that part of it, tried row by row (some 30 us each)."""
# SQLSTATEs: unsafe_new_enum_value_usage, not_null_violation, check_violation (without a constraint's name that of
# partitions), and the class of data exceptions.
_REASON = f"""CASE
    WHEN gasket_state = '55P04' THEN '{TOO_NEW}'
    WHEN gasket_state = '23502' THEN format('column %s may not be NULL', gasket_column)
    WHEN gasket_constraint <> '' THEN format('constraint %s refuses it', gasket_constraint)
    WHEN gasket_state = '23514' THEN '{_NO_PARTITION}'
    WHEN left(gasket_state, 2) = '22' THEN '{_MISFIT}'
    ELSE format('the server refuses it [SQLSTATE %s]', gasket_state)
END"""
# Everything is taken back at the end: a row that is refused may be the parent of others, which then must stay, too.
# The variables live on.
_TRIAL = """
#variable_conflict use_column
DECLARE
    gasket_page bigint;
    gasket_first tid;
    gasket_end tid;
    gasket_one tid;
    gasket_state text;
    gasket_constraint text;
    gasket_column text;
    gasket_refused tid[] := '{{}}';
    gasket_reasons text[] := '{{}}';
BEGIN
    BEGIN
        FOR gasket_page IN SELECT generate_series(0, {pages}, {step}) LOOP
            gasket_first := format('(%s,0)', gasket_page)::tid;
            gasket_end := format('(%s,0)', gasket_page + {step})::tid;
            BEGIN
                {chunk};
            EXCEPTION WHEN OTHERS THEN
                IF {passing} THEN RAISE; END IF;
                FOR gasket_one IN SELECT a.ctid FROM {archive} AS a WHERE a.{left} IS NULL AND {in_chunk} LOOP
                    BEGIN
                        {row};
                    EXCEPTION WHEN OTHERS THEN
                        IF {passing} THEN RAISE; END IF;
                        GET STACKED DIAGNOSTICS gasket_state = RETURNED_SQLSTATE,
                            gasket_constraint = CONSTRAINT_NAME, gasket_column = COLUMN_NAME;
                        gasket_refused := gasket_refused || gasket_one;
                        gasket_reasons := gasket_reasons || {reason};
                    END;
                END LOOP;
            END;
        END LOOP;
        RAISE SQLSTATE 'GSKTB';
    EXCEPTION WHEN SQLSTATE 'GSKTB' THEN
        NULL;
    END;
    UPDATE {archive} AS a SET {left} = r.reason
    FROM unnest(gasket_refused, gasket_reasons) AS r (place, reason) WHERE a.ctid = r.place;
END
"""
_IN_CHUNK = "a.ctid >= gasket_first AND a.ctid < gasket_end"
_ONE_ROW = "a.ctid = gasket_one"
_PAGES = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint"


def leave_unreadable(connection: Connection, target: Target) -> None:
    """Leave rows with a value that is not one of its column's type, as the type is now: a domain, an enum, a length."""
    values = ", ".join(column.archived for column in (*target.keys, *target.values))

    def read(rows: str) -> str:
        # The length is never negative: each value is read, and no row found. OFFSET keeps other rows' values unread.
        some = f"SELECT a.* FROM {target.archive} AS a WHERE a.{LEFT_BEHIND} IS NULL AND {rows} OFFSET 0"
        return f"PERFORM FROM ({some}) AS a WHERE length(ROW({values})::text) < 0"

    leave_refused(connection, target, read)


def leave_refused(connection: Connection, target: Target, statement: Callable[[str], str]) -> None:
    """Leave rows for which the server refuses `statement`: SQL, for a condition on the archived rows `a`.

    Nothing of what the statement writes stays.
    """
    pages: int = connection.exec_driver_sql(_PAGES, (target.archive,)).scalar_one()
    body = _TRIAL.format(
        pages=pages,
        step=pages // _CHUNKS + 1,
        archive=target.archive,
        left=LEFT_BEHIND,
        chunk=statement(_IN_CHUNK),
        in_chunk=_IN_CHUNK,
        row=statement(_ONE_ROW),
        reason=_REASON,
        passing=PASSING_SQL,
    )
    quote = "$gasket$"
    while quote in body:
        quote = f"$_{quote[1:]}"
    connection.exec_driver_sql(f"DO {quote}{body}{quote}")
