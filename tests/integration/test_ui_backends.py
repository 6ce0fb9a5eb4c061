"""The pages of backends over HTTP: forms, roles, secrets, and what is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.conftest import Post, client_of

HOSTILE = "<script>alert(1)</script>\u202e\"'&{{ 7 * 7 }}"
FORM = {
    "name": "main",
    "base_url": "https://one.example/v1",
    "credential_header": "Authorization",
    "credential_scheme": "Bearer",
    "connect_timeout": "5",
    "first_byte_timeout": "600",
    "chunk_timeout": "300",
}
LARGEST_PAGE = 100_000

RoleClient = Callable[[str], Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def role_client(client: httpx.AsyncClient, post: Post) -> AsyncIterator[RoleClient]:
    """A client with a token of this role."""
    transport: Any = client._transport
    clients = []

    async def make(role: str) -> httpx.AsyncClient:
        issued = await post("/api/tokens", name=f"the {role}", role=role)
        clients.append(client_of(transport.app, token=issued["token"]))
        return clients[-1]

    yield make
    for made in clients:
        await made.aclose()


async def only_backend(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the API shows of the one that is there."""
    [found] = (await client.get("/api/backends")).json()["items"]
    backend: dict[str, Any] = found
    return backend


class TestForm:
    async def test_a_backend_is_added_with_all_that_can_be_set(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/ui/backends",
            data=FORM
            | {
                "api_key": "sk-secret",
                "credential_header": "api-key",
                "credential_scheme": "",
                "headers": "anthropic-version: 2023-06-01\r\nx-team: blue",
                "response_headers": "x-served-by",
                "proxy_url": "http://user:word@proxy.example:3128",
                "skip_tls_verify": "true",
                "max_concurrency": "7",
                "connect_timeout": "2.5",
                "model-0-name": "small",
                "model-0-backend_model": "gpt-5-mini",
                "model-0-weight": "95",
                "model-1-name": "large",
                "model-1-priority": "2",
            },
        )
        backend = await only_backend(client)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/backends/{backend['id']}")
        assert backend["models"] == [
            {"name": "small", "backend_model": "gpt-5-mini", "weight": 95, "priority": 0},
            {"name": "large", "backend_model": "large", "weight": None, "priority": 2},
        ]
        assert (backend["credential_header"], backend["credential_scheme"]) == ("api-key", "")
        assert backend["header_names"] == ["anthropic-version", "x-team"]
        assert (backend["proxy"], backend["skip_tls_verify"]) == ("http://proxy.example:3128", True)
        assert (backend["max_concurrency"], backend["connect_timeout"]) == (7, 2.5)
        shown = [await client.get(f"/ui/backends/{backend['id']}{end}") for end in ("", "/change")]
        for one in shown:
            assert one.status_code == 200
            assert "gpt-5-mini" in one.text
            assert not any(secret in one.text for secret in ("sk-secret", "2023-06-01", "word@"))

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("base_url", "ftp://one.example", "must be an http or https URL"),
            ("name", "", "must not be empty"),
            ("api_key", "a b", "without spaces"),
            ("headers", "no colon", "Each line is a name, a colon and a value"),
            ("connect_timeout", "", "number of seconds"),
            ("max_concurrency", "many", "whole number"),
            ("model-0-weight", "5", "Each model has a name"),
        ],
    )
    async def test_an_error_is_beside_its_field_and_nothing_is_made(
        self, client: httpx.AsyncClient, field: str, value: str, said: str
    ) -> None:
        sent = FORM | {"api_key": "sk-secret", "headers": "x-a: hidden-value", field: value}
        answer = await client.post("/ui/backends", data=sent)
        assert answer.status_code == 400
        assert said in answer.text
        assert 'class="wrong"' in answer.text
        assert "one.example" in answer.text  # what was typed stays
        assert "sk-secret" not in answer.text
        assert "hidden-value" not in answer.text
        assert (await client.get("/api/backends")).json()["total"] == 0

    async def test_a_taken_name_is_beside_its_field(self, client: httpx.AsyncClient, post: Post) -> None:
        await post("/api/backends", name="main", base_url="http://a.example")
        answer = await client.post("/ui/backends", data=FORM)
        assert answer.status_code == 409
        assert 'id="w-name"' in answer.text

    async def test_more_rows_keep_what_was_typed(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/ui/backends", data=FORM | {"model-2-name": "typed", "more": "true"})
        assert answer.status_code == 200
        assert 'value="typed"' in answer.text
        assert 'name="model-10-name"' in answer.text
        assert (await client.get("/api/backends")).json()["total"] == 0

    async def test_only_what_differs_is_changed(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post(
            "/api/backends", name="main", base_url="https://one.example/v1", api_key="sk-secret", headers={"x-a": "1"},
            models=[{"name": "m"}],
        )  # fmt: skip
        path = f"/ui/backends/{made['id']}"
        answer = await client.post(path, data=FORM | {"name": "other", "model-0-name": "m", "model-0-priority": "0"})
        assert answer.status_code == 303
        backend = await only_backend(client)
        assert backend == made | {"name": "other"}
        await client.post(path, data=FORM | {"forget_api_key": "true", "forget_headers": "true"})
        backend = await only_backend(client)
        assert (backend["has_api_key"], backend["header_names"], backend["models"]) == (False, [], None)

    async def test_another_server_wants_the_credential_again(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post("/api/backends", name="main", base_url="https://one.example/v1", api_key="sk-secret")
        path = f"/ui/backends/{made['id']}"
        moved = FORM | {"base_url": "https://two.example/v1"}
        refused = await client.post(path, data=moved)
        assert refused.status_code == 400
        assert 'id="w-api_key"' in refused.text
        assert "leads to another server" in refused.text
        assert (await client.post(path, data=moved | {"api_key": "sk-new"})).status_code == 303
        assert (await only_backend(client))["base_url"] == "https://two.example/v1"

    async def test_many_models_stay_as_they_are(self, client: httpx.AsyncClient, post: Post) -> None:
        models = [{"name": f"m{number}"} for number in range(51)]
        made = await post("/api/backends", name="main", base_url="https://one.example/v1", models=models)
        shown = await client.get(f"/ui/backends/{made['id']}/change")
        assert "more models than this page shows" in shown.text
        await client.post(f"/ui/backends/{made['id']}", data=FORM | {"name": "other"})
        backend = await only_backend(client)
        assert (backend["name"], len(backend["models"])) == ("other", 51)


class TestActions:
    async def test_it_is_set_aside_and_taken_back(
        self, role_client: RoleClient, client: httpx.AsyncClient, post: Post, database: asyncpg.Connection
    ) -> None:
        made = await post("/api/backends", name="main", base_url="http://one.example")
        assert (made["state"], made["set_aside_at"], made["state_since"]) == ("available", None, None)
        operator, path = await role_client("operator"), f"/ui/backends/{made['id']}"
        assert "Set aside" in (await operator.get(path)).text
        assert (await operator.post(f"{path}/set-aside")).status_code == 303
        aside = await only_backend(client)
        assert (aside["state"], aside["state_since"]) == ("set_aside", aside["set_aside_at"])
        again = await client.post(f"/api/backends/{made['id']}/set-aside")
        assert again.json() == aside
        assert "Set aside by an operator" in (await operator.get("/ui/backends")).text
        assert "Take back" in (await operator.get(path)).text
        assert (await operator.post(f"{path}/take-back")).status_code == 303
        assert await only_backend(client) == made
        actors = await database.fetch(
            "SELECT actor FROM audit_log WHERE table_name = 'openai_backends' AND changed = '{set_aside_at}' "
            "AND object_id = $1",
            str(made["id"]),
        )
        assert [row["actor"] for row in actors] == ["the operator"] * 2

    async def test_a_test_says_what_is_wrong(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post("/api/backends", name="main", base_url="http://127.0.0.1:9", connect_timeout=1)
        answer = await client.post(f"/ui/backends/{made['id']}/test")
        assert answer.status_code == 200
        assert "Backend &#39;main&#39;" in answer.text

    async def test_it_is_deleted_unless_a_profile_has_it(self, client: httpx.AsyncClient, post: Post) -> None:
        made = await post("/api/backends", name="main", base_url="http://one.example")
        profile = await post("/api/profiles", name="staff", backends=[made["id"]])
        path = f"/ui/backends/{made['id']}/delete"
        refused = await client.post(path)
        assert refused.status_code == 409
        assert "is in 1 profile (staff)" in refused.text
        await client.delete(f"/api/profiles/{profile['id']}")
        assert (await client.post(path)).headers["location"] == "/ui/backends"
        assert "There is no backend yet" in (await client.get("/ui/backends")).text


class TestRoles:
    async def test_a_viewer_sees_no_button(self, role_client: RoleClient, post: Post) -> None:
        made = await post("/api/backends", name="main", base_url="http://one.example")
        viewer = await role_client("viewer")
        for path in ("/ui/backends", f"/ui/backends/{made['id']}"):
            shown = await viewer.get(path)
            assert shown.status_code == 200
            assert "main" in shown.text
            assert not any(
                word in shown.text for word in ("Add a backend", ">Test<", ">Set aside<", ">Change<", "Delete")
            )
        assert (await viewer.get("/ui/backends/new")).status_code == 403

    async def test_an_operator_sees_no_button_of_administrators(self, role_client: RoleClient, post: Post) -> None:
        made = await post("/api/backends", name="main", base_url="http://one.example")
        operator = await role_client("operator")
        shown = await operator.get(f"/ui/backends/{made['id']}")
        assert ">Test<" in shown.text
        assert ">Change<" not in shown.text
        assert "Delete" not in shown.text
        assert (await operator.post(f"/ui/backends/{made['id']}", data=FORM)).status_code == 403


class TestSizes:
    async def test_many_backends_are_shown_page_by_page_and_names_are_harmless(
        self, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await database.execute(
            "INSERT INTO openai_backends (name, base_url) SELECT $1 || n, 'http://' || repeat('x', 1900) || n "
            "FROM generate_series(1, 120) AS n",
            HOSTILE,
        )
        shown = await client.get("/ui/backends")
        assert "1 to 50 of 120 backends" in shown.text
        assert "<script>alert" not in shown.text
        assert len(shown.content) < LARGEST_PAGE
        found = await client.get("/ui/backends", params={"search": "120"})
        assert found.text.count("/ui/backends/") - shown.text.count("/ui/backends/new") == 1
        assert "No backend matches" in (await client.get("/ui/backends?search=nothing")).text
