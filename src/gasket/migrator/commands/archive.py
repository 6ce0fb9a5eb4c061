"""`gasket database archive ...`: what downgrades have taken away and kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import asyncpg
import click
import msgspec

from gasket.migrator.apply.session import MigrationSession
from gasket.migrator.archive.entries import NOTE, Archive
from gasket.migrator.archive.inventory import LossKind, count_rows
from gasket.migrator.archive.manifest import drop_archive, list_archives, show_archive
from gasket.migrator.archive.restore import RestoreReport
from gasket.migrator.archive.schema import MANIFEST, archive_schema, stored
from gasket.migrator.commands.confirm import ask
from gasket.migrator.commands.running import ROW_NUMBER, look, run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MissingPrivilegeError, ReadOnlyServerError
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.runner import under_lock
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier

T = TypeVar("T")


def archive_commands(config: MigratorConfig) -> click.Group:
    """The commands, for the database that `config` names."""

    def look_into(read: Callable[..., Awaitable[T]]) -> T:
        return look(config, read, schema=archive_schema(config.schema))

    @click.group("archive", help="Show, put back or drop archived rows.")
    def archive() -> None:
        pass

    @archive.command("list", help="Every archive: revision, time, tables and rows.")
    def archive_list() -> None:
        found = look_into(list_archives)
        click.echo("\n".join(map(_format_archive, found)) or "The archive is empty.")

    @archive.command("show", help="What archive NUMBER keeps, and what has come back of it.")
    @click.argument("number", type=ROW_NUMBER)
    def archive_show(number: int) -> None:
        one = look_into(partial(show_archive, number=number))
        click.echo(msgspec.json.format(msgspec.json.encode(one)).decode())

    @archive.command(
        "restore",
        help="Put back what is left in archive NUMBER, as far as it fits now. A row comes back only once, so the "
        "command may be run again.",
    )
    @click.argument("number", type=ROW_NUMBER)
    def archive_restore(number: int) -> None:
        show_target(config)
        revisions = configured_revisions(config.ini)
        report = run(config, lambda: under_lock(config, revisions, lambda session: session.restore_archive(number)))
        click.echo(_format_restored(number, report))

    @archive.command("drop", help="Drop archive NUMBER for good.")
    @click.argument("number", type=ROW_NUMBER)
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def archive_drop(number: int, no_prompt: bool) -> None:
        show_target(config)
        one = look_into(partial(show_archive, number=number))
        click.echo(_format_archive(one))
        ask("Drop it for good?", no_prompt=no_prompt)
        run(config, lambda: _drop_from_archive(config, one))
        click.echo(f"Dropped archive {number}.")

    return archive


async def _drop_from_archive(config: MigratorConfig, archive: Archive) -> None:
    """Drop one archive for good.

    Raises:
        TargetError: it is gone.
        MissingPrivilegeError: its tables are another role's.
        ReadOnlyServerError: the server takes no writes.
    """

    async def drop(session: MigrationSession) -> None:
        try:
            await session.on_own_tables(lambda connection: drop_archive(connection, config.schema, archive.number))
        except asyncpg.InsufficientPrivilegeError as error:
            role: str = await session.on_own_tables(lambda connection: connection.fetchval("SELECT current_user"))
            raise MissingPrivilegeError(
                role=role,
                need=f"drop archive {archive.number} ({describe(error)})",
                statement=_to_drop(config.schema, archive, quote_identifier(role)),
            ) from None
        except asyncpg.ReadOnlySQLTransactionError:
            in_recovery: bool = await session.on_own_tables(
                lambda connection: connection.fetchval("SELECT pg_is_in_recovery()")
            )
            raise ReadOnlyServerError(
                setting=config.migration_setting,
                in_recovery=in_recovery,
                need=f"Archive {archive.number} is to be dropped",
            ) from None

    await under_lock(config, configured_revisions(config.ini), drop)


def _format_restored(number: int, report: RestoreReport) -> str:
    """What came back, what stayed and why, one thing a line."""
    lines = [str(put_back) for put_back in report.put_back]
    lines += [f"Materialized view {view} is stale. Run: REFRESH MATERIALIZED VIEW {view}" for view in report.stale]
    return "\n".join(lines) or f"Archive {number} has nothing that could come back."


def _format_archive(archive: Archive) -> str:
    """One line: number, when, what was taken back by whom, which rows were kept, and how many of them still are."""
    kept = [entry for entry in archive.entries if entry.kind not in (NOTE, LossKind.SEQUENCE)]
    notes = [entry.problem for entry in archive.entries if entry.problem]
    left = archive.rows_left
    parts = [
        f"{archive.number:>5}  {archive.archived_at:%Y-%m-%d %H:%M:%S}  revision {archive.revision}, taken back by "
        f"release {archive.release} ({archive.role}): {count_rows(archive.rows)} of "
        f"{', '.join(entry.name for entry in kept) or 'nothing'}",
        f"{left} still here, {archive.size / 1000:.0f} kB" if left else "none here any more",
        *notes,
    ]
    return "; ".join(parts)


def _to_drop(schema: str, archive: Archive, role: str) -> str:
    tables = [stored(schema, entry.stored_in) for entry in archive.entries if entry.stored_in]
    return "; ".join(
        [
            f"GRANT USAGE, CREATE ON SCHEMA {quote_identifier(archive_schema(schema))} TO {role}",
            f"GRANT SELECT, DELETE ON {stored(schema, MANIFEST)} TO {role}",
            *(f"ALTER TABLE {table} OWNER TO {role}" for table in tables),
        ]
    )
