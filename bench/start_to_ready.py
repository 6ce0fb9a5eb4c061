"""From the start of `gasket run` to the first 200 of /health/ready, on a schema at head."""

from __future__ import annotations

import asyncio
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from bench.harness import (
    PROGRAM_LIMIT,
    Row,
    alternate,
    database,
    environment,
    markdown,
    open_folder,
    program,
    script,
    server,
)
from bench.processes import end, free_ports
from bench.project import REPOSITORY

TITLE = "Start to ready at head, the last of several replicas, against processes that only import the same"
REPEATS = 8
REPLICAS = (1, 8, 32)
GOAL = 1.15

# The last lines are what Litestar imports when an application is made; its plugins, where those libraries are there.
_IMPORTS = """
import contextlib, sys
import dotenv, litestar.cli.main, uvicorn, uvloop
import gasket.__main__, gasket.app, gasket.server.protocol
import litestar.middleware.response_cache
with contextlib.suppress(ImportError):
    import litestar.plugins.attrs, litestar.plugins.pydantic
print("imported", flush=True)
sys.stdin.read()
"""


async def measure(repeats: int) -> str:
    """One row for each number of replicas; many replicas get fewer rounds, because each takes so much longer."""
    with open_folder() as folder, server(folder) as server_url:
        async with database(server_url) as url:
            settings = {
                "DATABASE_URL": url,
                "ALEMBIC_CONFIG": str(REPOSITORY / "alembic.ini"),
                "GASKET_ADMIN_TOKEN": "an-admin-token-to-measure-with",
                "GASKET_SECRET_KEY": urlsafe_b64encode(b"a secret key to measure Gasket..").decode(),
            }
            await program(script("alembic"), "upgrade", "head", folder=folder, **settings)
            rows = [await _replicas(count, max(2, repeats // count), folder, settings) for count in REPLICAS]
            return markdown([row for pair in rows for row in pair])


async def _replicas(count: int, rounds: int, folder: Path, settings: Mapping[str, str]) -> tuple[Row, Row]:
    """The time until the last is ready, and the CPU time of all until then, which other work changes less."""
    cpu: dict[str, list[float]] = {"imports only": [], "ready": []}

    async def imports() -> float:
        async with _processes([[sys.executable, "-c", _IMPORTS]] * count, folder, settings) as (started, processes):
            await _all(_says(process, "imported") for process in processes)
            taken = time.perf_counter() - started
            cpu["imports only"].append(_cpu_seconds(processes))
            return taken

    async def ready() -> float:
        ports = free_ports(count)
        commands = [[script("gasket"), "run", "--port", str(port)] for port in ports]
        async with _processes(commands, folder, settings) as (started, processes):
            await _all(_ready(process, port) for process, port in zip(processes, ports, strict=True))
            taken = time.perf_counter() - started
            cpu["ready"].append(_cpu_seconds(processes))
            return taken

    seconds = await alternate(rounds, {"imports only": imports, "ready": ready}, warm_up=count == 1)
    case = f"{count} replica{'s' * (count > 1)}, {rounds} rounds"
    used = Row(f"{case}, CPU", {name: taken[-rounds:] for name, taken in cpu.items()})
    return Row(case, seconds), used.with_ratio_goal(GOAL) if count == 1 else used


def _cpu_seconds(processes: Iterable[asyncio.subprocess.Process]) -> float:
    times = [psutil.Process(process.pid).cpu_times() for process in processes]
    return sum(taken.user + taken.system for taken in times)


@asynccontextmanager
async def _processes(
    commands: Sequence[Sequence[str]], folder: Path, settings: Mapping[str, str]
) -> AsyncIterator[tuple[float, list[asyncio.subprocess.Process]]]:
    """Start all at once; yields when the first was started, and the processes, which end with the block."""
    async with AsyncExitStack() as ending:
        started = time.perf_counter()
        processes = []
        for command in commands:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env=environment(settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            ending.push_async_callback(end, process)
            processes.append(process)
        yield started, processes


async def _all(waits: Iterable[Awaitable[None]]) -> None:
    async with asyncio.timeout(PROGRAM_LIMIT):
        await asyncio.gather(*waits)


async def _says(process: asyncio.subprocess.Process, text: str) -> None:
    """Read the output up to the line with `text`: to poll 32 ports would cost the replicas time."""
    assert process.stdout is not None
    seen = b""
    async for line in process.stdout:
        seen += line
        if text.encode() in line:
            return
    raise RuntimeError(f"a process ended without {text!r}: {seen.decode()}")


async def _ready(process: asyncio.subprocess.Process, port: int) -> None:
    await _says(process, "Application startup complete")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not ready: {answer.decode()}")
