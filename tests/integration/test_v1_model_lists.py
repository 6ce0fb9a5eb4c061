"""Lists of models, from servers of this process."""

from __future__ import annotations

import asyncio

import pytest

from gasket.proxy.model_lists import ModelLists
from gasket.upstream.client import UpstreamClient
from tests.acceptance.upstream import Answer, answer, failure, models, serving
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


@pytest.mark.parametrize("unreadable", [failure(404), failure(503), answer(b"no list"), answer(b"x", status=302)])
async def test_a_list_that_cannot_be_read_changes_no_place(unreadable: Answer) -> None:
    client = UpstreamClient()
    lists = ModelLists(client)
    async with serving(listing=unreadable) as silent, serving(listing=models("other")) as other, serving() as last:
        backends = [
            a_backend(id=number, base_url=upstream.origin) for number, upstream in enumerate((silent, other, last))
        ]
        for _ in range(2):
            assert await lists.serving(backends, "model-a") == [backends[0], backends[2]]
    await client.close()


async def test_a_backend_that_is_set_aside_is_not_asked() -> None:
    client = UpstreamClient()
    lists = ModelLists(client)
    async with serving(listing=models("one")) as used, serving(listing=models("other")) as unused:
        backend = a_backend(id=1, base_url=used.origin)
        aside = a_backend(id=2, base_url=unused.origin, set_aside=True)
        found, without = await lists.merged(a_profile(aside, backend))
        assert (list(found), without) == (["one"], [aside])
        assert unused.connections == 0
    await client.close()
