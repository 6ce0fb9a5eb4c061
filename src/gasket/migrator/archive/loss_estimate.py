"""What a downgrade would take away, before anybody is asked whether to go on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from alembic.runtime.migration import MigrationContext
from asyncpg import InsufficientPrivilegeError
from msgspec.structs import replace
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.copies import exact_settings, plan_copy
from gasket.migrator.archive.faults import sqlstate
from gasket.migrator.archive.inventory import Loss, LossKind, read_inventory
from gasket.migrator.archive.savepoints import savepoint
from gasket.migrator.archive.trial import Known, TrialStep, connection_of, try_out

# What a small machine copies at least: rough, and rather too long than too short.
_ROWS_A_SECOND = 300e3
_BYTES_A_SECOND = 50e6
_COUNTED = 1_000_000  # bytes: before its first ANALYZE the planner takes an empty table for ten pages full of rows
_ROW_OVERHEAD = 28  # bytes: header and line pointer (PostgreSQL manual, "Database Page Layout")


class _EstimatedLoss(msgspec.Struct, frozen=True):
    """What one step would take away of one table.

    `columns` are those that go, none for whole rows; `rows` is counted in a small table and else the planner's
    estimate, None where this role may not read them all; `size` are the bytes of the copy; `problem` says why it could
    not be put back by itself.
    """

    revision: str
    kind: LossKind
    table: str
    columns: tuple[str, ...]
    rows: int | None
    size: int
    problem: str | None


class Estimate(msgspec.Struct, frozen=True):
    """What a downgrade would take away, in the order of its steps, and in words what the archive cannot keep.

    `refused` says which steps would be refused, because their rows cannot be archived.
    """

    losses: tuple[_EstimatedLoss, ...]
    not_archived: tuple[str, ...]
    refused: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows to copy."""
        return sum(loss.rows or 0 for loss in self.losses)

    @property
    def size(self) -> int:
        """Bytes to write."""
        return sum(loss.size for loss in self.losses)

    @property
    def seconds(self) -> float:
        """Roughly how long the copy takes, in which writers of these tables wait."""
        return self.rows / _ROWS_A_SECOND + self.size / _BYTES_A_SECOND


def estimate_downgrade(context: MigrationContext, *, schema: str, steps: Sequence[TrialStep]) -> Estimate:
    """Try the steps out one after the other, in a savepoint that is rolled back.

    Their strong locks are held meanwhile, and each is waited for as long as the session's `lock_timeout` says.

    Raises:
        sqlalchemy.exc.DBAPIError: a step fails, or a lock was not free in time.
        NotArchivedError: a step commits by itself.
    """
    connection = connection_of(context)
    to_try = [step for step in steps if not step.touches_only_indexes]
    tried = try_out(context, schema, to_try, Known())
    outcomes = [(step.revision, outcome) for step, outcome in zip(to_try, tried, strict=True)]
    # A step may take away what an earlier one has just made: of that there is nothing yet. Or what it has renamed.
    lost = {loss.relation.oid for outcome in tried for loss in outcome.losses}
    present = read_inventory(connection, schema, lost).relations
    estimates = (
        _estimate(connection, revision, replace(loss, relation=present[loss.relation.oid]))
        for revision, outcome in outcomes
        for loss in outcome.losses
        if loss.kind is not LossKind.SEQUENCE and loss.relation.oid in present
    )
    losses = tuple(loss for loss in estimates if loss)
    hidden = [
        f"the step of revision {loss.revision} would be refused: row-level security, or a missing right, hides rows of "
        f"{loss.table} from this role. Use a role with BYPASSRLS, or first run: ALTER TABLE {loss.table} NO FORCE ROW "
        "LEVEL SECURITY"
        for loss in losses
        if loss.rows is None
    ]
    refused = [
        f"the step of revision {revision} would be refused: {outcome.refusal}"
        for revision, outcome in outcomes
        if outcome.refusal
    ]
    return Estimate(
        losses=losses,
        not_archived=tuple(words for outcome in tried for _, words in outcome.not_copied),
        refused=(*refused, *hidden),
    )


def _estimate(connection: Connection, revision: str, loss: Loss) -> _EstimatedLoss | None:
    plan = plan_copy(connection, loss)
    if plan is None:
        return None
    size = _table_size(connection, loss.relation.oid)
    try:
        with savepoint(connection), exact_settings(connection):
            rows, width = _rows(connection, plan.select, count=size <= _COUNTED)
    except DBAPIError as error:
        if sqlstate(error) != InsufficientPrivilegeError.sqlstate:  # of a right, or of policies that would hide rows
            raise
        rows, width = None, 0
    keyed = any(column.key for column in plan.columns)
    names = {number: column.name for number, column in loss.relation.columns.items()}
    return _EstimatedLoss(
        revision=revision,
        kind=loss.kind,
        table=str(loss.relation),
        columns=tuple(names[number] for number in sorted(loss.columns) if number in names),
        rows=rows,
        size=rows * (width + _ROW_OVERHEAD) if keyed and rows is not None else size,
        problem=plan.problem,
    )


def _rows(connection: Connection, select: str, *, count: bool) -> tuple[int | None, int]:
    """How many rows the query finds, and how many bytes the planner thinks that each has."""
    [explained] = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {select}").scalar_one()
    rows, width = explained["Plan"]["Plan Rows"], explained["Plan"]["Plan Width"]
    if count:
        rows = connection.exec_driver_sql(f"SELECT count(*) FROM ({select}) AS kept").scalar_one()
    return rows, width


def _table_size(connection: Connection, table: int) -> int:
    size: int = connection.exec_driver_sql(
        "SELECT coalesce((SELECT sum(pg_table_size(relid)) FROM pg_partition_tree($1::bigint::oid::regclass)), "
        "pg_table_size($1::bigint::oid::regclass))::bigint",
        (table,),
    ).scalar_one()
    return size
