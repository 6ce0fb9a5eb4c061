"""The sign-in at a provider that is not ours: `oidc-provider-mock`, which is built on Authlib."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from gasket.access.csrf import csrf_token_of
from tests.integration.conftest import ApiAt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Authlib, about itself


@pytest.fixture
def issuer() -> Iterator[str]:
    oidc_provider_mock: Any = importlib.import_module("oidc_provider_mock")
    claims = {"email": "lin@example.com", "email_verified": True, "groups": ["ops"]}
    person = oidc_provider_mock.User(sub="ada", claims=claims)
    with oidc_provider_mock.run_server_in_thread(user_claims=[person]) as server:
        yield f"http://localhost:{server.server_port}"


async def test_a_person_signs_in_and_out(
    client: object, issuer: str, api_at: ApiAt, api_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    settings = {
        "GASKET_OIDC_ISSUER": issuer,
        "GASKET_OIDC_CLIENT_ID": "gasket",
        "GASKET_OIDC_CLIENT_SECRET": "a secret",
        "GASKET_OIDC_OPERATOR_GROUPS": "ops",
    }
    async with api_at(api_database_url, **settings) as replica, httpx.AsyncClient() as outside:
        transport: Any = replica._transport
        local = httpx.ASGITransport(transport.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=local, base_url="http://localhost:8000") as browser:
            begun = await browser.get("/auth/login")
            assert begun.status_code == 303, begun.text
            consent = await outside.post(begun.headers["location"], data={"sub": "ada"})
            back = urlsplit(consent.headers["location"])
            assert f"{back.scheme}://{back.netloc}{back.path}" == "http://localhost:8000/auth/callback"
            finished = await browser.get("/auth/callback", params=dict(parse_qsl(back.query)))
            assert finished.status_code == 303, finished.text
            me = (await browser.get("/api/me")).json()
            assert me == {"name": "lin@example.com", "role": "operator", "email": "lin@example.com"}
            csrf = {"X-CSRF-Token": csrf_token_of(browser.cookies["gasket"])}
            ended = await browser.post("/auth/logout", headers=csrf)
            assert ended.headers["location"].startswith(f"{issuer}/oauth2/end_session?")
            assert (await outside.get(ended.headers["location"])).status_code == 200
            assert (await browser.get("/api/me")).status_code == 401
