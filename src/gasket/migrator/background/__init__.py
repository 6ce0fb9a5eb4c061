"""Work that a revision leaves for the time after the start, while replicas serve.

A revision declares it beside `backward_compatible`:

    background = [Backfill(table="api_keys", set="tier = 'standard'", where="tier IS NULL")]

`needs_background = ["5ac776fa6b6c"]` in a later revision: it is applied only once the work of that one is complete.
"""

from __future__ import annotations

import msgspec

from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import TouchIndex

BACKFILL = "backfill"
INDEX = "index"


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
        if index_of(self.sql) is None:
            raise ValueError("IndexBuild needs one CREATE INDEX CONCURRENTLY statement that names its index")

    @property
    def table(self) -> str:
        """The table as the statement names it."""
        index = index_of(self.sql)
        assert index is not None
        return ".".join(index.table or ())


Declaration = Backfill | IndexBuild


def index_of(sql: str) -> TouchIndex | None:
    """What the statement builds; None where it is not one CREATE INDEX CONCURRENTLY with a name and a table."""
    changes = [change for reading in read(sql) for change in reading.changes]
    match changes:
        case [TouchIndex(action="create" | "create unique", index=(*_,), table=(*_,), concurrently=True) as index]:
            return index
    return None
