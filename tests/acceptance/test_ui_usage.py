"""Usage, in a browser."""

from __future__ import annotations

from playwright.async_api import expect

from tests.acceptance.browser import Browser
from tests.acceptance.gateway import Tenant
from tests.acceptance.processes import until


async def test_usage(browser: Browser, tenant: Tenant) -> None:
    await tenant.ask()

    async def is_summed() -> bool:
        answer = await tenant.api.get("/usage", params={"group": "key", "key": tenant.key_id})
        return bool(answer.json()["items"])

    await until(is_summed, 30, "the request's usage")
    await browser.check("/ui/usage", "Usage", link="Usage")
    async with browser.visit("/ui/usage", script=False) as visit:
        page = visit.page
        await page.get_by_label("Sum by").select_option("User")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("columnheader", name="User")).to_be_visible()
        await page.get_by_role("link", name="30 days").click()
        await expect(page.get_by_role("columnheader", name="User")).to_be_visible()
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Download CSV").click()
        assert (await download.value).suggested_filename.startswith("usage-by-user-")


async def test_days_that_are_none_are_told_beside_their_field(browser: Browser) -> None:
    async with browser.visit("/ui/usage?from=2026-12-02&to=2026-12-01") as visit:
        await expect(visit.page.get_by_text("The last day must not be before the first.")).to_be_visible()
        await expect(visit.page.get_by_label("Last day")).to_have_attribute("aria-invalid", "true")
        visit.complaints.clear()  # Chromium tells of each 400


async def test_days_without_usage_say_what_to_do(browser: Browser) -> None:
    async with browser.visit("/ui/usage?from=2001-01-01&to=2001-12-31") as visit:
        await expect(visit.page.get_by_text("Nothing was used in these days.")).to_be_visible()
