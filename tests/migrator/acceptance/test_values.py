"""Values of rows stay in their tables: no start, command, log, table of the migrator, answer or webhook shows one."""

from __future__ import annotations

import pytest

from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import until
from tests.receiver import receiving

EMAIL = "alice@example.org"
UPGRADES = {
    "in the message": """op.execute("ALTER TABLE persons ALTER COLUMN email TYPE integer USING email::integer")""",
    "in the detail": """op.execute("CREATE UNIQUE INDEX once ON persons (email)")""",
    "in the row that is refused": """op.execute("INSERT INTO persons (email) SELECT email FROM persons")""",
    "in a trigger's text": """op.execute("UPDATE persons SET code = 'a' WHERE id = 1")""",
    "in Python": """[int(row.email) for row in op.get_bind().execute(sa.text("SELECT email FROM persons"))]""",
    "in parameters": """
for row in op.get_bind().execute(sa.text("SELECT email FROM persons")).all():
    op.get_bind().execute(sa.text("INSERT INTO persons (id) VALUES (:email)"), {"email": row.email})
""",
}
PEOPLE = f"""
CREATE TABLE persons (id integer PRIMARY KEY, email text, code varchar(5));
INSERT INTO persons VALUES (1, '{EMAIL}'), (2, '{EMAIL}');
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.code = 'a' THEN RAISE EXCEPTION 'not %', NEW.email USING HINT = NEW.email; END IF;
        RETURN NEW;
    END
$$;
CREATE TRIGGER guard BEFORE UPDATE ON persons FOR EACH ROW EXECUTE FUNCTION guard()
"""
FAILURES = "SELECT error FROM migration_failures ORDER BY id DESC LIMIT 1"
BACKFILL = """\
from gasket.migrator.background import Backfill

background = [Backfill(table="persons", set="code = email", where="code IS NULL")]
"""


@pytest.fixture
async def people(installation: Installation) -> Installation:
    """An installation at head with a table of people."""
    await installation.migrate()
    await (await installation.look()).execute(PEOPLE)
    return installation


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
async def test_a_failed_step_shows_no_value(people: Installation, upgrade: str) -> None:
    people.project.add_revision("fails", upgrade, backward_compatible=False)
    said = await people.replica().refused()
    recorded = await (await people.look()).fetchval(FAILURES)
    assert "revision fails failed" in said
    for told in (said, recorded):
        assert EMAIL not in told
        assert "alice" not in told

    command = await people.run("gasket", "database", "upgrade")
    status = await people.run("gasket", "database", "status", "--json")
    alembic = await people.run("alembic", "upgrade", "head")
    assert "alice" not in command.output + status.output + alembic.output
    assert recorded in status.output.replace('\\"', '"')

    shown = await people.run("gasket", "database", "upgrade", "--show-values")
    assert shown.exit_code == 1
    assert EMAIL in shown.output
    assert "alice" not in await (await people.look()).fetchval(FAILURES)


async def test_no_answer_log_or_webhook_shows_a_value(people: Installation) -> None:
    with receiving() as receiver:
        settings = {"GASKET_WEBHOOK_URL": receiver.url}
        people.project.add_revision("fails", downgrade=UPGRADES["in the message"])
        replica = people.replica(settings)
        await replica.ready()
        failed = await people.run("gasket", "database", "downgrade", "--no-prompt", "-1", settings=settings)
        assert "22P02" in failed.output
        async with api(replica) as client:
            answer = (await client.get("/migrations")).text
        assert "22P02" in answer

        async def told() -> bool:
            return "migration.failed" in receiver.kinds

        await until(told, 30, "the webhook")
        sent = "".join(received.body.decode() for received in receiver.received)
        await replica.stop()
    for text in (failed.output, answer, sent, replica.output):
        assert "alice" not in text


async def test_failed_background_work_names_the_row_by_its_key_alone(people: Installation) -> None:
    people.project.add_revision("fill", downgrade='op.execute("SELECT 1")', declares=BACKFILL)
    applied = await people.run("gasket", "database", "upgrade")
    done = await people.run("gasket", "database", "background", "run")
    listed = await people.run("gasket", "database", "background", "list")
    error = await (await people.look()).fetchval("SELECT error FROM migration_background")
    assert "The row (id) = (1) of persons cannot be changed" in error
    assert "22001" in error
    assert "alice" not in applied.output + done.output + listed.output + error


async def test_the_own_words_of_a_revision_stay(people: Installation) -> None:
    raised = "DO $$ BEGIN RAISE EXCEPTION 'the people of <nowhere> are missing: %', 3; END $$"
    people.project.add_revision("fails", f"op.execute({raised!r})")
    said = " ".join((await people.replica().refused()).split())
    assert "the people of <nowhere> are missing: 3 [SQLSTATE P0001]" in said
