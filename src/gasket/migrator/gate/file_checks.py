"""The checks of the files and of what is applied. Each raises why a caller may not pass.

Those of the revision that was named are in `named_revision`, those of rights in `rights`. What reads SQL is imported
where there is some: a start at head does without.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from gasket.migrator.apply.lock_holder import find_holder
from gasket.migrator.command_line import database_command
from gasket.migrator.errors import (
    AlembicConfigurationError,
    EditedRevisionError,
    HalfTakenBackError,
    HeldRevisionError,
    NotReplayableError,
    RevisionFileError,
    SchemaAheadError,
    TargetError,
)
from gasket.migrator.gate.callers import GOING_BACK, TO_HEAD, Caller
from gasket.migrator.gate.named_revision import going_back
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.gate.situation import Case
from gasket.migrator.ledger.background import STOPPED, read_works_of
from gasket.migrator.ledger.read import are_there, read_stored
from gasket.migrator.ledger.step_progress import read_progress
from gasket.migrator.ledger.tables import BACKGROUND
from gasket.migrator.sql.lexer import shortened

_RULES = "gasket.migrator.revisions.rules.check"
_UNFINISHED = "gasket.migrator.background.needed:unfinished"
_LOAD_SCRIPTS = "gasket.migrator.revisions.loading:load_scripts"
_REQUIRE_AS_READ = "gasket.migrator.revisions.loading:require_as_read"
_FROM_JSON = "gasket.migrator.sql.render:from_json"


async def files_there(case: Case) -> None:
    """There is a migration file in the folders."""
    if len(case.situation.revisions):
        return
    raise AlembicConfigurationError(
        configuration=case.config.ini,
        problem=f"leads to no migration file (looked for in {', '.join(map(str, case.situation.revisions.folders))})",
        mend="Put the files there: with none, every applied revision would be unknown",
    )


async def files_in_one_piece(case: Case) -> None:
    """A file may be gone below what is applied, but the ledger has to know it, and Alembic cannot load the others."""
    for file, parent in case.situation.plan.unfounded:
        raise RevisionFileError(file=file.path.name, problem=f"stands on revision {parent}, which no file defines")
    if case.request.caller not in TO_HEAD:  # Alembic loads all of them
        case.situation.revisions.check_chain()


async def one_head(case: Case) -> None:
    """There is one schema that a release brings the database to."""
    heads = case.situation.plan.heads
    if len(heads) < 2:
        return
    raise TargetError(
        problem=f"The migration files have {len(heads)} heads ({', '.join(heads)}), so there is no one schema to bring "
        "the database to",
        mend=f"Run: {database_command(' '.join(['merge', *heads]))}",
    )


async def plain_ids(case: Case) -> None:
    """Alembic and its version table can keep the ids of what is not applied."""
    for file in case.situation.plan.pending:
        if problem := file.oddity:
            raise RevisionFileError(
                file=file.path.name,
                problem=f"defines revision {file.revision!r}, {problem}",
                mend="Name it with letters, digits and _, at most 32.",
            )


async def no_newer_revisions(case: Case) -> None:
    plan, caller = case.situation.plan, case.request.caller
    if caller in TO_HEAD:
        if plan.state is not SchemaState.INCOMPATIBLE:
            return
        worst, why = plan.worst, plan.why_incompatible()
    else:
        database = case.situation.database
        unknown = [one for one in plan.unknown if caller is not Caller.CURRENT or one.revision not in database.ledger]
        if not unknown:
            return
        worst = next((one for one in unknown if one.revision in database.versions), unknown[0])
        why = _NEEDED[caller]
    raise SchemaAheadError(revision=worst.revision, applied_by=worst.release, release=case.config.release, why=why)


_NEEDED = {
    Caller.DOWNGRADE: "a downgrade needs its file",
    Caller.STAMP: "a stamp would record that it is not applied",
    Caller.ADOPT: "a stamp would record that it is not applied",
    Caller.CURRENT: "nothing says what it is",
    Caller.COMPARE: "the models of this release are not those of its schema",
}


async def files_as_applied(case: Case) -> None:
    """Nothing is built on a file that is not what was applied, and its `downgrade()` is not what was reviewed."""
    situation = case.situation
    if not situation.edits:
        return
    pending: tuple[str, ...] = ()
    edits = situation.edits
    if case.request.caller in GOING_BACK:
        going = going_back(case)
        edits = tuple(edit for edit in edits if edit.revision in going)
    else:
        pending = tuple(file.revision for file in situation.plan.pending)
        edits = edits if pending else ()
    if not edits:
        return
    edit = edits[0]
    if not pending and not edit.gone:
        situation.revisions[edit.revision].parse()  # where it is not Python, that is what has to be said
    raise EditedRevisionError(
        revision=edit.revision,
        gone=edit.gone,
        applied_at=edit.applied_at,
        applied_by=edit.applied_by,
        pending=pending,
    )


async def not_held(case: Case) -> None:
    """A start does not apply by itself what was taken back."""
    hold = case.situation.hold
    if hold is None or not case.config.migrate_on_startup:
        return
    raise HeldRevisionError(
        revision=hold.revision,
        is_head=hold.revision == case.situation.plan.head,
        at=hold.at,
        by=hold.role or "(unknown)",
        command=hold.command,
        release=case.config.release,
        applied_by=hold.applied_by,
    )


async def whole(case: Case) -> None:
    """A revision that is half taken back is recorded as applied, and this release would run on what is left of it.

    Without the lock, the downgrade may be under way: then nothing is to be said yet.
    """
    revision = case.situation.database.half_taken_back
    if revision is None:
        return
    committed = await read_progress(case.connection, case.config.schema, revision, downgrade=True)
    holder = await find_holder(case.connection, case.config.schema)
    if not committed or (holder and holder.pid != case.connection.get_server_pid()):
        return
    entry = case.situation.database.ledger.get(revision)
    raise HalfTakenBackError(
        revision=revision,
        target=(entry.down_revisions[0] if entry and entry.down_revisions else "base"),
        at=committed[0].at,
        by=committed[0].role or "(unknown)",
        command=committed[0].command or "(unknown)",
        last=shortened(committed[-1].statement),
        has_file=revision in case.situation.revisions,
    )


async def rules_kept(case: Case) -> None:
    """The pending files keep the rules, and need background work only of what they stand on."""
    if not case.situation.plan.pending:
        return
    rules = pkgutil.resolve_name(_RULES)
    for file in case.situation.plan.pending:
        verdict = rules.verdict_on(file)
        if verdict.broken:
            raise RevisionFileError(file=file.path.name, problem="is not applied", mend=verdict.broken)
        if not verdict.needs_background:
            continue
        below = case.situation.revisions.with_ancestors(file.parents)
        if strangers := [needed for needed in verdict.needs_background if needed not in below]:
            raise RevisionFileError(
                file=file.path.name,
                problem=f"needs the background work of revision {strangers[0]}, on which it does not stand",
            )
        for needed in verdict.needs_background:
            if not rules.declares_background(case.situation.revisions[needed]):
                raise RevisionFileError(
                    file=file.path.name, problem=f"needs the background work of revision {needed}, which declares none"
                )


async def needed_work_goes_on(case: Case) -> None:
    """Work that a person has stopped is not begun by itself. Of a revision that is pending, the work comes anew."""
    if case.request.target not in (None, "head", "heads"):  # what needs the work may come after the target
        return
    if not case.situation.plan.pending:
        return
    verdict_on = pkgutil.resolve_name(_RULES).verdict_on
    pending = {file.revision: verdict_on(file).needs_background for file in case.situation.plan.pending}
    needs = [(revision, needed) for revision, names in pending.items() for needed in names if needed not in pending]
    if not needs or not all(await are_there(case.connection, case.config.schema, BACKGROUND)):
        return
    for revision, needed in needs:
        for work in await read_works_of(case.connection, case.config.schema, needed):
            if work.state in STOPPED:
                raise pkgutil.resolve_name(_UNFINISHED)(revision, work)


async def loadable(case: Case) -> None:
    """The files can be imported, which Alembic does with all of them; and the pending ones are then what they say."""
    pending = {file.path.name for file in case.situation.plan.pending}
    if pending:
        scripts = pkgutil.resolve_name(_LOAD_SCRIPTS)(case.config.ini).walk_revisions()
        steps = (script for script in scripts if Path(script.path).name in pending)
        pkgutil.resolve_name(_REQUIRE_AS_READ)(steps, case.situation.revisions)


async def replayable(case: Case) -> None:
    """What this release lacks is taken back with what the ledger keeps: all of it, or nothing is begun."""
    from_json = pkgutil.resolve_name(_FROM_JSON)
    unknown = case.situation.plan.unknown
    stored = await read_stored(case.connection, case.config.schema) if unknown else {}
    for revision in (entry.revision for entry in unknown):
        record = stored.get(revision)
        if record is None:
            reason = "the ledger has no record of it"
        elif record.downgrade_sql is None:
            reason = "the SQL of its downgrade was not stored"
        elif why_not := from_json(record.downgrade_sql).reason:
            reason = f"its downgrade {why_not}"
        else:
            continue
        raise NotReplayableError(revision=revision, applied_by=record.release if record else None, reason=reason)
