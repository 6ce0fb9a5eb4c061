from __future__ import annotations

import logging

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gasket.backends.breaker import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Admission,
    BackendAdmission,
    BackendBreaker,
    Breaker,
    Breakers,
    SetAside,
)
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("Backend 'main'", clock)


def admitted(breaker: Breaker) -> Admission:
    admission = breaker.admit()
    assert admission is not None
    return admission


def fail(breaker: Breaker, times: int = FAILURES) -> None:
    for _ in range(times):
        admitted(breaker).failed()


def test_five_failures_in_a_row_set_it_aside(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 4)
    admitted(breaker).succeeded()
    fail(breaker, 4)
    assert (breaker.state, breaker.retry_after) == ("available", 0)
    fail(breaker, 1)
    assert (breaker.state, breaker.retry_after) == ("set_aside", 5)
    clock.now += 4.9
    assert breaker.admit() is None
    assert breaker.retry_after == pytest.approx(0.1)


def test_since_when_it_is_set_aside_stays_through_trials_that_fail(breaker: Breaker, clock: Clock) -> None:
    before = breaker.since
    assert before is None
    fail(breaker)
    since = breaker.since
    assert since is not None
    clock.now += 5
    admitted(breaker).failed()
    assert breaker.since == since
    clock.now += 10
    admitted(breaker).succeeded()
    after = breaker.since
    assert after is not None
    assert after > since


def test_then_one_request_tries_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 5
    trial = admitted(breaker)
    assert [breaker.admit(), breaker.admit()] == [None, None]
    assert (breaker.state, breaker.retry_after) == ("trying", 0)
    trial.succeeded()
    assert breaker.state == "available"
    fail(breaker)
    assert breaker.retry_after == 5, "the pause does not begin anew"


def test_the_pause_doubles_up_to_a_minute(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    pauses = []
    for _ in range(6):
        pauses.append(breaker.retry_after)
        clock.now += breaker.retry_after
        fail(breaker, 1)
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_answers_that_begin_and_break_off_are_failures_in_a_row(breaker: Breaker, clock: Clock) -> None:
    for _ in range(FAILURES):
        admission = admitted(breaker)
        admission.answered()
        admission.failed()
    assert (breaker.state, breaker.retry_after) == ("set_aside", 5)
    clock.now += 5
    admitted(breaker).answered()
    assert (breaker.state, breaker.retry_after) == ("available", 0), "a trial does not last as long as its answer"


def test_a_trial_without_a_verdict_frees_its_place(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 5
    admitted(breaker).abandoned()
    assert (breaker.state, breaker.retry_after) == ("set_aside", 0)
    trial = admitted(breaker)
    assert breaker.admit() is None
    trial.failed()
    assert breaker.retry_after == 10


def test_what_was_admitted_before_does_not_count_while_it_is_set_aside(breaker: Breaker) -> None:
    late = admitted(breaker)
    fail(breaker)
    for say in (late.failed, late.answered, late.succeeded, late.abandoned):
        say()
        assert (breaker.state, breaker.retry_after) == ("set_aside", 5)


@pytest.mark.parametrize("verdict", ["failed", "answered", "succeeded", "abandoned"])
def test_nor_while_it_is_tried_nor_once_it_is_available_again(breaker: Breaker, clock: Clock, verdict: str) -> None:
    """A stream of minutes, or a request whose first_byte_timeout ends only now."""
    late = [admitted(breaker) for _ in range(FAILURES)]
    fail(breaker)
    clock.now += 5
    trial = admitted(breaker)
    getattr(late[0], verdict)()
    assert (breaker.state, breaker.admit()) == ("trying", None)
    trial.answered()
    for admission in late:
        getattr(admission, verdict)()
    assert breaker.state == "available"
    fail(breaker, FAILURES - 2)
    getattr(late[0], verdict)()
    trial.failed()
    assert breaker.state == "available", "four in a row"
    fail(breaker, 1)
    assert (breaker.state, breaker.retry_after) == ("set_aside", 5)


def test_leaving_clients_say_nothing_about_a_backend(breaker: Breaker) -> None:
    fail(breaker, 4)
    admitted(breaker).abandoned()
    fail(breaker, 1)
    assert breaker.state == "set_aside"


def test_changes_of_state_are_logged(breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gasket.backends")
    fail(breaker)
    clock.now += 5
    fail(breaker, 1)
    clock.now += 10
    trial = admitted(breaker)
    trial.succeeded()
    trial.succeeded()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Backend 'main' is set aside for 5 s: 5 failures in a row."),
        ("INFO", "Backend 'main': one request tries it again."),
        ("WARNING", "Backend 'main' is set aside for 10 s: the trial failed."),
        ("INFO", "Backend 'main': one request tries it again."),
        ("INFO", "Backend 'main' is available again."),
    ]


ENDS = ["succeeded", "failed", "abandoned"]


class AnyOrder(RuleBasedStateMachine):
    """Requests come, end and are given up in any order, time passes: against what was seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(1000.0)
        self.breaker = Breaker("Backend 'main'", self.clock)
        self.running: list[tuple[Admission, int]] = []
        """Each with the number of trials that there had been, itself included."""
        self.trials = 0
        self.in_a_row = 0
        self.free_at: float | None = None
        """When the next trial may begin; None while the backend is available."""

    @rule(seconds=st.sampled_from([1, 5, 10, 60]) | st.integers(0, 70))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        before = self.breaker.state
        admission = self.breaker.admit()
        is_trial = before == "set_aside" and self.clock.now >= (self.free_at or 0.0)
        assert (admission is not None) == (before == "available" or is_trial)
        self.trials += is_trial
        if admission is not None:
            self.running.append((admission, self.trials))

    @precondition(lambda self: self.breaker.state == "available")
    @rule()
    def it_breaks_down(self) -> None:
        while self.breaker.state == "available":
            self.a_request_comes()
            self.the_newest_ends("failed")

    @precondition(lambda self: self.running)
    @rule(end=st.sampled_from(ENDS), which=st.integers(0))
    def any_request_ends(self, end: str, which: int) -> None:
        self.running.append(self.running.pop(which % len(self.running)))
        self.the_newest_ends(end)

    @precondition(lambda self: self.running)
    @rule(end=st.sampled_from(ENDS))
    def the_newest_ends(self, end: str) -> None:
        before, retry_after = self.breaker.state, self.breaker.retry_after
        admission, trials = self.running.pop()
        getattr(admission, end)()
        if before == "set_aside" or trials < self.trials:
            assert (self.breaker.state, self.breaker.retry_after) == (before, retry_after)
            return
        self.in_a_row = {"succeeded": 0, "failed": self.in_a_row + 1, "abandoned": self.in_a_row}[end]
        if before == "available":
            assert (self.breaker.state == "set_aside") == (self.in_a_row >= FAILURES)
        else:
            expected = {"succeeded": "available", "failed": "set_aside", "abandoned": "set_aside"}[end]
            assert self.breaker.state == expected
        if self.breaker.state == "available":
            self.free_at = None
        elif end == "failed":
            assert before == "trying" or self.breaker.retry_after == FIRST_PAUSE
            self.in_a_row = 0
            self.free_at = self.clock.now + self.breaker.retry_after

    @invariant()
    def it_is_never_away_for_longer_than_a_minute(self) -> None:
        assert 0 <= self.breaker.retry_after <= LONGEST_PAUSE
        assert (self.breaker.retry_after > 0) <= (self.breaker.state == "set_aside")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=30, deadline=None)


def admitted_to(backend: BackendBreaker, model: str | None = "m") -> BackendAdmission:
    admission = backend.admit(model)
    assert isinstance(admission, BackendAdmission), admission
    return admission


def fails(backend: BackendBreaker, *models: str | None) -> None:
    for model in models:
        for _ in range(FAILURES):
            admitted_to(backend, model).failed()


class TestBackend:
    @pytest.fixture
    def backend(self, clock: Clock) -> BackendBreaker:
        return BackendBreaker("main", clock)

    def test_a_model_that_fails_takes_no_other_along(self, backend: BackendBreaker) -> None:
        fails(backend, "dead", None)
        assert backend.admit("dead") == ("Model 'dead' of backend 'main'", 5)
        assert backend.admit(None) == ("Requests without a model of backend 'main'", 5)
        assert (backend.whole.state, backend.models_set_aside) == ("available", ["dead"])
        admitted_to(backend, "good").succeeded()

    def test_three_models_at_once_set_the_whole_aside(self, backend: BackendBreaker, clock: Clock) -> None:
        fails(backend, "a", "b")
        admitted_to(backend, "c").succeeded()
        fails(backend, "d", "e")
        assert backend.whole.state == "available", "c answered in between"
        fails(backend, "f")
        assert backend.admit("never asked") == ("Backend 'main'", 5)
        clock.now += 5
        trial = admitted_to(backend, "c")
        assert isinstance(backend.admit("g"), SetAside)
        trial.succeeded()
        admitted_to(backend, "g").succeeded()

    def test_a_trial_of_the_whole_that_fails_sets_it_aside_for_longer(
        self, backend: BackendBreaker, clock: Clock
    ) -> None:
        fails(backend, "a", "b", "c")
        clock.now += 5
        admitted_to(backend, "d").failed()
        assert backend.admit("e") == ("Backend 'main'", 10)

    def test_who_cannot_be_reached_is_set_aside_whole(self, backend: BackendBreaker) -> None:
        for number in range(FAILURES - 1):
            admitted_to(backend, f"m{number}").unreachable()
        admitted_to(backend, "x").failed()
        for _ in range(FAILURES - 1):
            admitted_to(backend).unreachable()
        assert backend.whole.state == "available", "it could be reached in between"
        admitted_to(backend).unreachable()
        assert (backend.admit("x"), backend.models_set_aside) == (("Backend 'main'", 5), [])

    def test_a_model_that_is_set_aside_takes_no_trial_of_the_whole(self, backend: BackendBreaker, clock: Clock) -> None:
        fails(backend, "a")
        clock.now += 5
        admitted_to(backend, "a").failed()
        fails(backend, "b", "c")
        clock.now += 5
        assert backend.admit("a") == ("Model 'a' of backend 'main'", 5)
        assert isinstance(backend.admit("d"), BackendAdmission)

    def test_names_that_clients_make_up_are_not_all_kept(self, backend: BackendBreaker) -> None:
        fails(backend, "dead")
        for number in range(1000):
            admitted_to(backend, f"made up {number}").succeeded()
        assert len(backend._models) <= 201
        assert isinstance(backend.admit("dead"), SetAside)


class TestRegistry:
    def test_each_backend_has_one_under_its_newest_name(self, clock: Clock) -> None:
        breakers = Breakers(clock)
        assert breakers.state(1) == "available"
        fail(breakers.of(1, "old").whole)
        assert breakers.of(1, "new").name == "new"
        assert (breakers.state(1), breakers.state(2)) == ("set_aside", "available")
        breakers.forget(1)
        breakers.forget(1)
        assert breakers.state(1) == "available"

    def test_what_is_forgotten_for_room_is_what_tells_nothing(self, clock: Clock) -> None:
        breakers = Breakers(clock)
        fail(breakers.of(0, "away").whole)
        for number in range(1, 5000):
            breakers.of(number, "fine")
        assert breakers.state(0) == "set_aside"
        for number in range(5000):
            fail(breakers.of(number, "away").whole) if breakers.state(number) == "available" else None
        assert 400 <= sum(breakers.state(number) != "available" for number in range(5000)) <= 1000
        assert breakers.state(4999) == "set_aside"

    def test_it_is_told_once_what_is_set_aside_and_what_comes_back(self, clock: Clock) -> None:
        told: list[tuple[object, ...]] = []
        breakers = Breakers(clock, lambda *message: told.append(message))
        backend = breakers.of(1, "old")
        fails(backend, "a")
        clock.now += 5
        admitted_to(backend, "a").failed()
        breakers.of(1, "new")
        for _ in range(FAILURES):
            admitted_to(backend).unreachable()
        clock.now += 5
        admitted_to(backend, "b").succeeded()
        assert told == [
            (
                "backend.set_aside",
                "Model 'a' of backend 'old' is set aside for 5 s: 5 failures in a row.",
                {"backend": "old", "model": "a"},
            ),
            (
                "backend.set_aside",
                "Backend 'new' is set aside for 5 s: 5 failures in a row.",
                {"backend": "new", "model": None},
            ),
            ("backend.available", "Backend 'new' is available again.", {"backend": "new", "model": None}),
        ]
