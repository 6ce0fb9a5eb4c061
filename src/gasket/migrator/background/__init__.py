"""Work that a revision leaves for the time after the start, while replicas serve.

A revision declares it beside `backward_compatible`:

    background = [Backfill(table="api_keys", set="tier = 'standard'", where="tier IS NULL")]

`needs_background = ["5ac776fa6b6c"]` in a later revision: it is applied only once the work of that one is complete.
"""

from __future__ import annotations

import pkgutil

import msgspec

BACKFILL = "backfill"
INDEX = "index"
_BUILT_INDEX = "gasket.migrator.sql.reader:built_index"
"""Imported with the first declaration: a replica that serves reads no SQL."""


class Backfill(msgspec.Struct, frozen=True, kw_only=True):
    """`UPDATE table SET set WHERE where`, in batches along the primary key. All three are SQL.

    `set` has to make `where` false for the row, or the work fails: it would never end.
    """

    table: str
    set: str
    where: str

    def __post_init__(self) -> None:
        for name in ("table", "set", "where"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"Backfill needs {name}=, as SQL")


class IndexBuild(msgspec.Struct, frozen=True):
    """A CREATE INDEX CONCURRENTLY that names its index."""

    sql: str

    def __post_init__(self) -> None:
        if pkgutil.resolve_name(_BUILT_INDEX)(self.sql) is None:
            raise ValueError("IndexBuild needs one CREATE INDEX CONCURRENTLY statement that names its index")

    @property
    def table(self) -> str:
        """The table as the statement names it."""
        index = pkgutil.resolve_name(_BUILT_INDEX)(self.sql)
        assert index is not None
        return ".".join(index.table or ())


Declaration = Backfill | IndexBuild
