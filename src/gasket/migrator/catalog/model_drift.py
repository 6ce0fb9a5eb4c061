"""Where the tables of the live database are not those of the models.

A module of its own, because Alembic's autogenerate takes longer to import than everything else that `status` needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from gasket.migrator.catalog.drift import ModelDifference
from gasket.migrator.catalog.models import compared_with_models
from gasket.migrator.config import MigratorConfig
from gasket.migrator.synchronous import run_sync
from gasket.postgres.quoting import quote_identifier


async def compare_models(connection: asyncpg.Connection, config: MigratorConfig) -> list[ModelDifference]:
    """Over a connection in no transaction; nothing is written."""

    def compare(sqlalchemy_connection: Connection) -> list[ModelDifference]:
        sqlalchemy_connection.execute(
            text("SELECT set_config('search_path', :path, true)"), {"path": quote_identifier(config.schema)}
        )
        context = MigrationContext.configure(
            sqlalchemy_connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": compared_with_models(sqlalchemy_connection, config.metadata, config.schema),
            },
        )
        found = _flat(compare_metadata(context, config.metadata))
        return [_describe(config.schema, *difference) for difference in found]

    return await run_sync(connection, compare)


def _describe(schema: str, kind: str, *facts: Any) -> ModelDifference:
    """One of Alembic's tuples in words: what is missing in the live schema, or is there and not in the models."""
    action, _, what = kind.partition("_")
    if action == "modify":
        _schema, table, column, _existing, live, model = facts
        line = f"column {table}.{column}: {what} is {_value(live)}, in the models {_value(model)}"
        return ModelDifference(line, frozenset({f"{schema}.{table}.{column}"}))
    names = {f"{schema}.{facts[0].name}"} if hasattr(facts[0], "name") else set()
    if what == "column":
        name = f"{facts[1]}.{facts[2].name}"
        names = {f"{schema}.{name}"}
    elif what == "table":
        name = facts[0].name
    elif what in ("index", "constraint", "fk"):
        name = f"{facts[0].name or '(unnamed)'} of {facts[0].table.name}"
        names |= {f"{schema}.{facts[0].table.name}.{facts[0].name}"}
    else:
        name = ", ".join(map(str, facts))
    noun = {"fk": "foreign key"}.get(what, what.replace("_", " "))
    state = {"add": "is missing", "remove": "is not in the models"}.get(action, f"differs ({action})")
    return ModelDifference(f"{noun} {name} {state}", frozenset(names))


def _value(value: Any) -> str:
    """A type, a truth or a default: that is a clause around the SQL."""
    return "none" if value is None else str(getattr(value, "arg", value))


def _flat(differences: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """What differs in one column comes as a list of its own."""
    for difference in differences:
        if isinstance(difference, list):
            yield from difference
        else:
            yield difference
