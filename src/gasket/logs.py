"""A thread of its own writes log lines, so that no request or migration waits for their reader.

A reader that stops (a log collector whose disk is full, a terminal after Ctrl-S) fills the pipe. The next write then
waits for as long as that lasts: a request would, and a migration with its lock. So lines wait in a queue; what does not
fit in is dropped, counted, and told once there is room again.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from typing import Any

from gasket.log_lines import formatter, keep_traceback

_MOST_WAITING = 4_000_000
"""Characters, some 40,000 lines."""
_RECORD_SIZE = 1000
_FLUSH_LIMIT = 1.0


class Outlet(QueueListener):
    """A queue, and the thread that hands what is in it to `sink`: lines of text, or log records.

    `tell` makes an item of how many were dropped.
    """

    queue: _BoundedQueue

    def __init__(
        self, sink: Callable[[Any], None], tell: Callable[[int], Any], *, most_waiting: int = _MOST_WAITING
    ) -> None:
        super().__init__(_BoundedQueue(most_waiting))
        self._sink = sink
        self._tell = tell
        self._dropped = 0
        self._dropping = threading.Lock()
        self._patience = _FLUSH_LIMIT
        self._flush_each = False
        self.start()
        atexit.register(self.flush)

    def put(self, item: Any) -> None:
        """Queue it, or count it as dropped; returns at once."""
        try:
            self.queue.put_nowait(item)
        except queue.Full:
            with self._dropping:
                self._dropped += item.count("\n") if isinstance(item, str) else 1
        if self._flush_each:
            self.flush()

    def handle(self, item: Any) -> None:
        """In the thread: hand one item on."""
        self._sink(item)
        with self._dropping:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._sink(self._tell(dropped))

    def flush(self) -> None:
        """Wait until all is written. After a wait of more than a second, later calls do not wait."""
        with self.queue.all_tasks_done:
            done = self.queue.all_tasks_done.wait_for(lambda: not self.queue.unfinished_tasks, self._patience)
        if not done:
            self._patience = 0.0

    def leave(self) -> None:
        """From now on wait for every line: the process may be ended by a signal, which lets no thread finish."""
        self.flush()
        self._flush_each = True


class _BoundedQueue(queue.Queue[Any]):
    """Bounded by the size of what is in it."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._held = 0

    def _qsize(self) -> int:
        return self._held

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._held += _size(item)

    def _get(self) -> Any:
        item = super()._get()
        self._held -= _size(item)
        return item


class OutletHandler(QueueHandler):
    """Puts records into an outlet, to be handled by a handler in its thread."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__(outlet.queue)
        self._outlet = outlet

    def enqueue(self, record: Any) -> None:
        """Called by `emit` with what `prepare` returns."""
        self._outlet.put(record)


class _LineHandler(OutletHandler):
    """Puts lines of text into an outlet: they are formatted where they are logged."""

    def prepare(self, record: logging.LogRecord) -> str:
        keep_traceback(record)
        return f"{self.format(record)}\n"


_outlets: dict[str, Outlet] = {}
"""Of the standard streams, by the stream's name in `sys`."""
_lines = formatter("text")
"""What makes a line of a message of this file's own."""


def configure(log_format: str | None) -> bool:
    """Write every log line to standard error in one format, uvicorn's included; let no line hold anything up.

    So with Python's warnings, which would be written there directly. `log_format` is `json`, `text` or None, as for
    `formatter`. Where logging is configured already, the formats stay; then it returns False.
    """
    root, ours, server = (logging.getLogger(name) for name in ("", "gasket", "uvicorn"))
    unblock(root, ours, server)
    if root.handlers or not ours.handlers:  # else nothing would write them
        logging.captureWarnings(True)
    if root.handlers or ours.handlers:
        return False
    handler = line_handler("stderr", log_format)
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    for theirs in server.handlers:
        if type(theirs.formatter).__module__ == "uvicorn.logging":  # not one that the operator has configured
            theirs.setFormatter(handler.formatter)
    return True


def line_handler(stream: str, log_format: str | None) -> logging.Handler:
    """A handler that writes lines to `stderr` or `stdout` and never waits for it; the format is as for `formatter`."""
    global _lines
    _lines = formatter(log_format)
    handler = _LineHandler(_outlet(stream))
    handler.setFormatter(_lines)
    return handler


def unblock(*loggers: logging.Logger) -> None:
    """Let handlers that write to a standard stream wait for it no more; their formats and levels stay."""
    for logger in loggers:
        for handler in list(logger.handlers):
            name = _stream_name(handler)
            if name is not None:
                replacement = _LineHandler(_outlet(name))
                replacement.setFormatter(handler.formatter)
                replacement.setLevel(handler.level)
                replacement.filters = handler.filters
                logger.handlers[logger.handlers.index(handler)] = replacement


def write(text: str) -> None:
    """Whole lines for standard error, as they are."""
    if outlet := _outlets.get("stderr"):
        outlet.put(text)
    else:
        sys.stderr.write(text)
        sys.stderr.flush()


def flush() -> None:
    """Wait for what was logged so far to be written, for a limited time."""
    for outlet in _outlets.values():
        outlet.flush()


def leave() -> None:
    """The process is about to end: let what is still logged be written before anything else happens."""
    for outlet in _outlets.values():
        outlet.leave()


def _outlet(name: str) -> Outlet:
    if name not in _outlets:
        _outlets[name] = Outlet(_writer(name), _tell)
    return _outlets[name]


def _tell(dropped: int) -> str:
    text = f"{dropped} log lines were dropped, because they were not read in time"
    record = logging.makeLogRecord({"name": "gasket", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text})
    return f"{_lines.format(record)}\n"


def _stream_name(handler: logging.Handler) -> str | None:
    """`stderr` or `stdout` for a plain handler that writes there; subclasses know better what they do."""
    if type(handler) is not logging.StreamHandler:
        return None
    return next((name for name in ("stderr", "stdout") if handler.stream is getattr(sys, name)), None)


def _writer(name: str) -> Callable[[str], None]:
    """Writes to the stream that has this name in `sys` at the time.

    Past Python's own buffer, whose lock a thread that waits in a write would still hold when the interpreter ends.
    """

    def write(text: str) -> None:
        stream = getattr(sys, name)
        if stream is None:
            return
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):
            stream.write(text)
            stream.flush()
            return
        _write_all(descriptor, text.encode(errors="backslashreplace"))

    return write


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever made the pipe wants its writes not to wait
            select.select([], [descriptor], [])
        except OSError:
            return  # closed, or its reader is gone


def _size(item: Any) -> int:
    return len(item) + 1 if isinstance(item, str) else _RECORD_SIZE
