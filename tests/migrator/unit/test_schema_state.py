"""The files against the state of the database."""

from __future__ import annotations

import re

import pytest

from gasket.migrator.gate.schema_state import SchemaState, make_plan
from gasket.migrator.ledger.read import DatabaseState, LedgerEntry
from gasket.migrator.revisions.files import RevisionFile, Revisions


def file(revision: str, *down: str, compatible: bool | None = True) -> RevisionFile:
    return RevisionFile(
        revision=revision,
        down_revisions=down,
        parents=down,
        backward_compatible=compatible,
        location=f"{revision}.py",
        sha256=revision,
    )


CHAIN = Revisions([file("a"), file("b", "a"), file("c", "b")])


def database(*versions: str, ledger: tuple[LedgerEntry, ...] = ()) -> DatabaseState:
    return DatabaseState(
        versions=frozenset(versions),
        ledger={entry.revision: entry for entry in ledger},
        has_version_table=True,
        has_ledger=True,
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


def test_on_one_incompatible_newer_revision_nothing_runs() -> None:
    ledger = (entry("d", "c", compatible=False, release="2.0"), entry("e", "d", compatible=True, release="3.0"))
    plan = make_plan(CHAIN, database("e", ledger=ledger))
    assert plan.state is SchemaState.INCOMPATIBLE
    assert plan.unknown[0] == ledger[0]
    assert plan.why_incompatible() == "it is recorded as not backward compatible"


def test_a_newer_revision_that_the_ledger_does_not_know_is_incompatible() -> None:
    plan = make_plan(CHAIN, database("mystery"))
    assert plan.state is SchemaState.INCOMPATIBLE
    assert [(one.revision, one.release, one.backward_compatible) for one in plan.unknown] == [("mystery", None, None)]
    assert plan.why_incompatible() == "nothing says that older releases can run on it"


def test_a_compatible_branch_beside_our_head_is_incompatible() -> None:
    plan = make_plan(CHAIN, database("d", ledger=(entry("d", "b", compatible=True),)))
    assert [f.revision for f in plan.pending] == ["c"]
    assert plan.state is SchemaState.INCOMPATIBLE
    assert plan.why_incompatible() == "it lacks c of this release, which stands beside it"


def test_a_file_that_stands_on_nothing_known_is_unfounded() -> None:
    revisions = Revisions([file("b", "gone")])
    assert make_plan(revisions, database()).unfounded == ((revisions["b"], "gone"),)
    known = database(ledger=(entry("gone", compatible=True),))
    assert make_plan(revisions, known).unfounded == ()


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


def test_what_was_taken_back_is_among_what_is_pending() -> None:
    taken_back = LedgerEntry("c", ("b",), "downgrade", "c", "2.0", True)
    newer = Revisions([*CHAIN.values(), file("d", "c")])
    plan = make_plan(newer, database("b", ledger=(taken_back, entry("b", "a", compatible=True))))
    assert [f.revision for f in plan.pending] == ["c", "d"]
    assert plan.taken_back == (taken_back,)


def test_an_accepted_file_is_not_changed_and_neither_is_the_original() -> None:
    applied = LedgerEntry("c", ("b",), "upgrade", "other bytes", "1.0", True, accepted=("c", "third bytes"))
    assert make_plan(CHAIN, database("c", ledger=(applied,))).changed == ()
    original = applied._replace(file_sha256="c", accepted=("other bytes",))
    assert make_plan(CHAIN, database("c", ledger=(original,))).changed == ()


def test_two_heads_are_both_there() -> None:
    assert make_plan(Revisions([file("a"), file("b", "a"), file("x", "a")]), database()).heads == ("b", "x")


@pytest.mark.parametrize(
    ("revision", "problem"),
    [
        ("base", "a place in the history"),
        ("heads", "a place in the history"),
        ("-1", "with '-'"),
        ("+1", "with '\\+'"),
        ("a@b", "with '@'"),
        ("it's", 'with "\'"'),
        ("two words", "with ' '"),
        ("a,b", "with ','"),
        ("x" * 33, "of 33 characters"),
    ],
)
def test_an_odd_id_is_named(revision: str, problem: str) -> None:
    assert re.search(problem, file(revision).oddity or "")


@pytest.mark.parametrize("revision", ["19e6a3d5f870", "r1", "2026_add_keys", "v1.2", "x" * 32, "ключ"])
def test_a_plain_id_is_not(revision: str) -> None:
    assert file(revision).oddity is None
