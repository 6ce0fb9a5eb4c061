"""Whatever `run` listens on answers from the first moment on: 503 while it migrates, and nothing is refused."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.acceptance.installation import Installation
from tests.acceptance.processes import Program, free_port, until
from tests.tls import certificate

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
REQUEST = b"GET /health/ready HTTP/1.1\r\nHost: gasket.test\r\nConnection: close\r\n\r\n"


async def test_a_port_under_tls(installation: Installation, tmp_path: Path) -> None:
    made, port = str(certificate(tmp_path)), free_port()
    trusted = ssl.create_default_context(cafile=made)
    replica = await start(installation, ["--port", str(port), "--ssl-certfile", made, "--ssl-keyfile", made])
    await check_it_answers_always(
        installation, replica, lambda: asyncio.open_connection("127.0.0.1", port, ssl=trusted)
    )


async def test_a_unix_domain_socket_whose_file_goes_with_the_replica(
    installation: Installation, open_folder: Path
) -> None:
    path = open_folder / "gasket.sock"
    replica = await start(installation, ["--uds", str(path)])
    await check_it_answers_always(installation, replica, lambda: asyncio.open_unix_connection(path))
    assert not path.exists()

    installation.project.add_revision("broken", 'op.execute("SELECT 1/0")')
    refused = installation.start("gasket", "run", "--uds", str(path))
    assert await refused.exited(within=60) > 0, str(refused)
    assert not path.exists()


async def test_a_file_descriptor(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        number = listener.fileno()
        replica = await start(installation, ["--fd", str(number)], descriptors=[number])
        await check_it_answers_always(installation, replica, lambda: asyncio.open_connection("127.0.0.1", port))


async def start(installation: Installation, options: Sequence[str], descriptors: Sequence[int] = ()) -> Program:
    """A replica that is inside a long migration."""
    installation.project.add_pause("long_step")
    await installation.pause(60)
    replica = installation.start("gasket", "run", *options, descriptors=descriptors)
    await installation.pausing()
    return replica


async def check_it_answers_always(installation: Installation, replica: Program, connect: Connect) -> None:
    """Several clients ask all the time while the migration ends: each gets 503 first, and 200 from some moment on."""
    hammering = True
    statuses: list[list[int]] = [[] for _ in range(4)]

    async def hammer(seen: list[int]) -> None:
        while hammering:
            seen.append(await status(connect))

    hammers = [asyncio.create_task(hammer(seen)) for seen in statuses]

    async def all_see(code: int) -> None:
        def seen() -> bool:
            assert not [task for task in hammers if task.done()], "a client was refused"
            return all(seen.count(code) > 10 for seen in statuses)

        await until(seen, 60, lambda: f"{code}: {replica}")

    try:
        await all_see(503)
        await installation.go_on()
        await all_see(200)
    finally:
        hammering = False
        await asyncio.gather(*hammers)
    for seen in statuses:
        assert seen == [503] * seen.count(503) + [200] * seen.count(200)
    replica.signal(signal.SIGTERM)
    assert await replica.exited(within=30) == -signal.SIGTERM
    assert "Traceback" not in replica.output


async def status(connect: Connect) -> int:
    reader, writer = await connect()
    try:
        writer.write(REQUEST)
        line = await asyncio.wait_for(reader.readline(), 10)
        await reader.read()
        return int(line.split(b" ")[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
