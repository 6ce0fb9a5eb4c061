"""The table of checks and callers: every path to the schema is refused by every check that holds for it.

The table is the list itself, so a new check or a new path without a case here fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.accept import accept
from gasket.migrator.commands.adopt import adopt_command
from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.commands.status import read_report
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError
from gasket.migrator.gate.callers import Caller
from gasket.migrator.gate.checks import CHECKS
from gasket.migrator.head import bring_to_head
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.runner import migrate
from gasket.migrator.webhook_messages import Outcome
from tests.migrator.project import Project


@dataclass
class Scene:
    """A schema at r2 of a project with r1, r2 and r3, which a case changes so that one check refuses.

    `target` is what commands are given. `role` is a plain one, with its URL.
    """

    project: Project
    config: MigratorConfig
    database: asyncpg.Connection
    role: str
    url_of_role: str
    caller: Caller
    target: str = "r1"

    @property
    def files(self) -> list[Path]:
        return sorted(self.project.versions.glob("*.py"))

    def write(self, revision: str, down: str | None, **changes: str) -> Path:
        """One more file; `changes` replace texts of it."""
        path = self.project.versions / f"2026_{len(self.files) + 1:04d}.py"
        text = self.files[0].read_text().replace('"r1"', repr(revision)).replace("= None", f"= {down!r}")
        path.write_text(text)
        return path


async def no_files(scene: Scene) -> str:
    for path in scene.files:
        path.unlink()
    return "leads to no migration file"


async def a_file_on_nothing(scene: Scene) -> str:
    scene.write("r9", "gone")
    return r"stands on revision gone"


async def two_heads(scene: Scene) -> str:
    scene.write("r9", "r2")
    return "have 2 heads"


async def an_odd_id(scene: Scene) -> str:
    scene.write("it's", "r3")
    return 'defines revision "it\'s"'


async def a_newer_revision(scene: Scene) -> str:
    await scene.database.execute("UPDATE alembic_version SET version_num = 'r7'")
    return "The database has revision r7"


async def a_mistyped_target(scene: Scene) -> str:
    if scene.caller is Caller.ROLLBACK:
        await bring_to_head(scene.config)
        scene.files[2].unlink()
    scene.target = "r0"
    return r"There is no revision r0; nothing was changed\. Nearest: r\d( \(r\d\))?\."


async def a_step_from_a_merge(scene: Scene) -> str:
    scene.write("r4", "r1")
    path = scene.write("r5", "r3")
    path.write_text(path.read_text().replace("down_revision: str | None = 'r3'", "down_revision = ('r3', 'r4')"))
    await scene.database.execute("UPDATE alembic_version SET version_num = 'r5'")
    scene.target = "-1"
    if scene.caller is Caller.ROLLBACK:  # from what it lacks down past the merge
        scene.target = "-2"
        await scene.database.execute(
            "UPDATE alembic_version SET version_num = 'r7'; INSERT INTO migration_ledger (revision, down_revision, "
            "direction, backward_compatible) VALUES ('r7', 'r5', 'upgrade', true)"
        )
    return "Revision r5 joins r3 and r4, so -. does not say where to go; nothing was changed.* downgrade r3"


async def too_many_steps(scene: Scene) -> str:
    scene.target = "+2"
    return r"Only 1 revision is pending, so \+2 leads nowhere; nothing was changed"


async def a_target_above(scene: Scene) -> str:
    scene.target = "r3"
    return "r3 is not applied .the schema is at r2., so no downgrade leads to it; nothing was changed"


async def nothing_newer(scene: Scene) -> str:
    return "there is nothing to roll back"


async def not_edited(scene: Scene) -> str:
    return "there is nothing to accept"


async def recorded(scene: Scene) -> str:
    return "says already that the schema is at r2"


async def an_edited_file(scene: Scene) -> str:
    path = scene.files[1]
    path.write_text(path.read_text() + "\nmore = 1\n")
    if scene.caller is Caller.ROLLBACK:
        await scene.database.execute(
            "UPDATE alembic_version SET version_num = 'r7'; INSERT INTO migration_ledger (revision, down_revision, "
            "direction, backward_compatible) VALUES ('r7', 'r2', 'upgrade', true)"
        )
        scene.files[2].unlink()
    return "r2 was edited .* nothing was changed"


async def taken_back(scene: Scene) -> str:
    await downgrade(scene, "r1")
    return "Revision r2, which this release 1.0 has, was taken back"


async def a_downgrade_that_was_cut_short(scene: Scene) -> str:
    await scene.database.execute(
        "INSERT INTO migration_progress (revision, downgrade, statement, finished, command) "
        "VALUES ('r2', true, 'DROP TABLE t2', true, 'alembic downgrade r1')"
    )
    return "The downgrade of revision r2 was cut short"


async def a_broken_rule(scene: Scene) -> str:
    path = scene.files[2]
    path.write_text(path.read_text().replace("backward_compatible: bool = True", "backward_compatible: bool"))
    return "2026_0003.py is not applied"


async def a_table_in_the_way(scene: Scene) -> str:
    await scene.database.execute("DROP TABLE alembic_version")
    return "There is no alembic_version, but t1"


async def a_file_that_cannot_be_imported(scene: Scene) -> str:
    path = scene.files[2]
    path.write_text(path.read_text().replace("from alembic import op", "from alembic import op, nothing_of_the_kind"))
    return "2026_0003.py cannot be loaded"


async def go_on(scene: Scene) -> None:
    """What the caller needs before it comes to the rights."""
    if scene.caller is Caller.ACCEPT:
        scene.target = "r2"
        scene.files[1].write_text(scene.files[1].read_text() + "\nmore = 1\n")
    elif scene.caller is Caller.ADOPT:
        await scene.database.execute("DELETE FROM alembic_version")
    elif scene.caller is Caller.ROLLBACK:
        await bring_to_head(scene.config)
        scene.files[2].unlink()


async def a_read_only_server(scene: Scene) -> str:
    await go_on(scene)
    name = await scene.database.fetchval("SELECT current_database()")
    await scene.database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    return "takes no writes"


async def a_schema_of_others(scene: Scene) -> str:
    await go_on(scene)
    scene.config = replace(scene.config, database_url=scene.url_of_role)
    await scene.database.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {scene.role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    )
    return f"Role {scene.role} may not create tables in schema public"


async def no_way_back(scene: Scene) -> str:
    await scene.database.execute(
        "UPDATE alembic_version SET version_num = 'r7'; INSERT INTO migration_ledger (revision, down_revision, "
        "direction, backward_compatible) VALUES ('r7', 'r2', 'upgrade', true)"
    )
    scene.target = "r2"
    return "r7 cannot be taken back from the ledger"


async def no_archive(scene: Scene) -> str:
    await go_on(scene)
    scene.config = replace(scene.config, database_url=scene.url_of_role)
    await scene.database.execute(
        f"GRANT ALL ON SCHEMA public TO {scene.role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {scene.role}"
    )
    return f"Role {scene.role} may not create schema gasket_archive"


async def paused_work(scene: Scene) -> str:
    declared = "background = [Backfill(table='t3', set='id = id', where='id < 0')]"
    backfill = "from gasket.migrator.background import Backfill"
    path = scene.files[-1]
    path.write_text(path.read_text().replace("\n\n\ndef up", f"\n{backfill}\n{declared}\n\n\ndef up", 1))
    await bring_to_head(scene.config)
    await scene.database.execute("UPDATE migration_background SET state = 'paused'")
    path = scene.project.add()
    path.write_text(path.read_text().replace("\n\n\ndef up", "\nneeds_background = ['r3']\n\n\ndef up", 1))
    return "needs the background work 1 .* which is paused"


CASES: dict[str, Callable[[Scene], Awaitable[str]]] = {
    "files_there": no_files,
    "files_in_one_piece": a_file_on_nothing,
    "one_head": two_heads,
    "plain_ids": an_odd_id,
    "no_newer_revisions": a_newer_revision,
    "target_there": a_mistyped_target,
    "step_is_clear": a_step_from_a_merge,
    "steps_pending": too_many_steps,
    "target_applied": a_target_above,
    "something_to_roll_back": nothing_newer,
    "acceptable": not_edited,
    "nothing_else_recorded": recorded,
    "files_as_applied": an_edited_file,
    "not_held": taken_back,
    "whole": a_downgrade_that_was_cut_short,
    "rules_kept": a_broken_rule,
    "needed_work_goes_on": paused_work,
    "nothing_in_the_way": a_table_in_the_way,
    "loadable": a_file_that_cannot_be_imported,
    "writable": a_read_only_server,
    "rights": a_schema_of_others,
    "replayable": no_way_back,
    "archive_rights": no_archive,
}


async def alembic_command(scene: Scene, command: Callable[..., object], *arguments: str) -> None:
    config = Config(str(scene.project.ini), attributes={"read_config": lambda: scene.config})
    await asyncio.to_thread(command, config, *arguments)


async def downgrade(scene: Scene, target: str) -> None:
    await alembic_command(scene, alembic.command.downgrade, target)


async def follow(scene: Scene) -> None:
    await bring_to_head(replace(scene.config, migrate_on_startup=False, lock_wait=0.1))


async def say_status(scene: Scene) -> None:
    report = await read_report(scene.config)
    if report.sentence.startswith("A start refuses. "):
        raise MigratorError(report.sentence)


async def adopt(scene: Scene) -> None:
    callback = adopt_command(scene.config).callback
    assert callback is not None
    await asyncio.to_thread(callback, revision=scene.target, force=False)


PATHS: dict[Caller, Callable[[Scene], Awaitable[object]]] = {
    Caller.START: lambda scene: bring_to_head(scene.config),
    Caller.WAITER: lambda scene: migrate(scene.config, configured_revisions(scene.config.ini), Outcome()),
    Caller.FOLLOWER: follow,
    Caller.UPGRADE: lambda scene: alembic_command(
        scene, alembic.command.upgrade, "head" if scene.target == "r1" else scene.target
    ),
    Caller.DOWNGRADE: lambda scene: downgrade(scene, scene.target),
    Caller.ROLLBACK: lambda scene: rollback(scene.config, scene.target, StepOptions()),
    Caller.STAMP: lambda scene: alembic_command(scene, alembic.command.stamp, scene.target),
    Caller.ENSURE_VERSION: lambda scene: alembic_command(scene, alembic.command.ensure_version),
    Caller.ACCEPT: lambda scene: accept(scene.config, scene.target),
    Caller.ADOPT: adopt,
    Caller.PLAN: lambda scene: forecast_pending(scene.config),
    Caller.STATUS: say_status,
    Caller.CURRENT: lambda scene: alembic_command(scene, alembic.command.current),
    Caller.COMPARE: lambda scene: alembic_command(scene, alembic.command.check),
}


APART = (Caller.ACCEPT, Caller.ADOPT, Caller.ROLLBACK)
"""Callers for which a case is another one. The others see the same database, because a refusal changes nothing."""

TABLE = [
    (check.__name__, callers)
    for check, holds_for in CHECKS.items()
    for callers in (sorted(holds_for.difference(APART)), *([one] for one in APART if one in holds_for))
    if callers
]


@pytest.fixture
async def scene(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection, url_with: Callable[..., str]
) -> AsyncIterator[Scene]:
    """At r2, with r3 pending."""
    project = Project(tmp_path)
    for _ in range(2):
        project.add()
    config = project.config(database_url, database_wait=1)
    await bring_to_head(config)
    project.add()
    role = f"role_{uuid4().hex[:12]}"
    await observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    url = url_with(database_url, user=role, password="secret-word")
    yield Scene(project, config, observer, role, url, Caller.START)
    await observer.execute(f"SET default_transaction_read_only = off; DROP OWNED BY {role}; DROP ROLE {role}")


def test_every_path_is_in_the_table() -> None:
    assert PATHS.keys() == set(Caller)
    assert CASES.keys() == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize(("check", "callers"), TABLE, ids=lambda part: part if isinstance(part, str) else part[0])
async def test_every_check_holds_on_its_paths(scene: Scene, check: str, callers: list[Caller]) -> None:
    scene.caller = callers[0]
    refusal = await CASES[check](scene)
    before = await state(scene.database)
    for caller in callers:
        with pytest.raises(MigratorError, match=refusal):
            await PATHS[caller](scene)
        assert await state(scene.database) == before, caller


async def state(database: asyncpg.Connection) -> list[asyncpg.Record]:
    """The versions, the ledger and the tables: a refusal changes none."""
    versions = "SELECT version_num AS one FROM alembic_version" if await has_versions(database) else "SELECT ''"
    return list(
        await database.fetch(
            f"{versions} UNION ALL SELECT revision || direction FROM migration_ledger UNION ALL "
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        )
    )


async def has_versions(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"))
