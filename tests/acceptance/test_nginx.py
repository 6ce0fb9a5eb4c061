"""deploy/nginx.conf before two replicas, run by the nginx of Debian: streams, and a rolling restart."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.gateway import CHAT, HELLO, Gateway, gateway_on
from tests.acceptance.installation import REPOSITORY, Installation
from tests.acceptance.processes import Replica, free_port, until
from tests.acceptance.upstream import DONE, answer, completion, delta, json_answer, stream
from tests.acceptance.wire import listens

DEPLOY = REPOSITORY / "deploy"
STREAMED = {**HELLO, "stream": True}
_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
DRAIN = {"GASKET_DRAIN_DELAY": "1", "GASKET_DRAIN_TIMEOUT": "10"}

if _NGINX is None:
    if os.environ.get("CI"):
        pytest.fail("nginx is not installed, and .ci/packages installs it", pytrace=False)
    pytest.skip("nginx is not installed (Debian: apt install nginx)", allow_module_level=True)


def _configuration(port: int, replicas: list[int], folder: Path) -> str:
    """The file as it is, but for addresses and folders, and for the `resolve` that Debian's nginx does not know yet."""
    text = (DEPLOY / "nginx.conf").read_text()
    for number, replica in enumerate(replicas, start=1):
        text, found = re.subn(rf"server gasket-{number}:8000 resolve ", f"server 127.0.0.1:{replica} ", text)
        assert found == 1
    for given, here in (("listen 8080;", f"listen 127.0.0.1:{port};"), ("/tmp/", f"{folder}/")):
        assert given in text
        text = text.replace(given, here)
    return text


@contextmanager
def nginx_before(replicas: list[int], folder: Path) -> Iterator[tuple[int, Path]]:
    """nginx in front of replicas on these ports; yields its own port and its log."""
    assert _NGINX is not None
    folder.mkdir()
    folder.chmod(0o777)  # as root its workers have another account
    port, log = free_port(), folder / "nginx.log"
    file = folder / "nginx.conf"
    file.write_text(_configuration(port, replicas, folder))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_NGINX, "-e", "/dev/stderr", "-c", str(file), "-g", "daemon off;"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield port, log
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def two_replicas(installation: Installation, folder: Path) -> AsyncIterator[tuple[Gateway, list[Replica], str]]:
    """A gateway whose tenants both replicas know, and the URL of nginx before them."""
    await installation.migrate()
    ports = [free_port(), free_port()]
    replicas = [installation.replica(DRAIN, port=port) for port in ports]
    async with gateway_on(installation, replicas[0]) as gateway:
        await replicas[1].ready()
        with nginx_before(ports, folder) as (port, log):
            await listens(port, log)
            yield gateway, replicas, f"http://127.0.0.1:{port}"


async def test_what_comes_passes_at_once_and_the_client_is_known(installation: Installation, open_folder: Path) -> None:
    installation.settings["GASKET_TRUSTED_PROXIES"] = "127.0.0.0/8"
    async with (
        two_replicas(installation, open_folder / "nginx-streams") as (gateway, replicas, url),
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client,
    ):
        tenant = await gateway.tenant()
        headers = {"Authorization": f"Bearer {tenant.key}", "X-Forwarded-For": "192.0.2.7"}
        # Gasket itself asks proxies not to buffer events. Nothing but nginx.conf says so of audio.
        for path, body, first, second in (
            (CHAT, STREAMED, delta("a"), delta("b")),
            ("/v1/audio/speech", HELLO, b"ID3 first", b"second"),
        ):
            go_on = asyncio.Event()
            [audio] = answer(first + second, headers=[("Content-Type", "audio/mpeg")])
            assert isinstance(audio, bytes)
            in_pieces = (audio.removesuffix(second), go_on, second)
            tenant.upstream.plays(stream(first, go_on, second) if body is STREAMED else in_pieces)
            async with client.stream("POST", path, json=body, headers=headers) as response:
                pieces = response.aiter_bytes()
                come = b""
                while first not in come:  # with a buffer in between it would not come before the second
                    come += await asyncio.wait_for(anext(pieces), 10)
                go_on.set()
                assert second in b"".join([piece async for piece in pieces])
        large = {**HELLO, "messages": [{"role": "user", "content": "x" * 4_000_000}]}
        tenant.upstream.plays(json_answer(completion("ok")))
        assert (await client.post(CHAT, json=large, headers=headers)).status_code == 200

        def known() -> bool:
            return any('"client":"192.0.2.7"' in replica.output for replica in replicas)

        await until(known, 10, "a line that names the client")


async def test_a_rolling_restart_fails_no_request(installation: Installation, open_folder: Path) -> None:
    """Of eight clients that ask without a pause, half of them for streams."""
    async with two_replicas(installation, open_folder / "nginx-rolling") as (gateway, replicas, url):
        whole, streamed = await gateway.tenant(), await gateway.tenant()
        whole.upstream.plays(json_answer(completion("ok")))
        streamed.upstream.plays(stream(delta("a"), delta("b"), DONE))
        over = asyncio.Event()
        failed: list[str] = []
        answered = [0] * 8

        async def asks(number: int) -> None:
            key, body, end = [(whole.key, HELLO, b"}"), (streamed.key, STREAMED, b"[DONE]")][number % 2]
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30, headers=headers) as client:
                while not over.is_set():
                    try:
                        got = await client.post(CHAT, json=body)
                    except httpx.HTTPError as error:
                        failed.append(repr(error))
                        continue
                    if got.status_code != 200 or not got.content.rstrip().endswith(end):
                        failed.append(f"{got.status_code} {got.text}")
                    answered[number] += 1

        clients = [asyncio.create_task(asks(number)) for number in range(len(answered))]
        for number, old in enumerate(replicas):
            before = list(answered)
            old.signal(signal.SIGTERM)
            assert await old.exited(within=20) == -signal.SIGTERM
            replicas[number] = installation.replica(DRAIN, port=urlsplit(old.base_url).port)
            await replicas[number].says("gasket.requests")  # nginx has found it again
            assert all(now > earlier for now, earlier in zip(answered, before, strict=True))
        over.set()
        await asyncio.gather(*clients)
        assert failed == []
