"""The lock's keys, and how its holder is named."""

from __future__ import annotations

from datetime import UTC, datetime

from gasket.migrator.apply.lock_holder import LOCK_CLASS, Holder, lock_key


def test_the_keys_never_change() -> None:
    """A release with other keys would migrate beside a running older one."""
    assert LOCK_CLASS == 1734439787
    assert lock_key("public") == 0x3BB42E1D
    assert lock_key("other") != lock_key("public")


def test_a_holder_is_described_with_all_that_is_known() -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    holder = Holder(pid=42, application="gasket-migrate 1 a:7", client="10.0.0.1:5000", since=since, query="ALTER")
    assert str(holder) == (
        "held by pid 42, application 'gasket-migrate 1 a:7', client 10.0.0.1:5000, "
        "connected since 2026-01-02 03:04:05 UTC, last statement: ALTER"
    )


def test_a_holder_of_another_role_shows_what_may_be_shown() -> None:
    holder = Holder(pid=42, application="", client="local socket", since=None, query="")
    assert str(holder) == (
        "held by pid 42, application '(none)', client local socket, last statement: (not shown to this role)"
    )
