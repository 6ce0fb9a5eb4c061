"""The page of a start, from the first second to the overview."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from tests.acceptance.browser import WITHIN, Browser, Visit, check_accessibility
from tests.acceptance.installation import ADMIN_TOKEN, Installation
from tests.acceptance.processes import until


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
        await _sign_in(visit)


@pytest.mark.soak
async def test_a_start_of_twenty_seconds_is_watched_from_its_first_second(
    installation: Installation, shared_chromium: Chromium
) -> None:
    for revision in ("first_one", "second_one"):
        installation.project.add_pause(revision)
    await installation.pause(10)
    replica = installation.replica()
    browser = Browser(shared_chromium, replica.base_url, None)

    async def answers() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(replica.base_url).port)
            writer.close()
            return True
        return False

    await until(answers, WITHIN / 1000, "an open port")
    async with browser.visit("/ui") as visit:
        await visit.expect_heading("Gasket is starting")
        for revision in ("first_one", "second_one"):
            await expect(visit.page.get_by_text(revision).first).to_be_visible()
        await _sign_in(visit)


async def _sign_in(visit: Visit) -> None:
    """Wait until the page has led on, and come to the overview."""
    await expect(visit.page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=4 * WITHIN)
    visit.complaints.clear()  # Chromium tells of each 503
    await visit.page.get_by_label("Access token").fill(ADMIN_TOKEN)
    await visit.page.keyboard.press("Enter")
    await visit.expect_heading("Overview")
    await expect(visit.page.get_by_text("the newest revision of this release")).to_be_visible()
