"""`/api/migrations` and its pages over HTTP: the chain, background work, the plan, the archive, and who may do what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.conftest import Post, assert_problem, client_of

HOSTILE = "<script>alert(1)</script>\u202e{{ 7 * 7 }}" + "x" * 10_000
LONGEST_PAGE = 100_000
"""Bytes."""

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


@pytest.fixture
async def work(database: asyncpg.Connection) -> AsyncIterator[int]:
    """Pending background work of no replica: nothing works here."""
    number = await database.fetchval(
        "INSERT INTO migration_background (revision, number, kind, table_name, statement, condition, rows_done, "
        "rows_estimated) VALUES ('a64e0d93b17c', 1, 'backfill', $1, 'a = 1', 'a IS NULL', 1, 3) RETURNING id",
        HOSTILE,
    )
    yield number
    await database.execute("DELETE FROM migration_background")


async def state_of(database: asyncpg.Connection, work: int) -> str:
    state: str = await database.fetchval("SELECT state FROM migration_background WHERE id = $1", work)
    return state


class TestChain:
    async def test_it_has_every_revision_newest_first_in_parts(self, client: httpx.AsyncClient) -> None:
        everything = (await client.get("/api/migrations/revisions", params={"limit": 200})).json()
        revisions = [item["revision"] for item in everything["items"]]
        assert (revisions[-1], everything["total"]) == ("cab3c15ef1e1", len(revisions))
        assert revisions[0] == (await client.get("/api/migrations")).json()["head"]
        assert everything["items"][0]["parents"] == [revisions[1]]
        assert {item["state"] for item in everything["items"]} == {"applied"}
        assert all(item["description"] and item["last"]["release"] for item in everything["items"])
        part = (await client.get("/api/migrations/revisions", params={"limit": 2, "offset": 1})).json()
        assert [item["revision"] for item in part["items"]] == revisions[1:3]

    async def test_a_revision_has_its_sql_both_ways_and_its_rows_of_the_ledger(self, client: httpx.AsyncClient) -> None:
        step = (await client.get("/api/migrations/revisions/cab3c15ef1e1")).json()
        assert "CREATE TABLE openai_backends" in step["upgrade"]["statements"][0]
        assert "DROP TABLE openai_backends" in step["downgrade"]["statements"][-1]
        assert [run["direction"] for run in step["runs"]] == ["upgrade"]

    async def test_an_unknown_revision_is_not_found(self, client: httpx.AsyncClient) -> None:
        said = assert_problem(await client.get("/api/migrations/revisions/nothing"), 404, "not-found")
        assert "There is no revision 'nothing'" in said

    async def test_of_nothing_pending_the_plan_has_nothing(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/migrations/plan")
        assert answer.status_code == 200
        assert answer.json()["revisions"] == []


class TestBackground:
    async def test_it_is_paused_and_resumed_and_both_are_in_the_audit(
        self, client: httpx.AsyncClient, work: int, database: asyncpg.Connection
    ) -> None:
        paused = await client.post(f"/api/migrations/background/{work}/pause")
        assert (paused.status_code, paused.json()["state"]) == (200, "paused")
        assert await state_of(database, work) == "paused"
        said = assert_problem(await client.post(f"/api/migrations/background/{work}/pause"), 409, "conflict")
        assert f"Background work {work} is paused, so there is nothing to pause" in said
        resumed = await client.post(f"/api/migrations/background/{work}/resume")
        assert (resumed.status_code, resumed.json()["state"]) == (200, "pending")
        entries = await database.fetch(
            "SELECT action, actor, how FROM audit_log WHERE object_kind = 'background' AND object_id = $1 ORDER BY id",
            str(work),
        )
        assert [tuple(entry) for entry in entries] == [("pause", "root", "api"), ("resume", "root", "api")]

    @pytest.mark.parametrize("number", [0, 4711, 2**63, 2**80])
    async def test_what_is_not_there_is_not_found(self, client: httpx.AsyncClient, number: int) -> None:
        said = assert_problem(await client.post(f"/api/migrations/background/{number}/pause"), 404, "not-found")
        assert f"There is no background work {number}" in said


class TestArchive:
    async def test_it_is_empty_and_an_unknown_one_is_not_found(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/api/migrations/archives")).json() == []
        path = "/api/migrations/archives/1/entries/1"
        assert "There is no archive 1" in assert_problem(await client.get(path), 404, "not-found")
        assert_problem(await client.get(path, params={"cursor": "(0,1); DROP"}), 400, "invalid-input", field="cursor")
        assert_problem(await client.get(path, params={"page": "2"}), 400, "invalid-input", field="page")

    async def test_a_look_that_finds_nothing_is_no_entry(
        self, client: httpx.AsyncClient, database: asyncpg.Connection
    ) -> None:
        await client.get("/api/migrations/archives/4711/entries/1")
        assert await database.fetchval("SELECT count(*) FROM audit_log WHERE object_id = '4711'") == 0


class TestPages:
    async def test_a_viewer_sees_everything_and_no_button(self, role_client: RoleClient, work: int) -> None:
        viewer = await role_client("viewer")
        shown = await viewer.get("/ui/schema")
        assert shown.status_code == 200
        assert "Backfill of" in shown.text
        assert "Pause" not in shown.text
        assert "/ui/schema/plan" not in shown.text

    @pytest.mark.parametrize(
        ("path", "least"),
        [
            ("POST /ui/schema/plan", "operator"),
            ("POST /ui/schema/background/{work}/pause", "operator"),
            ("POST /ui/schema/background/{work}/resume", "operator"),
            ("GET /ui/schema/archives/1/entries/1", "admin"),
        ],
    )
    async def test_who_may_not_is_refused(
        self, role_client: RoleClient, work: int, database: asyncpg.Connection, path: str, least: str
    ) -> None:
        method, _, template = path.partition(" ")
        for role in ("viewer", "operator")[: 1 if least == "operator" else 2]:
            answer = await (await role_client(role)).request(method, template.format(work=work))
            assert answer.status_code == 403
            assert "this needs the role" in answer.text
        assert await state_of(database, work) == "pending"

    async def test_an_operator_pauses_and_resumes(
        self, role_client: RoleClient, work: int, database: asyncpg.Connection
    ) -> None:
        operator = await role_client("operator")
        assert "Pause" in (await operator.get("/ui/schema")).text
        paused = await operator.post(f"/ui/schema/background/{work}/pause")
        assert (paused.status_code, paused.headers["location"]) == (303, "/ui/schema")
        assert await state_of(database, work) == "paused"
        assert "Resume" in (await operator.get("/ui/schema")).text
        assert (await operator.post(f"/ui/schema/background/{work}/resume")).status_code == 303
        assert await state_of(database, work) == "pending"
        refused = await operator.post(f"/ui/schema/background/{work}/resume")
        assert refused.status_code == 409
        assert "nothing to resume" in refused.text

    async def test_names_are_harmless_and_the_page_stays_small(
        self, client: httpx.AsyncClient, work: int, database: asyncpg.Connection
    ) -> None:
        failures = [HOSTILE] * 12
        await database.executemany(
            "INSERT INTO migration_failures (error, release) VALUES ($1, $1)", [(error,) for error in failures]
        )
        try:
            shown = await client.get("/ui/schema")
        finally:
            await database.execute("DELETE FROM migration_failures")
        assert shown.status_code == 200
        assert "<script>alert" not in shown.text
        assert "&lt;script&gt;alert(1)" in shown.text
        assert len(shown.content) < LONGEST_PAGE

    async def test_a_long_chain_is_shown_page_by_page(self, client: httpx.AsyncClient) -> None:
        first = await client.get("/ui/schema")
        assert "1 to 15 of" in first.text
        assert "cab3c15ef1e1" not in first.text
        second = await client.get("/ui/schema?revisions=2")
        assert "cab3c15ef1e1" in second.text
        assert "Nothing is here" in (await client.get("/ui/schema?revisions=900")).text
        assert (await client.get("/ui/schema?revisions=0")).status_code == 400

    async def test_a_revision_and_drift(self, client: httpx.AsyncClient) -> None:
        shown = await client.get("/ui/schema/revisions/cab3c15ef1e1")
        assert "CREATE TABLE openai_backends" in shown.text
        assert "gasket database downgrade base" in shown.text
        assert "none: the live database is what the revisions left" in (await client.get("/ui/schema?drift=true")).text
        assert (await client.get("/ui/schema/revisions/%3Cscript%3E")).status_code == 404
