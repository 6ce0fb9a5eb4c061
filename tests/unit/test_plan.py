"""The files against the state of the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from gasket.migrator.errors import HeldRevisionError, MultipleHeadsError, RevisionFileError, SchemaAheadError
from gasket.migrator.ledger import DatabaseState, LedgerEntry
from gasket.migrator.plan import SchemaState, check_hold, check_upgrade, make_plan
from gasket.migrator.revisions import RevisionFile, Revisions


def file(revision: str, *down: str, compatible: bool | None = True) -> RevisionFile:
    return RevisionFile(
        revision=revision,
        down_revisions=down,
        parents=down,
        backward_compatible=compatible,
        path=Path(f"{revision}.py"),
        sha256=revision,
    )


CHAIN = Revisions([file("a"), file("b", "a"), file("c", "b")])


def database(*versions: str, ledger: tuple[LedgerEntry, ...] = ()) -> DatabaseState:
    return DatabaseState(
        versions=frozenset(versions),
        ledger={entry.revision: entry for entry in ledger},
        has_version_table=True,
        has_ledger=True,
        role="gasket",
    )


def entry(revision: str, *down: str, compatible: bool | None, release: str = "9.9") -> LedgerEntry:
    return LedgerEntry(
        revision=revision,
        down_revisions=down,
        direction="upgrade",
        file_sha256=None,
        release=release,
        backward_compatible=compatible,
    )


def test_an_empty_database_gets_everything_in_order() -> None:
    plan = make_plan(CHAIN, database())
    assert plan.state is SchemaState.BEHIND
    assert [f.revision for f in plan.pending] == ["a", "b", "c"]
    assert not plan.serves


def test_at_head_there_is_nothing_to_do() -> None:
    plan = make_plan(CHAIN, database("c"))
    assert (plan.state, plan.pending, plan.unknown) == (SchemaState.AT_HEAD, (), ())
    assert plan.serves


def test_only_what_is_missing_is_pending() -> None:
    assert [f.revision for f in make_plan(CHAIN, database("b")).pending] == ["c"]


def test_a_compatible_newer_revision_is_served_on() -> None:
    ledger = (entry("d", "c", compatible=True), entry("e", "d", compatible=True))
    plan = make_plan(CHAIN, database("e", ledger=ledger))
    assert plan.state is SchemaState.AHEAD
    assert plan.serves
    assert [r.revision for r in plan.unknown] == ["d", "e"]
    check_upgrade(plan, "1.0")


def test_one_incompatible_newer_revision_is_refused_by_its_name_and_release() -> None:
    ledger = (entry("d", "c", compatible=False, release="2.0"), entry("e", "d", compatible=True, release="3.0"))
    plan = make_plan(CHAIN, database("e", ledger=ledger))
    assert plan.state is SchemaState.INCOMPATIBLE
    with pytest.raises(SchemaAheadError) as refusal:
        check_upgrade(plan, "1.0")
    message = str(refusal.value)
    assert "revision d, applied by release 2.0" in message
    assert "this release 1.0" in message
    assert "Deploy release 2.0" in message


def test_a_newer_revision_that_the_ledger_does_not_know_is_refused() -> None:
    plan = make_plan(CHAIN, database("mystery"))
    assert plan.state is SchemaState.INCOMPATIBLE
    with pytest.raises(SchemaAheadError, match="mystery, which the ledger does not know"):
        check_upgrade(plan, "1.0")


def test_a_compatible_branch_beside_our_head_is_refused() -> None:
    plan = make_plan(CHAIN, database("d", ledger=(entry("d", "b", compatible=True),)))
    assert [f.revision for f in plan.pending] == ["c"]
    with pytest.raises(SchemaAheadError, match="lacks c of this release"):
        check_upgrade(plan, "1.0")


def test_a_file_that_stands_on_nothing_known_is_refused() -> None:
    with pytest.raises(RevisionFileError, match=r"b\.py stands on revision gone"):
        make_plan(Revisions([file("b", "gone")]), database())


def test_a_file_gone_from_the_middle_is_missing_and_not_ahead() -> None:
    ledger = tuple(entry(r, *below, compatible=True) for r, below in (("a", ()), ("b", ("a",)), ("c", ("b",))))
    plan = make_plan(Revisions([file("a"), file("c", "b")]), database("c", ledger=ledger))
    assert plan.state is SchemaState.AT_HEAD
    assert [e.revision for e in plan.missing] == ["b"]
    assert plan.unknown == ()


def test_applied_files_with_other_bytes_are_changed_and_pending_ones_are_not() -> None:
    ledger = (
        LedgerEntry("a", (), "upgrade", "other bytes", "1.0", True),
        LedgerEntry("b", ("a",), "upgrade", "b", "1.0", True),
        LedgerEntry("c", ("b",), "downgrade", "other bytes", "1.0", True),
    )
    plan = make_plan(CHAIN, database("b", ledger=ledger))
    assert [f.revision for f in plan.changed] == ["a"]


def test_a_head_that_was_taken_back_is_held_and_one_above_it_is_not() -> None:
    taken_back = LedgerEntry("c", ("b",), "downgrade", "c", "2.0", True, role="ann", started_at="2026-01-01T00:00:00")
    plan = make_plan(CHAIN, database("b", ledger=(taken_back,)))
    with pytest.raises(HeldRevisionError, match="c, the head of this release 1.0, was taken back .* by ann"):
        check_hold(plan, release="1.0", applied_by="2.0")
    newer = Revisions([*CHAIN.values(), file("d", "c")])
    plan = make_plan(newer, database("b", ledger=(taken_back,)))
    assert [f.revision for f in plan.pending] == ["c", "d"]
    check_hold(plan, release="1.1", applied_by=None)


def test_two_heads_are_refused_with_the_command_to_run() -> None:
    with pytest.raises(MultipleHeadsError, match='alembic merge -m "merge heads" b x'):
        make_plan(Revisions([file("a"), file("b", "a"), file("x", "a")]), database())
