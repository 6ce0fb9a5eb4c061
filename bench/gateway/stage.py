"""What the gateway's benchmarks run against: an upstream, the ceiling in front of it, and Gasket with 100,000 keys.

The gateway that is under load has one core to itself; the load, the upstream and the database share the other. The
database comes last there: to wait for it would count as the gateway's latency.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
from cryptography.fernet import Fernet

from bench.gateway.load import PATH, Load, Post, Target, require_wrk
from bench.gateway.report import CEILING, DIRECT, GASKET, Loads
from bench.gateway.wire import FAST, PACED, PLAIN_ANSWER, STREAMED_ANSWER, request_body
from bench.harness import alternate, database, environment, open_folder, program, script, server
from bench.processes import end, free_ports
from bench.project import REPOSITORY
from gasket.keys.service import digest, preview

KEYS = 100_000

_START_LIMIT = 60.0


@dataclass(frozen=True)
class Stage:
    """The targets by name, the reference first, and what can be asked of them."""

    targets: Mapping[str, Target]
    plain: Post
    fast_stream: Post
    paced_stream: Post
    few_keys: Post
    any_key: Post

    async def take_turns(self, repeats: int, load: Callable[[Target], Awaitable[Load]]) -> Loads:
        """Put the same load on each target."""
        return Loads(await alternate(repeats, {name: partial(load, each) for name, each in self.targets.items()}))


@asynccontextmanager
async def set_stage() -> AsyncIterator[Stage]:
    """Start everything, each at its place, and try each target once.

    Raises:
        RuntimeError: a target does not answer as the upstream does.
        SystemExit: wrk is missing, or there is one core only.
    """
    require_wrk()
    others, core = _cores()
    async with AsyncExitStack() as ending:
        ending.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, others)
        folder = ending.enter_context(open_folder())
        url = await ending.enter_async_context(database(ending.enter_context(server(folder))))
        upstream, ceiling, gasket = free_ports(3)
        upstream_url, settings = f"http://127.0.0.1:{upstream}", _settings(url)
        keys = _keys()
        await program(script("alembic"), "upgrade", "head", folder=folder, **settings)
        await _fill(url, f"{upstream_url}/v1", settings["GASKET_SECRET_KEY"], keys)
        ending.enter_context(_ahead_of_the_database())

        async def start(command: Sequence[str], port: int, own_core: bool, **own: str) -> Target:
            return await ending.enter_async_context(_running(command, folder, port, core if own_core else None, own))

        uvicorn = [sys.executable, "-m", "uvicorn", "bench.gateway.ceiling:app", "--port", str(ceiling)]
        plainly = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        command = os.environ.get("BENCH_GASKET") or script("gasket")
        targets = {
            DIRECT: await start([sys.executable, "-m", "bench.gateway.upstream", str(upstream)], upstream, False),
            CEILING: await start([*uvicorn, *plainly], ceiling, True, UPSTREAM_URL=upstream_url),
            GASKET: await start([command, "run", "--port", str(gasket)], gasket, True, **settings),
        }
        await _ready(gasket)
        stage = _stage(folder, targets, keys)
        for target in targets.values():
            _check(target, stage.plain, PLAIN_ANSWER)
            _check(target, stage.fast_stream, STREAMED_ANSWER)
        yield stage


def _cores() -> tuple[set[int], int]:
    """The cores for everything else, and the gateway's."""
    *others, own = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("The gateway's benchmarks need two cores: one for the gateway, one for the load.")
    return set(others), own


@contextmanager
def _ahead_of_the_database() -> Iterator[None]:
    """Run this process, the upstream and the load as soon as they have something to do (SCHED_RR: sched(7)).

    PostgreSQL works 6 ms for a batch of usage records. If all had the usual priority, a load that wakes up meanwhile
    would wait for the scheduler's next tick, up to 4 ms. With one client that was p99.
    """
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("Without a real-time priority (sched(7)), latencies include waiting for PostgreSQL.", file=sys.stderr)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *usual)


def _settings(url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": url,
        "ALEMBIC_CONFIG": str(REPOSITORY / "alembic.ini"),
        "GASKET_ADMIN_TOKEN": "an-admin-token-to-measure-with",
        "GASKET_SECRET_KEY": Fernet.generate_key().decode(),
    }


def _keys() -> list[str]:
    return [f"gsk_{hashlib.sha256(str(number).encode()).hexdigest()[:48]}" for number in range(KEYS)]


async def _fill(url: str, base_url: str, secret_key: str, keys: Sequence[str]) -> None:
    """One backend with a credential, one profile, and the keys."""
    credential = Fernet(secret_key).encrypt(b"sk-upstream").decode()
    connection = await asyncpg.connect(url, timeout=10)
    try:
        backend = await connection.fetchval(
            "INSERT INTO openai_backends (name, base_url, api_key) VALUES ('bench', $1, $2) RETURNING id",
            base_url,
            credential,
        )
        profile = await connection.fetchval("INSERT INTO backend_profiles (name) VALUES ('bench') RETURNING id")
        await connection.execute(
            "INSERT INTO profile_backends (profile_id, backend_id, position) VALUES ($1, $2, 0)", profile, backend
        )
        now = datetime.now(UTC)
        await connection.copy_records_to_table(
            "api_keys",
            columns=("user_email", "name", "key_value", "key_preview", "profile_id", "created_at"),
            records=(
                (f"{number}@example.com", "bench", digest(key), preview(key), profile, now)
                for number, key in enumerate(keys)
            ),
            timeout=120,
        )
        # Each key leaves an entry of the audit. To log them all would keep the replica busy while it is measured.
        await connection.execute("DELETE FROM audit_outbox", timeout=60)
        await connection.execute("VACUUM (ANALYZE) api_keys, audit_outbox", timeout=60)
    finally:
        await connection.close(timeout=10)


@asynccontextmanager
async def _running(
    command: Sequence[str], folder: Path, port: int, core: int | None, settings: Mapping[str, str]
) -> AsyncIterator[Target]:
    """A process that listens; it counts as a gateway when it has a core of its own. Its log is in `folder`."""
    log_file = folder / f"{port}.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=REPOSITORY,
            env=environment(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        running = psutil.Process(process.pid)
        if core is not None:
            running.cpu_affinity([core])
            # At a real-time priority a busy event loop would leave the thread that writes the log no turn at all.
            os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
        await _listening(process, port, log_file)
        yield Target(f"http://127.0.0.1:{port}", running if core is not None else None)
    finally:
        await end(process)


async def _listening(process: asyncio.subprocess.Process, port: int, log_file: Path) -> None:
    async with asyncio.timeout(_START_LIMIT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                if process.returncode is not None:
                    raise _early_end(log_file) from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _ready(port: int) -> None:
    """Until then a replica answers 503."""
    async with asyncio.timeout(_START_LIMIT):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
            await asyncio.sleep(0.05)


def _early_end(log_file: Path) -> RuntimeError:
    return RuntimeError(f"a process ended early: {log_file.read_text()}")


def _stage(folder: Path, targets: Mapping[str, Target], keys: Sequence[str]) -> Stage:
    def post(name: str, model: str, *, stream: bool = False, keys: Sequence[str] = keys[:1]) -> Post:
        body = request_body(model, stream=stream)
        body_file, keys_file = folder / f"{name}.json", folder / f"{name}.keys"
        body_file.write_bytes(body)
        keys_file.write_text("".join(f"{key}\n" for key in keys))
        return Post(body, keys[0], body_file, keys_file, len(STREAMED_ANSWER if stream else PLAIN_ANSWER))

    return Stage(
        targets,
        plain=post("plain", FAST),
        fast_stream=post("fast-stream", FAST, stream=True),
        paced_stream=post("paced-stream", PACED, stream=True),
        few_keys=post("few-keys", FAST, keys=keys[:2]),
        any_key=post("any-key", FAST, keys=keys),
    )


def _check(target: Target, post: Post, expected: bytes) -> None:
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=10)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {post.key}"}
    connection.request("POST", PATH, post.body, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200 or body != expected:
        raise RuntimeError(f"{target.url} does not answer as the upstream does: {answer.status} {body[:500]!r}")
