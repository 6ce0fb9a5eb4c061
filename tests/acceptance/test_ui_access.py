"""Tokens, sessions and the audit, in a browser."""

from __future__ import annotations

import itertools

from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from tests.acceptance.browser import Browser
from tests.acceptance.gateway import Tenant

_numbers = itertools.count(1)


async def test_the_pages(browser: Browser, tenant: Tenant) -> None:
    name = f"<i>token</i>\u202e {next(_numbers)}"
    assert (await tenant.api.post("/tokens", json={"name": name, "role": "viewer"})).status_code == 201
    await browser.check("/ui/access", "Access", link="Access")
    await browser.check("/ui/access/tokens/new", "New token")
    await browser.check("/ui/audit", "Audit", link="Audit")
    await browser.check("/ui/audit?who=nobody-is-called-like-this", "Audit")


async def test_a_token_is_made_used_and_ended(browser: Browser, shared_chromium: Chromium) -> None:
    for script in (True, False):
        name = f"operator {next(_numbers)}"
        async with browser.visit("/ui/access", script=script) as visit:
            await visit.page.get_by_role("link", name="New token").click()
            await visit.expect_heading("New token")
            await visit.page.get_by_label("Name", exact=True).fill(name)
            await visit.page.get_by_label("Role").select_option("operator")
            await visit.page.get_by_role("button", name="Make the token").click()
            await visit.expect_heading("The new token")
            token = await visit.page.locator("[data-text]").first.text_content()
            assert token
            await visit.page.get_by_role("link", name="Done").click()
            await visit.expect_heading("Access")
            assert token not in await visit.page.content()

            operator = Browser(shared_chromium, browser.origin, token)
            async with operator.visit("/ui/keys") as other:
                await other.expect_heading("Keys")
                await expect(other.page.get_by_role("link", name="New key")).to_have_count(0)
                await other.page.goto("/ui/access")
                await expect(other.page.get_by_text("this browser")).to_be_visible()
                await expect(other.page.get_by_role("link", name="Audit")).to_have_count(0)

            row = visit.page.get_by_role("row").filter(has=visit.page.get_by_text(f"End the token {name}", exact=True))
            button = row.get_by_role("button", name="End it for good")
            await expect(button).to_be_hidden()
            await row.get_by_text(f"End the token {name}", exact=True).click()
            await button.click()
            await expect(row).to_have_count(0)


async def test_the_audit_shows_what_was_changed(browser: Browser, tenant: Tenant) -> None:
    answer = await tenant.api.patch(f"/keys/{tenant.key_id}", json={"name": "another name"})
    assert answer.status_code == 200
    async with browser.visit("/ui/audit", script=False) as visit:
        await visit.page.get_by_label("Object").select_option("key")
        await visit.page.get_by_label("Its id").fill(str(tenant.key_id))
        await visit.page.get_by_label("Action").select_option("change")
        await visit.page.get_by_role("button", name="Search").click()
        await visit.page.get_by_text("1 value").first.click()
        await expect(visit.page.get_by_text("another name")).to_be_visible()
        await visit.page.get_by_role("link", name=str(tenant.key_id), exact=True).first.click()
        await visit.expect_heading("another name")
