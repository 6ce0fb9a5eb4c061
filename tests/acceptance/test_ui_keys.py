"""Keys and profiles, in a browser: from the first look to the first answered chat."""

from __future__ import annotations

from playwright.async_api import expect

from tests.acceptance.browser import Browser
from tests.acceptance.chats import chat, refused, shown_key
from tests.acceptance.gateway import Gateway, Tenant

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


async def test_the_pages_of_keys(browser: Browser, tenant: Tenant) -> None:
    await browser.check("/ui/keys", "Keys", link="Keys")
    await browser.check("/ui/keys/new", "New key")
    await browser.check(f"/ui/keys/{tenant.key_id}", "a key")
    await browser.check("/ui/keys?search=nothing-is-called-like-this", "Keys")


async def test_the_pages_of_profiles(browser: Browser, tenant: Tenant) -> None:
    name = (await tenant.api.get(f"/profiles/{tenant.profile}")).json()["name"]
    await browser.check("/ui/profiles", "Profiles", link="Profiles")
    await browser.check("/ui/profiles/new", "New profile")
    await browser.check(f"/ui/profiles/{tenant.profile}", name)


async def test_hostile_names(browser: Browser, gateway: Gateway) -> None:
    tenant = await gateway.tenant(name=f"{HOSTILE} {len(gateway.replica.output)}", description=HOSTILE * 50)
    issued = await gateway.issue(tenant.profile, name=HOSTILE + "x" * 60)
    await browser.check(f"/ui/keys/{issued['id']}", HOSTILE)
    await browser.check(f"/ui/profiles/{tenant.profile}", HOSTILE)
    await browser.check(f"/ui/keys?profile={tenant.profile}", "Keys")


async def test_from_the_form_to_the_first_chat_and_to_the_end_of_the_key(browser: Browser, tenant: Tenant) -> None:
    for script in (True, False):
        async with browser.visit("/ui/keys", script=script) as visit:
            await visit.page.get_by_role("link", name="New key").click()
            await visit.expect_heading("New key")
            await visit.page.get_by_label("Address of its user").fill("grace@example.com")
            await visit.page.get_by_label("Name", exact=True).fill("first chat")
            await visit.page.get_by_label("Profile").select_option(str(tenant.profile))
            await visit.page.get_by_role("button", name="Make the key").click()
            await visit.expect_heading("The new key")
            key = await shown_key(visit.page)
            settings = await visit.page.locator("[data-text]").all_text_contents()
            assert f"{tenant.replica.base_url}/v1" in "".join(settings)
            assert await chat(tenant, key) == "hello"

            await visit.page.get_by_role("link", name="Done").click()
            await visit.expect_heading("first chat")
            assert key not in await visit.page.content()
            await visit.page.get_by_role("button", name="Rotate the key").click()
            await visit.expect_heading("Key rotated")
            rotated = await shown_key(visit.page)
            assert rotated != key
            assert await chat(tenant, rotated) == "hello"
            await refused(tenant, key)

            await visit.page.get_by_role("link", name="Done").click()
            await visit.page.get_by_role("button", name="Revoke").click()
            await expect(visit.page.get_by_text("Revoked", exact=True).first).to_be_visible()
            await refused(tenant, rotated)
            await visit.page.get_by_role("button", name="Restore").click()
            await expect(visit.page.get_by_text("Active", exact=True)).to_be_visible()
            await visit.page.get_by_text("Delete this key").click()
            await visit.page.get_by_role("button", name="Delete it for good").click()
            await visit.expect_heading("Keys")
        assert key not in tenant.replica.output
        assert rotated not in tenant.replica.output


async def test_an_error_is_told_beside_its_field(browser: Browser, tenant: Tenant) -> None:
    async with browser.visit("/ui/keys/new", script=False) as visit:
        field = visit.page.get_by_label("Address of its user")
        await field.fill("nobody")
        await visit.page.get_by_label("Name", exact=True).fill("mine")
        await visit.page.get_by_label("Profile").select_option(str(tenant.profile))
        await visit.page.get_by_role("button", name="Make the key").click()
        await expect(visit.page.get_by_text("user_email must be an address")).to_be_visible()
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(visit.page.get_by_label("Name", exact=True)).to_have_value("mine")
        await visit.forgive(400)
