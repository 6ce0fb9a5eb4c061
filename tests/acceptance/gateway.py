"""A replica that tests share, keys with upstreams of their own, and a client that sends and reads bytes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.acceptance import upstream as scripted
from tests.acceptance.http11 import Headers, Message, compose, read_body, read_head
from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import Replica
from tests.acceptance.upstream import Upstream

CHAT = "/v1/chat/completions"
HELLO = {"model": "model-a", "messages": [{"role": "user", "content": "hello"}]}
_numbers = itertools.count(1)


class Wire:
    """One connection to a replica."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, within: float = 30.0) -> Message:
        """Start line and headers of the next answer."""
        return await asyncio.wait_for(read_head(self.reader), within)

    async def answer(self, within: float = 60.0) -> Message:
        """The next answer; ones that come before it (1xx) are skipped."""
        while (message := await self.head(within)).start.split(" ")[1].startswith("1"):
            pass
        bodiless = message.status in (204, 304)
        return message if bodiless else await self.body(message, within)

    async def body(self, message: Message, within: float = 60.0) -> Message:
        """The rest of an answer whose head has been read."""
        return await asyncio.wait_for(read_body(self.reader, message, until_end=True), within)

    async def ended(self, within: float = 30.0) -> bytes:
        """Wait for the end of the connection; returns what still came."""
        try:
            return await asyncio.wait_for(self.reader.read(), within)
        except ConnectionError:
            return b""


@asynccontextmanager
async def wire(replica: Replica) -> AsyncIterator[Wire]:
    """A connection, which is closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(replica.base_url).port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def request(
    key: str | None, path: str = CHAT, body: Any = HELLO, *, method: str | None = None, headers: Headers = ()
) -> bytes:
    """A request as bytes: POST with a body of bytes or of what becomes JSON, GET with None."""
    fields = [("Host", "gasket.test"), *([("Authorization", f"Bearer {key}")] if key else []), *headers]
    names = {name.lower() for name, _ in fields}
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        fields.append(("Content-Length", str(len(data))))
    if body is not None and "content-type" not in names:
        fields.append(("Content-Type", "application/json"))
    return compose(f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", fields, data)


@dataclass
class Tenant:
    """A key with a profile and backends of its own: what one test does to it, no other test sees."""

    replica: Replica
    api: httpx.AsyncClient
    upstreams: Sequence[Upstream]
    backends: Sequence[int]
    profile: int
    key: str
    key_id: int

    @property
    def upstream(self) -> Upstream:
        """The first one."""
        return self.upstreams[0]

    def wire(self) -> Any:
        """A connection to the replica, as a context."""
        return wire(self.replica)

    def request(
        self, path: str = CHAT, body: Any = HELLO, *, method: str | None = None, headers: Headers = ()
    ) -> bytes:
        """A request with this key."""
        return request(self.key, path, body, method=method, headers=headers)

    async def ask(
        self, path: str = CHAT, body: Any = HELLO, *, method: str | None = None, headers: Headers = ()
    ) -> Message:
        """The answer to one request on a connection of its own."""
        return await exchange(self.replica, self.request(path, body, method=method, headers=headers))

    async def ask_and_log(self, body: Any = HELLO, *, headers: Headers = ()) -> tuple[Message, dict[str, Any]]:
        """An answer, and the line that the replica has logged of it."""
        got = await self.ask(body=body, headers=headers)
        return got, await self.line(got)

    async def line(self, answer: Message) -> dict[str, Any]:
        """The one line of this answer, which comes when the request has ended."""
        return await self.replica.log_line(request_id=answer.one("x-gasket-request-id"))

    async def backend(self, number: int = 0) -> dict[str, Any]:
        """What `/api/backends` shows."""
        return await created(await self.api.get(f"/backends/{self.backends[number]}"), 200)


async def exchange(replica: Replica, data: bytes) -> Message:
    """Send these bytes on a connection of their own and read the answer."""
    async with wire(replica) as connection:
        await connection.send(data)
        answer: Message = await connection.answer()
        return answer


async def created(response: httpx.Response, status: int = 201) -> dict[str, Any]:
    """What the administration API answered, which has to have this status."""
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    return body


class Gateway:
    """A replica, and the tenants of the test that uses it."""

    def __init__(self, installation: Installation, replica: Replica, client: httpx.AsyncClient) -> None:
        self.installation = installation
        self.replica = replica
        self.api = client
        self.stack = AsyncExitStack()

    @property
    def memory(self) -> float:
        """The replica's resident set, in MiB."""
        return float(psutil.Process(self.replica.pid).memory_info().rss / 2**20)

    async def tenant(
        self,
        *scripts: dict[str, Any],
        base_path: str = "/v1",
        backend: dict[str, Any] | None = None,
        **profile: Any,
    ) -> Tenant:
        """One more: an upstream for each script (the arguments of `Upstream`), else one with the usual script.

        `backend` holds fields for each of its backends, and the other keyword arguments are the profile's.
        """
        upstreams = [await self.stack.enter_async_context(scripted.serving(**script)) for script in scripts or ({},)]
        urls = [upstream.origin + base_path for upstream in upstreams]
        return await self.tenant_of(upstreams, urls, backend=backend, **profile)

    async def tenant_of(
        self,
        upstreams: Sequence[Upstream],
        urls: Sequence[str],
        *,
        backend: dict[str, Any] | None = None,
        **profile: Any,
    ) -> Tenant:
        """One more whose backends have these base URLs."""
        backends = []
        for url in urls:
            fields = {"name": f"backend {next(_numbers)}", "base_url": url, "api_key": "sk-upstream", **(backend or {})}
            backends.append((await created(await self.api.post("/backends", json=fields)))["id"])
        fields = {"name": f"profile {next(_numbers)}", "backends": backends, **profile}
        profile_id = (await created(await self.api.post("/profiles", json=fields)))["id"]
        issued = await self.issue(profile_id)
        return Tenant(self.replica, self.api, upstreams, backends, profile_id, issued["key"], issued["id"])

    async def issue(self, profile: int, **fields: Any) -> dict[str, Any]:
        """A key for a profile."""
        body = {"user_email": "ada@example.com", "name": "a key", "profile_id": profile, **fields}
        return await created(await self.api.post("/keys", json=body))


@asynccontextmanager
async def gateway_on(installation: Installation, replica: Replica) -> AsyncIterator[Gateway]:
    """A gateway with a replica that has been started; tenants' upstreams end with the context."""
    await replica.ready()
    async with api(replica) as client:
        gateway = Gateway(installation, replica, client)
        async with gateway.stack:
            yield gateway
