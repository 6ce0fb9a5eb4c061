"""Signing in and out, in a browser."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from tests.acceptance.browser import Browser
from tests.acceptance.installation import ADMIN_TOKEN, Installation


async def test_the_form(stranger: Browser) -> None:
    await stranger.check("/ui/sign-in", "Sign in")


async def test_a_visitor_signs_in_and_comes_to_the_page_that_was_asked_for(stranger: Browser) -> None:
    for script in (True, False):
        async with stranger.visit("/ui?from=bookmark", script=script) as visit:
            await visit.expect_heading("Sign in")
            await visit.page.get_by_label("Access token").fill(ADMIN_TOKEN)
            await visit.page.keyboard.press("Enter")
            await visit.expect_heading("Overview")
            assert visit.page.url == f"{stranger.origin}/ui?from=bookmark"
            await visit.page.get_by_role("button", name="Sign out").click()
            await visit.expect_heading("Sign in")
            await visit.page.goto("/ui")
            await visit.expect_heading("Sign in")


async def test_a_wrong_token_is_told_beside_its_field_and_not_shown_again(stranger: Browser) -> None:
    async with stranger.visit("/ui/sign-in") as visit:
        field = visit.page.get_by_label("Access token")
        await field.fill("not-the-token")
        await visit.page.get_by_role("button", name="Sign in").click()
        await expect(visit.page.get_by_text("This token is not valid")).to_be_visible()
        await expect(field).to_have_attribute("aria-invalid", "true")
        assert "not-the-token" not in await visit.page.content()
        await visit.forgive(401)


async def test_the_link_of_an_embedded_start_signs_in_once(
    install: Callable[..., Awaitable[Installation]], shared_chromium: Chromium, open_folder: Path
) -> None:
    installation = await install()
    unset = dict.fromkeys(("DATABASE_URL", "GASKET_ADMIN_TOKEN", "GASKET_SECRET_KEY"))
    replica = installation.replica({**unset, "GASKET_DATA_DIR": str(open_folder / "data")})
    await replica.ready()
    await replica.says("sign in once")
    found = re.search(r"/ui/sign-in\?code=[\w-]+", replica.output)
    assert found, replica
    browser = Browser(shared_chromium, replica.base_url, None)
    async with browser.visit(found[0], script=False) as visit:
        await visit.expect_heading("Sign in")  # as a previewer sees it: nothing is used up
    async with browser.visit(found[0]) as visit:
        await visit.expect_heading("Overview")
    async with browser.visit(found[0], script=False) as visit:
        await visit.page.get_by_role("button", name="Sign in").click()
        await expect(visit.page.get_by_role("alert")).to_contain_text("This link was used")
        await visit.forgive(403)
