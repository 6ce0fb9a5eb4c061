"""Tokens that an issuer has signed (JWT), at `/api` and at `/v1`: what they may do, and which do not count."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
import httpx
import pytest
from joserfc.jwk import OctKey
from litestar import Litestar

from gasket.access import provider
from gasket.access.base64url import decode_json, encode
from gasket.access.bearers import Bearers
from gasket.proxy.plugin import GatewayPlugin
from gasket.upstream.client import Timeouts
from tests.acceptance.processes import until
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, KEY, OTHER_KEY, IdentityProvider, identity_provider
from tests.integration.conftest import ADMIN_TOKEN, ApiAt, Post, assert_problem

_numbers = count(1)
SUBJECT = "system:serviceaccount:batch:trainer"
CHAT = {"model": "m", "messages": []}


class Replica:
    """One of Gasket's, and requests to it, each from an address of its own."""

    def __init__(self, app: Litestar) -> None:
        self.app = app
        self.gateway = app.plugins.get(GatewayPlugin)

    async def send(
        self, method: str, path: str, token: str, *, address: str | None = None, **more: Any
    ) -> httpx.Response:
        asgi: Any = self.app
        client = (address or f"10.12.{next(_numbers)}.1", 1)
        transport = httpx.ASGITransport(asgi, raise_app_exceptions=False, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://gasket") as http:
            return await http.request(method, path, headers={b"Authorization": f"Bearer {token}".encode()}, **more)

    async def chat(self, token: str, **more: Any) -> httpx.Response:
        return await self.send("POST", "/v1/chat/completions", token, json=CHAT, **more)

    async def me(self, token: str, **more: Any) -> httpx.Response:
        return await self.send("GET", "/api/me", token, **more)


def code_of(response: httpx.Response) -> str:
    code: str = response.json()["error"]["code"]
    return code


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[IdentityProvider, IdentityProvider]]:
    with identity_provider() as own, identity_provider() as trusted:
        yield own, trusted


@pytest.fixture
def own(servers: tuple[IdentityProvider, IdentityProvider]) -> IdentityProvider:
    """Where people sign in, as if it had just started. Ada is in the group `staff`."""
    servers[0].__init__(servers[0].url)  # type: ignore[misc]
    servers[0].person = {"sub": "4711", "email": "ada@example.com", "groups": ["staff"]}
    return servers[0]


@pytest.fixture
def trusted(servers: tuple[IdentityProvider, IdentityProvider]) -> IdentityProvider:
    """The issuer of service accounts, as if it had just started."""
    servers[1].__init__(servers[1].url)  # type: ignore[misc]
    account = {"namespace": "batch", "serviceaccount": {"name": "trainer"}}
    servers[1].person = {"sub": SUBJECT, "kubernetes.io": account}
    return servers[1]


@asynccontextmanager
async def replica_at(api_at: ApiAt, url: str, own: str, trusted: str, **more: str) -> AsyncIterator[Replica]:
    settings = {
        "GASKET_OIDC_ISSUER": own,
        "GASKET_OIDC_CLIENT_ID": CLIENT_ID,
        "GASKET_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "GASKET_OIDC_ADMIN_GROUPS": "wheel",
        "GASKET_OIDC_VIEWER_GROUPS": "auditors",
        "GASKET_OIDC_USER_GROUPS": "staff",
        "GASKET_OIDC_TRUSTED_ISSUERS": trusted,
    }
    async with api_at(url, **settings | more) as client:
        transport: Any = client._transport
        replica = Replica(transport.app)
        try:
            yield replica
        finally:
            await replica.gateway._stop(replica.app)


@pytest.fixture(scope="module")
async def running(
    servers: tuple[IdentityProvider, IdentityProvider], api_at: ApiAt, api_database_url: str
) -> AsyncIterator[Replica]:
    async with replica_at(api_at, api_database_url, servers[0].url, servers[1].url) as replica:
        yield replica


@pytest.fixture
async def gasket(
    running: Replica, own: IdentityProvider, trusted: IdentityProvider, client: httpx.AsyncClient
) -> AsyncIterator[Replica]:
    """It has not heard of the issuers yet. `client` is there to empty the tables, once all usage is in them."""
    forget_issuers(running)
    running.app.state.authenticator._known.clear()
    for directory in (running.gateway._directory, running.gateway._tokens):
        assert directory is not None
        directory.forget_all()
    yield running
    await until(lambda: not running.gateway.usage.waiting, 30, "all usage is written")


def forget_issuers(gasket: Replica) -> None:
    for issuer in bearers_of(gasket)._providers.values():
        issuer.__init__(issuer.issuer)  # type: ignore[misc]


def bearers_of(gasket: Replica) -> Bearers:
    bearers = gasket.app.state.authenticator._bearers
    assert isinstance(bearers, Bearers)
    return bearers


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[str]:
    """The base URL of a backend that answers every request with three tokens and two."""
    answer = b'{"usage":{"prompt_tokens":3,"completion_tokens":2},"choices":[]}'
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"eyj" not in request
        await reader.readexactly(int(request.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        writer.write(head % len(answer) + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


Make = Callable[..., Any]


@pytest.fixture
def profile(post: Post, backend: str) -> Make:
    """Call it for the id of a profile with these claims of the issuer, as in `(trusted, sub="*")`."""
    numbers = count(1)

    async def make(issuer: IdentityProvider, fields: dict[str, Any] | None = None, **claims: str) -> int:
        name = f"p{next(numbers)}"
        made = await post("/api/backends", name=name, base_url=backend, models=[{"name": "m", "backend_model": "m"}])
        rules = [{"issuer": issuer.url, "claim": claim, "pattern": pattern} for claim, pattern in claims.items()]
        fields = {"name": name, "backends": [made["id"]], "claim_rules": rules} | (fields or {})
        return int((await post("/api/profiles", **fields))["id"])

    return make


def forged(token: str, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """The token with other claims and another header under the old signature."""
    old_header, old_claims, signature = token.split(".")
    new_header = decode_json(old_header, dict[str, Any]) | (header or {})
    new_claims = decode_json(old_claims, dict[str, Any]) | claims
    return ".".join([*(encode(json.dumps(part).encode()) for part in (new_header, new_claims)), signature])


def deep(fields: dict[str, str]) -> str:
    """A part of a token that takes more than Python's stack to read."""
    inside = "[" * 5000 + "]" * 5000
    return encode(f'{json.dumps(fields)[:-1]}, "x": {inside}}}'.encode())


def hostile_tokens(issuer: IdentityProvider) -> dict[str, str]:
    """Tokens that must not count, each for one reason."""
    token, now = issuer.token(), int(time.time())
    public = json.dumps(KEY.as_dict(private=False))
    header, body, signature = token.split(".")
    claims = {"iss": issuer.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300} | issuer.person
    return {
        "another issuer": issuer.token(iss="https://login.example"),
        "no issuer": issuer.token(iss=None),
        "an issuer that is no text": issuer.token(iss=[issuer.url]),
        "another audience": issuer.token(aud="another"),
        "no audience": issuer.token(aud=None),
        "no subject": issuer.token(sub=None),
        "an empty subject": issuer.token(sub=""),
        "a subject of two lines": issuer.token(sub="a\nb"),
        "no end": issuer.token(exp=None),
        "not yet": issuer.token(nbf=now + 3600),
        "issued later": issuer.token(iat=now + 3600),
        "claims changed": forged(token, groups=["wheel"]),
        "no algorithm": forged(token, {"alg": "none"}),
        "no algorithm and no signature": forged(token, {"alg": "none"}).rpartition(".")[0] + ".",
        "signed with the public key": issuer.sign(
            claims, key=OctKey.import_key(public, {"kid": "first"}), header={"alg": "HS256"}
        ),
        "another's key": issuer.sign(claims, key=OTHER_KEY),
        "another's key under the name of the right one": issuer.sign(claims, key=OTHER_KEY, header={"kid": "first"}),
        "its own key": issuer.sign(
            claims, key=OTHER_KEY, header={"jwk": OTHER_KEY.as_dict(private=False), "kid": "first"}
        ),
        "a key from elsewhere": issuer.sign(claims, key=OTHER_KEY, header={"jku": f"{issuer.url}/jwks"}),
        "not all of it": token[:-8],
        "two parts": token.rpartition(".")[0],
        "five parts": f"{token}.x.y",
        "no JSON": "eyJ" + "a" * 60 + ".eyJx.x",
        "claims that are too deep": f"{header}.{deep({'iss': issuer.url})}.{signature}",
        "a header that is too deep": f"{deep({'alg': 'RS256', 'kid': 'first'})}.{body}.{signature}",
        "huge": issuer.token(padding="x" * 20_000),
        "not ASCII": "eyJä.b.c",
    }


HOSTILE = sorted(hostile_tokens(IdentityProvider("https://x")))


class TestAdministration:
    @pytest.mark.parametrize(
        ("groups", "role", "status"),
        [(["wheel", "staff"], "admin", 201), (["auditors"], "viewer", 403), (["staff"], "user", 403)],
    )
    async def test_the_groups_in_the_token_give_the_role(
        self, gasket: Replica, own: IdentityProvider, groups: list[str], role: str, status: int
    ) -> None:
        token = own.token(groups=groups)
        me = (await gasket.me(token)).json()
        assert (me["name"], me["email"], me["role"]) == ("ada@example.com", "ada@example.com", role)
        made = await gasket.send("POST", "/api/profiles", token, json={"name": "made"})
        assert made.status_code == status, made.text
        own_keys = await gasket.send("GET", "/api/me/keys", token)  # a token of minutes must not make a key for ever
        assert "people who have signed in" in assert_problem(own_keys, 403, "forbidden")

    async def test_without_a_group_that_gives_a_role_it_is_refused(
        self, gasket: Replica, own: IdentityProvider
    ) -> None:
        refused = await gasket.me(own.token(groups=["others"]))
        assert "gives a role here" in assert_problem(refused, 403, "forbidden")

    async def test_the_audit_names_the_person(
        self, gasket: Replica, own: IdentityProvider, client: httpx.AsyncClient
    ) -> None:
        await gasket.send("POST", "/api/profiles", own.token(groups=["wheel"]), json={"name": "made"})
        entry = (await client.get("/api/audit", params={"object": "profile"})).json()["items"][0]
        assert (entry["actor"], entry["actor_kind"], entry["how"]) == ("ada@example.com", "person", "api")
        entry = (await client.get("/api/audit", params={"object": "person"})).json()["items"][0]
        assert (entry["actor"], entry["action"]) == ("ada@example.com", "create")

    async def test_what_a_sign_in_told_stays(
        self, gasket: Replica, own: IdentityProvider, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO people (issuer, subject, name, groups) VALUES ($1, '4711', 'Ada', '{newer}')", own.url
        )
        assert (await gasket.me(own.token(groups=["auditors"]))).json()["role"] == "viewer"
        (row,) = await database.fetch("SELECT name, groups FROM people")
        assert tuple(row) == ("Ada", ["newer"])

    async def test_it_is_checked_once_and_the_issuer_asked_once(
        self, gasket: Replica, own: IdentityProvider, database: asyncpg.Connection
    ) -> None:
        for _ in range(3):
            assert (await gasket.me(own.token())).status_code == 200
        assert sorted(own.asked) == ["/.well-known/openid-configuration", "/jwks"]
        assert await database.fetchval("SELECT count(*) FROM people") == 1

    async def test_it_is_no_way_into_a_session(self, gasket: Replica, own: IdentityProvider) -> None:
        token = own.token(groups=["wheel"])
        response = await gasket.send("POST", "/ui/sign-in", "", data={"token": token})
        assert response.status_code == 401
        assert "set-cookie" not in response.headers

    async def test_a_trusted_issuer_s_is_for_the_gateway_alone(
        self, gasket: Replica, trusted: IdentityProvider
    ) -> None:
        refused = await gasket.me(trusted.token(groups=["wheel"]))
        assert "trusted for /v1 alone" in assert_problem(refused, 401, "unauthorized")

    @pytest.mark.parametrize("why", HOSTILE)
    async def test_a_hostile_one_is_refused(
        self, gasket: Replica, own: IdentityProvider, database: asyncpg.Connection, why: str
    ) -> None:
        own.person["groups"] = ["wheel"]
        assert_problem(await gasket.me(hostile_tokens(own)[why]), 401, "unauthorized")
        assert await database.fetchval("SELECT count(*) FROM people") == 0

    @pytest.mark.parametrize("azp", ["another", ["gasket"], None])
    async def test_an_id_token_must_be_this_client_s(self, gasket: Replica, own: IdentityProvider, azp: Any) -> None:
        several = ["gasket", "another"]
        assert_problem(await gasket.me(own.token(aud=several, azp=azp)), 401, "unauthorized")
        assert (await gasket.me(own.token(aud=several, azp="gasket"))).status_code == 200

    async def test_wrong_ones_are_slowed_and_right_ones_are_not(self, gasket: Replica, own: IdentityProvider) -> None:
        address = "10.13.1.1"
        for _ in range(20):  # its issuer did sign it: that is no guess
            expired = own.token(exp=int(time.time()) - 3600)
            assert "expired" in assert_problem(await gasket.me(expired, address=address), 401, "unauthorized")
        wrong = forged(own.token(), groups=["wheel"])
        statuses = [(await gasket.me(wrong, address=address)).status_code for _ in range(11)]
        assert statuses == [401] * 10 + [429]
        assert (await gasket.chat(wrong, address=address)).status_code == 429
        assert (await gasket.me(own.token(), address=address)).status_code == 200

    async def test_a_token_of_root_s_may_begin_in_the_same_way(
        self, api_at: ApiAt, api_database_url: str, own: IdentityProvider, trusted: IdentityProvider
    ) -> None:
        root = "eyJ-a-token-that-was-chosen-by-hand"
        async with replica_at(api_at, api_database_url, own.url, trusted.url, tokens=root) as gasket:
            assert (await gasket.me(root)).json()["name"] == "root"

    async def test_an_issuer_that_is_away_is_said_to_be(self, gasket: Replica, own: IdentityProvider) -> None:
        own.status["/jwks"] = 500
        assert_problem(await gasket.me(own.token()), 503, "identity-provider-away")
        assert (await gasket.me(ADMIN_TOKEN)).status_code == 200


class TestGateway:
    async def test_a_service_account_has_what_the_profile_gives_and_usage_of_its_own(
        self, gasket: Replica, trusted: IdentityProvider, profile: Make, client: httpx.AsyncClient
    ) -> None:
        profile_id = await profile(trusted, **{"/kubernetes.io/serviceaccount/name": "trainer", "sub": "system:*"})
        for _ in range(2):
            assert (await gasket.chat(trusted.token())).status_code == 200
        other = "system:serviceaccount:batch:other"
        assert (await gasket.chat(trusted.token(sub=other))).status_code == 200
        await sums(client, "user", [(SUBJECT, 2, 10), (other, 1, 5)])
        keys = (await client.get("/api/keys")).json()["items"]
        assert {(key["user_email"], key["issuer"], key["profile_id"]) for key in keys} == {
            (subject, trusted.url, profile_id) for subject in (SUBJECT, other)
        }
        by_key = {key["user_email"]: key["id"] for key in keys}
        await sums(client, "key", [(by_key[SUBJECT], 2, 10), (by_key[other], 1, 5)])
        assert sorted(trusted.asked) == ["/.well-known/openid-configuration", "/jwks"]
        made = {"object": "key", "object_id": by_key[SUBJECT], "action": "create"}
        entry = (await client.get("/api/audit", params=made)).json()["items"][0]
        assert (entry["actor"], entry["actor_kind"], entry["how"]) == (SUBJECT, "subject", "api")

    async def test_a_token_is_looked_up_once(self, gasket: Replica, trusted: IdentityProvider, profile: Make) -> None:
        await profile(trusted, sub="*")
        tokens = gasket.gateway._tokens
        assert tokens is not None
        token = trusted.token()
        await gasket.chat(token)
        await until(lambda: gasket.gateway._listener._task is not None, 30, "the replica listens")
        await kept(gasket, token)
        misses = tokens.misses
        for _ in range(5):
            assert (await gasket.chat(token)).status_code == 200
        assert tokens.misses == misses

    async def test_it_is_kept_until_it_expires_or_its_subject_s_row_does(
        self, gasket: Replica, trusted: IdentityProvider, profile: Make, database: asyncpg.Connection
    ) -> None:
        await profile(trusted, sub="*")
        token = trusted.token(exp=int(time.time()) + 1000)
        await until(lambda: kept(gasket, token), 30, "the token is in memory")
        tokens = gasket.gateway._tokens
        assert tokens is not None
        access = tokens.recall(token.encode())
        assert access is not None
        assert access.expires_at is not None
        assert 500 < access.expires_at - time.monotonic() <= 1000 + 60  # clocks may differ by a minute
        await database.execute("UPDATE api_keys SET expires_at = now() + interval '500 s'")

        async def kept_for_less() -> bool:
            access = tokens.recall(token.encode()) if await kept(gasket, token) else None
            return access is not None and (access.expires_at or 0) - time.monotonic() <= 500

        await until(kept_for_less, 20, "it is kept for no longer than its row")
        await database.execute("UPDATE api_keys SET expires_at = now()")
        await until(lambda: answers(gasket, token, 401, "expired_api_key"), 20, "the row has expired")

    async def test_a_person_is_known_by_the_address_as_in_keys(
        self, gasket: Replica, own: IdentityProvider, profile: Make, client: httpx.AsyncClient
    ) -> None:
        await profile(own, groups="staff")
        assert (await gasket.chat(own.token())).status_code == 200
        await sums(client, "user", [("ada@example.com", 1, 5)])
        hidden = own.token(email_verified=False, sub="4712")
        assert (await gasket.chat(hidden)).status_code == 200
        await sums(client, "user", [("4712", 1, 5), ("ada@example.com", 1, 5)])

    async def test_what_no_profile_takes_is_refused(
        self, gasket: Replica, trusted: IdentityProvider, own: IdentityProvider, profile: Make
    ) -> None:
        await profile(trusted, sub="system:*", namespace="batch")
        await profile(own, sub="*")
        refused = await gasket.chat(trusted.token())
        assert (refused.status_code, code_of(refused)) == (403, "token_not_accepted")

    async def test_of_two_profiles_that_take_it_none_does(
        self, gasket: Replica, trusted: IdentityProvider, profile: Make, client: httpx.AsyncClient
    ) -> None:
        first = await profile(trusted, sub="system:*")
        token = trusted.token()
        assert (await gasket.chat(token)).status_code == 200
        await profile(trusted, sub="*:trainer")
        await until(lambda: answers(gasket, token, 403, "ambiguous_token"), 20, "the new profile is heard of")
        await client.patch(f"/api/profiles/{first}", json={"claim_rules": []})
        await until(lambda: answers(gasket, token, 200), 20, "the change is heard of")

    @pytest.mark.parametrize("malformed", ['[{"issuer": "%s"}]', '[{"issuer": "%s", "claim": 1, "pattern": null}]'])
    async def test_a_profile_whose_rules_cannot_be_read_takes_none_and_the_others_go_on(
        self,
        gasket: Replica,
        trusted: IdentityProvider,
        profile: Make,
        client: httpx.AsyncClient,
        database: asyncpg.Connection,
        caplog: pytest.LogCaptureFixture,
        malformed: str,
    ) -> None:
        """Somebody has written them with psql."""
        broken = await profile(trusted, sub="system:*")
        await database.execute(
            "UPDATE backend_profiles SET claim_rules = $1 WHERE id = $2", malformed % trusted.url, broken
        )
        refused = await gasket.chat(trusted.token())
        assert (refused.status_code, code_of(refused)) == (403, "token_not_accepted")
        await profile(trusted, sub="system:*")
        token = trusted.token()
        await until(lambda: answers(gasket, token, 200), 20, "the new profile is heard of")
        said = [line for line in caplog.messages if f"the claim rules of profile {broken} are not" in line]
        assert len(said) == 1
        await client.patch(f"/api/profiles/{broken}", json={"claim_rules": []})
        stored = await database.fetchval("SELECT claim_rules::text FROM backend_profiles WHERE id = $1", broken)
        assert stored == "[]"

    async def test_changes_are_heard_of_on_another_replica(
        self,
        gasket: Replica,
        trusted: IdentityProvider,
        own: IdentityProvider,
        profile: Make,
        post: Post,
        client: httpx.AsyncClient,
        api_at: ApiAt,
        api_database_url: str,
    ) -> None:
        """Long before 30 s, for which a token stays in memory otherwise. Changes are made on a third replica."""
        profile_id = await profile(trusted, sub="system:*")
        token = trusted.token()
        async with replica_at(api_at, api_database_url, own.url, trusted.url) as other:
            for one in (gasket, other):
                await until(lambda one=one: kept(one, token), 30, "the token is in memory")

            async def both(status: int, code: str | None = None) -> bool:
                return all([await answers(one, token, status, code) for one in (gasket, other)])

            rules = [{"issuer": trusted.url, "claim": "sub", "pattern": "another"}]
            await client.patch(f"/api/profiles/{profile_id}", json={"claim_rules": rules})
            await until(lambda: both(403, "token_not_accepted"), 20, "the rules are heard of")
            rules[0]["pattern"] = "system:*"
            await client.patch(f"/api/profiles/{profile_id}", json={"claim_rules": rules})
            await until(lambda: both(200), 20, "the rules are heard of")
            # Without a backend: the notice of the profile itself is the only one.
            second = await post("/api/profiles", name="bare", claim_rules=rules)
            await until(lambda: both(403, "ambiguous_token"), 20, "the new profile is heard of")
            await client.delete(f"/api/profiles/{second['id']}")
            await until(lambda: both(200), 20, "the deletion is heard of")
            key = (await client.get("/api/keys")).json()["items"][0]
            await client.post(f"/api/keys/{key['id']}/revoke")
            await until(lambda: both(401, "revoked_api_key"), 20, "the revocation is heard of")
            await client.post(f"/api/keys/{key['id']}/restore")
            await until(lambda: both(200), 20, "the restoration is heard of")
            assert (await client.delete(f"/api/profiles/{profile_id}")).status_code == 204
            await until(lambda: both(403, "token_not_accepted"), 20, "the deletion is heard of")

    async def test_limits_of_the_profile_and_of_the_subject_apply(
        self, same_minute: None, gasket: Replica, trusted: IdentityProvider, profile: Make, client: httpx.AsyncClient
    ) -> None:
        await profile(trusted, {"requests_per_minute": 3}, sub="*")
        statuses = [(await gasket.chat(trusted.token(sub=str(number)))).status_code for number in (1, 1, 2, 3)]
        assert statuses == [200, 200, 200, 429]
        await client.patch(f"/api/profiles/{await only_profile(client)}", json={"requests_per_minute": None})
        key = next(key for key in (await client.get("/api/keys")).json()["items"] if key["user_email"] == "1")
        await client.patch(f"/api/keys/{key['id']}", json={"requests_per_minute": 1})
        await until(
            lambda: answers(gasket, trusted.token(sub="1"), 429, "rate_limit_exceeded"), 20, "the limit applies"
        )
        await until(lambda: answers(gasket, trusted.token(sub="2"), 200), 20, "and to no other subject")

    @pytest.mark.parametrize("why", HOSTILE)
    async def test_a_hostile_one_is_refused(
        self, gasket: Replica, trusted: IdentityProvider, profile: Make, database: asyncpg.Connection, why: str
    ) -> None:
        await profile(trusted, sub="*")
        refused = await gasket.chat(hostile_tokens(trusted)[why])
        assert (refused.status_code, code_of(refused)) == (401, "invalid_token"), refused.text
        assert refused.headers["www-authenticate"] == "Bearer"
        assert await database.fetchval("SELECT count(*) FROM api_keys") == 0

    async def test_wrong_ones_are_slowed_and_right_ones_are_not(
        self, gasket: Replica, trusted: IdentityProvider, profile: Make
    ) -> None:
        await profile(trusted, sub="*")
        address, statuses = "10.13.1.2", []
        for number in range(12):
            wrong = forged(trusted.token(), sub=str(number))
            statuses.append((await gasket.chat(wrong, address=address)).status_code)
        assert statuses == [401] * 10 + [429] * 2
        slowed = await gasket.chat(wrong, address=address)
        assert (code_of(slowed), slowed.headers["retry-after"] > "0") == ("too_many_wrong_tokens", True)
        assert (await gasket.chat(trusted.token(), address=address)).status_code == 200
        for _ in range(12):  # no guesses: the issuer has signed them
            assert (await gasket.chat(trusted.token(exp=1), address="10.13.1.3")).status_code == 401

    async def test_an_issuer_that_does_not_answer_holds_up_its_own_tokens_alone(
        self,
        post: Post,
        profile: Make,
        own: IdentityProvider,
        api_at: ApiAt,
        api_database_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Tokens of it wait, at most 200 at a time, and here for longer than ten seconds; keys and others do not."""
        monkeypatch.setattr(provider, "_LIMIT", 300.0)
        monkeypatch.setattr(provider, "_TIMEOUTS", Timeouts(300.0, 300.0, 300.0))
        profile_id = await profile(own, sub="*")
        key = (await post("/api/keys", user_email="a@b.c", name="k", profile_id=profile_id))["key"]
        release = asyncio.Event()

        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        away = IdentityProvider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with server, replica_at(api_at, api_database_url, own.url, away.url) as gasket:
            waiting = [asyncio.create_task(gasket.chat(away.token(jti=str(n)))) for n in range(205)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            refused = done.pop().result()
            assert (refused.status_code, code_of(refused)) == (503, "issuer_unavailable")
            assert "Too many tokens" in refused.text
            assert (await gasket.chat(key)).status_code == 200
            assert (await gasket.chat(own.token())).status_code == 200
            assert sum(not task.done() for task in waiting) == 200
            release.set()
            answers = await asyncio.gather(*waiting)
            assert {(answer.status_code, code_of(answer)) for answer in answers} == {(503, "issuer_unavailable")}

    async def test_another_audience_may_be_set_and_then_other_clients_tokens_count(
        self, profile: Make, own: IdentityProvider, trusted: IdentityProvider, api_at: ApiAt, api_database_url: str
    ) -> None:
        await profile(own, azp="robot")
        more = {"GASKET_OIDC_AUDIENCE": "https://gasket.example"}
        async with replica_at(api_at, api_database_url, own.url, trusted.url, **more) as gasket:
            assert (await gasket.chat(own.token(azp="robot"))).status_code == 401
            token = own.token(azp="robot", aud=["https://gasket.example", "x"])
            assert (await gasket.chat(token)).status_code == 200

    async def test_without_issuers_it_is_no_key(self, client: httpx.AsyncClient, own: IdentityProvider) -> None:
        refused = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {own.token()}"}
        )
        assert (refused.status_code, code_of(refused)) == (401, "malformed_api_key")


async def answers(gasket: Replica, token: str, status: int, code: str | None = None) -> bool:
    answer = await gasket.chat(token)
    return answer.status_code == status and (code is None or code_of(answer) == code)


async def kept(gasket: Replica, token: str) -> bool:
    """Whether the token is in memory, after one more request with it. The notice of its own row may take it out."""
    assert (await gasket.chat(token)).status_code == 200
    tokens = gasket.gateway._tokens
    assert tokens is not None
    return tokens.recall(token.encode()) is not None


async def only_profile(client: httpx.AsyncClient) -> int:
    (profile,) = (await client.get("/api/profiles")).json()["items"]
    return int(profile["id"])


async def sums(client: httpx.AsyncClient, group: str, expected: list[tuple[Any, int, int]]) -> None:
    """Requests and tokens by group, once they are written."""

    async def found() -> bool:
        items = (await client.get("/api/usage", params={"group": group})).json()["items"]
        return sorted((item[group], item["requests"], item["total_tokens"]) for item in items) == sorted(expected)

    await until(found, 30, f"the sums by {group} are {expected}")
