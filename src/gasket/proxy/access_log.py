"""One line for each request below `/v1`: JSON, or words for people, as `GASKET_LOG_FORMAT` has it."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from gasket import logs
from gasket.log_lines import TEXT, chosen
from gasket.proxy.exchange import Exchange

_WRITTEN_EVERY = 0.1
_MADE_AT_ONCE = 32


class AccessLine(msgspec.Struct, omit_defaults=True, tag_field="logger", tag="gasket.requests"):
    """The log entry of a request, without fields that do not apply. Units are milliseconds and bytes.

    What has -1 for its default is in every line.
    """

    time: datetime
    level: str
    request_id: str
    client_request_id: str | None = None
    client: str | None = None
    method: str = ""
    path: str = ""
    status: int = -1
    outcome: str = ""
    duration_ms: float = -1
    first_byte_ms: float | None = None
    key: int | None = None
    profile: str | None = None
    backend: str | None = None
    model: str | None = None
    streamed: bool = False
    bytes_in: int = -1
    bytes_out: int = -1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    estimated: bool = False
    retries: int = -1
    error: str | None = None


class AccessLog:
    """Told each request that has ended. Lines go to standard error ten times a second, all at once: to write each by
    itself takes longer than all else that the gateway does for a request.

    Lines are made a few at a time. To make each by itself takes twice as long, and to make all of a tenth of a second
    at once holds a request up for two milliseconds.
    """

    def __init__(self, log_format: str | None) -> None:
        self._log_format = log_format
        self._encode = msgspec.json.Encoder().encode
        self._ended: list[Exchange] = []
        self._lines: list[str] = []
        self._writing: asyncio.TimerHandle | None = None
        self._as_words = False
        self._write: Callable[[str], object] = lambda text: sys.stderr.write(text)

    def configure(self) -> None:
        """Take the place of uvicorn's access log, whose lines would say the same, in part, for more time."""
        self._as_words = chosen(self._log_format) == TEXT
        self._write = logs.write
        theirs = logging.getLogger("uvicorn.access")
        theirs.handlers.clear()
        theirs.propagate = False

    def __call__(self, exchange: Exchange) -> None:
        """Keep it until lines are made."""
        self._ended.append(exchange)
        if len(self._ended) >= _MADE_AT_ONCE:
            self._make_lines()
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(_WRITTEN_EVERY, self.flush)

    def flush(self) -> None:
        """Write the lines of what has ended since the last time."""
        self._writing = None
        self._make_lines()
        if self._lines:
            text = "".join(self._lines)
            self._lines.clear()
            self._write(text)

    def _make_lines(self) -> None:
        if not self._ended:
            return
        epoch = time.time() - time.monotonic()
        lines = [_line(exchange, epoch) for exchange in self._ended]
        self._ended.clear()
        text = "\n".join(map(_words, lines)) if self._as_words else b"\n".join(map(self._encode, lines)).decode()
        self._lines.append(text + "\n")


def _line(exchange: Exchange, epoch: float) -> AccessLine:
    """The line; `epoch` is when the monotonic clock began, in seconds since 1970."""
    access, backend = exchange.access, exchange.backend
    first_byte = None if exchange.first_byte is None else _milliseconds(exchange.first_byte - exchange.started)
    return AccessLine(  # in the order of its fields: by their names it takes six times as long
        datetime.fromtimestamp(epoch + exchange.ended, UTC),
        "info",
        exchange.request_id,
        exchange.client_request_id,
        exchange.client,
        exchange.method,
        f"/v1{exchange.path}",
        exchange.status,
        exchange.outcome,
        _milliseconds(exchange.ended - exchange.started),
        first_byte,
        access.key_id if access else None,
        access.profile.name if access else None,
        backend.name if backend else None,
        exchange.model,
        exchange.streamed,
        exchange.bytes_in,
        exchange.bytes_out,
        exchange.prompt_tokens,
        exchange.completion_tokens,
        exchange.cached_tokens,
        exchange.reasoning_tokens,
        exchange.audio_tokens,
        exchange.estimated,
        exchange.retries,
        exchange.error,
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 100_000) / 100  # `round` to so many digits takes ten times as long


def _words(line: AccessLine) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(line)
    first = [_shown(fields.pop(name)) for name in ("method", "path", "status", "outcome")]
    del fields["time"], fields["level"]
    logger = fields.pop("logger")
    rest = [f"{name}={_shown(value)}" for name, value in fields.items()]
    time = line.time.astimezone().replace(tzinfo=None).isoformat(" ", "milliseconds").replace(".", ",")
    return " ".join([time, line.level.upper(), str(logger), *first, *rest])


def _shown(value: object) -> str:
    """A client's words must neither end the line nor reach the terminal as control sequences."""
    text = str(value)
    return text if text.isprintable() else ascii(text)
