"""What is said of a start that is under way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gasket.migrator import starting
from gasket.migrator.apply.events import LockAwaited, LocksTaken, RevisionsPending, Step, StepBegun, StepDone
from gasket.migrator.apply.lock_holder import Holder, HolderWatch
from gasket.migrator.config import MigratorConfig
from gasket.migrator.facts import Waiting, tell, told_to
from gasket.migrator.ledger.background import State, Work
from gasket.migrator.starting import BlockingSession, Session, Starting
from gasket.postgres.blockers import Blocker
from gasket.postgres.progress import StatementProgress

STEP = Step("upgrade", "a1b2", 3, 7, "add usage totals")


class Clock:
    """Stands until it is told how late it is."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(starting, "time", clock)
    return clock


@pytest.fixture
def start(clock: Clock) -> Starting:
    return Starting(MigratorConfig(database_url="postgresql://127.0.0.1:1/x", release="1", ini=Path("alembic.ini")))


def psql(minutes: float, relation: str | None = "api_keys") -> Blocker:
    since = datetime.now(UTC) - timedelta(minutes=minutes)
    return Blocker(4711, "psql", "ada", since, "UPDATE api_keys SET name = 'secret'", relation=relation)


def test_a_revision_that_waits_for_a_lock_says_for_which_and_who_holds_it(start: Starting, clock: Clock) -> None:
    start.hear(StepBegun(STEP, pid=1))
    clock.now += 12
    report = start.report(None, [psql(minutes=2.1)])
    assert report.detail == (
        "applying revision 3 of 7, add usage totals, for 12 s; waiting for api_keys, held by pid 4711 (psql) for 2 min"
    )
    assert (report.ready, report.state, report.revision, report.number, report.total, report.elapsed) == (
        False,
        "migrating",
        "a1b2",
        3,
        7,
        12,
    )
    assert report.description == "add usage totals"
    [blocker] = report.blockers
    assert (blocker.pid, blocker.application, blocker.relation) == (4711, "psql", "api_keys")
    assert "secret" not in str(report)


def test_between_two_tries_the_blockers_of_the_last_are_shown_and_no_longer(start: Starting, clock: Clock) -> None:
    start.hear(StepBegun(STEP, pid=1))
    start.hear(LocksTaken((psql(minutes=1),), pause=5))
    clock.now += 5
    assert start.report().blockers
    clock.now += 5
    assert not start.report().blockers
    start.hear(LocksTaken((psql(minutes=1),), pause=5))
    start.hear(StepDone(STEP))
    assert not start.report().blockers


def test_a_prepared_transaction_is_no_session(start: Starting) -> None:
    start.hear(StepBegun(STEP, pid=1))
    prepared = Blocker(0, "", "ada", None, "", gid="of a user")
    assert start.report(None, [prepared]).blockers == [BlockingSession(None, "a prepared transaction", None, None)]


def test_an_estimate_needs_two_looks_at_one_phase(start: Starting, clock: Clock) -> None:
    start.hear(StepBegun(STEP, pid=1))

    def at(done: int, phase: str = "building index: scanning table") -> StatementProgress:
        return StatementProgress("CREATE INDEX", phase, "api_keys", done, 1000)

    first = start.report(at(100))
    assert (first.percent, first.eta) == (10, None)
    assert first.detail.endswith("; CREATE INDEX: building index: scanning table, 10 %")
    clock.now += 20
    assert start.report(at(300)).eta == 70
    assert start.report(at(500, "building index: loading tuples in tree")).eta is None
    uncounted = start.report(StatementProgress("CREATE INDEX", "initializing", None, 0, 0))
    assert (uncounted.percent, uncounted.eta) == (None, None)


def test_a_backfill_that_the_revision_needs_is_told_until_it_has_ended(start: Starting, clock: Clock) -> None:
    start.hear(StepBegun(STEP, pid=1))
    start.hear(backfill(State.RUNNING))
    report = start.report()
    assert report.percent == 40
    assert report.detail.endswith(
        "; finishing background work 5 (backfill of api_keys, declared by revision f00d), 40 %"
    )
    clock.now += 10
    start.hear(backfill(State.RUNNING, rows_done=60))
    assert (start.report().percent, start.report().eta) == (60, 20)
    start.hear(backfill(State.RUNNING, rows_done=130))
    assert (start.report().percent, start.report().eta) == (99, 0)
    start.hear(backfill(State.COMPLETE))
    assert (start.report().percent, "background" in start.report().detail) == (None, False)


def backfill(state: State, rows_done: int = 40) -> Work:
    now = datetime.now(UTC)
    return Work(
        id=5,
        revision="f00d",
        number=1,
        kind="backfill",
        table_name="api_keys",
        statement="tier = 'standard'",
        condition=None,
        state=state,
        cursor=None,
        walk=1,
        rows_done=rows_done,
        rows_estimated=100,
        worker=None,
        error=None,
        release=None,
        declared_at=now,
        changed_at=now,
    )


async def test_who_asks_in_the_same_second_shares_a_look_and_a_database_that_is_away_is_no_error(
    start: Starting, clock: Clock
) -> None:
    start.hear(StepBegun(STEP, pid=1))
    first = await start.look()
    assert first.revision == "a1b2"
    assert await start.look() is first
    clock.now += 1
    assert await start.look() is not first


def test_a_waiter_names_the_holder(start: Starting, clock: Clock) -> None:
    watch = HolderWatch("public")
    watch.holder = Holder(42, "gasket-migrate 1.4 a:7", "10.0.0.1:5000", None, "ALTER TABLE api_keys")
    start.hear(LockAwaited(watch))
    clock.now += 30
    start.hear(LockAwaited(watch))  # it is told again with each look
    clock.now += 30
    report = start.report()
    assert (report.state, report.elapsed) == ("waiting", 60)
    assert report.holder == Session(42, "gasket-migrate 1.4 a:7")
    assert "waiting for the session that migrates, for 1 min" in report.detail
    assert "held by pid 42 (gasket-migrate 1.4 a:7)" in report.detail
    for hidden in ("10.0.0.1", "ALTER"):  # anybody may ask
        assert hidden not in str(report)


def test_other_facts_are_told_in_words(start: Starting, clock: Clock) -> None:
    assert start.report().state == "waiting"
    start.hear(Waiting("for the database"))
    clock.now += 3700
    assert start.report().detail == "waiting for the database, for 1 h 1 min"
    start.hear(RevisionsPending(2))
    assert start.report().state == "migrating"
    assert start.report().detail == "this replica has the migration lock; 2 revisions to apply"


def test_facts_are_told_to_the_one_who_listens() -> None:
    heard: list[object] = []
    with told_to(heard.append):
        tell(STEP)
    tell("nobody listens")
    assert heard == [STEP]
