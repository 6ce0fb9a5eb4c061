"""Steady traffic on `/api`, through a load balancer of which a test decides whom it knows."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from tests.acceptance.installation import api
from tests.acceptance.processes import Replica, until


class _FailedError(Exception):
    """A request failed, and its failure is written down."""


class Traffic:
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
        """Wait for so many more answers, or for the first failure."""
        goal = self.answered.total() + requests
        await until(lambda: self.answered.total() >= goal or bool(self.failures), 60, "answers")

    async def take_out(self, replica: Replica) -> None:
        """No more requests; end it once those under way are answered."""
        self.rotation.remove(replica)
        await until(lambda: not self._under_way[replica], 30, "the last answer of a replica")
        replica.signal(signal.SIGTERM)
        await replica.exited(within=30)

    async def work(self) -> None:
        """One after the other, until it is over or a request has failed: requests to every table, that read and write.

        A backend is made and changed, a profile of it made, and a key of that made, rotated and revoked.
        """
        with suppress(_FailedError):
            while not self.over:
                name = f"number-{next(self._numbers)}"
                backend = await self._send("POST", "/backends", name=name, base_url="https://example.com")
                self.made.add(name)
                await self._send("PATCH", f"/backends/{backend['id']}", base_url="https://changed.example.com")
                profile = await self._send("POST", "/profiles", name=name, backends=[backend["id"]])
                await self._send("GET", f"/profiles/{profile['id']}")
                key = await self._send(
                    "POST", "/keys", user_email="ada@example.com", name=name, profile_id=profile["id"]
                )
                await self._send("POST", f"/keys/{key['id']}/rotate")
                await self._send("POST", f"/keys/{key['id']}/revoke", revoked_by="security@example.com")
                await self._send("GET", "/keys?user=ada@example.com&sortOrder=desc")

    async def _send(self, method: str, path: str, **body: object) -> dict[str, Any]:
        replica = self.rotation[next(self._turn) % len(self.rotation)]
        self._under_way[replica] += 1
        try:
            response = await self._client(replica).request(method, path, json=body or None)
        except httpx.HTTPError as error:
            self.failures.append(f"{method} {path}: {error!r}")
            raise _FailedError from error
        finally:
            self._under_way[replica] -= 1
        self.answered[replica] += 1
        if not response.is_success:
            self.failures.append(f"{method} {path}: {response.status_code} {response.text}")
            raise _FailedError
        answer: dict[str, Any] = response.json()
        return answer

    def _client(self, replica: Replica) -> httpx.AsyncClient:
        return self._clients.setdefault(replica, api(replica))

    async def close(self) -> None:
        """Close the connections to the replicas."""
        for client in self._clients.values():
            await client.aclose()


@asynccontextmanager
async def traffic_on(rotation: Iterable[Replica]) -> AsyncIterator[Traffic]:
    """Three requests at once while the block runs; at its end all are answered."""
    traffic = Traffic(rotation)
    workers = [asyncio.create_task(traffic.work()) for _ in range(3)]
    try:
        yield traffic
    finally:
        traffic.over = True
        try:
            await asyncio.wait_for(asyncio.gather(*workers), 60)
        finally:
            await traffic.close()
