"""The name of the database in a libpq URL."""

from __future__ import annotations

import pytest

from gasket.migrator.scratch.database import _with_database


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40w@db:5432/live?sslmode=require", "postgresql://u:p%40w@db:5432/new?sslmode=require"),
        ("postgresql://u@h1:1,[::1]:2,h3/live", "postgresql://u@h1:1,[::1]:2,h3/new"),
        ("postgresql://u@/live?host=/run/a%20b&port=5433", "postgresql://u@/new?host=/run/a%20b&port=5433"),
        ("postgresql://u@%2Frun%2Fpg/live", "postgresql://u@%2Frun%2Fpg/new"),
        ("postgresql:///live", "postgresql:///new"),
        ("postgresql://", "postgresql:///new"),
        ("postgresql://db", "postgresql://db/new"),
        ("postgresql://db?sslmode=disable", "postgresql://db/new?sslmode=disable"),
        ("postgresql://db/?dbname=live&user=u", "postgresql://db/new?user=u"),
        ("postgresql://db/a%2Fb?database=live", "postgresql://db/new"),
    ],
)
def test_only_the_database_changes(url: str, expected: str) -> None:
    assert _with_database(url, "new") == expected


def test_a_name_is_encoded() -> None:
    assert _with_database("postgresql://db/live", "a/b?c") == "postgresql://db/a%2Fb%3Fc"
