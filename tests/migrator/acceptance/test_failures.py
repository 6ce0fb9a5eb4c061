"""A revision fails in the middle of several."""

from __future__ import annotations

from tests.acceptance.installation import Installation

_BROKEN = """
op.create_table("third", sa.Column("id", sa.Integer(), primary_key=True))
op.execute("SELECT 1 / 0")
"""


async def test_what_came_before_the_failing_revision_stays(installation: Installation) -> None:
    await installation.migrate()
    project = installation.project
    project.add_table("first")
    project.add_table("second")
    third = project.add_revision("third", _BROKEN, 'op.drop_table("third")')
    project.add_table("fourth")
    project.add_table("fifth")
    said = await installation.replica().refused()
    assert "revision third" in said
    assert "division by zero" in said
    assert "22012" in said
    assert "second" in said
    assert (await installation.ledger())[-2:] == [("first", "upgrade"), ("second", "upgrade")]
    assert await installation.versions() == ["second"]
    assert [name for name in ("third", "fourth", "fifth") if await installation.has_table(name)] == []
    assert await installation.holder() is None

    third.write_text(third.read_text().replace('op.execute("SELECT 1 / 0")', "pass"))
    await installation.replica().ready()
    await installation.assert_migrated_once()


async def test_a_revision_that_fails_in_python_is_named_with_its_line(installation: Installation) -> None:
    installation.project.add_revision("broken", "raise RuntimeError('not today')")
    said = await installation.replica().refused()
    assert "revision broken" in said
    assert "not today" in said
    assert "_broken.py, line" in said
    assert await installation.versions() == installation.project.shipped[-1:]


async def test_what_an_autocommit_block_left_is_said(installation: Installation) -> None:
    await installation.migrate()
    installation.project.add_revision(
        "half",
        """
        with op.get_context().autocommit_block():
            op.execute("CREATE TABLE left_behind (id integer)")
        op.execute("SELECT 1 / 0")
        """,
    )
    said = await installation.replica().refused()
    assert "revision half" in said
    assert "autocommit" in said
    assert "committed" in said
    assert await installation.has_table("left_behind")
    assert await installation.versions() == installation.project.shipped[-1:]
