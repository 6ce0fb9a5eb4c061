"""Commands that the migrator adds to `litestar database`, or puts in the place of Advanced Alchemy's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import alembic.command
import click
import msgspec
from alembic.config import Config

from gasket.migrator.alembic_command import rest_of
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.manifest import NOTE, Archive, list_archives, show_archive
from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.confirm import ask, at_a_terminal, confirm, confirmations
from gasket.migrator.connection import MigratorConfig, looking
from gasket.migrator.errors import AdoptionError
from gasket.migrator.ledger import read_versions
from gasket.migrator.loading import load_scripts
from gasket.migrator.preview import preview_downgrade
from gasket.migrator.progress import progress_shown
from gasket.migrator.report import format_status, read_report
from gasket.migrator.revisions import RevisionFile, migrations_directory, read_revisions
from gasket.migrator.rules.check import check_revision
from gasket.migrator.runner import OPTIONS
from gasket.migrator.scratch.adopt import compare_with_revision
from gasket.migrator.scratch.forecast import Forecast, forecast, format_plan
from gasket.migrator.signals import until_signalled
from gasket.migrator.steps import StepOptions
from gasket.migrator.upkeep import accept, drop_from_archive, rollback
from gasket.migrator.verdict import check_pending, read_situation

T = TypeVar("T")

PENDING = 3
"""The exit code of `plan` when something is pending."""


def run(config: MigratorConfig, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's coroutine with the database up, until it ends or SIGTERM does."""
    with config.start_database():
        return asyncio.run(until_signalled(work(), pass_on=False))


def added_commands(config: MigratorConfig) -> list[click.Command]:
    """The commands, for the database that `config` names."""

    @click.command("status", help="Show how the schema stands: in one word, one sentence, and all that is known.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
    def status(as_json: bool) -> None:
        report = run(config, lambda: read_report(config))
        click.echo(msgspec.json.encode(report).decode() if as_json else format_status(report))

    @click.command("accept", help="Record that the edited file of an applied REVISION was reviewed and is right.")
    @click.argument("revision")
    def accept_edit(revision: str) -> None:
        run(config, lambda: accept(config, revision))
        click.echo(f"The file of revision {revision}, as it is now, counts as what was applied.")

    @click.command("upgrade", help="Apply what is pending, up to REVISION.")
    @click.argument("revision", default="head")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
    @click.option("--tag", help="Handed to env.py.")
    @click.option("--no-restore", is_flag=True, help="Leave in the archive what earlier downgrades took away.")
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def upgrade(revision: str, sql: bool, tag: str | None, no_restore: bool, no_prompt: bool) -> None:
        if not sql and at_a_terminal():  # every start does it: a Job without a terminal need not confirm it
            ask(f"Upgrade the database to {revision}?", no_prompt=no_prompt)
        options = StepOptions(restore=not no_restore)
        alembic.command.upgrade(Config(str(config.ini), attributes={OPTIONS: options}), revision, sql=sql, tag=tag)

    @click.command("merge", help="Make a revision that stands on all the given REVISIONS: two heads become one.")
    @click.argument("revisions", nargs=-1, required=True)
    @click.option("-m", "--message", default="merge heads", show_default=True, help="What the new file is called.")
    @click.option("--branch-label", help="A label for the branch.")
    @click.option("--rev-id", help="The new revision, instead of one that is made up.")
    @click.option("--no-prompt", is_flag=True, help="Nothing is asked anyway.")
    def merge(
        revisions: tuple[str, ...], message: str, branch_label: str | None, rev_id: str | None, no_prompt: bool
    ) -> None:
        alembic.command.merge(
            Config(str(config.ini)), revisions, message=message, branch_label=branch_label, rev_id=rev_id
        )

    @click.command(
        "plan",
        help="What an upgrade would do: SQL, locks, rewrites. Ends with 0: nothing to do, 3: pending, 1: refused.",
    )
    @click.option("--sql", is_flag=True, help="Show the statements too.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
    def plan(sql: bool, as_json: bool) -> None:
        found = run(config, lambda: _forecast(config))
        click.echo(msgspec.json.encode(found).decode() if as_json else format_plan(found, sql=sql))
        sys.exit(PENDING if found.revisions else 0)

    @click.command(
        "adopt",
        help="Take over a database that has the tables but no version table: compare it with what REVISION builds, "
        "and stamp it when nothing is missing or different.",
    )
    @click.argument("revision")
    @click.option("--force", is_flag=True, help="Stamp it in spite of differences, or of a version that is recorded.")
    def adopt(revision: str, force: bool) -> None:
        revisions = read_revisions(migrations_directory(config.ini))
        revisions.check_chain()
        recorded = run(config, lambda: _with_connection(config, read_versions))
        if recorded and not force:
            raise AdoptionError(recorded=sorted(recorded))
        found = run(config, lambda: compare_with_revision(config, revisions, revision))
        click.echo("\n".join(found.lines()) or f"The live schema is what revision {revision} builds.")
        if not (found.fits or force):
            raise AdoptionError(revision=revision)
        alembic.command.stamp(Config(str(config.ini)), revision)
        click.echo(f"The schema is recorded at {revision}.")

    return [status, accept_edit, upgrade, merge, plan, adopt, *_commands_back(config), _stamp(config), _archive(config)]


def _commands_back(config: MigratorConfig) -> list[click.Command]:
    @click.command("downgrade", help="Take revisions back, down to REVISION; rows that would go are archived.")
    @click.argument("revision", default="-1")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it; REVISION is from:to.")
    @click.option("--tag", help="Handed to env.py.")
    @confirmations
    def downgrade(revision: str, sql: bool, tag: str | None, **answers: bool) -> None:
        if sql:
            alembic.command.downgrade(Config(str(config.ini)), revision, sql=True, tag=tag)
            return
        options = confirm(
            lambda: run(config, lambda: preview_downgrade(config, revision, from_ledger=False)),
            command=f"downgrade {rest_of(revision)}",
            **answers,
        )
        alembic.command.downgrade(Config(str(config.ini), attributes={OPTIONS: options}), revision, tag=tag)

    @click.command(
        "rollback",
        help="Bring a schema that a newer release has migrated back to this release's head, or to REVISION, from the "
        "SQL that the ledger keeps. For revisions that this release has no files for.",
    )
    @click.argument("revision", required=False)
    @confirmations
    def roll_back(revision: str | None, **answers: bool) -> None:
        options = confirm(
            lambda: run(config, lambda: preview_downgrade(config, revision, from_ledger=True)),
            command=f"rollback {rest_of(revision)}" if revision else "rollback",
            **answers,
        )
        with progress_shown():
            taken_back = run(config, lambda: rollback(config, revision, options))
        if taken_back:  # or the preview has said that nothing would be
            click.echo(f"Taken back: {', '.join(taken_back)}")

    for command in (downgrade, roll_back):
        command.context_settings["ignore_unknown_options"] = True  # "-1" is a revision
    return [downgrade, roll_back]


def _stamp(config: MigratorConfig) -> click.Command:
    @click.command("stamp", help="Say that the schema is at REVISION, without running anything.")
    @click.argument("revision")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
    @click.option("--tag", help="Handed to env.py.")
    @click.option("--purge", is_flag=True, help="Empty the version table first.")
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def stamp(revision: str, sql: bool, tag: str | None, purge: bool, no_prompt: bool) -> None:
        if not sql:
            current = ", ".join(run(config, lambda: read_report(config)).current) or "no revision"
            click.echo(f"The schema is recorded at {current}, and would be at {revision}. No table is touched.")
            ask("Is the schema what that revision builds?", no_prompt=no_prompt)
        alembic.command.stamp(Config(str(config.ini)), revision, sql=sql, tag=tag, purge=purge)

    return stamp


def _archive(config: MigratorConfig) -> click.Group:
    def look(work: Callable[..., Awaitable[T]]) -> T:
        return run(config, lambda: _with_connection(config, work, schema=archive_schema(config.schema)))

    @click.group("archive", help="What downgrades have taken away and kept.")
    def archive() -> None:
        pass

    @archive.command("list", help="Every archive: revision, time, tables and rows.")
    def archive_list() -> None:
        found = look(list_archives)
        click.echo("\n".join(map(format_archive, found)) or "The archive is empty.")

    @archive.command("show", help="What archive NUMBER keeps, and what has come back of it.")
    @click.argument("number", type=int)
    def archive_show(number: int) -> None:
        one = look(partial(show_archive, number=number))
        click.echo(msgspec.json.format(msgspec.json.encode(one)).decode())

    @archive.command("drop", help="Drop archive NUMBER for good.")
    @click.argument("number", type=int)
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def archive_drop(number: int, no_prompt: bool) -> None:
        one = look(partial(show_archive, number=number))
        click.echo(format_archive(one))
        ask("Drop it for good?", no_prompt=no_prompt)
        run(config, lambda: drop_from_archive(config, one))
        click.echo(f"Dropped archive {number}.")

    return archive


async def _forecast(config: MigratorConfig) -> Forecast:
    """Refuses what an upgrade would refuse."""
    revisions = read_revisions(migrations_directory(config.ini))
    async with looking(config) as connection:
        situation = await read_situation(connection, config, revisions)
        await check_pending(connection, config, situation)
    pending = situation.plan.pending
    findings = _findings(config, pending) if pending else {}
    applied = situation.database.versions & revisions.keys()
    return await forecast(config, revisions, applied=applied, pending=pending, findings=findings)


def _findings(config: MigratorConfig, pending: Iterable[RevisionFile]) -> dict[str, list[str]]:
    directory = load_scripts(config.ini)
    return {
        file.revision: [
            f"{finding.rule}: {finding.message}" + (f" (allowed: {finding.allowed})" if finding.allowed else "")
            for finding in check_revision(
                file, directory.get_revision(file.revision).module.upgrade, metadata=config.metadata
            )
        ]
        for file in pending
    }


async def _with_connection(
    config: MigratorConfig, look: Callable[..., Awaitable[T]], *, schema: str | None = None
) -> T:
    """`schema` is where it looks, if not in the configuration's."""
    async with looking(config, migrating=True, schema=schema) as connection:
        return await look(connection, config.schema)


def format_archive(archive: Archive) -> str:
    """One line: number, when, what was taken back by whom, which rows were kept, and how many of them still are."""
    kept = [entry for entry in archive.entries if entry.kind not in (NOTE, LossKind.SEQUENCE)]
    notes = [entry.problem for entry in archive.entries if entry.problem]
    left = archive.rows_left
    parts = [
        f"{archive.number:>5}  {archive.archived_at:%Y-%m-%d %H:%M:%S}  revision {archive.revision}, taken back by "
        f"release {archive.release} ({archive.role}): {archive.rows} rows of "
        f"{', '.join(entry.name for entry in kept) or 'nothing'}",
        f"{left} still here, {archive.size / 1000:.0f} kB" if left else "none here any more",
        *notes,
    ]
    return "; ".join(parts)
