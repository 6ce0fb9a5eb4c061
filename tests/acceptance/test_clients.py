"""Other clients of the OpenAI API. langchain-openai, openai-node and the AI SDK get the same answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from gasket.ui.clients import snippets
from tests.acceptance.gateway import Gateway, Tenant
from tests.acceptance.installation import REPOSITORY
from tests.acceptance.upstream import (
    DONE,
    Answer,
    End,
    completion,
    delta,
    event,
    failure,
    json_answer,
    models,
    stream,
)

INSTALLED = REPOSITORY / ".venv" / "clients"
PROGRAMS = Path(__file__).with_name("clients")
WORDS = ["Hel", "lo, ", "wörld"]
AGAIN = [("retry-after-ms", "10")]
LONGEST = 60.0

pytestmark = pytest.mark.skipif(not INSTALLED.exists(), reason="the clients are not installed: run `make clients`")


def tool_call(**call: Any) -> bytes:
    """One event of a streamed call of a tool."""
    choice = {"index": 0, "finish_reason": None, "delta": {"tool_calls": [{"index": 0, **call}]}}
    return event({"id": "1", "created": 1, "object": "chat.completion.chunk", "model": "model-a", "choices": [choice]})


def answers() -> list[Answer]:
    """One for each request that a program makes and that reaches the backend, in this order."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    used = {"prompt_tokens": 1, "total_tokens": 1}
    return [
        json_answer(completion("hello there")),
        stream(*map(delta, WORDS), DONE),
        stream(
            tool_call(id="call_1", type="function", function={"name": "weather", "arguments": ""}),
            tool_call(function={"arguments": '{"ci'}),
            tool_call(function={"arguments": 'ty": "Rome"}'}),
            DONE,
        ),
        json_answer({"object": "list", "data": [vector], "model": "model-a", "usage": used}),
        failure(429, "its_own_code"),
        failure(429, headers=AGAIN),
        failure(503, headers=AGAIN),
        json_answer(completion("in the end")),
        stream(delta("Hel"), End.NEVER),
    ]


@contextmanager
def told_by(program: str, tenant: Tenant) -> Iterator[Callable[[], bytes]]:
    """Run the program; gives what reads the line that it prints. It runs to the end of the context.

    One in JavaScript comes over stdin, so that it finds its packages in the folder.
    """
    script = PROGRAMS / program
    command = ["bin/python", str(script)] if script.suffix == ".py" else ["bin/node", "--input-type=module"]
    settings = {"BASE_URL": f"{tenant.replica.base_url}/v1", "API_KEY": tenant.key, "PATH": os.environ["PATH"]}
    with (
        script.open() as source,
        subprocess.Popen(
            command, cwd=INSTALLED, env=settings, stdin=source, stdout=PIPE, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # bin/node starts Node.js in a process of its own


@pytest.mark.parametrize("program", ["langchain.py", "openai_node.mjs", "ai_sdk.mjs"])
async def test_a_client(gateway: Gateway, program: str) -> None:
    tenant = await gateway.tenant({}, {"listing": models("model-b")})  # whose list lacks the model: no failover
    tenant.upstream.plays(*answers())
    with told_by(program, tenant) as read_line:
        line = await asyncio.wait_for(asyncio.to_thread(read_line), LONGEST)
        assert json.loads(line or b"null") == {
            "chat": ["hello there", 8],
            "stream": WORDS,
            "tool": ["weather", {"city": "Rome"}],
            "embedding": [0.25, -0.5],
            "wrong_key": [401, "invalid_api_key"],
            "wrong_model": [404, "model_not_found"],
            "limited": [429, "its_own_code"],
            "retried": "in the end",
            "cancelled_after": "Hel",
        }
        assert len(tenant.upstream.requests) == len(answers())
        await tenant.upstream.requests[-1].left()


async def test_continue_with_the_settings_that_a_new_key_shows(gateway: Gateway, tmp_path: Path) -> None:
    tenant = await gateway.tenant({})
    tenant.upstream.plays(stream(*map(delta, WORDS), DONE))
    shown = snippets(tenant.replica.base_url, tenant.key, "model-a")
    config = tmp_path / "config.yaml"
    config.write_text(next(snippet.parts[0].text for snippet in shown if snippet.client == "Continue"))
    program = await asyncio.create_subprocess_exec(
        "bin/node",
        "node_modules/.bin/cn",
        *("--config", config, "--print", "hello"),
        cwd=INSTALLED,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "CONTINUE_TELEMETRY_ENABLED": "0"},
        stdin=DEVNULL,
        stdout=PIPE,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(program.communicate(), LONGEST)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert output.decode().strip() == "".join(WORDS)
