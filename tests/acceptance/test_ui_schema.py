"""The schema in a browser: a chain with background work and an archive, and a schema that was taken back."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from tests.acceptance.browser import WITHIN, Browser, check_accessibility
from tests.acceptance.installation import ADMIN_TOKEN, Installation
from tests.acceptance.processes import until

HOSTILE = "<script>alert(1)</script>\u202egnp.exe" + "W" * 10_000
LONG = 100_000
PAUSED = """
INSERT INTO migration_background (revision, number, kind, table_name, statement, condition, state, rows_done,
    rows_estimated)
VALUES ('items', 1, 'backfill', 'items', 'tier = ''standard''', 'tier IS NULL', 'paused', 400, 1000)
"""


@pytest.fixture
async def schema(installation: Installation, shared_chromium: Chromium) -> Browser:
    """In front of a replica with paused work, an archive whose revision is gone, and names that are hostile."""
    project = installation.project
    project.add_revision(
        "items",
        'op.execute("CREATE TABLE items (id int PRIMARY KEY, tier text)")\n'
        'op.execute("INSERT INTO items SELECT generate_series(1, 1000)")\n'
        f"op.execute('SELECT 1 -- ' + {LONG} * '7')",
        'op.drop_table("items")',
    )
    gone = project.add_table("gone")
    await installation.migrate()
    look = await installation.look()
    await look.execute("ALTER TABLE gone ADD digest text, ADD note text; ALTER TABLE items ADD drifted int")
    await look.execute("INSERT INTO gone SELECT n, 'a digest', $1 FROM generate_series(1, 120) AS n", HOSTILE)
    done = await installation.run("gasket", "database", "downgrade", "items", "--no-prompt")
    assert done.exit_code == 0, done.output
    gone.unlink()
    await look.execute(PAUSED)
    await look.execute("UPDATE migration_ledger SET host = $1, release = $1 WHERE revision = 'items'", HOSTILE)
    await look.execute(
        "INSERT INTO migration_failures (revision, direction, error, release) VALUES ('items', 'upgrade', $1, '1.0')",
        HOSTILE,
    )
    replica = installation.replica()
    await replica.ready()
    return Browser(shared_chromium, replica.base_url, ADMIN_TOKEN)


async def test_schema(schema: Browser, installation: Installation) -> None:
    await schema.check("/ui/schema", "Schema", link="Schema")
    async with schema.visit("/ui/schema") as visit:
        page = visit.page
        await expect(page.get_by_text("400 of about", exact=False)).to_be_visible()
        await page.get_by_role("button", name="Look for drift").click()
        await expect(page.get_by_role("heading", name="Drift")).to_be_visible()
        await expect(page.get_by_text("drifted", exact=False).first).to_be_visible()
        await page.get_by_role("button", name="Resume").click()
        await visit.expect_heading("Schema")
    look = await installation.look()

    async def complete() -> bool:
        return bool(await look.fetchval("SELECT state = 'complete' FROM migration_background"))

    await until(complete, WITHIN / 1000, "the resumed work complete")


async def test_a_revision_with_its_sql(schema: Browser) -> None:
    await schema.check("/ui/schema/revisions/items", "Revision items")
    async with schema.visit("/ui/schema/revisions/items", script=False) as visit:
        await expect(visit.page.get_by_role("region", name="SQL of the upgrade")).to_contain_text("CREATE TABLE items")
        await expect(visit.page.get_by_role("region", name="SQL of the downgrade")).to_contain_text("DROP TABLE items")
        assert len((await visit.page.content()).encode()) < LONG
        path = await visit.page.get_by_role("link", name="All of the SQL as text").get_attribute("href")
        text = await (await visit.page.request.get(str(path))).text()
        assert "7" * LONG in text
        assert text.index("-- Upgrade") < text.index("-- Downgrade") < text.index("DROP TABLE items")


async def test_an_archive_page_by_page(schema: Browser, installation: Installation) -> None:
    look = await installation.look()
    async with schema.visit("/ui/schema", script=False) as visit:
        await visit.page.get_by_role("link", name="public.gone").click()
        await visit.expect_heading("Archive 1")
        path = visit.page.url
        await expect(visit.page.get_by_role("row")).to_have_count(51)
        await expect(visit.page.get_by_text("a digest")).to_have_count(0)
        for rows in (51, 21):
            await visit.page.get_by_role("link", name="Next").click()
            await expect(visit.page.get_by_role("row")).to_have_count(rows)
        await expect(visit.page.get_by_role("link", name="Next")).to_have_count(0)
    assert await look.fetchval("SELECT count(*) FROM audit_log WHERE action = 'look' AND object_id = '1'") == 3
    await schema.check(path, "Archive 1")


async def test_a_schema_that_was_taken_back_and_its_plan(schema: Browser, installation: Installation) -> None:
    async with schema.visit("/ui/schema") as visit:
        # Below the revision that gave backends the column `set_aside_at`, which the first page reads.
        done = await installation.run("gasket", "database", "downgrade", "c5708e3fa216", "--no-prompt")
        assert done.exit_code == 0, done.output
        answer = await visit.page.goto("/ui")
        assert answer is not None
        assert answer.status == 503
        await visit.expect_heading("Schema not ready")
        await check_accessibility(visit.page)
        visit.complaints.clear()  # Chromium tells of each 503
        await visit.page.get_by_role("main").get_by_role("link", name="Schema").click()
        await visit.expect_heading("Schema")
        await expect(visit.page.get_by_role("row", name="items").get_by_text("Held")).to_be_visible()
        await expect(visit.page.get_by_text("gasket database upgrade")).to_be_visible()
        await visit.page.get_by_role("button", name="Make a plan").click()
        await visit.expect_heading("Plan")
        await expect(visit.page.get_by_role("heading", level=2, name="items")).to_be_visible()
