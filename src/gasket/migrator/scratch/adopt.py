"""A database that was not built by our runner: whether it is what a revision builds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

from gasket.migrator.catalog import Catalog, read_catalog
from gasket.migrator.connection import MigratorConfig, connect
from gasket.migrator.errors import MigrationFailedError, ScratchDatabaseError
from gasket.migrator.revisions import Revisions
from gasket.migrator.scratch.database import scratch_database
from gasket.migrator.scratch.rehearsal import build

_CLOSE_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the catalog (`catalog.Catalog`): its definition on live and as the revisions make it."""

    kind: str
    name: str
    live: str | None
    expected: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The live schema against what the revisions build.

    Extra are objects of other applications and rights of other roles too: they are shown and are no reason to
    refuse. `notes` say how the scratch database differs from the live one.
    """

    missing: tuple[Entry, ...]
    extra: tuple[Entry, ...]
    different: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the live schema has everything, as the revisions make it."""
        return not (self.missing or self.different)

    def lines(self) -> list[str]:
        """For a reader; of a whole table that is missing or extra, one line."""
        return [
            *(f"missing    {entry.kind} {entry.name}" + _in_words(entry) for entry in _wholes(self.missing)),
            *(
                f"different  {entry.kind} {entry.name}: is {entry.live!r}, the revisions make it {entry.expected!r}"
                for entry in self.different
            ),
            *(f"extra      {entry.kind} {entry.name}" + _in_words(entry) for entry in _wholes(self.extra)),
            *(f"note       {note}" for note in self.notes),
        ]


async def compare_with_revision(config: MigratorConfig, revisions: Revisions, revision: str) -> Difference:
    """Compare the live schema with what `revision`, and all it stands on, builds on a scratch database.

    Raises:
        ScratchDatabaseError: there is none, or the revisions cannot be built on it.
        DatabaseUnavailableError, DatabaseRefusedError: the live database cannot be reached.
    """
    async with scratch_database(config, revisions) as scratch:
        try:
            await build(scratch, revisions, [revision])
        except MigrationFailedError as error:
            raise ScratchDatabaseError(
                reason=f"revision {revision} cannot be built on it ({error})",
                mend=" ".join(scratch.notes) or "Correct what it failed at.",
            ) from error
        expected = await _read(scratch.config)
        return difference(await _read(config), expected, notes=scratch.notes)


async def compare(live: asyncpg.Connection, scratch: asyncpg.Connection, schema: str) -> Difference:
    """Compare the schema of that name in two databases of one server: another version words definitions otherwise."""
    return difference(await read_catalog(live, schema), await read_catalog(scratch, schema))


def difference(live: Catalog, expected: Catalog, *, notes: tuple[str, ...] = ()) -> Difference:
    """Compare two catalogs. Pure."""
    entries = [Entry(kind, name, live.get((kind, name)), expected.get((kind, name))) for kind, name in live | expected]
    unequal = [part for entry in entries if entry.live != entry.expected for part in _parts(entry)]
    unequal.sort(key=lambda entry: (entry.kind != "table", entry.kind, entry.name))
    return Difference(
        missing=tuple(entry for entry in unequal if entry.live is None),
        extra=tuple(entry for entry in unequal if entry.expected is None),
        different=tuple(entry for entry in unequal if entry.live is not None and entry.expected is not None),
        notes=notes,
    )


async def _read(config: MigratorConfig) -> Catalog:
    connection = await connect(config, migrating=True)
    try:
        return await read_catalog(connection, config.schema)
    finally:
        await connection.close(timeout=_CLOSE_TIMEOUT)


def _parts(entry: Entry) -> Iterator[Entry]:
    """The entry; rights one by one, for more of them on live are no harm."""
    if entry.kind == "constraint" and all(
        text is None or text.startswith("NOT NULL ") for text in (entry.live, entry.expected)
    ):
        return  # its column says the same; PostgreSQL 18 names it, and does so by the column's first name
    if entry.kind != "privileges":
        yield entry
        return
    live, expected = (set(text.split(", ")) if text else set() for text in (entry.live, entry.expected))
    if lacking := ", ".join(sorted(expected - live)):
        yield Entry(entry.kind, entry.name, None, lacking)
    if beyond := ", ".join(sorted(live - expected)):
        yield Entry(entry.kind, entry.name, beyond, None)


def _wholes(entries: tuple[Entry, ...]) -> list[Entry]:
    """Without what belongs to a table that is among the entries itself."""
    tables = {entry.name for entry in entries if entry.kind == "table"}
    owners = tables | {entry.name for entry in entries if entry.kind in ("index", "sequence") and _is_of(entry, tables)}
    return [
        entry for entry in entries if (entry.name in tables and entry.kind == "table") or not _belongs(entry, owners)
    ]


def _is_of(entry: Entry, tables: set[str]) -> bool:
    """Whether the definition of an index or a sequence names one of the tables, or a column of it."""
    words = (entry.live or entry.expected or "").split()
    return any(word in tables or word.rpartition(".")[0] in tables for word in words)


def _belongs(entry: Entry, owners: set[str]) -> bool:
    return any(entry.name == owner or entry.name.startswith((f"{owner}.", f"{owner} to ")) for owner in owners)


def _in_words(entry: Entry) -> str:
    """The definition, where it is one line that a reader can do something with."""
    definition = entry.live or entry.expected or ""
    plain = entry.kind in ("column", "comment", "constraint", "index", "privileges", "rule", "trigger")
    return f": {definition}" if plain and definition and "\n" not in definition else ""
