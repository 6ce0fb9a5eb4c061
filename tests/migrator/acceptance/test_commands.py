"""The commands as users type them: `alembic ...`, `litestar ... database ...` and `gasket database ...`.

One set of files, one version table, one runner; DATABASE_URL alone is enough for all of them.
"""

from __future__ import annotations

import asyncio
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.acceptance.installation import SERVING, Finished, Installation, Settings
from tests.acceptance.processes import environment
from tests.acceptance.wire import tapped

ALEMBIC = ("alembic",)
LITESTAR = ("litestar", "--app", "gasket.app:create_app", "database")
GASKET = ("gasket", "database")
EVERY = pytest.mark.parametrize("handle", [ALEMBIC, LITESTAR, GASKET], ids=["alembic", "litestar", "gasket"])
# `gasket database` and `litestar database` differ in how the application is found, and in nothing behind that.
BOTH = pytest.mark.parametrize("handle", [ALEMBIC, LITESTAR], ids=["alembic", "litestar"])


@pytest.fixture(autouse=True)
def database_url_alone(installation: Installation) -> None:
    """No token, no key: only serving needs them."""
    for name in SERVING:
        del installation.settings[name]


async def _done(installation: Installation, *command: str, settings: Settings | None = None, cold: bool = False) -> str:
    """Run a command that has to succeed; returns what it said."""
    done = await installation.run(*command, settings=settings, cold=cold)
    assert done.exit_code == 0, f"{command}: {done.exit_code}\n{done.output}"
    assert "Traceback" not in done.output, done.output
    return done.output


async def _refused(installation: Installation, *command: str, settings: Settings | None = None) -> Finished:
    """Run a command that has to refuse without a stack trace."""
    done = await installation.run(*command, settings=settings)
    assert done.exit_code > 0, done.output
    assert "Traceback" not in done.output, done.output
    return done


@pytest.mark.parametrize(
    ("handle", "cold"),
    [
        pytest.param(ALEMBIC, True, id="alembic-cold"),
        pytest.param(LITESTAR, True, id="litestar-cold"),
        pytest.param(GASKET, True, id="gasket-cold"),
        pytest.param(ALEMBIC, False, id="alembic"),
        pytest.param(GASKET, False, id="gasket"),
        pytest.param(LITESTAR, False, id="litestar"),
    ],
)
async def test_upgrade_and_downgrade(installation: Installation, handle: tuple[str, ...], cold: bool) -> None:
    *_, before_last, last = shipped = installation.project.shipped
    confirm = () if handle == ALEMBIC else ("--no-prompt",)
    await _done(installation, *handle, "upgrade", *(["head"] if handle == ALEMBIC else []), cold=cold)
    await installation.assert_migrated_once()
    if cold:
        return
    await _done(installation, *handle, "downgrade", *confirm, "-1")
    assert await installation.versions() == [before_last]
    await _done(installation, *handle, "upgrade", *confirm, "+1")
    assert await installation.versions() == [last]
    await _done(installation, *handle, "downgrade", *confirm, shipped[0])
    assert await installation.versions() == [shipped[0]]
    assert not await installation.has_table("api_keys")
    await _done(installation, *handle, "downgrade", *confirm, "base")
    assert await installation.versions() == []
    await installation.assert_consistent()
    assert not await installation.has_table("openai_backends")
    assert await installation.has_table("migration_ledger")
    await _done(installation, *handle, "upgrade", *confirm, "head")
    assert await installation.versions() == [last]
    await installation.assert_consistent()


async def test_litestar_s_old_way_to_say_minus_one_works_too(installation: Installation) -> None:
    await installation.migrate()
    await _done(installation, *LITESTAR, "downgrade", "--no-prompt", "--", "-1")
    assert await installation.versions() == [installation.project.shipped[-2]]


@EVERY
async def test_the_database_s_url_may_come_from_a_file(
    installation: Installation, handle: tuple[str, ...], tmp_path: Path
) -> None:
    await installation.migrate()
    file = tmp_path / "url"
    file.write_text(f"{installation.database_url}\n")
    current = "current" if handle == ALEMBIC else "show-current-revision"
    from_file: Settings = {"DATABASE_URL": None, "DATABASE_URL_FILE": str(file)}
    assert installation.project.shipped[-1] in await _done(installation, *handle, current, settings=from_file)
    both = await _refused(installation, *handle, current, settings={"DATABASE_URL_FILE": str(file)})
    assert both.line == "gasket: DATABASE_URL and DATABASE_URL_FILE are both set; set one of them."


async def test_a_mistyped_revision_is_answered_with_the_nearest_by_commands_that_read_files_alone(
    installation: Installation,
) -> None:
    head = installation.project.shipped[-1]
    typo = f"{head[:-1]}x"
    for command in (("show", typo), ("edit", typo), ("merge", typo, head), ("history", "--rev-range", f"{typo}:")):
        refused = await _refused(installation, *GASKET, *command)
        assert f"There is no revision {typo}; nothing was changed. Nearest: {head}" in refused.line, command


async def test_looking_takes_no_lock_and_changes_nothing(installation: Installation) -> None:
    """While somebody holds the lock, too."""
    head = installation.project.shipped[-1]
    async with tapped(installation.database_url) as tap:
        installation.settings["DATABASE_URL"] = tap.url
        assert "(head)" not in await _done(installation, *ALEMBIC, "current")
        assert not await installation.has_table("alembic_version")
        await installation.migrate()
        tap.sent.clear()
        async with installation.lock_held():
            assert f"{head} (head)" in await _done(installation, *ALEMBIC, "current")
            assert head in await _done(installation, *LITESTAR, "show-current-revision")
            assert head in await _done(installation, *GASKET, "show-current-revision", "--verbose")
            await _done(installation, *ALEMBIC, "check")
            await _done(installation, *LITESTAR, "check")
            await _done(installation, *ALEMBIC, "current", "--check-heads")
            for handle in (ALEMBIC, LITESTAR, GASKET):
                history = await _done(installation, *handle, "history", "--verbose")
                assert all(revision in history for revision in installation.project.shipped)
                assert f"{head}" in await _done(installation, *handle, "heads")
                assert head in await _done(installation, *handle, "show", "head")
                await _done(installation, *handle, "branches")
        said = " ".join(statement for connection in tap.statements for statement in connection)
    assert "advisory" not in said
    assert not re.search(r"\b(INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\b", said)


@BOTH
async def test_looking_at_a_database_that_is_behind(installation: Installation, handle: tuple[str, ...]) -> None:
    await installation.migrate()
    installation.project.add_table("newer")
    current = "current" if handle == ALEMBIC else "show-current-revision"
    said = await _done(installation, *handle, current)
    assert installation.project.shipped[-1] in said
    assert "(head)" not in said
    await _refused(installation, *handle, "check")


@BOTH
async def test_check_tells_models_from_schema(installation: Installation, handle: tuple[str, ...]) -> None:
    await installation.migrate()
    await (await installation.look()).execute("ALTER TABLE api_keys DROP COLUMN revoked_by")
    done = await _refused(installation, *handle, "check")
    assert "revoked_by" in done.line


@BOTH
async def test_stamp_is_recorded(installation: Installation, handle: tuple[str, ...]) -> None:
    shipped = installation.project.shipped
    confirm = () if handle == ALEMBIC else ("--no-prompt",)
    await _done(installation, *handle, "stamp", *confirm, "head")
    assert await installation.versions() == [shipped[-1]]
    assert not await installation.has_table("api_keys")
    assert [direction for _, direction in await installation.ledger()] == ["stamp"] * len(shipped)
    await _done(installation, *handle, "stamp", *confirm, shipped[1])
    assert await installation.versions() == [shipped[1]]
    assert (await installation.ledger())[-1] == (shipped[1], "stamp")
    assert await installation.holder() is None


@BOTH
async def test_the_version_table_is_made_under_the_lock_and_not_beside_tables_of_ours(
    installation: Installation, handle: tuple[str, ...]
) -> None:
    """An empty one would say that nothing is applied, and the next start would apply it all."""
    ensure = (*handle, "ensure_version" if handle == ALEMBIC else "ensure-version")
    look = await installation.look()
    async with installation.lock_held("a colleague"):
        held = await _refused(installation, *ensure, settings={"GASKET_MIGRATION_LOCK_WAIT": "0"})
        assert "a colleague" in held.line
    await look.execute("CREATE TABLE api_keys (id integer)")
    beside = await _refused(installation, *ensure)
    assert f"{'litestar' if handle == LITESTAR else 'gasket'} database adopt" in beside.line
    assert not await installation.has_table("alembic_version")
    await look.execute("DROP TABLE api_keys")
    await _done(installation, *ensure)
    assert await installation.versions() == []
    assert await installation.ledger() == []
    await installation.migrate()
    await installation.assert_migrated_once()


@pytest.mark.parametrize("option", ["--sql", "--sql --tag=x"])
async def test_sql_for_a_database_administrator(installation: Installation, option: str) -> None:
    """Printed and not run: without a database at all."""
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "GASKET_DATABASE_SCHEMA": "own_schema"}
    for handle in (ALEMBIC, LITESTAR, GASKET):
        confirm = () if handle == ALEMBIC else ("--no-prompt",)
        said = await _done(installation, *handle, "upgrade", *confirm, *option.split(), "head", settings=nowhere)
        assert "CREATE TABLE" in said
        assert "own_schema" in said
        assert installation.project.shipped[-1] in said
        assert "Running upgrade" in said or handle != ALEMBIC


async def test_printed_sql_gives_the_same_schema(installation: Installation) -> None:
    code, script, _ = await _in_a_shell(installation, 'exec "$@"', "alembic upgrade head --sql")
    assert code == 0
    await (await installation.look()).execute(script)
    assert await installation.versions() == installation.project.shipped[-1:]
    await _done(installation, *ALEMBIC, "check")
    replica = installation.replica(SERVING)
    assert (await replica.ready())["state"] == "at_head"


@EVERY
async def test_a_new_revision_comes_from_our_template(installation: Installation, handle: tuple[str, ...]) -> None:
    await installation.migrate()
    before = set(installation.project.versions.glob("*.py"))
    make = ("revision",) if handle == ALEMBIC else ("make-migrations", "--no-prompt", "--no-autogenerate")
    await _done(installation, *handle, *make, "-m", "add_colours_table")
    [path] = set(installation.project.versions.glob("*.py")) - before
    text = path.read_text()
    assert re.fullmatch(r"\d{4}_\d\d_\d\d_\d{4}_add_colours_table\.py", path.name)
    for part in ("def upgrade() -> None:", "def downgrade() -> None:", "backward_compatible: bool\n"):
        assert part in text
    assert f'down_revision: str | None = "{installation.project.shipped[-1]}"' in text.replace("'", '"')
    assert "autocommit" not in text

    # Its author has to decide before it can be applied.
    done = await _refused(installation, *ALEMBIC, "upgrade", "head")
    assert "backward_compatible" in done.line
    path.write_text(text.replace("backward_compatible: bool\n", "backward_compatible: bool = True\n"))
    await _done(installation, *ALEMBIC, "upgrade", "head")
    await _done(installation, *ALEMBIC, "downgrade", "-1")
    assert [direction for _, direction in await installation.ledger()][-2:] == ["upgrade", "downgrade"]


@BOTH
async def test_autogenerate_finds_nothing_where_models_equal_the_schema(
    installation: Installation, handle: tuple[str, ...]
) -> None:
    await installation.migrate()
    before = set(installation.project.versions.glob("*.py"))
    make = ("revision", "--autogenerate") if handle == ALEMBIC else ("make-migrations", "--no-prompt")
    await installation.run(*handle, *make, "-m", "nothing")
    for path in set(installation.project.versions.glob("*.py")) - before:
        assert re.search(r"def upgrade\(\) -> None:\n(?:    #[^\n]*\n)*    pass\n", path.read_text()), path.read_text()


@pytest.mark.parametrize("handle", [LITESTAR, GASKET], ids=["litestar", "gasket"])
async def test_without_a_terminal_an_upgrade_runs_and_a_downgrade_asks_first(
    installation: Installation, handle: tuple[str, ...]
) -> None:
    await _done(installation, *handle, "upgrade")
    done = await _refused(installation, *handle, "downgrade", "base")
    assert "--no-prompt" in done.line
    await installation.assert_migrated_once()


@pytest.mark.parametrize("command", ["alembic upgrade head", "gasket database upgrade", "gasket database downgrade"])
async def test_with_closed_standard_input(installation: Installation, command: str) -> None:
    """Closed altogether, as some supervisors leave it, and not /dev/null."""
    code, output, errors = await _in_a_shell(installation, 'exec "$@" <&-', command)
    assert "Traceback" not in output + errors
    assert (code == 0) == (not command.endswith("downgrade")), output + errors
    if code == 0:
        await installation.assert_migrated_once()
    else:
        assert "--no-prompt" in errors


async def _in_a_shell(installation: Installation, script: str, command: str) -> tuple[int, str, str]:
    """Run a command as a shell does, `"$@"` being the command: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        script,
        "sh",
        *command.split(),
        env=environment(installation.project.folder) | installation.settings,
        cwd=installation.project.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize("handle", [LITESTAR, GASKET], ids=["litestar", "gasket"])
async def test_drop_all_is_refused(installation: Installation, handle: tuple[str, ...]) -> None:
    await installation.migrate()
    done = await _refused(installation, *handle, "drop-all", "--no-prompt")
    assert "downgrade base" in done.line
    assert await installation.has_table("api_keys")


@BOTH
async def test_an_unknown_revision_is_one_line(installation: Installation, handle: tuple[str, ...]) -> None:
    await installation.migrate()
    confirm = () if handle == ALEMBIC else ("--no-prompt",)
    for words in (("upgrade", "nonsense"), ("downgrade", "nonsense"), ("downgrade", "-99"), ("stamp", "nonsense")):
        done = await _refused(installation, *handle, words[0], *confirm, words[1])
        assert words[1] in done.line or "-99" in words, done.output
    assert await installation.versions() == installation.project.shipped[-1:]
    await installation.assert_migrated_once()


@BOTH
async def test_a_database_that_is_away_is_one_line(installation: Installation, handle: tuple[str, ...]) -> None:
    away = {"DATABASE_URL": "postgresql://gasket:hunter2secret@127.0.0.1:1/gasket", "GASKET_DATABASE_WAIT": "0"}
    current = "current" if handle == ALEMBIC else "show-current-revision"
    for words in ((current,), ("upgrade", "head"), ("check",)):
        done = await _refused(installation, *handle, *words, settings=away)
        assert "DATABASE_URL" in done.line
        assert "hunter2secret" not in done.output


@BOTH
async def test_a_failing_revision_is_one_line(installation: Installation, handle: tuple[str, ...]) -> None:
    installation.project.add_revision("failing", 'op.execute("SELECT 1 / 0")')
    done = await _refused(installation, *handle, "upgrade", "head")
    assert "revision failing" in done.line
    assert "division by zero" in done.line
    assert await installation.versions() == installation.project.shipped[-1:]


@BOTH
async def test_two_heads_are_refused_with_the_command_that_merges(
    installation: Installation, handle: tuple[str, ...]
) -> None:
    installation.project.add_table("left")
    installation.project.add_revision("right", down_revision=installation.project.shipped[-1])
    done = await _refused(installation, *handle, "upgrade", "head")
    assert "database merge left right" in done.line
    assert not await installation.has_table("alembic_version")
    await _done(installation, *handle, "merge", "-m", "merge_heads", "left", "right")
    await _done(installation, *handle, "upgrade", "head")
    [version] = await installation.versions()
    assert version not in ("left", "right")
    assert (await installation.replica(SERVING).ready())["ready"]


async def test_help_and_version_are_those_of_gasket(installation: Installation) -> None:
    shown = await _done(installation, "gasket", "--help")
    assert "Gasket: serve" in shown
    assert "Litestar CLI" not in shown
    assert "sessions" not in shown
    assert "gasket db" in shown
    run = await _done(installation, "gasket", "run", "--help")
    assert "Run a Litestar app" not in run
    assert "--wc" not in run
    assert "brings the schema to this release's head" in " ".join(run.split())
    assert (await _done(installation, "gasket", "version")).split()[-1] == version("gasket")
