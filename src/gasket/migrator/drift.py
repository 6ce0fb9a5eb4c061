"""The live schema against the models, as Alembic's autogenerate sees it, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from gasket.migrator.connection import MigratorConfig, quote_identifier
from gasket.migrator.session import engine_over
from gasket.migrator.steps import is_ours_to_compare


async def find_drift(connection: asyncpg.Connection, config: MigratorConfig) -> list[str]:
    """One line for every point in which the live tables differ from the models."""

    def compare(sqlalchemy_connection: Connection) -> list[str]:
        context = MigrationContext.configure(
            sqlalchemy_connection,
            opts={"compare_type": True, "compare_server_default": True, "include_name": is_ours_to_compare},
        )
        return [_describe(*difference) for difference in _flat(compare_metadata(context, config.metadata))]

    async with engine_over(connection).begin() as sqlalchemy_connection:
        await sqlalchemy_connection.execute(
            text("SELECT set_config('search_path', :path, true)"), {"path": quote_identifier(config.schema)}
        )
        return await sqlalchemy_connection.run_sync(compare)


def _describe(kind: str, *facts: Any) -> str:
    """One of Alembic's tuples in words: what is missing in the live schema, or is there and not in the models."""
    action, _, what = kind.partition("_")
    if action == "modify":
        _schema, table, column, _existing, live, model = facts
        return f"column {table}.{column}: {what} is {_value(live)}, in the models {_value(model)}"
    if what == "column":
        name = f"{facts[1]}.{facts[2].name}"
    elif what == "table":
        name = facts[0].name
    elif what in ("index", "constraint", "fk"):
        name = f"{facts[0].name or '(unnamed)'} of {facts[0].table.name}"
    else:
        name = ", ".join(map(str, facts))
    noun = {"fk": "foreign key"}.get(what, what.replace("_", " "))
    state = {"add": "is missing", "remove": "is not in the models"}.get(action, f"differs ({action})")
    return f"{noun} {name} {state}"


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
