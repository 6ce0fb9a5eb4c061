"""What a command says of the replicas that serve from the database that it is about to change."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gasket.migrator.which_database import Target
from gasket.postgres.sessions import Replica

NEW, NEWER = Replica("2.0", "a:1"), Replica("2.0", "b:1")
OLD, OTHER = Replica("1.0", "c:1"), Replica("2.1", "d:1")
TARGET = Target(
    address="gasket@db:5432/gasket",
    schema="public",
    replicas=(),
    appliers={"r1": "1.0", "r2": "2.0"},
    own_release="1.0",
    own_revisions={"r1"},
)


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        ((), "No replica is serving."),
        ((NEW,), "1 replica is serving: 1 of release 2.0."),
        ((OLD, NEW, NEWER), "3 replicas are serving: 1 of release 1.0, 2 of release 2.0."),
    ],
)
def test_the_first_line_names_the_database_and_its_replicas(replicas: tuple[Replica, ...], said: str) -> None:
    assert str(replace(TARGET, replicas=replicas)) == f"Database gasket@db:5432/gasket, schema public. {said}"


@pytest.mark.parametrize(
    ("replicas", "taken_back", "said"),
    [
        ((), ["r2"], "No replica is serving."),
        ((NEW, NEWER), ["r2"], "2 replicas are serving and will stop being ready."),
        ((OLD,), ["r2"], "1 replica is serving and may stop being ready: 1 of release 1.0."),
        ((OLD,), ["r2", "r1"], "1 replica is serving and will stop being ready."),
        (
            (OLD, NEW, OTHER),
            ["r2"],
            "3 replicas are serving: 1 of release 2.0 will stop being ready, 1 of release 1.0, 1 of release 2.1 may.",
        ),
    ],
)
def test_a_downgrade_says_which_replicas_stop_being_ready(
    replicas: tuple[Replica, ...], taken_back: list[str], said: str
) -> None:
    assert replace(TARGET, replicas=replicas).consequence(taken_back) == said
