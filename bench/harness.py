"""What the benchmarks share: a server, databases, timing that takes turns, and tables."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from gasket.embedded import EmbeddedDatabase

PROGRAM_LIMIT = 120.0
"""Seconds after which a program that was started is given up."""

_LIBRARIES = ("litestar", "advanced-alchemy", "sqlalchemy", "alembic", "asyncpg", "uvicorn")

T = TypeVar("T")
Subject = Callable[[], Awaitable[T]]
"""Does once what is measured, and returns what came of it, most often seconds; what it prepares does not count."""


@dataclass(frozen=True)
class Row:
    """One line of a table: the seconds of each subject, the reference first; `goal` says whether it was met."""

    case: str
    seconds: Mapping[str, Sequence[float]]
    goal: str = ""

    def median_ms(self, subject: str) -> float:
        """The median of a subject, in milliseconds."""
        return median(self.seconds[subject]) * 1000

    @property
    def ratio(self) -> float:
        """The median of the subject over the reference's."""
        reference, subject = self.seconds
        return self.median_ms(subject) / self.median_ms(reference)

    def with_ratio_goal(self, limit: float) -> Row:
        """The same with the goal of a ratio of at most `limit`."""
        return replace(self, goal=verdict(f"at most {limit}", self.ratio <= limit))


def verdict(goal: str, met: bool) -> str:
    """How a goal stands in a table."""
    return f"{goal}: {'met' if met else 'missed'}"


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table: medians in milliseconds, the ratio to the reference and, if any, the goal."""
    reference, subject = rows[0].seconds
    lines = [f"| | {reference}, ms | {subject}, ms | ratio | goal |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        medians = f"{row.median_ms(reference):,.1f} | {row.median_ms(subject):,.1f}"
        lines.append(f"| {row.case} | {medians} | {row.ratio:.2f} | {row.goal} |")
    return "\n".join(lines)


async def alternate(rounds: int, subjects: Mapping[str, Subject[T]], *, warm_up: bool = True) -> dict[str, list[T]]:
    """Measure the subjects in turns, so that whatever slows the machine down for a while slows all of them.

    Each round is in the reverse order of the one before. With `warm_up` one goes first that does not count.
    """
    results: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(-warm_up, rounds):
        for name in list(subjects)[:: -1 if number % 2 else 1]:
            gc.collect()
            result = await subjects[name]()
            if number >= 0:
                results[name].append(result)
    return results


async def timed(work: Awaitable[object]) -> float:
    """The seconds that `work` takes."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


async def program(*command: str | Path, folder: Path | None = None, **settings: str) -> bytes:
    """Run a program to its end, and return its standard output; `settings` are as for `environment`.

    Raises:
        RuntimeError: it failed; what it wrote is in the message.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment(settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PROGRAM_LIMIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors.decode()}")
    return output


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program: these settings of Gasket's, and none of those that happen to be set here.

    Gasket's modules are compiled once, as pip has compiled those of the libraries.
    """
    others = ("GASKET_", "LITESTAR_", "PYTHONDONTWRITEBYTECODE")
    own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**own, **settings}


def script(name: str) -> str:
    """The path of a console script of the environment that this runs in."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder that, when this is root, PostgreSQL's account can pass through as well."""
    folder = Path(tempfile.mkdtemp(prefix="gasket-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The libpq URL of BENCH_DATABASE_URL, whose role may create databases; else of a new server in `folder`.

    That one has PostgreSQL's own defaults (a commit waits for the disk) and is reached over a Unix socket.
    """
    if given := os.environ.get("BENCH_DATABASE_URL"):
        yield given
        return
    logging.getLogger("gasket.embedded").setLevel(logging.ERROR)
    with EmbeddedDatabase(folder / "server", max_connections=300) as url:
        yield url


@asynccontextmanager
async def database(server_url: str) -> AsyncIterator[str]:
    """The URL of a new, empty database."""
    name = f"gasket_bench_{uuid4().hex[:12]}"
    await _execute(server_url, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        await _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close(timeout=10)


async def describe_machine() -> str:
    """The machine, the versions and how busy it was, in a few lines of Markdown."""
    with open_folder() as folder, server(folder) as url:
        connection = await asyncpg.connect(url, timeout=10)
        postgres = await connection.fetchval("SHOW server_version")
        await connection.close(timeout=10)
    where = "BENCH_DATABASE_URL" if "BENCH_DATABASE_URL" in os.environ else "embedded, Unix socket"
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {_processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"load {os.getloadavg()[0]:.2f} before. Python {platform.python_version()}, "
        f"PostgreSQL {postgres} ({where}), Gasket {version('gasket')}, {libraries}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
