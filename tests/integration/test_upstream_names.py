"""How names of backends are looked up: against a name server of the test's own, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gasket.networks import BackendNetworks
from gasket.upstream import names as names_module
from gasket.upstream.address import address_of
from gasket.upstream.client import Timeouts, UpstreamClient
from gasket.upstream.failures import BackendDeniedError, NameNotResolvedError, NotConnectedError
from gasket.upstream.names import Names

A, AAAA = 1, 28
LOOPBACK = b"\x7f\x00\x00\x01"
PATIENT = Timeouts(10, 10, 10)


class NameServer(asyncio.DatagramProtocol):
    """Knows the names in `zone`; None is one that it never answers for. It counts the questions by name and type."""

    def __init__(self, zone: dict[tuple[str, int], bytes | None]) -> None:
        self.zone = zone
        self.asked: Counter[tuple[str, int]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    @property
    def port(self) -> int:
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        labels, place = [], 12
        while size := data[place]:
            labels.append(data[place + 1 : place + 1 + size].decode().lower())
            place += 1 + size
        (kind,) = struct.unpack(">H", data[place + 1 : place + 3])
        name, question = ".".join(labels), data[12 : place + 5]
        self.asked[name, kind] += 1
        if self.zone.get((name, kind), b"") is None:
            return
        address = self.zone.get((name, kind))
        known = any(other == name for other, _ in self.zone)
        flags = b"\x81\x80" if known else b"\x81\x83"
        record = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(address)) + address if address else b""
        counts = struct.pack(">HHHH", 1, bool(record), 0, 0)
        self._transport.sendto(data[:2] + flags + counts + question + record, addr)


@asynccontextmanager
async def names_of(
    zone: dict[tuple[str, int], bytes | None], *, query_seconds: float = 5.0
) -> AsyncIterator[tuple[NameServer, Names]]:
    loop = asyncio.get_running_loop()
    _, server = await loop.create_datagram_endpoint(lambda: NameServer(zone), local_addr=("127.0.0.1", 0))
    # Without `lookups`: pycares 5.2 frees that string before c-ares reads it.
    names = Names(servers=["127.0.0.1"], udp_port=server.port, timeout=query_seconds, tries=1)
    try:
        yield server, names
    finally:
        await names.close()
        server.close()


async def test_silent_names_hold_up_no_other_name() -> None:
    silent = {(f"silent{n}.test", kind): None for n in range(50) for kind in (A, AAAA)}
    async with names_of({**silent, ("good.test", A): LOOPBACK}) as (_, names):
        waiting = [asyncio.create_task(names.addresses(f"silent{n}.test")) for n in range(50)]
        assert await names.addresses("good.test") == ("127.0.0.1",)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_caller_that_gives_up_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # what other tests have left is complained of now, and not below
    caplog.clear()
    async with names_of({("silent.test", A): None, ("silent.test", AAAA): None}, query_seconds=0.2) as (_, names):
        impatient, patient = (asyncio.create_task(names.addresses("silent.test")) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(NameNotResolvedError, match=r"the name silent\.test does not resolve"):
            await patient
        with pytest.raises(asyncio.CancelledError):
            await impatient
    gc.collect()  # which is when asyncio logs a failure that nobody has looked at
    assert not caplog.records


async def test_a_name_is_looked_up_once_at_a_time_and_then_remembered() -> None:
    async with names_of({("good.test", A): LOOPBACK}) as (server, names):
        answers = await asyncio.gather(*(names.addresses("good.test") for _ in range(20)))
        assert set(answers) == {("127.0.0.1",)}
        await names.addresses("good.test")
        assert server.asked["good.test", A] == 1


async def test_a_stale_answer_is_used_while_a_new_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "_FRESH_FOR", 0.0)
    async with names_of({("good.test", A): LOOPBACK}, query_seconds=0.5) as (server, names):
        assert await names.addresses("good.test") == ("127.0.0.1",)
        server.zone["good.test", A] = None
        server.zone["good.test", AAAA] = None
        assert await names.addresses("good.test") == ("127.0.0.1",)
        assert names._looking, "the new look-up is not waited for"
        await asyncio.gather(*names._looking.values())
        assert await names.addresses("good.test") == ("127.0.0.1",), "a failed look-up takes nothing away"


async def test_a_name_server_that_stays_silent_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "_FAILURE_FOR", 0.0)
    monkeypatch.setattr(names_module, "_AGAIN_WITHIN", 0.05)
    async with names_of({("good.test", A): None, ("good.test", AAAA): None}, query_seconds=0.5) as (server, names):
        for _ in range(2):
            assert not names._looking
            with pytest.raises(NameNotResolvedError):
                await names.addresses("good.test")
        assert names._looking, "the second caller has its answer before the look-up has one"
        await asyncio.gather(*names._looking.values())
        server.zone["good.test", A] = LOOPBACK
        del server.zone["good.test", AAAA]
        assert await names.addresses("good.test") == ("127.0.0.1",), "a name server that is back is noticed at once"


async def test_a_name_that_does_not_exist_is_no_failure_of_the_name_server() -> None:
    async with names_of({("good.test", A): LOOPBACK}) as (_, names):
        with pytest.raises(NotConnectedError, match=r"the name nowhere\.test does not resolve") as refused:
            await names.addresses("nowhere.test")
        assert not isinstance(refused.value, NameNotResolvedError)


async def test_one_family_does_not_wait_for_the_other() -> None:
    async with names_of({("good.test", A): LOOPBACK, ("good.test", AAAA): None}) as (_, names):
        async with asyncio.timeout(4):  # of the five seconds that IPv6 would take
            assert await names.addresses("good.test") == ("127.0.0.1",)


async def test_an_address_needs_no_look_up() -> None:
    async with names_of({}) as (server, names):
        assert await names.addresses("127.0.0.1") == ("127.0.0.1",)
        assert await names.addresses("::1") == ("::1",)
        assert not server.asked


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """A server over IPv4 alone, which answers 204."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_both_families_are_tried() -> None:
    """A name with an IPv6 address at which nothing listens, in front of an IPv4 address at which a server does."""
    zone: dict[tuple[str, int], bytes | None] = {
        ("both.test", A): LOOPBACK,
        ("both.test", AAAA): b"\x00" * 15 + b"\x01",
    }
    async with names_of(zone) as (_, names), listening() as port:
        client = UpstreamClient(names=names)
        address = address_of(f"http://both.test:{port}")
        response = await client.send("GET", address, b"/v1/models", fields=[], timeouts=PATIENT)
        assert response.status == 204
        response.close()
        await client.close()


async def test_a_name_is_judged_by_the_addresses_that_it_has() -> None:
    zone: dict[tuple[str, int], bytes | None] = {("inside.test", A): b"\x0a\x00\x00\x01"}
    async with names_of(zone) as (_, names):
        client = UpstreamClient(names=names, networks=BackendNetworks.parse("deny 10.0.0.0/8, allow *"))
        with pytest.raises(BackendDeniedError, match="GASKET_BACKEND_NETWORKS denies inside.test"):
            await client.send("GET", address_of("http://inside.test"), b"/v1/x", fields=[], timeouts=PATIENT)
        with pytest.raises(BackendDeniedError, match=r"denies 169\.254\.169\.254"):
            await client.send("GET", address_of("http://169.254.169.254"), b"/v1/x", fields=[], timeouts=PATIENT)
        await client.close()
