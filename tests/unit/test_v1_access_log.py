from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gasket.proxy.access_log import AccessLog
from gasket.proxy.exchange import Exchange, Outcome
from tests.access import a_backend, a_profile, an_access

BACKEND = a_backend(id=3, name="the backend", credential="sk-secret")
PROFILE = a_profile(BACKEND, id=2, name="the profile")
ACCESS = an_access(PROFILE, user_email="a@b.c")


def an_exchange(**fields: Any) -> Exchange:
    now = time.monotonic()
    defaults: dict[str, Any] = {
        "request_id": "id",
        "method": "POST",
        "path": "/chat/completions",
        "started": now - 1.5,
        "ended": now,
    }
    return Exchange(**defaults | {"status": 200} | fields)


def lines_of(log: AccessLog, capsys: pytest.CaptureFixture[str]) -> list[str]:
    log.flush()
    return capsys.readouterr().err.splitlines()


async def test_a_whole_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(None)
    exchange = an_exchange(
        access=ACCESS,
        backend=BACKEND,
        client_request_id="theirs",
        model="größe",
        streamed=True,
        status=504,
        outcome=Outcome.TIMEOUT,
        error="Backend 'x' is silent.",
        retries=1,
        bytes_in=10,
        bytes_out=20,
        prompt_tokens=3,
        completion_tokens=4,
        estimated=True,
    )
    exchange.first_byte = exchange.started + 0.25
    log(exchange)
    [text] = lines_of(log, capsys)
    line = json.loads(text)
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)) < timedelta(seconds=5)
    assert line == {
        "level": "info",
        "logger": "gasket.requests",
        "request_id": "id",
        "client_request_id": "theirs",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 504,
        "outcome": "timeout",
        "duration_ms": 1500.0,
        "first_byte_ms": 250.0,
        "key": 1,
        "profile": "the profile",
        "backend": "the backend",
        "model": "größe",
        "streamed": True,
        "bytes_in": 10,
        "bytes_out": 20,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "estimated": True,
        "retries": 1,
        "error": "Backend 'x' is silent.",
    }


async def test_what_does_not_apply_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(None)
    log(an_exchange(status=401, outcome=Outcome.REFUSED))
    [line] = map(json.loads, lines_of(log, capsys))
    assert line.keys() == {
        "time", "level", "logger", "request_id", "method", "path", "status", "outcome",
        "duration_ms", "bytes_in", "bytes_out", "retries",
    }  # fmt: skip


async def test_lines_come_by_themselves_in_order_and_soon(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(None)
    seen: list[str] = []
    for number in range(20):
        log(an_exchange(retries=number))
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while len(seen) < 20:
            await asyncio.sleep(0.01)
            seen += capsys.readouterr().err.splitlines()
    assert [json.loads(line)["retries"] for line in seen] == list(range(20))
    assert lines_of(log, capsys) == []


@pytest.mark.parametrize("words", [False, True])
async def test_a_client_writes_no_line_and_moves_no_cursor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: bool
) -> None:
    log = AccessLog(None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: words)
    log.configure()
    evil = "m\n12:00:00 POST /v1/forged 200 ok\r\x1b[2J\x00\u202e\u2028\x85"
    log(an_exchange(model=evil, path=f"/files/{evil}", method=evil, client_request_id=evil, error=evil))
    log.flush()
    written = capsys.readouterr().err
    assert written.endswith("\n")
    if words:
        assert written[:-1].isprintable()
    else:
        assert json.loads(written)["model"] == evil
        assert written.count("\n") == 1


async def test_many_lines_are_as_many_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines are made a few at a time."""
    log = AccessLog("json")
    for number in range(100):
        log(an_exchange(bytes_in=number))
    assert [json.loads(line)["bytes_in"] for line in lines_of(log, capsys)] == list(range(100))
    assert lines_of(log, capsys) == []


async def test_words_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = AccessLog(None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.configure()
    log(an_exchange(access=ACCESS, model="größe"))
    log(an_exchange())
    line, _ = lines_of(log, capsys)
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO gasket\.requests POST /v1/chat/completions 200 ok ", line
    )
    assert "request_id=id duration_ms=1500.0 key=1" in line
    assert "profile=the profile model=größe" in line


async def test_no_secret_is_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(None)
    log(an_exchange(access=ACCESS, backend=BACKEND))
    [line] = lines_of(log, capsys)
    assert "sk-secret" not in line
    assert "sk-secret" not in repr(BACKEND)


def test_the_servers_own_log_of_requests_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    theirs = logging.getLogger("uvicorn.access")
    theirs.addHandler(logging.StreamHandler())
    AccessLog(None).configure()
    assert theirs.handlers == []
    theirs.error("a line")
    assert caplog.records == []
