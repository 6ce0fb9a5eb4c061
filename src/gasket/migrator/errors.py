"""Every refusal of the migrator. Each says what happened, what state things are in, and what to do.

MigratorError
├── DatabaseUnavailableError     the server is away, or the database does not exist, for longer than the wait
├── DatabaseRefusedError         the server answers and will not let this role in, or the URL cannot be used
├── TransactionPoolerError       something is pending and the way to the server is a pooler
├── DatabasesDifferError         what is migrated is not what is served from
├── ReadOnlyServerError          something is pending and the server takes no writes
├── MissingPrivilegeError        the migration role may not do what is needed
├── RevisionFileError            a file in migrations/versions cannot be what Alembic needs
├── RuleBrokenError              a pending file breaks a rule that every migration keeps
├── MultipleHeadsError           the files have more than one head
├── SchemaAheadError             the database has revisions that this release lacks and cannot run on
├── LockTimeoutError             another process holds the migration lock for longer than the wait
├── LockLostError                the connection that held the lock is gone
├── LocksNotGrantedError         a revision did not get its table locks in time, or our own tables were locked
├── InvalidIndexError            an INVALID index stands where one is to be built, and may be somebody's
├── EditedRevisionError          an applied file was edited or is gone, and something is pending
├── HeldRevisionError            this release's head was taken back; a start does not apply it again
├── NotReplayableError           a revision cannot be taken back without its file
├── AdoptionError                tables of ours without a version table, or different; or nothing to adopt
├── NotConfirmedError            something that may lose data was not confirmed
├── NotArchivedError             what a downgrade would take away could not be put into the archive first
├── UnknownArchiveError          the archive has nothing under that number
├── ScratchDatabaseError         there is no scratch database to try the revisions out on
├── NotMigratedError             told not to migrate, and nobody else did in time
├── MigrationFailedError         a revision failed; what came before it stays
└── MigrationInterruptedError    SIGTERM or SIGINT came while waiting or migrating
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic.util import CommandError


class MigratorError(CommandError):
    """The schema cannot be managed.

    A CommandError, so that the plain `alembic` command prints it as one line and exits with a status that is
    not 0.
    """


class DatabaseUnavailableError(MigratorError):
    """The server is away, or the database does not exist, for longer than the wait."""

    def __init__(self, *, setting: str, waited: float, reason: str) -> None:
        super().__init__(
            f"The database of {setting} could not be reached within {waited:.0f} s ({reason}); nothing was "
            f"changed. Start the server, create the database, or raise GASKET_DATABASE_WAIT."
        )


class DatabaseRefusedError(MigratorError):
    """The server answers and will not let this role in, or the URL cannot be used."""

    def __init__(self, *, setting: str, reason: str) -> None:
        super().__init__(
            f"There is no connection to the database of {setting}: {reason}; nothing was changed. Correct {setting}."
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
    """Something is pending and the server takes no writes."""

    def __init__(self, *, setting: str, in_recovery: bool, waited: float) -> None:
        if in_recovery:
            what = f"is a standby in recovery and did not reach this release's schema within {waited:.0f} s"
            mend = "Promote it, or let the URL lead to the primary (target_session_attrs=read-write)"
        else:
            what = "takes no writes (default_transaction_read_only is on)"
            mend = "Turn that off for the migration role, or set GASKET_MIGRATION_DATABASE_URL"
        super().__init__(f"The schema has to change, but the server of {setting} {what}; nothing was changed. {mend}.")


class MissingPrivilegeError(MigratorError):
    """The migration role may not do what is needed."""

    def __init__(self, *, role: str, need: str, statement: str) -> None:
        super().__init__(f"Role {role} may not {need}; nothing was changed. As an administrator run: {statement};")


class RevisionFileError(MigratorError):
    """A file in migrations/versions cannot be what Alembic needs."""

    def __init__(self, *, file: str, problem: str, mend: str = "Correct the file.") -> None:
        super().__init__(f"Migration file {file} {problem}; nothing was changed. {mend}")


class RuleBrokenError(MigratorError):
    """A pending file breaks a rule that every migration keeps."""

    def __init__(self, *, file: str, finding: str) -> None:
        super().__init__(f"Migration file {file} is not applied, and nothing was changed. {finding}")


class MultipleHeadsError(MigratorError):
    """The files have more than one head."""

    def __init__(self, *, heads: Sequence[str]) -> None:
        super().__init__(
            f"The migration files have {len(heads)} heads ({', '.join(heads)}), so there is no one schema to "
            f'bring the database to; nothing was changed. Run: alembic merge -m "merge heads" '
            f"{' '.join(heads)}"
        )


class SchemaAheadError(MigratorError):
    """The database has revisions that this release lacks and cannot run on."""

    def __init__(self, *, revision: str, applied_by: str | None, release: str, why: str) -> None:
        origin = f"applied by release {applied_by}" if applied_by else "which the ledger does not know"
        super().__init__(
            f"The database has revision {revision}, {origin}; this release {release} does not have it, and "
            f"{why}; nothing was changed. Deploy "
            f"{f'release {applied_by}' if applied_by else 'the release that has it'} or a later one, or "
            f"roll the schema back to this one: litestar database rollback"
        )


class LockTimeoutError(MigratorError):
    """Another process holds the migration lock for longer than the wait."""

    def __init__(self, *, waited: float, holder: str) -> None:
        super().__init__(
            f"The migration lock was not free within {waited:.0f} s: {holder}; this process changed nothing. "
            f"Wait for the holder, end it with pg_terminate_backend(pid), or raise GASKET_MIGRATION_LOCK_WAIT."
        )


class LockLostError(MigratorError):
    """The connection that held the lock is gone."""

    def __init__(self, *, reason: str, applied: Sequence[str]) -> None:
        super().__init__(
            f"The connection that held the migration lock was lost ({reason}); the revision under way was "
            f"rolled back, {_stays(applied)}. Start again to go on from there."
        )


class LocksNotGrantedError(MigratorError):
    """A revision did not get its table locks in time, or the migrator's own tables were locked."""

    def __init__(
        self,
        *,
        revision: str | None,
        waited: float,
        tries: int,
        blockers: Sequence[str],
        limit: str = "GASKET_MIGRATION_DDL_WAIT",
    ) -> None:
        if revision is None:
            what = f"The migrator's own tables stayed locked for {waited:.0f} s; nothing was changed"
        else:
            what = (
                f"Revision {revision} did not get its locks in {tries} tries over {waited:.0f} s; it was rolled back, "
                f"what came before it stays"
            )
        super().__init__(
            f"{what}. Blocked by: {'; '.join(blockers) or 'nobody that this role may see'}. "
            f"Let those finish or end them with pg_terminate_backend(pid), then start again, or raise {limit}."
        )


class InvalidIndexError(MigratorError):
    """An INVALID index stands where one is to be built, and may be somebody's."""

    def __init__(self, *, revision: str, index: str, doubt: str) -> None:
        super().__init__(
            f"Revision {revision} is to build index {index}, and an INVALID index of that name is there that this "
            f"release did not leave behind ({doubt}); nothing of the revision was changed. Look at it, drop it if it "
            f"is of no use, and start again."
        )


class EditedRevisionError(MigratorError):
    """An applied file was edited or is gone, and something is pending."""

    def __init__(
        self, *, revision: str, gone: bool, applied_at: str, applied_by: str | None, pending: Sequence[str]
    ) -> None:
        mend = "" if gone else f", or, if the edit was reviewed, run: litestar database accept {revision}"
        super().__init__(
            f"The file of revision {revision} {'is gone' if gone else 'was edited'} since release "
            f"{applied_by or '(unknown)'} applied it at {applied_at}, and {', '.join(pending)} would be applied on "
            f"top; nothing was changed. Put the file back as it was{mend}"
        )


class HeldRevisionError(MigratorError):
    """This release's head was taken back; a start does not apply it again."""

    def __init__(self, *, revision: str, at: str, by: str, release: str, applied_by: str | None) -> None:
        super().__init__(
            f"Revision {revision}, the head of this release {release}, was taken back at {at} by {by} "
            f"(release {applied_by or '(unknown)'} had applied it), so a start does not apply it again; nothing was "
            f"changed. Start the release that goes with the schema, or, to apply it again, run: "
            f"litestar database upgrade"
        )


class NotReplayableError(MigratorError):
    """A revision cannot be taken back without its file."""

    def __init__(self, *, revision: str, applied_by: str | None, reason: str) -> None:
        super().__init__(
            f"Revision {revision} cannot be taken back from the ledger: {reason}; nothing was changed. "
            f"Downgrade with release {applied_by or 'that has its file'}."
        )


class AdoptionError(MigratorError):
    """There are tables of ours but no version table, or they are not what the revisions build; or nothing to adopt."""

    def __init__(self, *, found: Sequence[str] = (), revision: str | None = None, recorded: Sequence[str] = ()) -> None:
        if recorded:
            what = (
                f"alembic_version says already that the schema is at {', '.join(recorded)}: there is nothing to adopt"
            )
            mend = "How it stands says: litestar database status. To record another revision all the same, add --force"
        elif revision is None:
            what = (
                f"There is no alembic_version, but {', '.join(found)}, which the revisions would make, "
                f"{'is' if len(found) == 1 else 'are'} there already: which revision that is would be a guess"
            )
            mend = "To take it over, find out which revision it equals: litestar database adopt REVISION"
        else:
            what = f"The live schema is not what revision {revision} builds"
            mend = "Mend what is missing or different, name another revision, or add --force"
        super().__init__(f"{what}; nothing was changed. {mend}")


class NotConfirmedError(MigratorError):
    """Something that may lose data was not confirmed."""


class NotArchivedError(MigratorError):
    """What a downgrade would take away could not be put into the archive first.

    `without_archive` is the command that does without; whoever knows which one is in use changes it.
    """

    def __init__(self, *, revision: str, reason: str, mend: str) -> None:
        super().__init__(
            f"The downgrade of revision {revision} would lose data that could not be archived: {reason}; it was rolled "
            f"back whole, the steps before it stay. {mend}"
        )
        self.without_archive = "litestar database downgrade --no-archive"

    def __str__(self) -> str:
        return f"{super().__str__()} Or let the data go: {self.without_archive}"


class UnknownArchiveError(MigratorError):
    """The archive has nothing under that number."""

    def __init__(self, *, number: int, known: Sequence[int]) -> None:
        there = f"there are {', '.join(map(str, known))}" if known else "the archive is empty"
        super().__init__(
            f"There is no archive {number}: {there}; nothing was changed. Run: litestar database archive list"
        )


class ScratchDatabaseError(MigratorError):
    """There is no scratch database to try the revisions out on.

    `reason` is a clause without the full stop; `mend` is a sentence of what to do, with its own.
    """

    def __init__(self, *, reason: str, mend: str) -> None:
        super().__init__(
            f"There is no scratch database to try the revisions out on: {reason}; nothing was changed. {mend}"
        )


class NotMigratedError(MigratorError):
    """Told not to migrate, and nobody else did in time."""

    def __init__(self, *, waited: float, current: Sequence[str], head: str) -> None:
        super().__init__(
            f"The schema is at {', '.join(current) or 'no revision'} and not at {head} after {waited:.0f} s, "
            f"and GASKET_MIGRATE_ON_STARTUP is false, so this replica does not migrate. "
            f"Run: litestar database upgrade"
        )


class MigrationFailedError(MigratorError):
    """A revision failed; what came before it stays."""

    def __init__(self, *, revision: str, direction: str, error: str, applied: Sequence[str], partly: bool) -> None:
        state = (
            "its statements up to its last autocommit block are committed, the rest was rolled back"
            if partly
            else "it was rolled back whole"
        )
        super().__init__(
            f"The {direction} of revision {revision} failed: {error}; {state}, {_stays(applied)}. "
            f"Correct the cause and start again to go on from there."
        )


class MigrationInterruptedError(MigratorError):
    """SIGTERM or SIGINT came while waiting or migrating: at a start, or in a command."""

    def __init__(self, *, start: bool) -> None:
        dropped, again = (", which the next start drops", "Start") if start else ("", "Run it")
        super().__init__(
            "Stopped by SIGTERM or SIGINT: a revision under way was rolled back (an interrupted CONCURRENTLY may leave "
            f"an INVALID index{dropped}) and the lock is free. {again} again to go on."
        )


def _stays(applied: Sequence[str]) -> str:
    if not applied:
        return "and no step came before it"
    shown = ", ".join(applied[-5:])
    return f"the {len(applied)} before it (to {shown}) stay" if len(applied) > 1 else f"{shown} before it stays"
