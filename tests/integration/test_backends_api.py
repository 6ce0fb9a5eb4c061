from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.tls import certificate

from .conftest import Post, assert_problem

URL = "https://api.example.com/v1"


async def test_a_new_backend_shows_all_but_its_credential(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/api/backends", json={"name": "main", "base_url": URL, "api_key": "sk-secret", "skip_tls_verify": True}
    )
    assert response.status_code == 201
    assert "sk-secret" not in response.text
    backend = response.json()
    assert backend.pop("created_at").endswith("Z")
    assert backend == {
        "id": backend["id"],
        "name": "main",
        "base_url": URL,
        "has_api_key": True,
        "credential_unreadable": False,
        "credential_header": "Authorization",
        "credential_scheme": "Bearer",
        "header_names": [],
        "response_headers": [],
        "proxy": None,
        "has_client_certificate": False,
        "skip_tls_verify": True,
        "max_concurrency": None,
        "connect_timeout": 5,
        "first_byte_timeout": 600,
        "chunk_timeout": 300,
        "models": None,
        "state": "available",
        "state_since": None,
        "set_aside_at": None,
        "models_set_aside": [],
    }
    assert (await client.get(f"/api/backends/{backend['id']}")).json() == response.json()


async def test_name_and_url_are_enough(post: Post) -> None:
    backend = await post("/api/backends", name="bare", base_url="http://localhost:11434")
    assert (backend["has_api_key"], backend["skip_tls_verify"]) == (False, False)


async def test_a_patch_changes_what_it_names_and_nothing_else(client: httpx.AsyncClient, post: Post) -> None:
    backend = await post("/api/backends", name="main", base_url=URL, api_key="sk-secret")
    path = f"/api/backends/{backend['id']}"
    assert (await client.patch(path, json={})).json() == backend
    changed = await client.patch(path, json={"name": "other", "skip_tls_verify": True})
    assert changed.json() == backend | {"name": "other", "skip_tls_verify": True}
    forgotten = await client.patch(path, json={"api_key": None})
    assert forgotten.json() == changed.json() | {"has_api_key": False}
    assert (await client.get(path)).json() == forgotten.json()


async def test_headers_are_kept_and_their_values_never_shown(client: httpx.AsyncClient, post: Post) -> None:
    own = {"credential_header": "api-key", "credential_scheme": "", "response_headers": ["X-Served-By"]}
    backend = await post("/api/backends", name="main", base_url=URL, headers={"X-Tenant": "s3cret", "b": "c"}, **own)
    assert {name: backend[name] for name in own} == own
    assert backend["header_names"] == ["X-Tenant", "b"]
    path = f"/api/backends/{backend['id']}"
    assert (await client.patch(path, json={"name": "other"})).json() == backend | {"name": "other"}
    changed = await client.patch(path, json={"headers": {"d": "s3cret"}, "credential_scheme": "Token"})
    assert changed.json() == backend | {"name": "other", "header_names": ["d"], "credential_scheme": "Token"}
    bodies: list[dict[str, Any]] = [{"headers": None, "response_headers": []}, {"headers": {}}]
    for body in bodies:
        forgotten = await client.patch(path, json=body)
        assert (forgotten.json()["header_names"], forgotten.json()["response_headers"]) == ([], [])
    assert "s3cret" not in changed.text + (await client.get("/api/backends")).text


async def test_the_way_to_a_backend_is_kept_without_its_secrets(
    client: httpx.AsyncClient, post: Post, tmp_path: Path
) -> None:
    pem = certificate(tmp_path).read_text()
    backend = await post(
        "/api/backends",
        name="main",
        base_url=URL,
        proxy_url="http://user:hunter2@proxy.example:3128",
        client_certificate=pem,
    )
    assert (backend["proxy"], backend["has_client_certificate"]) == ("http://proxy.example:3128", True)
    assert "hunter2" not in str(backend)
    assert "PRIVATE" not in str(backend)
    path = f"/api/backends/{backend['id']}"
    assert (await client.patch(path, json={"name": "other"})).json() == backend | {"name": "other"}
    forgotten = (await client.patch(path, json={"proxy_url": None, "client_certificate": None})).json()
    assert (forgotten["proxy"], forgotten["has_client_certificate"]) == (None, False)
    chain_only = pem[pem.index("-----BEGIN CERTIFICATE") :]
    refused = await client.patch(path, json={"client_certificate": chain_only})
    assert_problem(refused, 400, "invalid-input", field="client_certificate")


async def test_no_header_stands_beside_the_credential_under_one_name(client: httpx.AsyncClient, post: Post) -> None:
    body = {"name": "new", "base_url": URL, "headers": {"authorization": "x"}}
    assert_problem(await client.post("/api/backends", json=body), 400, "invalid-input", field="headers")
    backend = await post("/api/backends", name="main", base_url=URL, headers={"API-Key": "x"})
    path = f"/api/backends/{backend['id']}"
    refused = await client.patch(path, json={"credential_header": "api-key"})
    assert "credential_header" in assert_problem(refused, 400, "invalid-input", field="headers")
    refused = await client.patch(path, json={"headers": {"Authorization": "x"}})
    assert_problem(refused, 400, "invalid-input", field="headers")
    both = await client.patch(path, json={"credential_header": "api-key", "headers": {"Authorization": "x"}})
    assert both.status_code == 200


class TestAnotherServer:
    """A stored secret never goes where its administrator did not mean it to go."""

    @pytest.mark.parametrize(
        "base_url", ["http://api.example.com/v1", "https://api.example.com:8443/v1", "https://evil.example/v1"]
    )
    @pytest.mark.parametrize(
        ("stored", "missing"),
        [
            ({"api_key": "sk-secret"}, "api_key"),
            ({"headers": {"x": "sk-secret"}}, "headers"),
            ({"api_key": "sk-secret", "headers": {"x": "y"}}, "api_key"),
        ],
    )
    async def test_it_wants_the_secrets_again(
        self, client: httpx.AsyncClient, post: Post, base_url: str, stored: dict[str, Any], missing: str
    ) -> None:
        backend = await post("/api/backends", name="main", base_url=URL, **stored)
        path = f"/api/backends/{backend['id']}"
        refused = await client.patch(path, json={"base_url": base_url, "name": "moved"})
        detail = assert_problem(refused, 400, "invalid-input", field=missing)
        assert f"give {missing} together with base_url" in detail
        assert (await client.get(path)).json() == backend, "nothing was changed"
        moved = await client.patch(path, json={"base_url": base_url} | stored)
        assert moved.json() == backend | {"base_url": base_url}
        forgotten = await client.patch(path, json={"base_url": URL} | dict.fromkeys(stored))
        assert (forgotten.json()["has_api_key"], forgotten.json()["header_names"]) == (False, [])
        assert (await client.patch(path, json={"base_url": base_url})).status_code == 200, "there is no secret now"

    @pytest.mark.parametrize(
        "base_url",
        ["https://api.example.com/other/v1?a=b", "https://API.example.com:443/v1", "https://api.example.com"],
    )
    async def test_another_path_does_not(self, client: httpx.AsyncClient, post: Post, base_url: str) -> None:
        backend = await post("/api/backends", name="main", base_url=URL, api_key="sk-secret", headers={"x": "y"})
        changed = await client.patch(f"/api/backends/{backend['id']}", json={"base_url": base_url})
        assert changed.json() == backend | {"base_url": base_url}

    async def test_another_proxy_wants_them_too(self, client: httpx.AsyncClient, post: Post) -> None:
        backend = await post("/api/backends", name="main", base_url="http://b/v1", api_key="sk-secret")
        path, proxy = f"/api/backends/{backend['id']}", "http://proxy.example:3128"
        refused = await client.patch(path, json={"proxy_url": proxy})
        assert "together with proxy_url" in assert_problem(refused, 400, "invalid-input", field="api_key")
        set_ = await client.patch(path, json={"proxy_url": proxy, "api_key": "sk-secret"})
        assert set_.json() == backend | {"proxy": proxy}
        for change in ({"proxy_url": proxy}, {"proxy_url": None}):
            assert (await client.patch(path, json=change)).status_code == 200

    async def test_one_that_no_key_opens_is_wanted_too(
        self, client: httpx.AsyncClient, post: Post, database: asyncpg.Connection
    ) -> None:
        backend = await post("/api/backends", name="main", base_url=URL, api_key="sk-secret")
        await database.execute("UPDATE openai_backends SET api_key = 'not a token'")
        refused = await client.patch(f"/api/backends/{backend['id']}", json={"base_url": "https://evil.example"})
        assert_problem(refused, 400, "invalid-input", field="api_key")


async def test_limits_are_kept_and_changed(client: httpx.AsyncClient, post: Post) -> None:
    limits = {"max_concurrency": 8, "connect_timeout": 0.1, "first_byte_timeout": 86400, "chunk_timeout": 2.5}
    backend = await post("/api/backends", name="main", base_url=URL, **limits)
    assert {name: backend[name] for name in limits} == limits
    path = f"/api/backends/{backend['id']}"
    assert (await client.get("/api/backends")).json()["items"] == [backend]
    changed = await client.patch(path, json={"max_concurrency": None, "chunk_timeout": 7})
    assert changed.json() == backend | {"max_concurrency": None, "chunk_timeout": 7}


async def test_a_name_is_taken_once(client: httpx.AsyncClient, post: Post) -> None:
    await post("/api/backends", name="main", base_url=URL)
    other = await post("/api/backends", name="other", base_url=URL)
    again = await client.post("/api/backends", json={"name": "main", "base_url": URL})
    assert "'main'" in assert_problem(again, 409, "name-taken")
    renamed = await client.patch(f"/api/backends/{other['id']}", json={"name": "main"})
    assert "'main'" in assert_problem(renamed, 409, "name-taken")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None),
        ("name", ""),
        ("name", " main"),
        ("name", "a\nb"),
        ("name", "a\0b"),
        ("name", "n" * 101),
        ("name", 5),
        ("base_url", None),
        ("base_url", "ftp://host"),
        ("base_url", "https://"),
        ("base_url", "https://user:pass@host"),
        ("base_url", "https://host/v1/chat/completions"),
        ("base_url", "https://host/v1/models/?x=1"),
        ("base_url", "https://host/#top"),
        ("base_url", "https://host:port"),
        ("base_url", "https://host:0"),
        ("base_url", "https://[::1"),
        ("base_url", "https://ho st"),
        ("base_url", "https://host\\path"),
        ("base_url", "https://a..b"),
        ("base_url", "h" * 2001),
        ("headers", {"Host": "x"}),
        ("headers", {"x": "a\r\nb: c"}),
        ("headers", {str(number): "x" for number in range(51)}),
        ("credential_header", "a b"),
        ("credential_scheme", "a b"),
        ("credential_scheme", None),
        ("response_headers", ["Set-Cookie"]),
        ("proxy_url", "https://proxy.example"),
        ("proxy_url", "http://proxy.example/path"),
        ("proxy_url", "proxy.example:3128"),
        ("proxy_url", ""),
        ("client_certificate", "no certificate"),
        ("response_headers", None),
        ("api_key", ""),
        ("api_key", "two words"),
        ("api_key", "schlüssel"),
        ("api_key", "k" * 4001),
        ("skip_tls_verify", None),
        ("skip_tls_verify", "true"),
        ("skip_tls_verify", 1),
        ("max_concurrency", 0),
        ("max_concurrency", 100_001),
        ("max_concurrency", 1.5),
        ("connect_timeout", None),
        ("connect_timeout", 0),
        ("first_byte_timeout", None),
        ("first_byte_timeout", 86_400.1),
        ("chunk_timeout", None),
        ("chunk_timeout", "60"),
        ("models", []),
        ("models", "m"),
        ("models", [{"name": "m"}, {"name": "m", "backend_model": "m"}]),
    ],
)
async def test_values_are_checked_when_made_and_when_changed(
    client: httpx.AsyncClient, post: Post, field: str, value: object
) -> None:
    created = await client.post("/api/backends", json={"name": "new", "base_url": URL, field: value})
    backend = await post("/api/backends", name="main", base_url=URL)
    changed = await client.patch(f"/api/backends/{backend['id']}", json={field: value})
    for response in (created, changed):
        assert field in assert_problem(response, 400, "invalid-input", field=field)
        assert not (field == "api_key" and value and str(value) in response.text)


ROW = {"name": "m", "backend_model": "m", "weight": None, "priority": 0}


async def test_models_are_kept_in_their_order_replaced_and_left_to_the_backend(
    client: httpx.AsyncClient, post: Post, database: asyncpg.Connection
) -> None:
    rows = [{**ROW, "name": "z", "backend_model": "z:latest", "weight": 95, "priority": 1}, ROW]
    backend = await post("/api/backends", name="main", base_url=URL, models=rows)
    path = f"/api/backends/{backend['id']}"
    assert backend["models"] == rows
    assert (await client.get(path)).json()["models"] == rows
    assert (await client.patch(path, json={"name": "other"})).json()["models"] == rows
    assert (await client.patch(path, json={"models": [{"name": "m"}]})).json()["models"] == [ROW]
    assert (await client.get("/api/backends")).json()["items"][0]["models"] == [ROW]
    assert (await client.patch(path, json={"models": None})).json()["models"] is None
    await client.patch(path, json={"models": rows})
    assert (await client.delete(path)).status_code == 204
    assert await database.fetchval("SELECT count(*) FROM backend_models") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "m" * 201},
        {"name": "nul \0"},
        {"backend_model": ""},
        {"weight": 0},
        {"weight": 1_000_001},
        {"priority": -1},
        {"priority": 1001},
        {"wieght": 5},
    ],
)
async def test_rows_of_models_are_checked(client: httpx.AsyncClient, change: dict[str, object]) -> None:
    body = {"name": "new", "base_url": URL, "models": [ROW | change]}
    response = await client.post("/api/backends", json=body)
    assert (response.status_code, response.json()["type"]) == (400, "urn:gasket:problem:invalid-input")


@pytest.mark.parametrize(
    "body", [{}, {"name": "main"}, {"name": "m", "base_url": URL, "apikey": "typo"}, [], "text", 1]
)
async def test_bodies_of_another_shape_are_refused(client: httpx.AsyncClient, body: object) -> None:
    response = await client.post("/api/backends", json=body)
    assert response.status_code == 400
    assert response.json()["errors"]


@pytest.mark.parametrize("backend_id", ["0", "-1", "2147483647", "2147483648", "9" * 30, "abc", "1.5"])
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, backend_id: str) -> None:
    path = f"/api/backends/{backend_id}"
    for response in (await client.get(path), await client.patch(path, json={}), await client.delete(path)):
        assert_problem(response, 404, "not-found")


async def test_a_backend_in_a_profile_stays(client: httpx.AsyncClient, post: Post) -> None:
    backend = await post("/api/backends", name="main", base_url=URL)
    for name in ("first", "second"):
        await post("/api/profiles", name=name, backends=[backend["id"]])
    path = f"/api/backends/{backend['id']}"
    assert "2 profiles (first, second)" in assert_problem(await client.delete(path), 409, "in-use")
    for profile in (await client.get("/api/profiles")).json()["items"]:
        await client.patch(f"/api/profiles/{profile['id']}", json={"backends": []})
    assert (await client.delete(path)).status_code == 204
    assert_problem(await client.get(path), 404, "not-found")


class TestLists:
    @pytest.fixture(autouse=True)
    async def backends(self, post: Post) -> None:
        for name in ("Delta", "alpha_1", "charlie", "bravo%"):
            await post("/api/backends", name=name, base_url=f"https://{name.strip('%')}.example")

    async def names(self, client: httpx.AsyncClient, query: str) -> list[str]:
        response = await client.get(f"/api/backends?{query}")
        assert response.status_code == 200, response.text
        return [item["name"] for item in response.json()["items"]]

    async def test_pages(self, client: httpx.AsyncClient) -> None:
        async def page(number: int) -> dict[str, Any]:
            body: dict[str, Any] = (await client.get(f"/api/backends?pageSize=3&currentPage={number}")).json()
            return body

        first, second, beyond = await page(1), await page(2), await page(9)
        assert [item["name"] for item in first.pop("items")] == ["Delta", "alpha_1", "charlie"]
        assert first == {"total": 4, "limit": 3, "offset": 0}
        assert [item["name"] for item in second.pop("items")] == ["bravo%"]
        assert second == {"total": 4, "limit": 3, "offset": 3}
        assert beyond == {"items": [], "total": 4, "limit": 3, "offset": 24}

    async def test_order(self, client: httpx.AsyncClient) -> None:
        assert await self.names(client, "orderBy=id&sortOrder=desc") == ["bravo%", "charlie", "alpha_1", "Delta"]
        by_name = await self.names(client, "orderBy=name")
        assert by_name == list(reversed(await self.names(client, "orderBy=name&sortOrder=desc")))

    async def test_search_takes_wildcards_literally(self, client: httpx.AsyncClient) -> None:
        assert await self.names(client, "searchString=DELTA") == ["Delta"]
        assert await self.names(client, "searchString=DELTA&searchIgnoreCase=false") == []
        assert await self.names(client, "searchString=_") == ["alpha_1"]
        assert await self.names(client, "searchString=%25") == ["bravo%"]
        assert len(await self.names(client, "searchString=.example")) == 4

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("pageSize", "0"),
            ("pageSize", "201"),
            ("pageSize", "many"),
            ("currentPage", "0"),
            ("currentPage", "9" * 20),
            ("orderBy", "api_key"),
            ("orderBy", "id; DROP TABLE openai_backends"),
            ("orderBy", "__class__"),
            ("sortOrder", "sideways"),
            ("searchString", "%00"),
            ("searchString", "s" * 201),
            ("limit", "5"),
        ],
    )
    async def test_parameters_are_checked(self, client: httpx.AsyncClient, field: str, value: str) -> None:
        response = await client.get(f"/api/backends?{field}={value}")
        assert field in assert_problem(response, 400, "invalid-input", field=field)


async def test_requests_at_once_agree_on_who_took_the_name(
    client: httpx.AsyncClient, database: asyncpg.Connection
) -> None:
    body = {"name": "main", "base_url": URL}
    statuses = [
        r.status_code for r in await asyncio.gather(*(client.post("/api/backends", json=body) for _ in range(8)))
    ]
    assert sorted(statuses) == [201] + [409] * 7
    assert await database.fetchval("SELECT count(*) FROM openai_backends") == 1
