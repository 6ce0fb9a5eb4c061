"""The page of a start, from the first second to the sign-in."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from tests.acceptance.browser import WITHIN, Browser, check_accessibility
from tests.acceptance.installation import Installation


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
async def test_a_start_is_watched_to_its_end(
    installation: Installation, shared_chromium: Chromium, script: bool
) -> None:
    installation.project.add_pause("slow_one")
    await installation.pause(600)
    replica = installation.replica()
    await installation.pausing()
    browser = Browser(shared_chromium, replica.base_url, None)
    async with browser.visit("/", script=script) as visit:
        await visit.expect_heading("Gasket is starting")
        await expect(visit.page.get_by_text("slow_one").first).to_be_visible()
        await expect(visit.page.get_by_text(re.compile(r"^\d+ of \d+$"))).to_be_visible()
        await expect(visit.page.get_by_role("progressbar")).to_be_visible()
        if script:
            await check_accessibility(visit.page)
        await installation.go_on()
        await expect(visit.page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=4 * WITHIN)
        visit.complaints.clear()  # Chromium tells of each 503
