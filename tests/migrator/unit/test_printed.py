"""What a revision prints, as lines of the log."""

# ruff: noqa: T201

from __future__ import annotations

import io
import logging
import sys
import threading
from contextlib import redirect_stdout

import pytest

from gasket.migrator.apply.printed import prints_logged


@pytest.fixture
def output(caplog: pytest.LogCaptureFixture) -> io.TextIOWrapper:
    """No terminal. A test puts it into the place of standard output, where pytest has its own by then."""
    caplog.set_level(logging.INFO, "gasket.migrator")
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def written(stream: io.TextIOWrapper) -> bytes:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


def test_each_line_is_a_line_of_the_log(output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture) -> None:
    with redirect_stdout(output), prints_logged(lambda: "r1"):
        print("merged", 3, "rows")
        print("10 %\r20 %", end="")
        print("!", file=sys.stderr)
    assert caplog.messages == [
        "revision r1 prints: merged 3 rows",
        "revision r1 prints: 10 %",
        "revision r1 prints: !",
        "revision r1 prints: 20 %",
    ]
    assert written(output) == b""


def test_a_line_without_an_end_is_logged_in_parts(output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture) -> None:
    with redirect_stdout(output), prints_logged(lambda: None):
        for _ in range(10_000):
            print("x", end="")
    assert "".join(caplog.messages).count("x") == 10_000
    assert max(map(len, caplog.messages)) < 5_000


def test_whoever_keeps_the_stream_goes_on_to_write_to_the_real_one(
    output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    with redirect_stdout(output), prints_logged(lambda: "r1"):
        kept = sys.stdout
    print("later", file=kept, flush=True)
    assert (written(output), caplog.messages) == (b"later\n", [])


def test_other_threads_and_bytes_go_to_the_real_stream(
    output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    with redirect_stdout(output), prints_logged(lambda: "r1"):
        thread = threading.Thread(target=lambda: print("another"))
        thread.start()
        thread.join()
        sys.stdout.buffer.write(b"bytes\n")
        assert sys.stdout.encoding == "utf-8"
    assert (written(output), caplog.messages) == (b"another\nbytes\n", [])


def test_a_handler_that_writes_there_does_not_go_round(
    output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("gasket.migrator")
    with redirect_stdout(output), prints_logged(lambda: "r1"):
        handler = logging.StreamHandler(sys.stdout)
        log.addHandler(handler)
        try:
            print("once")
        finally:
            log.removeHandler(handler)
    assert written(output) == b"revision r1 prints: once\n"


def test_what_would_not_be_logged_is_printed(output: io.TextIOWrapper, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "gasket.migrator")
    with redirect_stdout(output), prints_logged(lambda: "r1"):
        print("shown")
    assert written(output) == b"shown\n"
