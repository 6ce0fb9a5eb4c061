"""Backends in a browser: added, tested, set aside and taken back; hostile names."""

from __future__ import annotations

from playwright.async_api import expect

from tests.acceptance.browser import WITHIN, Browser
from tests.acceptance.gateway import Gateway, Tenant, created
from tests.acceptance.processes import until

HOSTILE = "<script>alert(1)</script>\u202egnp.exe"


async def test_the_list_and_a_backend(browser: Browser, tenant: Tenant, gateway: Gateway) -> None:
    await tenant.ask()
    fields = {"name": HOSTILE, "base_url": "http://127.0.0.1:9/" + "x" * 1900, "models": [{"name": HOSTILE}]}
    hostile = await created(await gateway.api.post("/backends", json=fields))
    await browser.check("/ui/backends", "Backends", link="Backends")
    name = (await tenant.backend())["name"]
    await browser.check(f"/ui/backends/{tenant.backends[0]}", name)
    await browser.check(f"/ui/backends/{hostile['id']}", HOSTILE)
    async with browser.visit(f"/ui/backends/{tenant.backends[0]}", script=False) as visit:
        await visit.page.get_by_role("button", name="Test").click()
        await expect(visit.page.get_by_role("status")).to_contain_text("answers and lists")


async def test_a_backend_is_added_with_the_keyboard_and_an_error_is_beside_its_field(browser: Browser) -> None:
    await browser.check("/ui/backends/new", "Add a backend")
    async with browser.visit("/ui/backends") as visit:
        await visit.tab_to("Add a backend")
        await visit.page.keyboard.press("Enter")
        await visit.expect_heading("Add a backend")
        name = visit.page.get_by_label("Name", exact=True)
        await name.fill("of the keyboard")
        await visit.page.get_by_label("Base URL").fill("http://127.0.0.1:9/v1/chat/completions")
        await visit.page.get_by_label("Credential", exact=True).fill("sk-typed")
        await visit.page.keyboard.press("Enter")
        await expect(visit.page.get_by_text("must end before /chat/completions")).to_be_visible(timeout=WITHIN)
        await expect(name).to_have_value("of the keyboard")
        await expect(visit.page.get_by_label("Credential", exact=True)).to_have_value("")
        visit.complaints.clear()  # Chromium tells of each 400
        await visit.page.get_by_label("Base URL").fill("http://127.0.0.1:9/v1")
        await visit.page.keyboard.press("Enter")
        await visit.expect_heading("of the keyboard")


async def test_an_error_of_several_fields_has_the_colour_of_errors(browser: Browser) -> None:
    async with browser.visit("/ui/backends/new") as visit:
        await visit.page.get_by_label("Name", exact=True).fill("of no weight")
        await visit.page.get_by_label("Base URL").fill("http://127.0.0.1:9/v1")
        await visit.page.get_by_label("Weight").first.fill("none")
        await visit.page.keyboard.press("Enter")
        error = visit.page.get_by_text("Each model has a name")
        await expect(error).to_be_visible(timeout=WITHIN)
        plain = await visit.page.evaluate("getComputedStyle(document.querySelector('main')).color")
        await expect(error).not_to_have_css("color", plain)
        visit.complaints.clear()  # Chromium tells of each 400


async def test_a_backend_that_is_set_aside_gets_no_request(browser: Browser, tenant: Tenant) -> None:
    assert (await tenant.ask()).status == 200
    path = f"/ui/backends/{tenant.backends[0]}"
    async with browser.visit(path, script=False) as visit:
        await visit.page.get_by_role("button", name="Set aside").click()
        await expect(visit.page.get_by_text("Set aside by an operator")).to_be_visible(timeout=WITHIN)

        async def refused() -> bool:
            return (await tenant.ask()).status == 503

        await until(refused, WITHIN / 1000, "the gateway told of it")
        assert b"is set aside by an operator" in (await tenant.ask()).body
        await visit.page.get_by_role("button", name="Take back").click()
        await expect(visit.page.get_by_role("button", name="Set aside")).to_be_visible(timeout=WITHIN)

        async def answered() -> bool:
            return (await tenant.ask()).status == 200

        await until(answered, WITHIN / 1000, "the backend asked again")
