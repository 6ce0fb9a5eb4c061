"""Tables as files for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from litestar import Response

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a text for a formula (OWASP, "CSV Injection")."""


def csv_file(name: str, rows: Iterable[Sequence[str | int | None]]) -> Response[bytes]:
    """A download of this name, in the form of RFC 4180."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([cell(value) for value in row] for row in rows)
    return Response(
        text.getvalue().encode(),
        media_type="text/csv",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def cell(value: str | int | None) -> str | int:
    """The value as no spreadsheet computes it: a text that looks like a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
