"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser as Chromium
from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from tests.acceptance.processes import until

CHROMIUM = Path("/usr/bin/chromium")
_IS_THERE = CHROMIUM.exists()
WITHIN = 30_000.0
"""Milliseconds that anything in the browser has."""

_DESKTOP, _PHONE = 1280, 390
_MOST_TABS = 60
_EVERY_RULE: dict[str, Any] = {"resultTypes": ["violations"]}
_COLOURS: dict[str, Any] = {
    **_EVERY_RULE,
    "runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
}
"""The rules that look at colours: all else is the same in light and in dark."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Chromium]:
    """One browser. Where there is none the test is skipped, but in CI it fails."""
    if not _IS_THERE and not os.environ.get("CI"):
        pytest.skip(f"there is no {CHROMIUM}; on Debian: apt-get install --no-install-recommends chromium")
    expect.set_options(timeout=WITHIN)
    async with async_playwright() as playwright:
        # /dev/shm of a container has 64 MB, too few for Chromium.
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-dev-shm-usage"], timeout=2 * WITHIN
        )
        try:
            yield browser
        finally:
            await browser.close()


async def check_accessibility(page: Page) -> None:
    """axe-core finds nothing, in light and in dark."""
    schemes: tuple[tuple[Literal["light", "dark"], dict[str, Any]], ...] = (("light", _EVERY_RULE), ("dark", _COLOURS))
    for scheme, rules in schemes:
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        results = await Axe().run(page, options=rules)
        assert not results.violations_count, f"{page.url}, {scheme}:\n{results.generate_report()}"


class Visit:
    """A page that is looked at, and what it must not do: `complaints` has to stay empty."""

    def __init__(self, page: Page, *origins: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self._places = tuple(f"{origin}/" for origin in origins)
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"an error of the script: {error}"))

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self._places):
            self.complaints.append(f"it asked for {request.url}")

    def _said(self, message: ConsoleMessage) -> None:
        # Chromium tells a violation of the Content-Security-Policy here, too.
        if message.type in ("error", "warning"):
            self.complaints.append(f"the console: {message.text}")

    async def forgive(self, status: int) -> None:
        """Wait for what Chromium says of an answer with this status, from 400 on, and forget it."""
        words = f"a status of {status}"
        await until(lambda: any(words in said for said in self.complaints), WITHIN / 1000, words)
        self.complaints = [said for said in self.complaints if words not in said]

    async def expect_heading(self, heading: str) -> None:
        """Wait for the page with this heading."""
        await expect(self.page.get_by_role("heading", level=1, name=heading)).to_be_visible()

    async def tab_to(self, name: str) -> None:
        """Press Tab until the link or button of this name has the focus."""
        for _ in range(_MOST_TABS):
            await self.page.keyboard.press("Tab")
            focused = await self.page.evaluate("document.activeElement.textContent.trim()")
            if focused == name:
                return
        raise AssertionError(f"Tab never comes to {name!r} on {self.page.url}")


class Browser:
    """A browser in front of one replica. With a `token`, whoever visits is signed in with it; `person`: at the identity
    provider, as who is signed in there."""

    def __init__(self, chromium: Chromium, origin: str, token: str | None, *, person: bool = False) -> None:
        self.origin = origin
        self._chromium = chromium
        self._token = token
        self._person = person

    @asynccontextmanager
    async def visit(
        self, path: str, *, script: bool = True, width: int = _DESKTOP, over: tuple[str, ...] = ()
    ) -> AsyncIterator[Visit]:
        """Open a page in a window of its own, without cookies of earlier ones. In the end nothing is complained of.

        `over`: other origins over which the way may lead.
        """
        context = await self._chromium.new_context(
            base_url=self.origin,
            java_script_enabled=script,
            viewport={"width": width, "height": 800},
        )
        context.set_default_timeout(WITHIN)
        try:
            if self._token is not None:
                answer = await context.request.post("/ui/sign-in", form={"token": self._token}, max_redirects=0)
                assert answer.status == 303, await answer.text()
            if self._person:
                answer = await context.request.get("/auth/login?next=/ui")
                assert answer.status == 200, await answer.text()
            page = await context.new_page()
            visit = Visit(page, self.origin, *over)
            await page.goto(path)
            yield visit
            assert not visit.complaints, visit.complaints
        finally:
            await context.close()

    async def check(self, path: str, heading: str, *, link: str | None = None) -> None:
        """What holds for every page: see `docs/console.md`. `link`: its name in `nav`, if it is there."""
        async with self.visit(path) as visit:
            await visit.expect_heading(heading)
            await check_accessibility(visit.page)
            if link is not None:
                await self._check_keyboard(visit, link, heading)
        async with self.visit(path, width=_PHONE) as visit:
            await visit.expect_heading(heading)
            wide = await visit.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= _PHONE, f"{path} is {wide} pixels wide on a phone"
            await check_accessibility(visit.page)
        async with self.visit(path, script=False) as visit:
            await visit.expect_heading(heading)

    async def _check_keyboard(self, visit: Visit, link: str, heading: str) -> None:
        await visit.page.reload()
        await visit.expect_heading(heading)
        await visit.page.keyboard.press("Tab")
        await expect(visit.page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await visit.tab_to(link)
        await visit.page.keyboard.press("Enter")
        await visit.expect_heading(heading)
