"""The files against the state of the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from gasket.migrator.errors import RevisionFileError, SchemaAheadError
from gasket.migrator.ledger import DatabaseState, LedgerEntry
from gasket.migrator.plan import SchemaState, check_upgrade, make_plan
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
        in_recovery=False,
        read_only=False,
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


def test_an_undecided_pending_revision_is_refused_before_anything_is_applied() -> None:
    revisions = Revisions([file("a"), file("b", "a", compatible=None)])
    with pytest.raises(RevisionFileError, match=r"b\.py has not decided `backward_compatible`"):
        check_upgrade(make_plan(revisions, database()), "1.0")
    check_upgrade(make_plan(revisions, database("b")), "1.0")
