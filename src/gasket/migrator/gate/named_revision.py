"""What a revision argument names: whether it is there, and where a step down or a rollback leads.

The checks of the revision that was named are here. Each raises why a caller may not pass.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

from gasket.migrator.command_line import database_command
from gasket.migrator.errors import AdoptionError, TargetError
from gasket.migrator.gate.callers import Caller
from gasket.migrator.gate.situation import Case, Situation
from gasket.migrator.revisions.files import SYMBOLS, Revisions

_STEPS = re.compile(r"(?:(?P<branch>.+)@)?(?P<revision>\w+)?(?P<steps>[+-]\d+)")
_HAS_BRANCH = "gasket.migrator.revisions.scripts:has_branch"
_SHORTEST = 4
"""Alembic takes that many of a revision's first characters for it."""


async def target_there(case: Case) -> None:
    """The argument names a revision that there is."""
    revisions = case.situation.revisions
    known = set(revisions)
    if case.request.caller in (Caller.ROLLBACK, Caller.ACCEPT):
        known.update(case.situation.database.ledger)
    for target in case.request.targets:
        require_target(target, revisions, known, case.config.ini)


async def something_to_roll_back(case: Case) -> None:
    """Something is newer than this release."""
    rollback_goal(case.situation, case.request.target)


async def step_is_clear(case: Case) -> None:
    """`-1` and the like may not say where to go.

    Several revisions are applied, or one on the way joins several, or there are not as many.
    """
    situation, target = case.situation, case.request.target or ""
    steps = _STEPS.fullmatch(target)
    if not steps or steps["branch"] or steps["revision"] or not steps["steps"].startswith("-"):
        return
    versions = sorted(situation.database.versions)
    if len(versions) > 1:
        raise TargetError(
            problem=f"Revisions {' and '.join(versions)} are both applied, so {target} does not say which to take back",
            mend=f"Name one: {' or '.join(f'{version}@{target}' for version in versions)}",
        )
    current = versions[0] if versions else None
    for passed in range(int(steps["steps"][1:])):
        if current is None:
            take_back_all = f"To take back all, run: {database_command('downgrade base')}"
            raise _too_few(target, passed, "applied", mend=take_back_all)
        if current not in situation.revisions and current not in situation.database.ledger:
            return  # nobody knows what it stands on
        below = _below(situation, current)
        if len(below) > 1:
            raise TargetError(
                problem=f"Revision {current} joins {' and '.join(below)}, so {target} does not say where to go",
                mend=f"To take back {current} and keep what it joins, run: {database_command(f'downgrade {below[0]}')}",
            )
        current = below[0] if below else None


async def steps_pending(case: Case) -> None:
    """`+3` and the like may lead beyond the head."""
    plan, target = case.situation.plan, case.request.target or ""
    steps = re.fullmatch(r"\+(\d+)", target)
    if not steps or plan.unknown or plan.missing or int(steps[1]) <= len(plan.pending):
        return
    raise _too_few(target, len(plan.pending), "pending", mend=f"To apply all, run: {database_command('upgrade')}")


async def target_applied(case: Case) -> None:
    """A downgrade leads only to what is applied."""
    situation, target = case.situation, case.request.target or ""
    heads = situation.revisions.heads
    name = heads[0] if target in ("head", "heads") and len(heads) == 1 else _named_revision(target)
    if name is None or _STEPS.fullmatch(target):
        return
    begun = _begun_by(name, situation.revisions)
    if len(begun) != 1 or begun[0] in situation.plan.applied:
        return
    current = ", ".join(sorted(situation.database.versions)) or "base"
    raise TargetError(
        problem=f"Revision {begun[0]} is not applied (the schema is at {current}), so no downgrade leads to it",
        mend=f"To apply it, run: {database_command(f'upgrade {begun[0]}')}",
    )


async def acceptable(case: Case) -> None:
    """An edit of a file that is there, of a revision that is applied."""
    situation, target = case.situation, case.request.targets[0]
    begun = _begun_by(target, {*situation.revisions, *situation.database.ledger})
    if len(begun) != 1:  # head, -1, a branch
        raise TargetError(
            problem=f"{target} is not the id of one revision",
            mend=f"To see which files were edited run: {database_command('status')}",
        )
    [revision] = begun
    if revision not in situation.revisions:
        raise TargetError(problem=f"The file of revision {revision} is gone", mend="Put it back as it was")
    if revision in {file.revision for file in situation.plan.pending}:
        raise TargetError(
            problem=f"Revision {revision} is not applied, so its file may be changed as you like",
            mend=f"To see what is applied run: {database_command('status')}",
        )
    if revision not in {edit.revision for edit in situation.edits}:
        raise TargetError(
            problem=f"The file of revision {revision} does what was applied or accepted: there is nothing to accept",
            mend=f"To see which files were edited run: {database_command('status')}",
        )


async def nothing_else_recorded(case: Case) -> None:
    """The same revision may be adopted again, which records its catalog."""
    versions, revisions = case.situation.database.versions, case.situation.revisions
    [target] = case.request.targets
    meant = set(revisions.heads) if target in ("head", "heads") else {target}
    if versions and versions != meant and not case.request.force:
        raise AdoptionError(recorded=sorted(versions))


def _named_revision(target: str) -> str | None:
    """The revision, the beginning of one, or the branch that a target names; None for `head`, `-1` and the like."""
    steps = _STEPS.fullmatch(target)
    name = steps["revision"] if steps else target.rpartition("@")[2]
    return None if not name or name in SYMBOLS else name


def _begun_by(name: str, known: Iterable[str]) -> list[str]:
    """The revisions that Alembic takes `name` for: that one, or those that begin with it."""
    if name in (every := set(known)):
        return [name]
    return sorted(revision for revision in every if len(revision) >= _SHORTEST and revision.startswith(name))


def require_target(target: str, revisions: Revisions, known: Iterable[str], ini: Path) -> None:
    """Look for the revision that `target` names.

    Raises:
        TargetError: it is none of the `known`, nor a branch of the files.
    """
    name = _named_revision(target)
    if name is None:
        return
    every = set(known)
    begun = _begun_by(name, every)
    if len(begun) > 1:
        raise TargetError(problem=f"{name} begins {' and '.join(begun[:3])}", mend="Write more of it")
    if not begun and not pkgutil.resolve_name(_HAS_BRANCH)(ini, name):
        raise _unknown_target(name, revisions, every)


def _unknown_target(name: str, revisions: Revisions, known: Iterable[str]) -> TargetError:
    """What is said of a revision that is not there."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    files = revisions.values() if not nearest else ()
    by_description = {file.read_description().lower(): file.revision for file in files}
    nearest += [by_description[text] for text in difflib.get_close_matches(name.lower(), list(by_description), n=1)]
    if not nearest:
        return TargetError(problem=f"There is no revision {name}", mend=f"Run: {database_command('history')}")
    file = revisions.get(nearest[0])
    description = file.read_description() if file else ""
    said = f" ({description})" if description else ""
    return TargetError(problem=f"There is no revision {name}", mend=f"Nearest: {nearest[0]}{said}.")


def _too_few(target: str, count: int, which: str, *, mend: str) -> TargetError:
    if not count:
        there, mend = "No revision is", f"To see where the schema is, run: {database_command('status')}"
    else:
        there = f"Only {count} revisions are" if count > 1 else "Only 1 revision is"
    return TargetError(problem=f"{there} {which}, so {target} leads nowhere", mend=mend)


def going_back(case: Case) -> frozenset[str]:
    """The applied revisions that a downgrade or a rollback takes back.

    All of them where that is not told from the files and the ledger: to a branch, or some steps from a revision.
    """
    situation, target = case.situation, case.request.target
    if case.request.caller is Caller.ROLLBACK:
        target = rollback_goal(situation, target)
    applied = situation.plan.applied
    if target is None:
        return frozenset()
    goal = _walk(situation, target)
    if goal is None:
        return applied
    gone = {goal}
    while more := {r for r in applied - gone if gone.intersection(_below(situation, r))}:
        gone |= more
    return frozenset(gone - {goal})


def rollback_goal(situation: Situation, target: str | None) -> str | None:
    """Where a rollback leads: to `target`, else to the newest of this release's revisions that is applied.

    None where nothing is newer than this release, so that there is nothing to roll back.

    Raises:
        TargetError: nothing is newer, and `target` is not where the schema is; or without a target it is not clear.
    """
    plan, revisions = situation.plan, situation.revisions
    if plan.unknown:
        own = revisions.heads_of(revisions.keys() - {file.revision for file in plan.pending})
        if not target and len(own) > 1:
            raise TargetError(
                problem=f"This release's revisions {' and '.join(own)} are both applied, and nothing of this release "
                "is on top",
                mend=f"Name the one to go back to: {database_command('rollback REVISION')}",
            )
        return target or (own[0] if own else "base")
    if target and target not in situation.database.versions:
        raise TargetError(
            problem="No revision is applied that is newer than this release, so there is nothing to roll back",
            mend=f"To take back revisions of this release run: {database_command(f'downgrade {target}')}",
        )
    return None


def _walk(situation: Situation, target: str) -> str | None:
    """The applied revision that the target leads down to; None where that is not told, or is the base."""
    applied = situation.plan.applied
    steps = _STEPS.fullmatch(target)
    if steps is None:
        begun = _begun_by(target, applied)
        return begun[0] if len(begun) == 1 else None
    if steps["branch"] or steps["revision"]:
        return None
    current = next(iter(situation.database.versions), None)
    for _ in range(abs(int(steps["steps"]))):
        current = next(iter(_below(situation, current)), None)
    return current


def _below(situation: Situation, revision: str | None) -> tuple[str, ...]:
    file = situation.revisions.get(revision or "")
    if file:
        return file.down_revisions
    entry = situation.database.ledger.get(revision or "")
    return entry.down_revisions if entry else ()
