"""Two releases on one database: rolling deploys, rollbacks without the newer files, and no boomerang.

The older release is the same code with fewer migration files, which is what tells two releases apart for the
migrator; code that was built from an earlier commit is no part of this suite.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import Replica, until

ROLLBACK = ("gasket", "database", "rollback")

_ADD_COLUMN = 'op.add_column("openai_backends", sa.Column("region", sa.Text(), nullable=True))'
_DROP_COLUMN = 'op.drop_column("openai_backends", "region")'
_ADD_INDEX = """
with op.get_context().autocommit_block():
    op.create_index("ix_region", "openai_backends", ["region"], postgresql_concurrently=True)
"""
_DROP_INDEX = """
with op.get_context().autocommit_block():
    op.drop_index("ix_region", postgresql_concurrently=True)
"""
_ASK_FIRST = 'if op.get_bind().execute(sa.text("SELECT 1")).scalar():\n    op.drop_table("asking")'


@pytest.fixture
async def older(install: Callable[..., Awaitable[Installation]]) -> Installation:
    """Release 1.0, with the revisions that we ship."""
    installation = await install()
    installation.settings["GASKET_RELEASE"] = "1.0"
    return installation


@pytest.fixture
async def newer(install: Callable[..., Awaitable[Installation]], older: Installation) -> Installation:
    """Release 2.0 on the same database: a nullable column, and an index on it that is built concurrently."""
    return await _release(install, older, "2.0")


async def _release(install: Callable[..., Awaitable[Installation]], older: Installation, name: str) -> Installation:
    installation = await install(older.database_url)
    installation.settings["GASKET_RELEASE"] = name
    installation.project.add_revision("add_region", _ADD_COLUMN, _DROP_COLUMN)
    installation.project.add_revision("index_region", _ADD_INDEX, _DROP_INDEX)
    return installation


async def test_an_older_release_serves_on_a_compatible_schema_and_warns(
    older: Installation, newer: Installation
) -> None:
    await older.migrate()
    await newer.migrate()
    replica = older.replica()
    answer = await replica.ready()
    assert (answer["state"], answer["revision"]) == ("ahead", "index_region")
    async with api(replica) as client:
        made = await client.post("/backends", json={"name": "one", "base_url": "https://example.com"})
        assert made.status_code == 201, made.text
    [warning] = [line for line in replica.output.splitlines() if "WARNING" in line]
    for part in ("release 1.0", "add_region by release 2.0", "index_region by release 2.0", "compatible"):
        assert part in warning
    upgraded = await older.run("gasket", "database", "upgrade")
    assert upgraded.exit_code == 0, upgraded.output
    assert await newer.versions() == ["index_region"]


async def test_an_older_release_refuses_an_incompatible_schema_and_names_both_ways_out(
    older: Installation, newer: Installation
) -> None:
    """The one that it cannot run on is named, though it is neither the newest nor alone."""
    newer.project.add_table("breaking", backward_compatible=False)
    newer.project.add_table("harmless")
    await newer.migrate()
    said = await older.replica().refused()
    for part in (
        "revision breaking",
        "applied by release 2.0",
        "this release 1.0",
        "not backward compatible",
        "nothing was changed",
        "Deploy release 2.0 or a later one",
        "litestar database rollback",
    ):
        assert part in said, part
    for command in ("alembic upgrade head", "gasket database upgrade", "gasket database plan"):
        done = await older.run(*command.split())
        assert done.exit_code > 0, command
        assert "revision breaking" in done.line, command
    assert await newer.versions() == ["harmless"]


async def test_a_rollback_without_the_newer_files_is_kept_until_somebody_lifts_it(
    install: Callable[..., Awaitable[Installation]], older: Installation, newer: Installation
) -> None:
    newer.project.add_table("breaking", backward_compatible=False)
    await older.migrate()
    await newer.migrate()
    look = await newer.look()
    await look.execute("INSERT INTO openai_backends (name, base_url, region) VALUES ('one', 'https://a.example', 'eu')")
    before = await newer.ledger()

    refused = await older.run(*ROLLBACK)
    assert refused.exit_code > 0
    assert "--no-prompt" in refused.line
    assert await newer.ledger() == before

    # The older release brings the schema back, newest first, and serves.
    done = await older.run(*ROLLBACK, "--no-prompt")
    assert done.exit_code == 0, done.output
    for part in ("DROP TABLE breaking", "DROP INDEX CONCURRENTLY ix_region", "DROP COLUMN region"):
        assert part in done.line
    assert "Taken back: breaking, index_region, add_region" in done.line
    taken_back = [(revision, "downgrade") for revision in ("breaking", "index_region", "add_region")]
    assert await newer.ledger() == before + taken_back
    assert await older.versions() == older.project.shipped[-1:]
    assert not await older.has_table("breaking")
    assert not await older.has_table("ix_region")
    assert (await older.replica().ready())["state"] == "at_head"

    # The newer release does not come back by itself: no boomerang.
    said = await newer.replica().refused()
    taken_back_at = await look.fetchval(
        "SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') "
        "FROM migration_ledger WHERE revision = 'breaking' ORDER BY id DESC LIMIT 1"
    )
    role = await look.fetchval("SELECT current_user")
    for part in (
        "Revision breaking, the head of this release 2.0",
        f"taken back at {taken_back_at}",
        f"by {role}",
        "release 2.0 had applied it",
        "nothing was changed",
        "litestar database upgrade",
    ):
        assert part in said, part
    assert await older.versions() == older.project.shipped[-1:]

    # An explicit upgrade lifts it, and the rows are back.
    lifted = await newer.run("gasket", "database", "upgrade")
    assert lifted.exit_code == 0, lifted.output
    assert (await newer.replica().ready())["state"] == "at_head"
    assert await look.fetchval("SELECT region FROM openai_backends") == "eu"

    # Rolled back again, a release that has a revision on top upgrades without being asked.
    assert (await older.run(*ROLLBACK, "--no-prompt")).exit_code == 0
    newest = await _release(install, older, "3.0")
    newest.project.add_table("breaking", backward_compatible=False)
    newest.project.add_table("mended")
    assert (await newest.replica().ready())["revision"] == "mended"
    assert await look.fetchval("SELECT region FROM openai_backends") == "eu"
    assert await look.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_region'::regclass")


async def test_a_rollback_goes_no_further_than_it_is_told(older: Installation, newer: Installation) -> None:
    await newer.migrate()
    done = await older.run(*ROLLBACK, "--no-prompt", "add_region")
    assert done.exit_code == 0, done.output
    assert await newer.versions() == ["add_region"]
    assert "Taken back: index_region" in done.line
    assert await older.holder() is None


async def test_a_rollback_where_nothing_is_newer_does_nothing(older: Installation, newer: Installation) -> None:
    """Neither with a goal that a downgrade would go to."""
    await newer.migrate()
    for goal in ([], ["add_region"]):
        done = await newer.run(*ROLLBACK, "--no-prompt", *goal)
        assert done.exit_code == 0, done.output
        assert "Nothing" in done.line
        assert "DROP" not in done.line, done.output
    assert await newer.versions() == ["index_region"]


async def test_one_revision_that_needs_its_file_keeps_all_of_a_rollback_from_starting(
    older: Installation, newer: Installation
) -> None:
    newer.project.add_revision(
        "asking", 'op.create_table("asking", sa.Column("id", sa.Integer(), primary_key=True))', _ASK_FIRST
    )
    newer.project.add_table("on_top")
    await newer.migrate()
    before = await newer.ledger()
    done = await older.run(*ROLLBACK, "--no-prompt")
    assert done.exit_code > 0
    assert "Traceback" not in done.output
    for part in ("Revision asking", "uses the result of a statement", "nothing was changed", "with release 2.0"):
        assert part in done.line, part
    assert await newer.ledger() == before
    assert await newer.versions() == ["on_top"]
    assert await newer.has_table("on_top")
    # The release that has the file can.
    done = await newer.run("gasket", "database", "downgrade", "--no-prompt", older.project.shipped[-1])
    assert done.exit_code == 0, done.output
    assert (await older.replica().ready())["state"] == "at_head"


async def test_a_rolling_deploy_and_the_way_back_fail_no_request(older: Installation, newer: Installation) -> None:
    first = await _started(older)
    async with _traffic(first) as traffic:
        await traffic.goes_on()
        second = [newer.replica(), newer.replica()]
        for replica in second:
            assert (await replica.ready())["state"] == "at_head"
            traffic.rotation.append(replica)

        async def ahead() -> bool:
            return [(await replica.ready())["state"] for replica in first] == ["ahead", "ahead"]

        await until(ahead, 10, "the older replicas to see the newer schema: an answer may be a second old")
        for replica in first:
            await traffic.goes_on()
            await traffic.take_out(replica)
        await traffic.goes_on()

        # And back: the older release serves on the newer schema first, then brings it back under the traffic.
        third = await _started(older)
        traffic.rotation += third
        for replica in second:
            await traffic.goes_on()
            await traffic.take_out(replica)
        await traffic.goes_on()
        done = await older.run(*ROLLBACK, "--no-prompt")
        assert done.exit_code == 0, done.output
        await traffic.goes_on()
    assert traffic.failures == []
    assert await older.versions() == older.project.shipped[-1:]
    assert {replica: answered > 0 for replica, answered in traffic.answered.items()} == dict.fromkeys(
        [*first, *second, *third], True
    )
    rows = await (await older.look()).fetch("SELECT name FROM openai_backends")
    assert {row["name"] for row in rows} == traffic.made


async def _started(installation: Installation) -> list[Replica]:
    replicas = [installation.replica(), installation.replica()]
    await asyncio.gather(*(replica.ready() for replica in replicas))
    return replicas


class _Traffic:
    """Some requests at once, all the time, to the replicas in `rotation`: what a load balancer lets through."""

    def __init__(self, rotation: Iterable[Replica]) -> None:
        self.rotation = list(rotation)
        self.failures: list[str] = []
        self.made: set[str] = set()
        self.answered: Counter[Replica] = Counter()
        self.over = False
        self._under_way: Counter[Replica] = Counter()
        self._turn = itertools.count()
        self._numbers = itertools.count()
        self._clients: dict[Replica, httpx.AsyncClient] = {}

    async def goes_on(self, requests: int = 30) -> None:
        """Wait for so many more answers."""
        goal = self.answered.total() + requests
        await until(lambda: self.answered.total() >= goal or bool(self.failures), 30, "answers")

    async def take_out(self, replica: Replica) -> None:
        """No more requests; end it once those under way are answered."""
        self.rotation.remove(replica)
        await until(lambda: not self._under_way[replica], 10, "the last answer of a replica")
        replica.signal(signal.SIGTERM)
        await replica.exited(within=15)

    async def work(self) -> None:
        """One after the other, until it is over: make a backend, read it, change it, list."""
        while not self.over:
            name = f"backend-{next(self._numbers)}"
            made = await self._send("POST", "/backends", {"name": name, "base_url": "https://example.com"})
            if made is not None:
                self.made.add(name)
                path = f"/backends/{made.json()['id']}"
                await self._send("GET", path)
                await self._send("PATCH", path, {"base_url": "https://changed.example.com"})
            await self._send("GET", "/backends")

    async def _send(self, method: str, path: str, body: dict[str, str] | None = None) -> httpx.Response | None:
        replica = self.rotation[next(self._turn) % len(self.rotation)]
        self._under_way[replica] += 1
        try:
            response = await self._client(replica).request(method, path, json=body)
        except httpx.HTTPError as error:
            self.failures.append(f"{method} {path}: {error!r}")
            return None
        finally:
            self._under_way[replica] -= 1
        self.answered[replica] += 1
        if response.is_success:
            return response
        self.failures.append(f"{method} {path}: {response.status_code} {response.text}")
        return None

    def _client(self, replica: Replica) -> httpx.AsyncClient:
        return self._clients.setdefault(replica, api(replica))

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


@asynccontextmanager
async def _traffic(rotation: Iterable[Replica]) -> AsyncIterator[_Traffic]:
    traffic = _Traffic(rotation)
    workers = [asyncio.create_task(traffic.work()) for _ in range(3)]
    try:
        yield traffic
    finally:
        traffic.over = True
        try:
            await asyncio.wait_for(asyncio.gather(*workers), 60)
        finally:
            await traffic.close()
