"""People sign in at an identity provider: the way there and back, and what must not get in."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import httpx
import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from litestar import Litestar

from gasket.access.csrf import csrf_token_of
from gasket.access.provider import Provider
from tests.acceptance.processes import until
from tests.clock import Clock
from tests.identity_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    KEY,
    OTHER_KEY,
    IdentityProvider,
    identity_provider,
    with_query,
)
from tests.integration.conftest import ApiAt, assert_problem, dependency_of

_numbers = count(1)
SETTINGS = {
    "GASKET_OIDC_CLIENT_ID": CLIENT_ID,
    "GASKET_OIDC_CLIENT_SECRET": CLIENT_SECRET,
    "GASKET_OIDC_ADMIN_GROUPS": "root, wheel",
    "GASKET_OIDC_OPERATOR_GROUPS": "ops",
    "GASKET_OIDC_VIEWER_GROUPS": "auditors",
    "GASKET_OIDC_USER_GROUPS": "staff",
}


class Browser:
    """A browser with an address and cookies of its own."""

    def __init__(self, app: Any) -> None:
        self.address = f"10.11.{next(_numbers)}.1"
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(self.address, 1))
        self.client = httpx.AsyncClient(transport=transport, base_url="https://gasket.example")

    async def begin(self, following: str | None = None) -> str:
        """To the sign-in; the provider's URL to which the browser is led."""
        path = "/auth/login" if following is None else with_query("/auth/login", {"next": following})
        response = await self.client.get(path)
        assert response.status_code == 303, response.text
        assert response.headers["cache-control"] == "no-store"
        return response.headers["location"]

    async def finish(self, query: dict[str, str]) -> httpx.Response:
        """Back from the provider."""
        return await self.client.get(with_query("/auth/callback", query))

    async def sign_in(self, provider: IdentityProvider) -> httpx.Response:
        return await self.finish(provider.authorize(await self.begin()))

    async def me(self) -> Any:
        return (await self.client.get("/api/me")).json()

    @property
    def session(self) -> str | None:
        return self.client.cookies.get("__Host-gasket")


@pytest.fixture(scope="module")
def server() -> Iterator[IdentityProvider]:
    with identity_provider() as server:
        yield server


@pytest.fixture
def provider(server: IdentityProvider) -> IdentityProvider:
    """As if it had just started."""
    server.__init__(server.url)  # type: ignore[misc]
    server.person["groups"] = ["staff"]
    return server


@pytest.fixture(scope="module")
async def replica_with_provider(
    server: IdentityProvider, api_at: ApiAt, api_database_url: str
) -> AsyncIterator[Litestar]:
    async with api_at(api_database_url, GASKET_OIDC_ISSUER=server.url, **SETTINGS) as replica:
        transport: Any = replica._transport
        yield transport.app


@pytest.fixture
async def app(replica_with_provider: Litestar, provider: IdentityProvider, client: object) -> Litestar:
    """A replica that has not heard of the provider yet."""
    sign_in = dependency_of(replica_with_provider, "sign_in")
    await sign_in.close()
    sign_in._provider = Provider(provider.url)
    return replica_with_provider


@pytest.fixture
def browser(app: Any) -> Callable[[], Browser]:
    return lambda: Browser(app)


Browsers = Callable[[], Browser]


async def waiting(database: asyncpg.Connection, number: int) -> bool:
    """Whether so many connections wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(await database.fetchval(query) >= number)


class TestTheWay:
    async def test_a_person_signs_in(
        self, browser: Browsers, provider: IdentityProvider, database: asyncpg.Connection
    ) -> None:
        someone = browser()
        response = await someone.finish(provider.authorize(await someone.begin("/ui/keys?page=2")))
        assert (response.status_code, response.headers["location"]) == (303, "/ui/keys?page=2")
        assert await someone.me() == {"name": "lin@example.com", "role": "user", "email": "lin@example.com"}
        (cookie,) = [line for line in response.headers.get_list("set-cookie") if line.startswith("__Host-gasket=")]
        assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert list(someone.client.cookies) == ["__Host-gasket"], "what belongs to the sign-in is gone"
        row = await database.fetchrow("SELECT issuer, subject, email, groups FROM people")
        assert tuple(row or ()) == (provider.url, "ada", "lin@example.com", ["staff"])

    @pytest.mark.parametrize(
        ("groups", "role"),
        [
            (["staff", "ops", "wheel"], "admin"),
            (["auditors", "ops"], "operator"),
            (["staff", "auditors"], "viewer"),
            ("staff", "user"),
            (["Staff"], None),
            ([], None),
            (None, None),
            ({"staff": True}, None),
            ([["staff"], 7], None),
        ],
    )
    async def test_groups_give_the_role(
        self, browser: Browsers, provider: IdentityProvider, groups: object, role: str | None
    ) -> None:
        provider.person["groups"] = groups
        someone = browser()
        response = await someone.sign_in(provider)
        if role is None:
            assert_problem(response, 403, "forbidden")
            assert someone.session is None
        else:
            assert (await someone.me())["role"] == role

    async def test_without_groups_for_users_everybody_is_one(
        self, provider: IdentityProvider, client: object, api_at: ApiAt, api_database_url: str
    ) -> None:
        settings = {name: value for name, value in SETTINGS.items() if "USER" not in name}
        provider.person["groups"] = []
        async with api_at(api_database_url, GASKET_OIDC_ISSUER=provider.url, **settings) as replica:
            transport: Any = replica._transport
            someone = Browser(transport.app)
            await someone.sign_in(provider)
            assert (await someone.me())["role"] == "user"

    async def test_at_each_sign_in_all_sessions_of_the_person_follow(
        self, browser: Browsers, provider: IdentityProvider, app: Any
    ) -> None:
        provider.person["groups"] = ["wheel"]
        here, there = browser(), browser()
        await here.sign_in(provider)
        provider.person["groups"] = ["auditors"]
        provider.person["email"] = "lin.new@example.com"
        await there.sign_in(provider)
        assert await here.me() == {"name": "lin.new@example.com", "role": "viewer", "email": "lin.new@example.com"}
        sessions = (await here.client.get("/api/sessions")).json()
        assert sessions["total"] == 2
        provider.person["groups"] = []
        assert_problem(await browser().sign_in(provider), 403, "forbidden")
        app.state.authenticator._known.clear()  # at the latest after two seconds
        for each in (here, there):
            assert_problem(await each.client.get("/api/me"), 401, "unauthorized")

    async def test_of_two_sign_ins_at_once_the_later_one_decides_about_both_sessions(
        self, browser: Browsers, provider: IdentityProvider, database: asyncpg.Connection, api_database_url: str
    ) -> None:
        slow = browser()
        ada = dict(provider.person)
        provider.person = ada | {"sub": "eve", "email": "eve@example.com"}
        await slow.sign_in(provider)  # the next one has to end this session, and waits for it
        other = await asyncpg.connect(api_database_url, timeout=30)
        try:
            async with other.transaction():
                await other.execute("SELECT FROM browser_sessions FOR UPDATE")
                provider.person = ada | {"groups": ["wheel"]}
                first = asyncio.create_task(slow.sign_in(provider))
                await until(lambda: waiting(database, 1), 30, "a sign-in that waits")
                provider.person = ada | {"groups": ["auditors"]}
                second = asyncio.create_task(browser().sign_in(provider))

                async def is_behind() -> bool:
                    return second.done() or await waiting(database, 2)

                await until(is_behind, 30, "the second sign-in, done or waiting")
            assert [each.status_code for each in await asyncio.gather(first, second)] == [303, 303]
        finally:
            await other.close(timeout=30)
        assert (await slow.me())["role"] == "viewer"

    async def test_sessions_that_stay_as_they_are_are_not_written_again(
        self, browser: Browsers, provider: IdentityProvider, database: asyncpg.Connection
    ) -> None:
        """Of one person in a thousand browsers each sign-in would write a thousand."""
        await browser().sign_in(provider)
        written = "SELECT xmin::text FROM browser_sessions ORDER BY id LIMIT 1"
        before = await database.fetchval(written)
        await browser().sign_in(provider)
        assert await database.fetchval(written) == before

    async def test_what_the_id_token_lacks_userinfo_may_tell(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        provider.person = {"sub": "ada"}
        provider.userinfo = {"sub": "ada", "email": "lin@example.com", "groups": ["ops"]}
        someone = browser()
        await someone.sign_in(provider)
        assert await someone.me() == {"name": "lin@example.com", "role": "operator", "email": "lin@example.com"}
        provider.userinfo = {"sub": "eve", "email": "eve@example.com", "groups": ["wheel"]}
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    @pytest.mark.parametrize(
        "email",
        [
            {"email_verified": False},
            {"email_verified": "false"},
            {"email_verified": "no"},
            {"email": "ada"},
            {"email": 7},
            {"email": "a@b\n"},
        ],
    )
    async def test_an_address_that_may_be_another_s_does_not_count(
        self, browser: Browsers, provider: IdentityProvider, email: dict[str, object]
    ) -> None:
        provider.person |= email
        someone = browser()
        await someone.sign_in(provider)
        assert await someone.me() == {"name": "ada", "role": "user", "email": None}

    async def test_signing_out_ends_the_session_here_and_at_the_provider(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        provider.metadata = {"end_session_endpoint": f"{provider.url}/end"}
        someone = browser()
        await someone.sign_in(provider)
        value = someone.session
        assert value is not None
        assert_problem(await someone.client.post("/auth/logout"), 403, "csrf")
        response = await someone.client.post("/auth/logout", data={"csrf_token": csrf_token_of(value)})
        assert response.status_code == 303
        there = urlsplit(response.headers["location"])
        assert f"{there.scheme}://{there.netloc}{there.path}" == f"{provider.url}/end"
        assert dict(parse_qsl(there.query)) == {
            "client_id": CLIENT_ID,
            "post_logout_redirect_uri": "https://gasket.example/",
        }
        assert someone.session is None
        someone.client.cookies.set("__Host-gasket", value, domain="gasket.example")
        assert_problem(await someone.client.get("/api/me"), 401, "unauthorized")
        again = await browser().client.post("/auth/logout")
        assert (again.status_code, again.headers["location"]) == (303, "/")

    async def test_signing_out_on_a_page_ends_it_at_the_provider_too(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        provider.metadata = {"end_session_endpoint": f"{provider.url}/end?a=1"}
        someone = browser()
        await someone.sign_in(provider)
        value = someone.session
        assert value is not None
        shown = await someone.client.post("/ui/sign-out", data={"csrf_token": csrf_token_of(value)})
        assert (shown.status_code, someone.session) == (200, None)
        place = (
            f"{provider.url}/end?a=1&amp;client_id=gasket&amp;post_logout_redirect_uri=https%3A%2F%2Fgasket.example%2F"
        )
        assert f'<meta http-equiv="refresh" content="0; url={place}">' in shown.text
        assert f'href="{place}"' in shown.text
        assert "form-action 'self'" in shown.headers["content-security-policy"]

    async def test_on_a_page_without_that_it_leads_to_the_sign_in(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        someone = browser()
        await someone.sign_in(provider)
        value = someone.session
        assert value is not None
        response = await someone.client.post("/ui/sign-out", data={"csrf_token": csrf_token_of(value)})
        assert (response.status_code, response.headers["location"], someone.session) == (303, "/ui/sign-in", None)

    async def test_a_browser_gets_pages_and_signs_in_all_the_same(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        someone = browser()
        someone.client.headers["accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"
        assert (await someone.sign_in(provider)).headers["location"] == "/"
        assert someone.session is not None
        refused = await someone.finish({"code": "x", "state": "y"})
        assert (refused.status_code, refused.headers["content-type"]) == (400, "text/html; charset=utf-8")
        assert "This browser has not begun this sign-in" in refused.text
        assert "frame-ancestors 'none'" in refused.headers["content-security-policy"]
        assert refused.headers["cache-control"] == "no-store"
        for _ in range(10):
            slowed = await someone.finish({"code": "x", "state": "y"})
        assert (slowed.status_code, slowed.headers["content-type"]) == (429, "text/html; charset=utf-8")
        assert int(slowed.headers["retry-after"]) > 0
        unsigned = await someone.client.post("/auth/logout")
        assert (unsigned.status_code, unsigned.headers["content-type"]) == (403, "text/html; charset=utf-8")
        provider.person["groups"] = ["others"]
        nobody = await someone.sign_in(provider)
        assert nobody.status_code == 403
        assert "gives a role here" in nobody.text

    @pytest.mark.parametrize(
        ("number", "of_one"),
        [
            (50, False),
            pytest.param(1000, False, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
            pytest.param(1000, True, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
        ],
    )
    async def test_many_sign_in_at_once(
        self, browser: Browsers, provider: IdentityProvider, number: int, of_one: bool, database: asyncpg.Connection
    ) -> None:
        """Those whom a slow machine cannot serve within a wait's limit are told to try again, and do."""

        def of_somebody_else(token: str) -> str:
            claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
            return provider.sign(claims | {"sub": str(next(_numbers)), "email": None})

        if not of_one:
            provider.forge = of_somebody_else

        async def sign_in(each: Browser) -> None:
            while each.session is None:
                response = await each.sign_in(provider)
                assert response.status_code in (303, 503), response.text

        browsers = [browser() for _ in range(number)]
        await asyncio.gather(*(sign_in(each) for each in browsers))
        assert len({each.session for each in browsers}) == number
        people = await database.fetchval("SELECT count(*) FROM people")
        assert people == 1 if of_one else people >= number
        assert {(await each.client.get("/api/me")).status_code for each in browsers[::10]} == {200}
        assert provider.asked.count("/jwks") == 1
        assert provider.asked.count("/.well-known/openid-configuration") == 1

    async def test_without_a_provider_there_is_no_sign_in(self, replica: httpx.AsyncClient) -> None:
        for path in ("/auth/login", "/auth/callback"):
            assert_problem(await replica.get(path), 404, "not-found")


class TestForgedAnswers:
    async def test_another_browser_s_sign_in_is_refused(self, browser: Browsers, provider: IdentityProvider) -> None:
        """Login CSRF: whoever follows the attacker's link would be signed in as the attacker."""
        attacker, victim, busy_victim = browser(), browser(), browser()
        theirs = provider.authorize(await attacker.begin())
        await busy_victim.begin()
        for each in (victim, busy_victim):
            assert_problem(await each.finish(theirs), 400, "sign-in")
            assert each.session is None

    async def test_an_answer_counts_once(self, browser: Browsers, provider: IdentityProvider) -> None:
        someone = browser()
        answer = provider.authorize(await someone.begin())
        kept = dict(someone.client.cookies)
        assert (await someone.finish(answer)).status_code == 303
        assert_problem(await someone.finish(answer), 400, "sign-in")
        thief = browser()
        thief.client.cookies.update(kept)
        assert_problem(await thief.finish(answer), 400, "sign-in")

    @pytest.mark.parametrize(
        "change",
        [
            {"state": ""},
            {"state": "é"},
            {"code": ""},
            {"iss": "https://evil.example"},
            {"error": "access_denied"},
        ],
    )
    async def test_a_changed_answer_is_refused(
        self, browser: Browsers, provider: IdentityProvider, change: dict[str, str]
    ) -> None:
        someone = browser()
        answer = provider.authorize(await someone.begin())
        assert_problem(await someone.finish(answer | change), 400, "sign-in")
        assert "/token" not in provider.asked

    async def test_a_parameter_twice_is_refused(self, browser: Browsers, provider: IdentityProvider) -> None:
        someone = browser()
        answer = provider.authorize(await someone.begin())
        for name in ("state", "code"):
            query = httpx.QueryParams({**answer, name: [answer[name]] * 2})
            assert_problem(await someone.client.get("/auth/callback", params=query), 400, "sign-in")

    async def test_wrong_answers_are_slowed(self, browser: Browsers, provider: IdentityProvider) -> None:
        someone = browser()
        for _ in range(10):
            assert (await someone.finish({"code": "x", "state": "y"})).status_code == 400
        assert_problem(await someone.finish({"code": "x", "state": "y"}), 429, "guessing")
        assert (await someone.sign_in(provider)).status_code == 303

    @pytest.mark.parametrize(
        "following",
        [
            "https://evil.example/",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/\r\nSet-Cookie: a=b",
            "javascript:alert(1)",
            "evil.example",
            " /ui",
            "/ä",
            "",
        ],
    )
    async def test_next_leads_nowhere_else(self, browser: Browsers, provider: IdentityProvider, following: str) -> None:
        someone = browser()
        response = await someone.finish(provider.authorize(await someone.begin(following)))
        assert response.headers["location"] == "/"

    async def test_nor_does_a_cookie_that_was_changed(self, browser: Browsers, provider: IdentityProvider) -> None:
        someone = browser()
        answer = provider.authorize(await someone.begin())
        cookie = someone.client.cookies["__Host-gasket-sign-in"]
        parts = json.loads(base64.urlsafe_b64decode(cookie + "=="))
        parts[3] = "//evil.example"
        changed = base64.urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()
        someone.client.cookies.clear()
        someone.client.cookies.set("__Host-gasket-sign-in", changed, domain="gasket.example")
        assert (await someone.finish(answer)).headers["location"] == "/"

    @pytest.mark.parametrize("cookie", ["x", "W10", "eyJhIjoxfQ", "////", "WyIiLCIiLCIiLCIiXQ"])
    async def test_a_cookie_that_is_none_is_refused(self, browser: Browsers, cookie: str) -> None:
        someone = browser()
        someone.client.cookies.set("__Host-gasket-sign-in", cookie, domain="gasket.example")
        assert_problem(await someone.finish({"code": "x", "state": "y"}), 400, "sign-in")

    async def test_another_host_cannot_plant_a_sign_in(self, browser: Browsers, provider: IdentityProvider) -> None:
        """Cookie tossing: a neighbouring host can set `gasket-sign-in`, and cannot set `__Host-gasket-sign-in`."""
        attacker = browser()
        answer = provider.authorize(await attacker.begin())
        planted = attacker.client.cookies["__Host-gasket-sign-in"]
        own = browser()
        await own.begin()
        begun = own.client.cookies["__Host-gasket-sign-in"]
        for cookie in (
            f"gasket-sign-in={planted}",
            f"__Host-gasket-sign-in={begun}; gasket-sign-in={planted}",
            f"__Host-gasket-sign-in={begun}; __Host-gasket-sign-in={planted}",
            f"__host-gasket-sign-in={planted}",
        ):
            path = with_query("/auth/callback", answer)
            tossed = await browser().client.get(path, headers={"Cookie": cookie})
            assert_problem(tossed, 400, "sign-in")
        assert (await attacker.finish(answer)).status_code == 303

    async def test_a_session_from_before_ends(self, browser: Browsers, provider: IdentityProvider) -> None:
        attacker, victim = browser(), browser()
        await attacker.sign_in(provider)
        planted = attacker.session
        assert planted is not None
        victim.client.cookies.set("__Host-gasket", planted, domain="gasket.example")
        provider.person["sub"] = "grace"
        await victim.sign_in(provider)
        assert_problem(await attacker.client.get("/api/me"), 401, "unauthorized")

    async def test_a_made_up_host_is_refused(self, browser: Browsers) -> None:
        for host in ("evil.example/path", "a b", "x@evil.example", ""):
            response = await browser().client.get("/auth/login", headers={"Host": host})
            assert response.status_code == 400


NOW = int(time.time())


class TestHostileTokens:
    @pytest.mark.parametrize(
        "claims",
        [
            {"iss": "https://evil.example"},
            {"iss": None},
            {"aud": "another"},
            {"aud": ["another"]},
            {"aud": None},
            {"aud": [CLIENT_ID, "another"]},  # without azp
            {"aud": [CLIENT_ID, "another"], "azp": "another"},
            {"azp": "another"},
            {"nonce": "another"},
            {"nonce": None},
            {"nonce": 7},
            {"exp": NOW - 100_000},
            {"exp": None},
            {"exp": float("nan")},
            {"exp": str(NOW + 100_000)},
            {"iat": NOW + 100_000},
            {"iat": None},
            {"nbf": NOW + 100_000},
            {"sub": None},
            {"sub": ""},
            {"sub": 7},
        ],
    )
    async def test_a_claim_that_does_not_hold(
        self, browser: Browsers, provider: IdentityProvider, claims: dict[str, Any]
    ) -> None:
        provider.claims = claims
        someone = browser()
        assert_problem(await someone.sign_in(provider), 400, "sign-in")
        assert someone.session is None

    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID},
            {"aud": [CLIENT_ID]},
            {"exp": NOW - 20},
            {"iat": NOW + 50, "nbf": NOW + 50},
        ],
    )
    async def test_claims_that_hold_with_a_minute_of_skew(
        self, browser: Browsers, provider: IdentityProvider, claims: dict[str, Any]
    ) -> None:
        now = int(time.time())
        provider.claims = {
            name: value - NOW + now if isinstance(value, int) else value for name, value in claims.items()
        }
        assert (await browser().sign_in(provider)).status_code == 303

    @pytest.mark.parametrize("alg", ["none", "None", ""])
    async def test_without_a_signature(self, browser: Browsers, provider: IdentityProvider, alg: str) -> None:
        """Not even where the provider itself names such an algorithm."""
        provider.algorithms = ["RS256", "none", "None", ""]
        header = base64.urlsafe_b64encode(json.dumps({"alg": alg}).encode()).rstrip(b"=").decode()
        for signature in ("", "x"):
            provider.forge = lambda token, s=signature: f"{header}.{token.split('.')[1]}.{s}"
            assert_problem(await browser().sign_in(provider), 400, "sign-in")

    @pytest.mark.parametrize("key", [CLIENT_SECRET, str(KEY.as_dict(private=False)["n"])])
    async def test_signed_with_what_others_know(self, browser: Browsers, provider: IdentityProvider, key: str) -> None:
        provider.algorithms = ["RS256", "HS256"]
        provider.key, provider.header = OctKey.import_key(key), {"alg": "HS256", "kid": "first"}
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    @pytest.mark.parametrize("token", ["x", "a.b.c", "..", "."])
    async def test_what_is_no_token(self, browser: Browsers, provider: IdentityProvider, token: str) -> None:
        provider.forge = lambda _: token
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    async def test_an_algorithm_that_the_provider_does_not_name(
        self, browser: Browsers, provider: IdentityProvider
    ) -> None:
        provider.key = ECKey.generate_key("P-256", {"kid": "second"})
        provider.published.append(provider.key.as_dict(private=False))
        provider.header = {"alg": "ES256"}
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    @pytest.mark.parametrize(
        ("alg", "key"),
        [("ES256", ECKey.generate_key("P-256")), ("EdDSA", OKPKey.generate_key("Ed25519")), ("PS256", None)],
    )
    async def test_the_others_are_taken(
        self, browser: Browsers, provider: IdentityProvider, alg: str, key: Any
    ) -> None:
        provider.algorithms = [alg]
        provider.key = key or provider.key
        provider.published = [provider.key.as_dict(private=False)]
        provider.header = {"alg": alg}
        assert (await browser().sign_in(provider)).status_code == 303

    async def test_a_key_of_somebody_else_s(self, browser: Browsers, provider: IdentityProvider) -> None:
        provider.key, provider.header = OTHER_KEY, {"kid": "first"}
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    async def test_a_new_key_is_fetched_and_unknown_ones_once_a_minute(
        self, browser: Browsers, provider: IdentityProvider, app: Any
    ) -> None:
        """Otherwise anybody could have the provider asked with each request."""
        assert (await browser().sign_in(provider)).status_code == 303
        clock = Clock()
        the_provider = dependency_of(app, "sign_in")._provider
        the_provider._clock = clock
        the_provider._keys_at = the_provider._keys_asked_at = the_provider._metadata_at = 0.0
        provider.key = OTHER_KEY
        provider.published = [provider.key.as_dict(private=False)]
        clock.now = 59.0
        for _ in range(5):
            assert_problem(await browser().sign_in(provider), 400, "sign-in")
        assert provider.asked.count("/jwks") == 1
        clock.now = 61.0
        assert (await browser().sign_in(provider)).status_code == 303
        assert provider.asked.count("/jwks") == 2
        provider.key = RSAKey.generate_key(2048, {"kid": "third"})  # not published
        clock.now = 122.0
        await asyncio.gather(*(browser().sign_in(provider) for _ in range(20)))
        assert provider.asked.count("/jwks") == 3

    async def test_a_key_that_is_withdrawn_is_void_after_an_hour(
        self, browser: Browsers, provider: IdentityProvider, app: Any
    ) -> None:
        assert (await browser().sign_in(provider)).status_code == 303
        the_provider = dependency_of(app, "sign_in")._provider
        the_provider._keys_at = the_provider._keys_asked_at = the_provider._keys_at - 3600
        provider.published = [OTHER_KEY.as_dict(private=False)]
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    async def test_a_look_for_keys_that_fails_is_made_again_after_a_minute(
        self, browser: Browsers, provider: IdentityProvider, app: Any
    ) -> None:
        """Otherwise a key that is withdrawn would count for another hour."""
        assert (await browser().sign_in(provider)).status_code == 303
        clock = Clock()
        the_provider = dependency_of(app, "sign_in")._provider
        the_provider._clock = clock
        the_provider._keys_at = the_provider._keys_asked_at = the_provider._metadata_at = 0.0
        provider.status["/jwks"] = 500
        clock.now = 3600.0
        for _ in range(3):
            assert (await browser().sign_in(provider)).status_code == 303
        assert provider.asked.count("/jwks") == 2
        del provider.status["/jwks"]
        provider.published = [OTHER_KEY.as_dict(private=False)]
        clock.now = 3661.0
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    async def test_one_key_needs_no_name(self, browser: Browsers, provider: IdentityProvider) -> None:
        provider.header = {"kid": None}
        assert (await browser().sign_in(provider)).status_code == 303

    async def test_of_two_keys_the_token_must_name_one(self, browser: Browsers, provider: IdentityProvider) -> None:
        provider.header = {"kid": None}
        provider.published.append(OTHER_KEY.as_dict(private=False))
        assert_problem(await browser().sign_in(provider), 400, "sign-in")

    @pytest.mark.parametrize(
        "published",
        [
            [{"kty": "RSA"} for _ in range(101)],
            "nothing",
            [{"kty": "RSA", "kid": "first", "n": "AQAB", "e": "AQAB"}],
            [{"kty": "oct", "kid": "first", "k": "c2VjcmV0"}],
            [],
        ],
    )
    async def test_keys_that_are_too_many_or_none(
        self, browser: Browsers, provider: IdentityProvider, published: Any
    ) -> None:
        provider.published = published
        assert (await browser().sign_in(provider)).status_code in (400, 503)

    @pytest.mark.parametrize("metadata", [{"issuer": "https://evil.example"}, {"jwks_uri": None}, {"issuer": 7}])
    async def test_metadata_that_are_another_s(
        self, browser: Browsers, provider: IdentityProvider, metadata: dict[str, Any]
    ) -> None:
        provider.metadata = metadata
        response = await browser().client.get("/auth/login")
        assert_problem(response, 503, "identity-provider-away")

    @pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/jwks", "/token"])
    async def test_a_provider_that_fails_is_said_to(
        self, browser: Browsers, provider: IdentityProvider, path: str
    ) -> None:
        provider.status[path] = 500
        someone = browser()
        if path.startswith("/."):
            response = await someone.client.get("/auth/login")
            await asyncio.gather(*(someone.client.get("/auth/login") for _ in range(50)))
            assert provider.asked.count(path) == 1, "it is left alone for a while"
        else:
            response = await someone.sign_in(provider)
        assert_problem(response, 503, "identity-provider-away")
        assert response.headers["retry-after"]
