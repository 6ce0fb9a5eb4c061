"""How fast background work goes, how far standbys lag behind it, and which numbers its commands take."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from click.testing import CliRunner

from gasket.migrator.background.pace import Pace
from gasket.migrator.background.standbys import Standbys
from gasket.migrator.commands.archive import archive_commands
from gasket.migrator.commands.background import background_commands
from gasket.migrator.config import MigratorConfig


def test_batches_grow_to_a_tenth_of_a_second_and_shrink_when_they_take_longer() -> None:
    pace = Pace(0.5)
    first = pace.size
    assert pace.after_batch(0.01, first, in_the_way=False) == 0.01
    assert pace.size == 2 * first
    pace.after_batch(0.4, pace.size, in_the_way=False)
    assert pace.size == first // 2
    pace.after_batch(0.01, 1, in_the_way=False)
    assert pace.size == first // 2, "a batch that was not full says nothing"


@pytest.mark.parametrize("fixed", [0.5, 3.0])
@pytest.mark.parametrize("empty", [0, 3])
def test_a_time_that_every_batch_takes_makes_no_batch_smaller(fixed: float, empty: int) -> None:
    """As with a subquery that reads the whole table, in ranges without a row that matches, too."""
    pace = Pace(1)
    noise = itertools.cycle([1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.85])
    for number in range(40):
        rows = 0 if number < empty else pace.size
        pace.after_batch((fixed + rows * 0.00002) * next(noise), rows, in_the_way=False)
    assert pace.size > 1000


@pytest.mark.parametrize("a_row", [0.0005, 0.01, 0.05])
def test_a_range_that_took_long_without_a_row_does_not_make_batches_long(a_row: float) -> None:
    pace = Pace(1)
    for number in range(40):
        rows = 0 if number < 3 else pace.size
        pace.after_batch(rows * a_row or 2.0, rows, in_the_way=False)
    assert pace.size * a_row < 0.5


def test_the_pause_leaves_the_others_their_share() -> None:
    assert Pace(1).after_batch(0.1, 1, in_the_way=False) == 0
    assert round(Pace(0.2).after_batch(0.1, 1, in_the_way=False), 3) == 0.4


def test_who_is_in_the_way_makes_room() -> None:
    pace = Pace(1)
    before = pace.size
    assert pace.after_batch(0.05, before, in_the_way=True) == 0.05
    assert pace.size == before // 2
    pauses = [pace.retreat() for _ in range(9)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10
    pace.after_batch(0.01, 1, in_the_way=False)
    assert pace.retreat() == pauses[0]


def test_batches_that_take_their_time_anyway_do_not_grow_while_somebody_is_in_the_way() -> None:
    pace = Pace(1)
    sizes = [pace.size]
    for _ in range(8):
        pace.after_batch(0.4, pace.size, in_the_way=True)
        sizes.append(pace.size)
    assert sizes == sorted(sizes, reverse=True)


def test_a_batch_that_fails_is_split_and_does_not_grow_before_its_end_is_reached() -> None:
    pace = Pace(1)
    whole = pace.size
    assert pace.split()
    half = pace.size
    pace.after_batch(0.001, half, in_the_way=False)
    assert pace.size == half == whole // 2
    pace.after_batch(0.001, half, in_the_way=False)
    assert pace.size == whole
    while pace.size > 1:
        assert pace.split()
    assert not pace.split()


def test_a_standby_lags_by_the_age_of_the_oldest_that_it_has_not_replayed() -> None:
    standbys = Standbys()

    def lag(now: float, written: int, replayed: int | None) -> float:
        standbys.note(now, written, replayed)
        return standbys._lag

    assert lag(0, 100, 100) == 0
    assert lag(1, 200, 100) == 0
    assert lag(5, 300, 100) == 4
    assert lag(12, 400, 250) == 7
    assert lag(13, 400, 400) == 0
    assert lag(14, 500, None) == 0, "there is no standby"


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "0", "one"])
def test_a_number_that_no_row_can_have_is_refused_in_one_sentence(number: str) -> None:
    config = MigratorConfig(
        database_url="postgresql://gasket@127.0.0.1:1/gasket", release="1.0", ini=Path("alembic.ini")
    )
    for group in (background_commands(config), archive_commands(config)):
        for command in group.commands.keys() - {"list"}:
            done = CliRunner().invoke(group, [command, "--", number])
            assert done.exit_code == 2, done.output
            assert "Error: Invalid value for " in done.output
