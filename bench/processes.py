"""Processes that the benchmarks start and end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill the process unless it has ended, and wait for it."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with ExitStack() as closing:
        sockets = [closing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]
