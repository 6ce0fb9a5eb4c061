"""One form for all lines: what JSON and text have in them, and whose lines they are."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest

from gasket.log_lines import chosen, formatter
from gasket.migrator.apply.events import Step, locks_taken, step_done
from gasket.postgres.blockers import Blocker


def record_of(message: str, *arguments: object, name: str = "gasket", **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": name, "levelno": logging.INFO, "levelname": "INFO", "msg": message, "args": arguments, **fields}
    )


def test_a_line_of_json() -> None:
    evil = 'a "b"\n{"level": "forged"}'
    line = formatter("json").format(record_of("said %s", evil, color_message="\x1b[31m", taskName="Task-1"))
    assert "\n" not in line
    fields = json.loads(line)
    assert abs(datetime.fromisoformat(fields.pop("time")) - datetime.now(UTC)) < timedelta(seconds=5)
    assert fields == {"level": "info", "logger": "gasket", "message": f"said {evil}"}


def test_an_exception_is_a_field() -> None:
    try:
        raise ValueError("größe")
    except ValueError:
        line = formatter("json").format(record_of("failed", exc_info=sys.exc_info()))
    assert json.loads(line)["exception"].splitlines()[-1] == "ValueError: größe"
    assert "\n" not in line


def test_a_line_of_text() -> None:
    line = formatter("text").format(record_of("Started", name="uvicorn.error"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO uvicorn Started", line)


def test_events_of_a_migration_have_their_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Those that docs/schema-management.md lists."""
    caplog.set_level(logging.INFO)
    step = Step("upgrade", "a1", 1, 2, "add a column")
    blocker = Blocker(1, "psql", "ada", None, "SELECT 1")
    step_done(step, duration=0.5, elapsed=1.5)
    locks_taken(step, tries=2, elapsed=0.25, limit=300, blockers=[blocker], pause=0.5)
    of_the_step = {"direction": "upgrade", "revision": "a1", "number": 1, "total": 2, "title": "add a column"}
    done, taken = (json.loads(formatter("json").format(record)) for record in caplog.records)
    assert {"event": "step_done", **of_the_step, "duration": 0.5, "elapsed": 1.5}.items() <= done.items()
    assert taken.keys() == {
        "time", "level", "logger", "message", "event", *of_the_step, "tries", "elapsed", "limit", "blockers", "pause",
    }  # fmt: skip
    assert (taken["level"], taken["logger"], taken["blockers"]) == ("warning", "gasket.migrator", [str(blocker)])


@pytest.mark.parametrize(
    ("setting", "terminal", "expected"),
    [(None, True, "text"), (None, False, "json"), ("json", True, "json"), ("text", False, "text")],
)
def test_text_at_a_terminal_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, terminal: bool, expected: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert chosen(setting) == expected


def test_everybodys_lines_have_the_one_form_and_are_on_one_stream() -> None:
    """In a process of its own, whose logging nothing has configured but uvicorn."""
    program = """
        import logging, logging.config
        from uvicorn.config import LOGGING_CONFIG
        from gasket import logs
        logging.config.dictConfig(LOGGING_CONFIG)
        assert logs.configure(None)
        for name in ("gasket.migrator", "uvicorn.error", "asyncio", "sqlalchemy.pool"):
            logging.getLogger(name).warning("from %s", name)
        logging.getLogger("gasket").info("informed")
        logging.getLogger("alembic").info("not shown")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("gasket.migrator", "from gasket.migrator"),
        ("uvicorn", "from uvicorn.error"),
        ("asyncio", "from asyncio"),
        ("sqlalchemy.pool", "from sqlalchemy.pool"),
        ("gasket", "informed"),
    ]


def test_formats_that_the_operator_has_configured_stay() -> None:
    program = """
        import logging
        from gasket import logs
        logging.basicConfig(format="mine: %(message)s", level=logging.INFO)
        assert not logs.configure("json")
        logging.getLogger("gasket").info("told")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "mine: told\n"
