"""Which errors of the server are about rows that go back, and which are about something else."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.faults import is_passing

PASSING = [
    *("08006", "25006", "28000", "40001", "40P01", "53100", "53200", "53400", "55P03", "57014", "57P01", "58030"),
    *("72000", "F0000", "HV00N", "XX000", "XX001", "XX002"),
]
OF_ROWS = [
    *("0A000", "21000", "22P02", "23505", "23514", "23P01", "42501", "44000", "54000", "55000", "55P04", "P0001"),
    "ZZ999",
]


class ServerError(Exception):
    """What the driver makes of an error of the server."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("said")
        self.sqlstate = sqlstate


def an_error(sqlstate: str | None) -> DBAPIError:
    return DBAPIError("INSERT", None, ServerError(sqlstate))


@pytest.mark.parametrize("state", [None, *PASSING])
def test_what_is_not_about_rows_passes(state: str | None) -> None:
    assert is_passing(an_error(state))


@pytest.mark.parametrize("state", OF_ROWS)
def test_what_may_be_about_rows_keeps_them(state: str) -> None:
    assert not is_passing(an_error(state))


def test_a_lost_connection_passes_whatever_it_says() -> None:
    error = an_error("23505")
    error.connection_invalidated = True
    assert is_passing(error)
