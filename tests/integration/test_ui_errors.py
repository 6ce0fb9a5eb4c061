"""Errors as pages."""

from __future__ import annotations

from tests.integration.conftest import ApiAt

WITH_A_DATABASE = (
    "/ui",
    "/ui/schema",
    "/ui/schema/revisions/cab3c15ef1e1",
    "/ui/backends",
    "/ui/profiles",
    "/ui/keys",
    "/ui/usage",
    "/ui/usage.csv",
    "/ui/access",
    "/ui/audit",
)


async def test_a_page_says_that_the_database_is_away_and_asks_again(api_at: ApiAt) -> None:
    async with api_at("postgresql://gasket@127.0.0.1:1/gasket") as client:
        for path in WITH_A_DATABASE:
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html; charset=utf-8"), path
            assert "The database cannot be reached" in answer.text, path
            assert 'data-refresh="5"' in answer.text, path
        assert (await client.get("/ui/reference")).status_code == 200


async def test_what_a_form_has_sent_is_not_sent_again_by_itself(api_at: ApiAt) -> None:
    async with api_at("postgresql://gasket@127.0.0.1:1/gasket") as client:
        answer = await client.post("/ui/keys/1/revoke")
        assert answer.status_code == 503
        assert "data-refresh" not in answer.text
        assert "asks again" not in answer.text
