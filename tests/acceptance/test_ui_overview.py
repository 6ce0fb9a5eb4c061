"""The first page, in a browser."""

from __future__ import annotations

from playwright.async_api import expect

from tests.acceptance.browser import Browser
from tests.acceptance.gateway import Tenant


async def test_overview(browser: Browser, tenant: Tenant) -> None:
    await tenant.ask()
    await browser.check("/ui", "Overview", link="Overview")
    async with browser.visit("/ui") as visit:
        await expect(visit.page.get_by_text("the newest revision of this release")).to_be_visible()
        await expect(visit.page.get_by_role("table")).to_contain_text("Serving since")


async def test_a_path_without_a_page(browser: Browser) -> None:
    async with browser.visit("/ui") as visit:
        await visit.expect_heading("Overview")
        answer = await visit.page.goto("/ui/nowhere")
        assert answer is not None
        assert answer.status == 404
        await visit.expect_heading("Not found")
        await visit.forgive(404)


async def test_a_browser_that_asks_for_the_root_is_led_to_the_pages(browser: Browser) -> None:
    async with browser.visit("/") as visit:
        await visit.expect_heading("Overview")
        assert visit.page.url == f"{browser.origin}/ui"
