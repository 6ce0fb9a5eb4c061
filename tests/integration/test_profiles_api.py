from __future__ import annotations

import asyncio

import asyncpg
import httpx
import pytest

from .conftest import Post, assert_problem

URL = "https://api.example.com/v1"


@pytest.fixture
async def backends(post: Post) -> list[int]:
    """The ids of three backends."""
    return [(await post("/api/backends", name=name, base_url=URL))["id"] for name in ("a", "b", "c")]


async def test_the_name_is_enough(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/profiles", json={"name": "team"})
    assert response.status_code == 201
    profile = response.json()
    assert profile.pop("created_at").endswith("Z")
    assert profile == {
        "id": profile["id"],
        "name": "team",
        "description": None,
        "backends": [],
        "allowed_models": [],
        "default_expiry_days": None,
        "enforce_expiry": False,
        "max_keys_per_user": None,
        "open_to_groups": None,
        "requests_per_minute": None,
        "tokens_per_window": None,
        "token_window": 60,
        "max_concurrency": None,
        "allow_stateful_endpoints": False,
        "routing": "ordered",
        "user_header": None,
        "claim_rules": [],
    }
    assert (await client.get(f"/api/profiles/{profile['id']}")).json() == response.json()


async def test_every_field_is_kept(client: httpx.AsyncClient, post: Post, backends: list[int]) -> None:
    fields = {
        "name": "team",
        "description": "Two lines,\nand 👩‍💻.",
        "backends": [backends[2], backends[0]],
        "allowed_models": ["small", "large"],
        "default_expiry_days": 90,
        "enforce_expiry": True,
        "max_keys_per_user": 5,
        "open_to_groups": ["data science", "/staff/ai"],
        "allow_stateful_endpoints": True,
        "routing": "sticky",
        "user_header": "X-End-User",
        "claim_rules": [{"issuer": "https://a.example", "claim": "/a.b/c~1d", "pattern": "x  y*"}],
    }
    profile = await post("/api/profiles", **fields)
    assert {name: profile[name] for name in fields} == fields
    assert (await client.get("/api/profiles")).json()["items"] == [profile]


async def test_the_order_of_backends_is_kept_and_replaced(
    client: httpx.AsyncClient, post: Post, backends: list[int]
) -> None:
    profile = await post("/api/profiles", name="team", backends=backends)
    path = f"/api/profiles/{profile['id']}"
    for wanted in (backends[::-1], backends[:1], [backends[1], backends[0]], [], backends):
        changed = await client.patch(path, json={"backends": wanted})
        assert changed.json() == profile | {"backends": wanted}
        assert (await client.get(path)).json() == changed.json()
    unchanged = await client.patch(path, json={"name": "crew"})
    assert unchanged.json()["backends"] == backends


async def test_a_patch_clears_with_null_and_keeps_what_it_does_not_name(client: httpx.AsyncClient, post: Post) -> None:
    profile = await post(
        "/api/profiles", name="team", description="x", default_expiry_days=3, max_keys_per_user=2, allowed_models=["m"]
    )
    path = f"/api/profiles/{profile['id']}"
    assert (await client.patch(path, json={})).json() == profile
    cleared: dict[str, object] = {
        "description": None,
        "default_expiry_days": None,
        "max_keys_per_user": None,
        "allowed_models": [],
    }
    assert (await client.patch(path, json=cleared)).json() == profile | cleared


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None),
        ("name", ""),
        ("name", "team "),
        ("name", "n" * 101),
        ("description", "nul \0"),
        ("description", "d" * 2001),
        ("backends", None),
        ("backends", "1"),
        ("backends", [4294967296]),
        ("backends", [-1]),
        ("allowed_models", None),
        ("allowed_models", ["same", "same"]),
        ("allowed_models", ["nul \0"]),
        ("allowed_models", ["m*l"]),
        ("routing", "by luck"),
        ("routing", None),
        ("user_header", ""),
        ("claim_rules", [{"issuer": "http://a.example", "claim": "sub", "pattern": "*"}]),
        ("claim_rules", None),
        ("user_header", "x user"),
        ("user_header", "Authorization"),
        ("user_header", "x-api-key"),
        ("user_header", "cookie"),
        ("user_header", "Content-Type"),
        ("allowed_models", ["m**"]),
        ("default_expiry_days", 0),
        ("default_expiry_days", 36501),
        ("enforce_expiry", None),
        ("enforce_expiry", True),
        ("allow_stateful_endpoints", None),
        ("allow_stateful_endpoints", 1),
        ("open_to_groups", []),
        ("open_to_groups", ["a "]),
        ("open_to_groups", ["a", "a"]),
        ("open_to_groups", "staff"),
        ("max_keys_per_user", 0),
        ("max_keys_per_user", -1),
        ("max_keys_per_user", 2**31),
        ("max_keys_per_user", 1.5),
    ],
)
async def test_values_are_checked_when_made_and_when_changed(
    client: httpx.AsyncClient, post: Post, field: str, value: object
) -> None:
    created = await client.post("/api/profiles", json={"name": "new", field: value})
    profile = await post("/api/profiles", name="team")
    changed = await client.patch(f"/api/profiles/{profile['id']}", json={field: value})
    for response in (created, changed):
        assert_problem(response, 400, "invalid-input", field=field)


@pytest.mark.parametrize("change", [{"claim": "s b"}, {"claim": ""}, {"pattern": ""}, {"pattern": 1}])
async def test_the_claim_rule_at_fault_is_named(client: httpx.AsyncClient, change: dict[str, object]) -> None:
    rule = {"issuer": "https://a.example", "claim": "sub", "pattern": "*"}
    response = await client.post("/api/profiles", json={"name": "new", "claim_rules": [rule, rule | change]})
    assert_problem(response, 400, "invalid-input", field=f"claim_rules[1].{next(iter(change))}")


@pytest.mark.parametrize("models", [["m", ""], ["m", "l" * 201], ["m", 5]])
async def test_the_model_at_fault_is_named(client: httpx.AsyncClient, models: list[object]) -> None:
    response = await client.post("/api/profiles", json={"name": "new", "allowed_models": models})
    assert_problem(response, 400, "invalid-input", field="allowed_models[1]")


async def test_rules_that_another_program_has_written_wrongly_hide_no_profile(
    client: httpx.AsyncClient, post: Post, database: asyncpg.Connection
) -> None:
    made = await post("/api/profiles", name="team")
    for wrong in ('[{"issuer": "https://example.com"}]', '["x"]', '{"issuer": 1}', "null"):
        await database.execute("UPDATE backend_profiles SET claim_rules = $1", wrong)
        [shown] = (await client.get("/api/profiles")).json()["items"]
        assert shown["claim_rules"] == [], wrong
        assert (await client.get(f"/ui/profiles/{made['id']}")).status_code == 200, wrong


async def test_backends_have_to_exist_and_be_named_once(
    client: httpx.AsyncClient, post: Post, backends: list[int]
) -> None:
    profile = await post("/api/profiles", name="team", backends=backends)
    unknown = [max(backends) + 1, max(backends) + 2]
    for wanted, said in ((backends + unknown, f"{unknown[0]}, {unknown[1]}"), ([backends[0]] * 2, str(backends[0]))):
        created = await client.post("/api/profiles", json={"name": "other", "backends": wanted})
        changed = await client.patch(f"/api/profiles/{profile['id']}", json={"name": "lost", "backends": wanted})
        for response in (created, changed):
            assert said in assert_problem(response, 400, "invalid-input", field="backends")
    assert (await client.get("/api/profiles")).json()["items"] == [profile]


async def test_an_enforced_expiry_keeps_its_length(client: httpx.AsyncClient, post: Post) -> None:
    profile = await post("/api/profiles", name="team", default_expiry_days=30, enforce_expiry=True)
    path = f"/api/profiles/{profile['id']}"
    assert_problem(
        await client.patch(path, json={"default_expiry_days": None}), 400, "invalid-input", field="enforce_expiry"
    )
    both = await client.patch(path, json={"default_expiry_days": None, "enforce_expiry": False})
    assert both.status_code == 200
    both = await client.patch(path, json={"default_expiry_days": 7, "enforce_expiry": True})
    assert both.status_code == 200


async def test_a_name_is_taken_once(client: httpx.AsyncClient, post: Post) -> None:
    await post("/api/profiles", name="team")
    other = await post("/api/profiles", name="other")
    assert_problem(await client.post("/api/profiles", json={"name": "team"}), 409, "name-taken")
    assert_problem(await client.patch(f"/api/profiles/{other['id']}", json={"name": "team"}), 409, "name-taken")


@pytest.mark.parametrize("profile_id", ["0", "-1", "2147483647", "2147483648", "9" * 30, "abc"])
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, profile_id: str) -> None:
    path = f"/api/profiles/{profile_id}"
    for response in (await client.get(path), await client.patch(path, json={}), await client.delete(path)):
        assert_problem(response, 404, "not-found")


async def test_a_profile_with_keys_stays(
    client: httpx.AsyncClient, post: Post, backends: list[int], database: asyncpg.Connection
) -> None:
    profile = await post("/api/profiles", name="team", backends=backends)
    path = f"/api/profiles/{profile['id']}"
    keys = [
        await post("/api/keys", user_email="ada@example.com", name=name, profile_id=profile["id"])
        for name in ("x", "y")
    ]
    await client.post(f"/api/keys/{keys[0]['id']}/revoke")
    assert "2 keys" in assert_problem(await client.delete(path), 409, "in-use")
    await client.delete(f"/api/keys/{keys[0]['id']}")
    assert "1 key;" in assert_problem(await client.delete(path), 409, "in-use")
    await client.delete(f"/api/keys/{keys[1]['id']}")
    assert (await client.delete(path)).status_code == 204
    assert await database.fetchval("SELECT count(*) FROM profile_backends") == 0


async def test_search_looks_into_names_and_descriptions(client: httpx.AsyncClient, post: Post) -> None:
    await post("/api/profiles", name="red", description="a blue one")
    await post("/api/profiles", name="BLUE")
    await post("/api/profiles", name="green")
    response = await client.get("/api/profiles?searchString=blue&orderBy=name&sortOrder=desc")
    assert {item["name"] for item in response.json()["items"]} == {"red", "BLUE"}
    assert_problem(await client.get("/api/profiles?orderBy=links"), 400, "invalid-input", field="orderBy")


async def test_changes_at_once_take_turns(client: httpx.AsyncClient, post: Post, backends: list[int]) -> None:
    profile = await post("/api/profiles", name="team", backends=backends)
    path = f"/api/profiles/{profile['id']}"
    orders = [backends, backends[::-1], backends[:2], [backends[2]]] * 3
    responses = await asyncio.gather(*(client.patch(path, json={"backends": order}) for order in orders))
    assert [r.json()["backends"] for r in responses] == orders
    assert (await client.get(path)).json()["backends"] in orders


async def test_a_backend_is_linked_or_deleted_never_both(client: httpx.AsyncClient, post: Post) -> None:
    profile = await post("/api/profiles", name="team")
    path = f"/api/profiles/{profile['id']}"
    for attempt in range(10):
        backend = await post("/api/backends", name=f"short-lived {attempt}", base_url=URL)
        linked, deleted = await asyncio.gather(
            client.patch(path, json={"backends": [backend["id"]]}), client.delete(f"/api/backends/{backend['id']}")
        )
        assert (linked.status_code, deleted.status_code) in {(200, 409), (400, 204)}
