"""`gasket users erase` beside replicas that serve: keys end everywhere, and the command names nobody."""

from __future__ import annotations

from tests.acceptance.gateway import Gateway, exchange, request
from tests.acceptance.installation import Installation
from tests.acceptance.processes import until
from tests.conftest import rewrite_url

ADDRESS = "grace.hopper@example.org"


async def test_an_erased_persons_key_ends_on_every_replica_within_two_seconds(gateway: Gateway) -> None:
    other = gateway.installation.replica()
    await other.ready()
    tenant = await gateway.tenant()
    key = (await gateway.issue(tenant.profile, user_email=ADDRESS))["key"]
    assert (await exchange(other, request(key))).status == 200

    done = await gateway.installation.run("gasket", "users", "erase", "--no-prompt", ADDRESS.upper())
    assert done.exit_code == 0, done.output
    assert "1 keys were revoked" in done.output
    assert "api_keys: 1 rows" in done.output

    async def refused() -> bool:
        return (await exchange(other, request(key))).error == (401, "revoked_api_key")

    await until(refused, 2.0, "a revoked key")

    # The usage of the request is written within seconds, whether before or after the erasure: then it is done again.
    async def nowhere() -> bool:
        again = await gateway.api.delete(f"/users/{ADDRESS}")
        assert again.status_code == 200
        usage = (await gateway.api.get("/usage", params={"user": ADDRESS})).json()
        return not usage["items"]

    await until(nowhere, 30, "no usage of the address")
    await other.stop()
    assert ADDRESS not in done.output.lower() + other.output.lower()
    entries = (await gateway.api.get("/audit", params={"action": "erasure", "object": "person"})).json()["items"]
    assert {entry["how"] for entry in entries} >= {"command", "api"}


async def test_without_a_terminal_or_an_address_nobody_is_erased(installation: Installation) -> None:
    await installation.migrate()
    for arguments, told in (([ADDRESS], "--no-prompt"), (["--no-prompt", "grace"], "must be an address")):
        refused = await installation.run("gasket", "users", "erase", *arguments)
        assert refused.exit_code == 1
        assert told in refused.line
        assert "Traceback" not in refused.output


async def test_archives_of_another_role_are_named(installation: Installation) -> None:
    """The application's role need not own what a downgrade has archived."""
    await installation.migrate()
    look = await installation.look()
    await look.execute(
        "CREATE SCHEMA gasket_archive; CREATE TABLE gasket_archive.a_1 (id int, user_email text);"
        f"INSERT INTO gasket_archive.a_1 VALUES (1, '{ADDRESS}')"
    )
    name = f"app_{(await look.fetchval('SELECT current_database()'))[-12:]}"
    await look.execute(
        f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA public TO {name};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"
    )
    try:
        url = rewrite_url(installation.database_url, user=name, password="x")
        done = await installation.run(
            "gasket", "users", "erase", "--no-prompt", ADDRESS, settings={"DATABASE_URL": url}
        )
        assert done.exit_code == 1
        assert "archived table a_1" in done.output
        whole = await installation.run("gasket", "users", "erase", "--no-prompt", ADDRESS)
        assert whole.exit_code == 0
        assert "archive a_1: 1 rows" in whole.output
    finally:
        await look.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
