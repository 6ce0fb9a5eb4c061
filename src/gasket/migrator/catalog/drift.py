"""Where the live database is not what it should be: against what was recorded after a run, and the models."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

import asyncpg
import msgspec
from msgspec.structs import replace

from gasket.migrator.catalog.difference import (
    MADE_AT_RUN_TIME,
    Difference,
    Entry,
    compare_catalogs,
    describe_change,
    wholes,
)
from gasket.migrator.catalog.mending import mending_sql
from gasket.migrator.catalog.read import read_catalog
from gasket.migrator.catalog.recorded import read_record
from gasket.migrator.config import MigratorConfig
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier

_TUNING = frozenset({"comment", "statistics", "tuning"})
_MATTER_BEYOND = frozenset({"column", "constraint", "policy", "rule", "table", "trigger"})
"""Kinds of which one that no revision has made is more than tuning."""
_COMPARE_MODELS = "gasket.migrator.catalog.model_drift:compare_models"


class Drift(msgspec.Struct, frozen=True):
    """One line for each point.

    `tuned` are points that change no result: storage, statistics, comments, indexes and grants beyond, objects beside.
    `not_compared` says why functions and the like were left out, None where they were not. `mends` is the SQL that
    takes differences back, for those where it is known.
    """

    differences: list[str]
    tuned: list[str]
    not_compared: str | None
    mends: list[str] = []


class ModelDifference(msgspec.Struct, frozen=True):
    """`names` are those of the objects that the line is about, without quotes; what belongs to them is meant too."""

    line: str
    names: frozenset[str]


async def find_drift(connection: asyncpg.Connection, config: MigratorConfig, *, models: bool = True) -> Drift:
    """Compare every object with what was recorded after the newest run, and the tables with the models.

    Without `models` the tables are compared with those only where nothing is recorded: importing them takes longer than
    all the rest.
    """
    entries, not_compared = await _compare_record(connection, config.schema)
    with_models: list[ModelDifference] = []
    if models or not_compared:
        compare_models = pkgutil.resolve_name(_COMPARE_MODELS)  # it imports Alembic's autogenerate
        with_models = await compare_models(connection, config)
    tuned = [entry for entry in entries if _is_tuning(entry)]
    tuned_names = {_plain(entry.name) for entry in tuned}
    remaining = [found for found in with_models if not found.names & tuned_names]
    told = frozenset[str]().union(*(found.names for found in remaining))
    differences = [
        entry for entry in entries if not _is_tuning(entry) and not {_plain(entry.name), _plain(entry.owner)} & told
    ]
    return Drift(
        differences=[*(found.line for found in remaining), *(_line(entry, config.schema) for entry in differences)],
        tuned=[_line(entry, config.schema) for entry in tuned if _plain(entry.owner) not in told],
        not_compared=not_compared,
        mends=[sql for entry in entries if not _is_tuning(entry) and (sql := mending_sql(entry))],
    )


async def _compare_record(connection: asyncpg.Connection, schema: str) -> tuple[list[Entry], str | None]:
    record = await read_record(connection, schema)
    if record.objects is None:
        return [], record.reason
    try:
        live = await read_catalog(connection, schema)
    except asyncpg.PostgresError as error:
        return [], describe(error)
    role = await connection.fetchval("SELECT current_user::text")
    schemas = {schema, *(found.schema for found in record.objects.values() if found.schema)}
    return list(_meant(compare_catalogs(live, record.objects, schemas=schemas), role)), None


def _meant(found: Difference, role: str) -> Iterator[Entry]:
    """Partitions come and go at run time, and a run grants to its own role."""
    for entry in (*wholes(found.missing), *wholes(found.different)):
        if entry.kind not in MADE_AT_RUN_TIME:
            yield entry
    for entry in wholes(found.extra):
        granted_to_us = entry.kind == "privileges" and entry.name.endswith(f" to {role}")
        if not granted_to_us:
            yield entry


def _is_tuning(entry: Entry) -> bool:
    """What an administrator changes on purpose, and no query gives another result for it."""
    if entry.kind in _TUNING:
        return True
    if entry.expected is not None or entry.live is None:
        return False
    if entry.kind == "index":
        return not entry.live.startswith("CREATE UNIQUE")
    if entry.kind == "privileges":
        return not entry.name.endswith(" to PUBLIC")
    return entry.kind not in _MATTER_BEYOND


def _line(entry: Entry, schema: str) -> str:
    name = entry.name.removeprefix(f"{quote_identifier(schema)}.").removeprefix(f"{schema}.")
    entry = replace(entry, name=name)
    if entry.live is not None and entry.expected is not None:
        return describe_change(entry, "it was")
    rights = f": {entry.live or entry.expected}" if entry.kind in ("privileges", "default privileges") else ""
    return f"{entry.kind} {entry.name}{rights} {'is missing' if entry.live is None else 'is not from a revision'}"


def _plain(name: str | None) -> str:
    return (name or "").replace('"', "")
