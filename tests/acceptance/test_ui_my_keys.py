"""Somebody of the identity provider makes a key of their own, in a browser, and can do nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import expect

from gasket.access.csrf import csrf_token_of
from gasket.access.roles import ROUTES, allowed_roles
from tests.acceptance.browser import WITHIN, Browser
from tests.acceptance.chats import chat, refused, shown_key
from tests.acceptance.gateway import Gateway, Tenant, created
from tests.acceptance.processes import Replica, until
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider, identity_provider

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """Everybody is a user; the team may make keys. Who signs out does so there, too."""
    with identity_provider() as provider:
        provider.metadata = {"end_session_endpoint": f"{provider.url}/end"}
        yield provider


@pytest.fixture(scope="module")
async def replica(shared_gateway: Gateway, provider: IdentityProvider) -> AsyncIterator[Replica]:
    """One more, at which people sign in."""
    settings = {
        "GASKET_OIDC_ISSUER": provider.url,
        "GASKET_OIDC_CLIENT_ID": CLIENT_ID,
        "GASKET_OIDC_CLIENT_SECRET": CLIENT_SECRET,
    }
    replica = shared_gateway.installation.replica(settings)
    await replica.ready()
    yield replica
    await replica.stop()


@pytest.fixture
def person(shared_chromium: Chromium, replica: Replica, provider: IdentityProvider) -> Browser:
    """Of the team."""
    provider.person = {"sub": "ada", "email": "lin@example.com", "groups": ["staff", "team"]}
    return Browser(shared_chromium, replica.base_url, None, person=True)


@pytest.fixture
async def team(gateway: Gateway) -> Tenant:
    """A profile that is open to the team."""
    return await gateway.tenant(description=HOSTILE, open_to_groups=["team"], max_keys_per_user=20)


async def test_the_pages(person: Browser, team: Tenant, provider: IdentityProvider) -> None:
    given = await created(
        await team.api.post(
            "/keys", json={"user_email": "lin@example.com", "name": HOSTILE * 3, "profile_id": team.profile}
        )
    )
    provider.person["groups"] = ["staff"]
    await person.check("/ui/my-keys/new", "New key")
    provider.person["groups"] = ["staff", "team"]
    await person.check("/ui/my-keys", "My keys", link="My keys")
    await person.check("/ui/my-keys/new", "New key")
    await person.check(f"/ui/my-keys/{given['id']}", HOSTILE)


async def test_from_the_sign_in_to_the_first_chat_and_to_the_end_of_the_key(
    shared_chromium: Chromium, person: Browser, team: Tenant, provider: IdentityProvider, replica: Replica
) -> None:
    stranger = Browser(shared_chromium, person.origin, None)
    for script in (True, False):
        async with stranger.visit("/", script=script, over=(provider.url,)) as visit:
            await visit.page.get_by_role("link", name="Sign in with your organisation").click()
            await visit.expect_heading("My keys")
            await visit.page.get_by_role("link", name="New key", exact=True).click()
            await visit.page.get_by_label("Name", exact=True).fill("first chat")
            await visit.page.get_by_label("Profile").select_option(str(team.profile))
            await visit.page.get_by_role("button", name="Make the key").click()
            await visit.expect_heading("The new key")
            key = await shown_key(visit.page)
            settings = await visit.page.locator("[data-text]").all_text_contents()
            assert len(settings) > 5
            assert f"{replica.base_url}/v1" in "".join(settings)
            assert await chat(team, key) == "hello"

            await visit.page.get_by_role("link", name="Done").click()
            await visit.expect_heading("first chat")
            assert key not in await visit.page.content()
            await visit.page.get_by_role("button", name="Rotate the key").click()
            await visit.expect_heading("Key rotated")
            rotated = await shown_key(visit.page)
            assert await chat(team, rotated) == "hello"
            await refused(team, key)

            await visit.page.get_by_role("link", name="Done").click()
            await visit.page.get_by_role("button", name="Revoke").click()
            await expect(visit.page.get_by_text("Revoked", exact=True).first).to_be_visible()
            await refused(team, rotated)
            await visit.page.get_by_role("button", name="Restore").click()
            await expect(visit.page.get_by_text("Active", exact=True)).to_be_visible()
            await visit.page.get_by_role("link", name="My keys").first.click()
            await expect(visit.page.get_by_role("link", name="first chat").first).to_be_visible()

            await visit.page.get_by_role("button", name="Sign out").click()
            await visit.page.wait_for_url(f"{provider.url}/end?*")
            await visit.page.goto(f"{person.origin}/ui")
            await visit.expect_heading("Sign in")
            # Of the provider's page, which has nothing on it.
            visit.complaints = [said for said in visit.complaints if provider.url not in said and "404" not in said]
    assert key not in replica.output
    assert rotated not in replica.output


async def test_a_user_can_do_nothing_else(person: Browser, team: Tenant) -> None:
    async with person.visit("/ui") as visit:
        await visit.expect_heading("My keys")
        nav = visit.page.get_by_role("navigation", name="Pages").get_by_role("link")
        assert await nav.all_text_contents() == ["My keys", "Access", "API reference"]
        cookies = await visit.page.context.cookies()
        (session,) = [cookie["value"] for cookie in cookies if cookie.get("name") == "gasket"]
        csrf = {"X-CSRF-Token": csrf_token_of(session)}
        for route in ROUTES:
            method, _, template = route.partition(" ")
            if "user" in allowed_roles(method, template) or route == "GET /ui":
                continue
            path = re.sub("{[^}]+}", str(team.profile), template)
            answer = await visit.page.context.request.fetch(path, method=method, headers=csrf, max_redirects=0)
            assert answer.status == 403, f"{route}: {answer.status} {await answer.text()}"
        answer = await visit.page.context.request.get("/v1/models")
        assert answer.status == 401, "a session is no key"
        await visit.page.goto("/ui/keys")
        await visit.expect_heading("Forbidden")
        await visit.forgive(403)


async def test_an_error_is_told_beside_its_field(person: Browser, gateway: Gateway) -> None:
    tenant = await gateway.tenant(open_to_groups=["team"], max_keys_per_user=1)
    async with person.visit(f"/ui/my-keys/new?profile={tenant.profile}", script=False) as visit:
        field = visit.page.get_by_label("Expires, in UTC")
        await visit.page.get_by_label("Name", exact=True).fill("mine")
        await field.fill("2001-01-01T00:00")
        await visit.page.get_by_role("button", name="Make the key").click()
        await expect(visit.page.get_by_text("expires_at is in the past")).to_be_visible()
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(visit.page.get_by_label("Name", exact=True)).to_have_value("mine")
        await expect(visit.page.get_by_label("Profile")).to_have_value(str(tenant.profile))
        await visit.forgive(400)
        await field.fill("")
        await visit.page.get_by_role("button", name="Make the key").click()
        await visit.expect_heading("The new key")
        await visit.page.goto(f"/ui/my-keys/new?profile={tenant.profile}")
        await visit.page.get_by_label("Name", exact=True).fill("one too many")
        await visit.page.get_by_role("button", name="Make the key").click()
        await expect(visit.page.get_by_role("alert")).to_contain_text("active keys under profile")
        await visit.forgive(409)


async def test_who_loses_the_group_keeps_a_key_that_can_only_be_revoked(
    person: Browser, team: Tenant, provider: IdentityProvider, browser: Browser
) -> None:
    async with person.visit("/ui/my-keys/new", script=False) as visit:
        await visit.page.get_by_label("Name", exact=True).fill("left behind")
        await visit.page.get_by_label("Profile").select_option(str(team.profile))
        await visit.page.get_by_role("button", name="Make the key").click()
        key = await shown_key(visit.page)
        provider.person["groups"] = ["staff"]
        async with person.visit("/ui/my-keys", script=False) as other:
            await expect(other.page.get_by_role("link", name="New key")).to_have_count(0)
            await other.page.get_by_role("link", name="left behind").click()
            await expect(other.page.get_by_text("None of your groups opens the profile")).to_be_visible()
            await expect(other.page.get_by_role("button", name="Rotate the key")).to_have_count(0)
            assert await chat(team, key) == "hello"
            async with browser.visit(f"/ui/keys?state=orphaned&profile={team.profile}") as admin:
                await expect(admin.page.get_by_role("link", name="left behind")).to_be_visible()
                await expect(admin.page.get_by_text("orphaned", exact=False).last).to_be_visible()
            await other.page.get_by_role("button", name="Revoke").click()
            await refused(team, key)

        async def signed_out() -> bool:
            await visit.page.goto("/ui/my-keys")
            return "/ui/sign-in" in visit.page.url

        await until(signed_out, WITHIN / 1000, "the end of the session before")
