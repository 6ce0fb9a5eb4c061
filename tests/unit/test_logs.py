"""Log lines that nobody reads: what waits, what is dropped, and that nobody is held up."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gasket import logs
from gasket.logs import Outlet, OutletHandler, unblock


class Sink:
    """Takes items while it is open; keeps whoever brings one waiting while it is not."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.busy = threading.Event()
        self.open = threading.Event()

    def __call__(self, item: Any) -> None:
        self.busy.set()
        assert self.open.wait(30)
        self.taken.append(item)


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.open.set()


def stalled(sink: Sink, most_waiting: int = 100) -> Outlet:
    """An outlet whose thread waits with the first line."""
    outlet = Outlet(sink, lambda count: f"{count} dropped\n", most_waiting=most_waiting)
    outlet.put("first\n")
    assert sink.busy.wait(30)
    return outlet


def test_what_does_not_fit_in_is_dropped_counted_and_told(sink: Sink) -> None:
    outlet = stalled(sink, most_waiting=10)
    for number in range(10):
        outlet.put(f"{number}\n")
    outlet.put("two\nlines\n")
    sink.open.set()
    outlet.flush()
    kept = [line for line in sink.taken if line[0].isdigit() and "dropped" not in line]
    assert kept == ["0\n", "1\n", "2\n", "3\n"]
    assert "8 dropped\n" in sink.taken
    outlet.put("later\n")
    outlet.flush()
    assert sink.taken[-1] == "later\n"


def test_records_are_dropped_and_told_as_records_are(sink: Sink) -> None:
    outlet = stalled(sink, most_waiting=2000)
    logger = logging.Logger("test")
    logger.addHandler(OutletHandler(outlet))
    for number in range(5):
        logger.info("number %d", number, extra={"event": "counted"})
    sink.open.set()
    outlet.flush()
    records = [item for item in sink.taken if isinstance(item, logging.LogRecord)]
    assert [(record.getMessage(), record.__dict__["event"]) for record in records] == [
        ("number 0", "counted"),
        ("number 1", "counted"),
    ]
    assert "3 dropped\n" in sink.taken


def test_a_line_is_formatted_when_it_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it tells may change before the thread comes to it."""
    monkeypatch.setattr(logs, "_outlets", {})
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logger = logging.Logger("test")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(logging.WARNING)
    own = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.addHandler(own)
    unblock(logger)
    assert logger.handlers[1] is own, "not one that writes elsewhere"
    assert not isinstance(logger.handlers[0], logging.StreamHandler)
    assert logger.handlers[0].level == logging.WARNING
    found = ["one"]
    logger.info("not shown")
    logger.warning("found %s", found)
    found.append("two")
    deadline = time.monotonic() + 30
    while not written.getvalue() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert written.getvalue() == "WARNING found ['one']\n"


def test_waiting_for_a_reader_has_a_limit_for_all_lines_together(sink: Sink) -> None:
    outlet = stalled(sink)
    began = time.monotonic()
    outlet.leave()
    for _ in range(20):
        outlet.put("x\n")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("lines", [1, 2000], ids=["the pipe takes them", "the pipe is full"])
def test_a_process_ends_though_nobody_reads_what_it_says(lines: int) -> None:
    """A thread that still writes must not hold what the interpreter needs to end."""
    program = f"""
        import logging
        from gasket import logs
        log = logging.getLogger("test")
        log.addHandler(logs.line_handler("stderr", "text"))
        log.setLevel(logging.INFO)
        for number in range({lines}):
            log.info("line %d %s", number, "x" * 100)
        print("done", flush=True)
    """
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            stderr=write,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert done.stdout == b"done\n"
        assert b" INFO test line 0 xxx" in os.read(read, 100)
    finally:
        os.close(read)
        os.close(write)
