"""Everything there is to say of a schema, for `litestar database status`."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from gasket.migrator.connection import MigratorConfig, looking, quote_identifier
from gasket.migrator.edits import Edit, find_edits
from gasket.migrator.ledger import DatabaseState, read_failures, read_history, read_state
from gasket.migrator.lock import find_holder
from gasket.migrator.plan import Plan, SchemaState, make_plan
from gasket.migrator.revisions import migrations_directory, read_revisions
from gasket.migrator.session import engine_over
from gasket.migrator.steps import is_ours_to_compare

_RUNS = 10


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """State in one word and one sentence, and what they rest on. Times are as PostgreSQL writes them."""

    state: str
    sentence: str
    current: list[str]
    head: str | None
    pending: list[str]
    ahead: list[str]
    edited: list[str]
    held: str | None
    drift: list[str]
    lock_holder: str | None
    last_runs: list[dict[str, Any]]
    last_failures: list[dict[str, Any]]
    archive_bytes: int


async def read_report(config: MigratorConfig) -> StatusReport:
    """Look at the database of DATABASE_URL, without the lock.

    Raises:
        MigratorError: it cannot be reached, or the files do not fit together.
    """
    revisions = read_revisions(migrations_directory(config.ini))
    async with looking(config) as connection:
        database = await read_state(connection, config.schema)
        plan = make_plan(revisions, database)
        edits = await find_edits(connection, config.schema, plan, database)
        holder = await find_holder(connection, config.schema)
        history = await read_history(connection, config.schema, _RUNS) if database.has_ledger else []
        failures = await read_failures(connection, config.schema, _RUNS) if database.has_ledger else []
        archive_bytes = await _archive_bytes(connection, config.schema)
        drift = await _drift(connection, config) if plan.state is SchemaState.AT_HEAD else []
    return StatusReport(
        state=_word(plan, edits, drift),
        sentence=_sentence(plan, edits, drift, database),
        current=sorted(database.versions),
        head=plan.head,
        pending=[file.revision for file in plan.pending],
        ahead=[revision.revision for revision in plan.unknown],
        edited=[str(edit) for edit in edits],
        held=plan.held.revision if plan.held else None,
        drift=drift,
        lock_holder=str(holder) if holder else None,
        last_runs=history,
        last_failures=failures,
        archive_bytes=archive_bytes,
    )


def _word(plan: Plan, edits: tuple[Edit, ...], drift: list[str]) -> str:
    if plan.held:
        return "held"
    if plan.state is SchemaState.AT_HEAD and (edits or drift):
        return "edited" if edits else "drifted"
    return plan.state.value


def _sentence(plan: Plan, edits: tuple[Edit, ...], drift: list[str], database: DatabaseState) -> str:
    current = ", ".join(sorted(database.versions)) or "no revision"
    if plan.held:
        return (
            f"{plan.held.revision}, the head of this release, was taken back by {plan.held.role}: a start refuses, "
            f"`litestar database upgrade` applies it again."
        )
    if plan.state is SchemaState.BEHIND:
        return f"The schema is at {current}; {len(plan.pending)} revisions up to {plan.head} are pending."
    if plan.state is SchemaState.AHEAD:
        return f"The schema is at {current}, newer than {plan.head}; this release can run on it."
    if plan.state is SchemaState.INCOMPATIBLE:
        return f"The schema is at {current}, newer than {plan.head}; this release cannot run on it."
    if edits:
        return f"The schema is at head {plan.head}, but applied files are not what was applied."
    if drift:
        return f"The schema is at head {plan.head}, but the live tables differ from the models in {len(drift)} points."
    return f"The schema is at head {plan.head}, and the live tables equal the models."


async def _drift(connection: asyncpg.Connection, config: MigratorConfig) -> list[str]:
    """The live schema against the models, as Alembic's autogenerate sees it."""

    def compare(sqlalchemy_connection: Connection) -> list[str]:
        context = MigrationContext.configure(
            sqlalchemy_connection,
            opts={"compare_type": True, "compare_server_default": True, "include_name": is_ours_to_compare},
        )
        return [str(difference) for difference in compare_metadata(context, config.metadata)]

    async with engine_over(connection).begin() as sqlalchemy_connection:
        await sqlalchemy_connection.execute(
            text("SELECT set_config('search_path', :path, true)"), {"path": quote_identifier(config.schema)}
        )
        return await sqlalchemy_connection.run_sync(compare)


async def _archive_bytes(connection: asyncpg.Connection, schema: str) -> int:
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_catalog.pg_class AS c "
        "WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind = 'r'",
        "gasket_archive" if schema == "public" else f"gasket_archive_{schema}",
    )
    return size
