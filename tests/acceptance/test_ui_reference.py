"""The API reference, in a browser."""

from __future__ import annotations

from playwright.async_api import expect

from tests.acceptance.browser import Browser


async def test_reference(browser: Browser) -> None:
    await browser.check("/ui/reference", "API reference", link="API reference")
    await browser.check("/ui/reference/keys", "Keys")


async def test_it_leads_from_the_old_address_to_an_operation_and_its_objects(browser: Browser) -> None:
    async with browser.visit("/schema") as visit:
        await visit.expect_heading("API reference")
        await visit.page.get_by_role("link", name="POST /api/keys", exact=True).click()
        await visit.expect_heading("Keys")
        await expect(visit.page.get_by_role("heading", name="Issue a key")).to_be_in_viewport()
        await expect(visit.page.get_by_role("region", name="KeyCreate")).to_contain_text("profile_id")
