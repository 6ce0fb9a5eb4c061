"""Every refusal of the migrator. Each says what happened, what state things are in, and what to do.

All are below MigratorError. docs/refusals.md says of each when it comes and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gasket.migrator.command_line import database_command

NO_REVISION = "no revision"


class MigratorError(Exception):
    """The schema cannot be managed.

    For the plain `alembic` command `runner.run_environment` makes one of Alembic's own errors of it. It is none itself:
    a start at head does without Alembic, which takes a tenth of the time and of the memory of all that is imported.
    """


class NotForRevisionsError(Exception):
    """A revision did what no revision may: the cause of a MigrationFailedError. Its text is a clause of our own."""


class DatabaseUnavailableError(MigratorError):
    """The server is away, or the database does not exist, for longer than the wait."""

    def __init__(self, *, address: str, waited: float, reason: str) -> None:
        super().__init__(
            f"The database {address} could not be reached within {waited:.0f} s: {reason}; nothing was changed. "
            f"Start the server, create the database, or raise GASKET_DATABASE_WAIT."
        )


class DatabaseRefusedError(MigratorError):
    """The server answers and will not let this role in, or the URL cannot be used."""

    def __init__(self, *, address: str, setting: str, reason: str) -> None:
        super().__init__(
            f"The database {address} does not let Gasket in: {reason}; nothing was changed. Correct {setting}."
        )


class TransactionPoolerError(MigratorError):
    """Something is pending and the way to the server is a pooler, where a session lock means nothing."""

    def __init__(self, *, setting: str) -> None:
        super().__init__(
            f"The schema has to change, but {setting} leads through a connection pooler, where the migration "
            f"lock cannot hold; nothing was changed. Set GASKET_MIGRATION_DATABASE_URL to a direct "
            f"connection to the same database."
        )


class DatabasesDifferError(MigratorError):
    """What is migrated is not what is served from: another database, or one that lags behind.

    Without `shown` nothing was changed yet; else those are the revisions that DATABASE_URL shows after `waited`
    seconds, where `head` was to be seen.
    """

    def __init__(self, *, setting: str, head: str = "", shown: Sequence[str] | None = None, waited: float = 0) -> None:
        if shown is None:
            what = f"{setting} and DATABASE_URL do not lead to the same database; nothing was changed"
            mend = "Correct the one that is wrong"
        else:
            revisions = ", ".join(shown) or "no revision"
            what = (
                f"The schema is at {head} by way of {setting}, but DATABASE_URL shows {revisions} after {waited:.0f} "
                "s: it leads to a server that lags behind, or to another database"
            )
            mend = "Let it catch up, or correct the URL"
        super().__init__(f"{what}. {mend}.")


class ReadOnlyServerError(MigratorError):
    """There is something to write and the server takes no writes. `need` is a clause that says what.

    A standby that was waited for did not reach this release's schema in that time.
    """

    def __init__(
        self, *, setting: str, in_recovery: bool, waited: float = 0, need: str = "The schema has to change"
    ) -> None:
        if in_recovery:
            late = f" and did not reach this release's schema within {waited:.0f} s"
            what = f"is a standby in recovery{late if waited else ''}"
            mend = "Promote it, or let the URL lead to the primary (target_session_attrs=read-write)"
        else:
            what = "takes no writes (default_transaction_read_only is on)"
            mend = "Turn that off for the migration role, or set GASKET_MIGRATION_DATABASE_URL"
        super().__init__(f"{need}, but the server of {setting} {what}; nothing was changed. {mend}.")


class MissingPrivilegeError(MigratorError):
    """The migration role may not do what is needed."""

    def __init__(self, *, role: str, need: str, statement: str) -> None:
        super().__init__(f"Role {role} may not {need}; nothing was changed. As an administrator run: {statement};")


class AlembicConfigurationError(MigratorError):
    """alembic.ini or pyproject.toml cannot be used, or leads to no migrations."""

    def __init__(self, *, configuration: Path, problem: str, mend: str) -> None:
        super().__init__(f"Alembic's configuration {configuration} {problem}; nothing was changed. {mend}.")


class RevisionFileError(MigratorError):
    """A file in migrations/versions cannot be what Alembic needs, or breaks a rule that every migration keeps."""

    def __init__(self, *, file: str, problem: str, mend: str = "Correct the file.") -> None:
        super().__init__(f"Migration file {file} {problem}; nothing was changed. {mend}")


class TargetError(MigratorError):
    """The revision or the archive that was named is not there, or it is not clear which revision is meant."""

    def __init__(self, *, problem: str, mend: str) -> None:
        super().__init__(f"{problem}; nothing was changed. {mend}")


class NotThereError(TargetError):
    """There is no archive, or no background work, of the number that was named."""


class SchemaAheadError(MigratorError):
    """The database has revisions that this release lacks and cannot run on."""

    def __init__(self, *, revision: str, applied_by: str | None, release: str, why: str) -> None:
        origin = f"applied by release {applied_by}" if applied_by else "which the ledger does not know"
        super().__init__(
            f"The database has revision {revision}, {origin}; this release {release} does not have it, and "
            f"{why}; nothing was changed. Deploy "
            f"{f'release {applied_by}' if applied_by else 'the release that has it'} or a later one, or "
            f"roll the schema back to this one: {database_command('rollback')}"
        )


class LockTimeoutError(MigratorError):
    """Another process holds the migration lock, and has made no progress for longer than the wait.

    `idle` is how many of the `waited` seconds have passed since its last progress.
    """

    def __init__(self, *, waited: float, idle: float | None = None, holder: str) -> None:
        still = "" if idle is None else f", and its holder made no progress for {idle:.0f} s"
        super().__init__(
            f"The migration lock was not free within {waited:.0f} s{still}: {holder}; this process changed nothing. "
            f"Wait for the holder, end it with pg_terminate_backend(pid), or raise GASKET_MIGRATION_LOCK_WAIT."
        )


class LockLostError(MigratorError):
    """The connection that held the lock is gone. `partly`: the revision under way had committed a part."""

    def __init__(self, *, reason: str, applied: Sequence[str], partly: bool = False) -> None:
        kept = "what the revision under way committed with an autocommit block stays, the rest"
        super().__init__(
            f"The connection that held the migration lock was lost ({reason}); "
            f"{kept if partly else 'the revision under way'} was rolled back, {_stays(applied)}. "
            "Start again to go on from there."
        )


class LockGivenAwayError(MigratorError):
    """A revision gave the migration lock away: the connection is well, and holds the lock no longer."""

    def __init__(self, *, revision: str, applied: Sequence[str], partly: bool) -> None:
        super().__init__(
            f"Revision {revision} gave the migration lock away, so this session no longer holds it; "
            f"{_rolled_back(partly)}, {_stays(applied)}. A revision must not do that: take "
            "pg_advisory_unlock_all(), pg_advisory_unlock() or DISCARD ALL out of it, then start again."
        )


class LedgerSequenceError(MigratorError):
    """The sequence of one of the migrator's own tables, or of the archive's manifest, lies behind the table's rows.

    `table` is its name as SQL, with the schema; `mend` is the statement that sets the sequence.
    """

    def __init__(self, *, table: str, mend: str, revision: str, applied: Sequence[str], partly: bool) -> None:
        super().__init__(
            f"Revision {revision} could not be recorded, because the sequence of {table}.id lies behind the ids of the "
            f"rows; {_rolled_back(partly)}, {_stays(applied)}. Run, then start again: {mend}"
        )


class LocksNotGrantedError(MigratorError):
    """A revision or `archive restore` did not get its table locks in time, or the migrator's own tables were locked.

    Without `blockers` nobody was seen in time. `only_prepared`: all blockers are prepared transactions, which have no
    session. Each says what ends it.
    """

    def __init__(
        self,
        *,
        revision: str | None,
        waited: float,
        tries: int,
        blockers: Sequence[str],
        limit: str = "GASKET_MIGRATION_DDL_WAIT",
        archive: int | None = None,
        partly: bool = False,
        only_prepared: bool = False,
    ) -> None:
        if archive is not None:
            what = (
                f"Archive {archive} could not be put back: in {tries} tries over {waited:.0f} s a table was locked; "
                "nothing was changed, the rows are in the archive"
            )
        elif revision is None:
            what = f"The migrator's own tables stayed locked for {waited:.0f} s; nothing was changed"
        else:
            what = (
                f"Revision {revision} did not get its locks in {tries} tries over {waited:.0f} s; "
                + ("what its autocommit block had done stays" if partly else "it was rolled back")
                + ", what came before it stays"
            )
        if blockers:
            how = "" if only_prepared else " with pg_terminate_backend(pid)"
            mend = f"Blocked by: {'; '.join(blockers)}. Let those finish or end them{how}, then start again"
        else:
            mend = "Who blocks it could not be seen in time; while it waits, pg_blocking_pids() tells. Start again"
        super().__init__(f"{what}. {mend}, or raise {limit}.")


class InvalidIndexError(MigratorError):
    """Another index, or an INVALID one that Gasket did not leave behind, stands where one is to be built."""

    def __init__(self, *, revision: str, index: str, doubt: str, invalid: bool = True) -> None:
        what = "an INVALID index" if invalid else "an index"
        state = "nothing of the revision was changed" if invalid else "it was not touched"
        super().__init__(
            f"Revision {revision} is to build index {index}, and {what} of that name is there that this "
            f"release did not leave behind ({doubt}); {state}. Look at it, drop it if it is of no use, and start again."
        )


class EditedRevisionError(MigratorError):
    """An applied file was edited or is gone, and something is to be built on it, or it is to be taken back.

    `pending` is what would be applied on top; with none, its own `downgrade()` would run.
    """

    def __init__(
        self, *, revision: str, gone: bool, applied_at: str, applied_by: str | None, pending: Sequence[str]
    ) -> None:
        mend = "." if gone else f", or, if the edit was reviewed, run: {database_command(f'accept {revision}')}"
        harm = f"{', '.join(pending)} would be applied on top" if pending else "its downgrade() is not what was applied"
        super().__init__(
            f"The file of revision {revision} {'is gone' if gone else 'was edited'} since release "
            f"{applied_by or '(unknown)'} applied it at {applied_at}, and {harm}; nothing was changed. "
            f"Put the file back as it was{mend}"
        )


class HeldRevisionError(MigratorError):
    """A revision of this release was taken back; a start does not apply it again."""

    def __init__(
        self,
        *,
        revision: str,
        is_head: bool,
        at: str,
        by: str,
        command: str | None,
        release: str,
        applied_by: str | None,
    ) -> None:
        whose = f"the head of this release {release}" if is_head else f"which this release {release} has"
        how = f" with: {command}" if command else ""
        super().__init__(
            f"Revision {revision}, {whose}, was taken back at {at} by {by}{how} "
            f"(release {applied_by or '(unknown)'} had applied it), so a start does not apply it again; nothing was "
            f"changed. Start a release whose head is the schema's revision, or, to apply it again, run: "
            f"{database_command('upgrade')}"
        )


class PartlyDoneError(MigratorError):
    """A step was cut short, and it is not certain what is left of it to do. `reason` is a clause."""

    def __init__(self, *, revision: str, direction: str, reason: str) -> None:
        super().__init__(
            f"The {direction} of revision {revision} was cut short, and does not go on by itself: {reason}; what it "
            "had committed stays. Finish it or undo it by hand, then record the revision that the schema is at: "
            f"{database_command('stamp REVISION')}"
        )


class HalfTakenBackError(MigratorError):
    """A downgrade has committed a part, and was not finished. `last` is the statement that it came to.

    `has_file`: this release has the file of the revision.
    """

    def __init__(
        self, *, revision: str, target: str, at: str, by: str, command: str, last: str, has_file: bool
    ) -> None:
        finish = database_command("rollback")
        if has_file:
            upgrade = database_command("upgrade")
            finish = f"{database_command(f'downgrade {target}')}. Then start the release before, or run: {upgrade}"
        super().__init__(
            f"The downgrade of revision {revision} was cut short (begun at {at} by {by} with: {command}; it came to: "
            f"{last}), so the schema is neither at {revision} nor at {target}; nothing was changed. Finish it: "
            f"{finish}"
        )


class NotReplayableError(MigratorError):
    """A revision cannot be taken back without its file."""

    def __init__(self, *, revision: str, applied_by: str | None, reason: str) -> None:
        super().__init__(
            f"Revision {revision} cannot be taken back from the ledger: {reason}; nothing was changed. "
            f"Downgrade with {f'release {applied_by}' if applied_by else 'the release that has its file'}."
        )


class AdoptionError(MigratorError):
    """There are tables of ours but no version table, or they are not what the revisions build; or nothing to adopt."""

    def __init__(self, *, found: Sequence[str] = (), revision: str | None = None, recorded: Sequence[str] = ()) -> None:
        if recorded:
            what = (
                f"alembic_version says already that the schema is at {', '.join(recorded)}: there is nothing to adopt"
            )
            mend = f"To see its state run: {database_command('status')}. To record another revision anyway, add --force"
        elif revision is None:
            what = (
                f"There is no alembic_version, but {', '.join(found)}, which the revisions would make, "
                f"{'is' if len(found) == 1 else 'are'} there already: which revision that is would be a guess"
            )
            mend = f"To take it over, find out which revision it equals: {database_command('adopt REVISION')}"
        else:
            what = f"The live schema is not what revision {revision} builds"
            mend = "Mend what is missing or different, name another revision, or add --force"
        super().__init__(f"{what}; nothing was changed. {mend}")


class NotConfirmedError(MigratorError):
    """Something that may lose data was not confirmed."""


class NotArchivedError(MigratorError):
    """Rows that a downgrade would drop could not be archived first.

    `without_archive` is the same command without the archive; the session sets the form that the user has typed.
    """

    def __init__(self, *, revision: str, reason: str, mend: str) -> None:
        super().__init__(
            f"The downgrade of revision {revision} would lose data that could not be archived: {reason}; it was rolled "
            f"back whole, the steps before it stay. {mend}"
        )
        self.without_archive = database_command("downgrade --no-archive")

    def __str__(self) -> str:
        return f"{super().__str__()} Or let the data go: {self.without_archive}"


class NotRestoredError(MigratorError):
    """Archived rows could not be put back, for a reason that is not about them."""

    def __init__(self, *, number: int, error: str) -> None:
        super().__init__(
            f"Archive {number} was not put back: {error}; nothing was changed, the rows are in the archive. Mend the "
            f"cause and run again: {database_command(f'archive restore {number}')}"
        )


class BackgroundFailedError(MigratorError):
    """Background work that was to be done here and now has failed. `error` is a sentence."""

    def __init__(self, *, work: str, number: int, error: str) -> None:
        super().__init__(
            f"The {work} has failed; what it has done stays. {error} Mend the cause and run again: "
            f"{database_command(f'background run {number}')}"
        )


class NotAppliedError(MigratorError):
    """A revision declares a backfill that cannot be done, or needs background work that is not complete.

    `what` says which and why, `mend` what to do first: clauses.
    """

    def __init__(self, *, what: str, mend: str) -> None:
        self.what = what
        """As MigrationFailedError has it."""
        super().__init__(
            f"{what}; the revision was not applied, and what came before it stays. {mend}, then start again."
        )


class ScratchDatabaseError(MigratorError):
    """There is no scratch database to try the revisions out on, or, where it was `made`, they fail on it.

    `reason` is a clause without the full stop; `mend` is a sentence of what to do, with its own.
    """

    def __init__(self, *, reason: str, mend: str, made: bool = False) -> None:
        if made:
            what = f"The revisions cannot be tried out on the scratch database: {reason}; the live one was not changed"
        else:
            what = f"There is no scratch database to try the revisions out on: {reason}; nothing was changed"
        super().__init__(f"{what}. {mend}")


class NotMigratedError(MigratorError):
    """GASKET_MIGRATE_ON_STARTUP is false, and nobody else migrated the schema in time."""

    def __init__(self, *, waited: float, current: Sequence[str], head: str, holder: str | None = None) -> None:
        if holder is None:
            mend = f"Run: {database_command('upgrade')}"
        else:
            mend = f"The migration lock is {holder}. If that session hangs, end it with pg_terminate_backend(pid)."
        super().__init__(
            f"The schema is at {', '.join(current) or 'no revision'} and not at {head} after {waited:.0f} s, "
            f"and GASKET_MIGRATE_ON_STARTUP is false, so this replica does not migrate. {mend}"
        )


class MigrationFailedError(MigratorError):
    """A revision failed; what came before it stays.

    `still_at` is the revision before the step. `server_fault`: neither the rows nor the migration are to blame.
    """

    def __init__(
        self,
        *,
        revision: str,
        direction: str,
        error: str,
        applied: Sequence[str],
        partly: bool,
        still_at: str,
        committed: bool = False,
        server_fault: bool = False,
    ) -> None:
        self.error = error
        self.what = f"The {direction} of revision {revision} failed: {error}"
        """The failure alone, for a place where the database is not the live one."""
        if committed:
            state = "it has committed by itself: what it did before that stays, the rest was rolled back"
        elif partly:
            state = "what it did before its autocommit block and in it is committed, the rest was rolled back"
        elif applied:
            state = f"it was rolled back whole, {_stays(applied)}; the schema is at {still_at}"
        else:
            runs = ", and the release before runs on it" if direction == "upgrade" and still_at != NO_REVISION else ""
            state = f"nothing was changed; the schema is still at {still_at}{runs}"
        if partly or committed:
            state = f"{state}, {_stays(applied)}"
        at_fault = "fault of the server" if server_fault else "rows or the migration"
        super().__init__(f"{self.what}; {state}. Mend the {at_fault}, then start again.")


class MigrationInterruptedError(MigratorError):
    """SIGTERM or SIGINT, `number`, came while waiting or migrating: at a start, or in a command."""

    def __init__(self, *, start: bool, number: int, complete: bool = True) -> None:
        self.number = number
        let_go = "" if complete else " once the server has noticed"
        dropped, again = (", which the next start drops", "Start") if start else ("", "Run it")
        super().__init__(
            "Stopped by SIGTERM or SIGINT: a revision under way here was rolled back, except for what its autocommit "
            f"blocks committed (an interrupted CONCURRENTLY may leave an INVALID index{dropped}). This process does "
            f"not hold the migration lock any more{let_go}. {again} again to go on."
        )


def _rolled_back(partly: bool) -> str:
    return (
        "what it committed with an autocommit block stays, the rest was rolled back" if partly else "it was rolled back"
    )


def _stays(applied: Sequence[str]) -> str:
    if not applied:
        return "and no step came before it"
    shown = ", ".join(applied[-5:])
    return f"the {len(applied)} before it (to {shown}) stay" if len(applied) > 1 else f"{shown} before it stays"
