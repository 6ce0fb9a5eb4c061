"""Lists of models, from servers of this process."""

from __future__ import annotations

import asyncio

from gasket.proxy.model_lists import ModelLists
from gasket.upstream.client import UpstreamClient
from tests.access import a_backend, a_profile

LIST = b'{"object":"list","data":[{"id":"m"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(LIST), LIST)


async def test_nobody_waits_for_a_list_of_the_backend_as_it_was() -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await over.wait()
        writer.close()

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    client = UpstreamClient()
    lists = ModelLists(client)
    async with (
        await asyncio.start_server(silent, "127.0.0.1", 0) as before,
        await asyncio.start_server(answering, "127.0.0.1", 0) as after,
    ):
        old, new = [
            a_backend(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") for server in (before, after)
        ]
        first = asyncio.ensure_future(lists.merged(a_profile(old)))
        await asked.wait()
        async with asyncio.timeout(8):
            models, without = await lists.merged(a_profile(new))
        assert (list(models), without) == (["m"], [])
        over.set()
        models, without = await first
        assert (list(models), without) == ([], [old])
    await client.close()
