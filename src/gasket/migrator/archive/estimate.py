"""What a downgrade would take away, before anybody is asked whether to go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gasket.migrator.archive.copies import plan_copy
from gasket.migrator.archive.inventory import Loss, LossKind, read_relations
from gasket.migrator.archive.trial import connection_of, touches_only_indexes, try_out
from gasket.migrator.sql.render import Rendering

# What a small machine copies at least: rough, and rather too long than too short.
_ROWS_A_SECOND = 300e3
_BYTES_A_SECOND = 50e6
_COUNTED = 1_000_000  # bytes: before its first ANALYZE the planner takes an empty table for ten pages full of rows
_ROW_OVERHEAD = 28  # bytes: header and line pointer (PostgreSQL manual, "Database Page Layout")


@dataclass(frozen=True, slots=True)
class TrialStep:
    """A downgrade to be tried out. `run_downgrade` is called only where the rendering gives a reason."""

    revision: str
    rendering: Rendering
    run_downgrade: Callable[[], None]


@dataclass(frozen=True, slots=True)
class EstimatedLoss:
    """What one step would take away of one table.

    `columns` are those that go, none for whole rows; `rows` is counted in a small table and else the planner's
    estimate, `size` the bytes of the copy; `problem` says why it could not be put back by itself.
    """

    revision: str
    kind: LossKind
    table: str
    columns: tuple[str, ...]
    rows: int
    size: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a downgrade would take away, in the order of its steps, and in words what the archive cannot keep."""

    losses: tuple[EstimatedLoss, ...]
    not_archived: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows to copy."""
        return sum(loss.rows for loss in self.losses)

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
    to_try = [step for step in steps if not touches_only_indexes(step.rendering)]
    tried = try_out(context, schema, [(step.revision, step.rendering, step.run_downgrade) for step in to_try])
    found = [(step.revision, outcome.losses) for step, outcome in zip(to_try, tried, strict=True)]
    # A step may take away what an earlier one has just made: of that there is nothing yet. Or what it has renamed.
    present = read_relations(connection, schema, {loss.relation.oid for _, losses in found for loss in losses.found})
    losses = (
        _estimate(connection, revision, replace(loss, relation=present[loss.relation.oid]))
        for revision, losses in found
        for loss in losses.found
        if loss.kind is not LossKind.SEQUENCE and loss.relation.oid in present
    )
    return Estimate(
        losses=tuple(loss for loss in losses if loss),
        not_archived=tuple(words for _, losses in found for _, words in losses.not_copied),
    )


def _estimate(connection: Connection, revision: str, loss: Loss) -> EstimatedLoss | None:
    plan = plan_copy(connection, loss)
    if plan is None:
        return None
    answer = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {plan.select}").scalar_one()
    [explained] = json.loads(answer) if isinstance(answer, str) else answer
    rows, width = explained["Plan"]["Plan Rows"], explained["Plan"]["Plan Width"]
    size = _table_size(connection, loss.relation.oid)
    if size <= _COUNTED:
        rows = connection.exec_driver_sql(f"SELECT count(*) FROM ({plan.select}) AS kept").scalar_one()
    keyed = any(column.key for column in plan.columns)
    names = {number: column.name for number, column in loss.relation.columns.items()}
    return EstimatedLoss(
        revision=revision,
        kind=loss.kind,
        table=str(loss.relation),
        columns=tuple(names[number] for number in sorted(loss.columns) if number in names),
        rows=rows,
        size=rows * (width + _ROW_OVERHEAD) if keyed else size,
        problem=plan.problem,
    )


def _table_size(connection: Connection, table: int) -> int:
    size: int = connection.exec_driver_sql(
        "SELECT coalesce((SELECT sum(pg_table_size(relid)) FROM pg_partition_tree($1::bigint::oid::regclass)), "
        "pg_table_size($1::bigint::oid::regclass))::bigint",
        (table,),
    ).scalar_one()
    return size
