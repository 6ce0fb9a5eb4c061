"""Load on one address: wrk as fast as it gets answers, or clients of our own that read paced streams."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import psutil

from bench.gateway.wire import STREAMED_ANSWER
from bench.harness import program

PATH = "/v1/chat/completions"

_SCRIPT = Path(__file__).with_name("wrk.lua")
_STREAM_LIMIT = 30.0


@dataclass(frozen=True)
class Load:
    """What came of a run. Latencies are in seconds, from the request to the end of its answer."""

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu: float
    """CPU seconds that the gateway took; not a number where there was none."""


@dataclass(frozen=True)
class Target:
    """What is put under load, and the process whose CPU time counts."""

    url: str
    process: psutil.Process | None = None

    def cpu(self) -> float:
        """CPU seconds of the process so far; not a number without one."""
        if self.process is None:
            return nan
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_mb(self) -> float:
        """Resident memory of the process in megabytes (10^6 bytes); not a number without one."""
        return nan if self.process is None else self.process.memory_info().rss / 1e6


@dataclass(frozen=True)
class Post:
    """Chat completions to be asked for: their body, a key, and files for wrk to read the body and the keys from."""

    body: bytes
    key: str
    body_file: Path
    keys_file: Path
    answer_size: int
    """Bytes that each answer has at least."""


def require_wrk() -> None:
    """Say how to get wrk where it is missing.

    Raises:
        SystemExit: it is.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("The gateway's benchmarks make load with wrk, which is not here: `apt-get install wrk`.")


async def run_wrk(target: Target, post: Post, *, clients: int, seconds: float, first_key: int = 0) -> Load:
    """As many requests as `clients` connections get answered.

    Raises:
        RuntimeError: a request failed, or the answers were shorter than they should be.
    """
    before = target.cpu()
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(_SCRIPT)]
    arguments = [str(post.body_file), str(post.keys_file), str(first_key)]
    output = await program(*command, target.url + PATH, "--", *arguments)
    cpu = target.cpu() - before
    told = json.loads(output.splitlines()[-1])
    if any(told["errors"].values()) or not told["requests"]:
        raise RuntimeError(f"{target.url} failed under wrk: {told}")
    if told["bytes"] < told["requests"] * post.answer_size:
        raise RuntimeError(f"{target.url} gave shorter answers than its upstream: {told}")
    return Load(told["requests"], told["seconds"], told["p50"], told["p99"], cpu)


async def run_paced(target: Target, post: Post, *, clients: int, each: int) -> Load:
    """`clients` connections read `each` streams one after the other.

    Raises:
        RuntimeError: a stream was not exactly the upstream's.
    """
    host = urlsplit(target.url).netloc
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {post.key}\r\nContent-Length: {len(post.body)}\r\n\r\n"
    ).encode() + post.body
    loop = asyncio.get_running_loop()
    before, started = target.cpu(), loop.time()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_client(host, request, each)) for _ in range(clients)]
    seconds, cpu = loop.time() - started, target.cpu() - before
    taken = [one for task in tasks for one in task.result()]
    percentiles = quantiles(taken, n=100, method="inclusive")
    return Load(len(taken), seconds, percentiles[49], percentiles[98], cpu)


async def _client(host: str, request: bytes, count: int) -> list[float]:
    loop = asyncio.get_running_loop()
    address, _, port = host.partition(":")
    transport, reader = await loop.create_connection(_StreamReader, address, int(port))
    taken = []
    try:
        for _ in range(count):
            started = loop.time()
            ended = reader.expect_stream()
            transport.write(request)
            async with asyncio.timeout(_STREAM_LIMIT):
                answer = await ended
            taken.append(loop.time() - started)
            _check_stream(answer)
    finally:
        transport.close()
    return taken


class _StreamReader(asyncio.Protocol):
    """Keeps what comes, up to the last chunk: to look at it is for later, when no clock runs."""

    def expect_stream(self) -> asyncio.Future[bytes]:
        """The next answer, once its last chunk is there."""
        self._received = bytearray()
        self._ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return self._ended

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n0\r\n\r\n"):
            self._ended.set_result(bytes(self._received))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(f"a stream broke off: {bytes(self._received[-500:])!r}"))


def _check_stream(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or _unchunk(body) != STREAMED_ANSWER:
        raise RuntimeError(f"not the upstream's stream: {answer[:500]!r} ... {answer[-500:]!r}")


def _unchunk(body: bytes) -> bytes:
    """What the chunks hold (RFC 9112, 7.1); there are no extensions and no trailers here."""
    pieces: list[bytes] = []
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
