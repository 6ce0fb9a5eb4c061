"""What pages are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gasket.access.one_time_code import VALID_FOR, OneTimeCode
from gasket.access.roles import Identity
from gasket.backends.breaker import FAILURES, BackendAdmission, Breakers
from gasket.ui import formats
from gasket.ui.charts import Point, bar_chart
from gasket.ui.navigation import links_for
from gasket.ui.overview import backends_statement
from gasket.ui.pages import make_environment
from gasket.ui.sign_in import page_path


@pytest.mark.parametrize("path", ["/ui", "/ui/keys", "/ui/keys?page=2", "/ui?next=//evil"])
def test_a_sign_in_leads_on_to_pages_of_ours(path: str) -> None:
    assert page_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "/",
        "/uix",
        "/api/keys",
        "//ui",
        "//evil.example/ui",
        "https://evil.example/ui",
        "javascript:alert(1)",
        "/ui\\..\\evil",
        "/\\evil.example/ui",
        "/ui\n",
        "/ui/sign-in?next=/ui",
        "//[",
        "ui",
    ],
)
def test_and_nowhere_else(path: str | None) -> None:
    assert page_path(path) == "/ui"


def test_a_code_works_once_and_for_ten_minutes() -> None:
    now = 1000.0
    code = OneTimeCode(lambda: now)
    assert not code.use("")
    first, second = code.make(), code.make()
    assert not code.use(first)
    assert code.use(second)
    assert not code.use(second)
    third = code.make()
    now += VALID_FOR + 1
    assert not code.use(third)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (86_400 * 3, "3 days ago"),
        (-120, "in 2 minutes"),
    ],
)
def test_times_are_told_in_their_largest_unit(seconds: int, words: str) -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    assert formats.ago(now - timedelta(seconds=seconds), now) == words


def test_numbers_have_units() -> None:
    assert formats.number(1_234_567) == "1\u202f234\u202f567"
    assert formats.short(9_876) == "9\u202f876"
    assert formats.short(12_345) == "12.3\u202fk"
    assert formats.short(4_560_000) == "4.56\u202fM"
    assert formats.milliseconds(None) == "\u2013"
    assert formats.milliseconds(86.6) == "87\u202fms"
    assert formats.milliseconds(1440) == "1.44\u202fs"
    assert formats.milliseconds(600_000) == "10\u202fmin"
    assert formats.milliseconds(125_000) == "2\u202fmin 5\u202fs"
    assert formats.size(12_345) == "12.3\u202fkB"
    assert formats.percent(1, 0) == "\u2013"
    assert [formats.percent(part, 1000) for part in (0, 1, 12, 99.6, 350, 1000)] == [
        f"{share}\u202f%" for share in ("0", "0.1", "1.2", "10", "35", "100")
    ]
    assert formats.plural(1, "key") == "1 key"
    assert formats.plural(2, "key") == "2 keys"


def test_a_chart_is_as_high_as_its_highest_bar_and_shows_the_smallest() -> None:
    points = [Point("a", 1000, 1), Point("b", 0), Point("c", 1), Point("d", 500, 500)]
    chart = bar_chart("Requests", points, begin="then", end="now")
    assert chart.width == 40
    tall, none, small, bad = (bar.parts for bar in chart.bars)
    assert sum(part.height for part in tall) == 100
    assert tall[-1].kind == "bad"
    assert tall[-1].height == small[0].height > 0
    assert none == ()
    assert [part.kind for part in bad] == ["bad"]
    assert chart.bars[0].label == "a: 1\u202f000"
    assert "1\u202f501 from then to now" in chart.sentence
    assert bar_chart("Requests", [], begin="", end="").sentence == "Requests: none."


def with_set_aside(*backend_ids: int) -> Breakers:
    breakers = Breakers()
    for backend_id in backend_ids:
        for _ in range(FAILURES):
            admission = breakers.of(backend_id, "failing").admit(None)
            assert isinstance(admission, BackendAdmission)
            admission.unreachable()
    return breakers


@pytest.mark.parametrize(
    ("in_use", "count", "failing", "kind", "sentence"),
    [
        ([], 0, [], "", "There is no backend yet, so no request can be answered."),
        ([1], 1, [], "good", "1 backend takes requests."),
        ([1, 2], 2, [], "good", "2 backends take requests."),
        ([1, 2], 2, [2], "warn", "1 of 2 backends failed several times in a row: no request goes there for now."),
        (
            [1, 2],
            3,
            [1, 2],
            "bad",
            "2 of 3 backends failed several times in a row: no request goes there for now. "
            "An operator has set 1 of 3 backends aside.",
        ),
        ([], 1, [], "bad", "An operator has set 1 of 1 backend aside."),
    ],
)
def test_backends_in_a_sentence(in_use: list[int], count: int, failing: list[int], kind: str, sentence: str) -> None:
    statement = backends_statement(in_use, count, with_set_aside(*failing))
    assert (statement.kind, statement.sentence) == (kind, sentence)


@pytest.mark.parametrize(("role", "sees"), [("viewer", True), ("metrics", False), ("user", False)])
def test_links_are_those_that_the_role_may_follow(role: str, sees: bool) -> None:
    names = [link.name for link in links_for(Identity("somebody", role), "/ui")]  # type: ignore[arg-type]  # a parameter
    assert ("Overview" in names) is sees
    assert links_for(None, "/ui") == []


def test_names_are_escaped_and_keep_their_direction_to_themselves() -> None:
    name = make_environment().from_string("{% import 'macros.html' as m %}{{ m.name(text) }}")
    assert name.render(text="<script>\u202e") == '<bdi class="name">&lt;script&gt;\u202e</bdi>'
