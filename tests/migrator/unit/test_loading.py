"""What is told of an error while a migration's file runs."""

from __future__ import annotations

import pytest

from gasket.migrator.errors import MigratorError
from gasket.migrator.revisions.loading import where


@pytest.mark.parametrize("kind", [MigratorError, TypeError])
def test_a_sentence_without_values_of_rows_is_told(kind: type[Exception]) -> None:
    error = kind("its downgrade() commits by itself")
    assert where(error, error).endswith("its downgrade() commits by itself")


def test_a_text_that_may_have_values_is_left_out() -> None:
    error = ValueError("ada@example.com")
    assert "ada@example.com" not in where(error, error)
