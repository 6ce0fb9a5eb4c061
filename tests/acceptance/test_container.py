"""The Containerfile, as far as it can be shown without an engine: its text, and its environment and folders at work.

What an engine would add: that the base image exists, and that the packages install on it.
"""

from __future__ import annotations

import http.server
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.processes import Programs, free_port

REPOSITORY = Path(__file__).parents[2]

Instruction = tuple[str, str]


def _instructions(text: str) -> list[Instruction]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [(name, rest.strip()) for name, rest in re.findall(r"^([A-Z]+)\s+(.*)$", joined, re.MULTILINE)]


@pytest.fixture(scope="module")
def stages() -> tuple[list[Instruction], list[Instruction]]:
    """The instructions of the two stages."""
    found = _instructions((REPOSITORY / "Containerfile").read_text())
    first, second = (number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[first:second], found[second:]


@pytest.fixture(scope="module")
def image(stages: tuple[list[Instruction], list[Instruction]]) -> dict[str, str]:
    """The last stage's instructions, by name; the last of a name holds."""
    return dict(stages[1])


@pytest.fixture(scope="module")
def variables(image: dict[str, str]) -> dict[str, str]:
    """What ENV sets."""
    return dict(pair.split("=", 1) for pair in shlex.split(image["ENV"]))


def test_the_stages_share_one_base_image_that_is_pinned_by_tag(
    stages: tuple[list[Instruction], list[Instruction]],
) -> None:
    bases = {stage[0][1].partition(" ")[0] for stage in stages}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases.pop())


def test_what_is_copied_is_tracked_and_not_ignored(stages: tuple[list[Instruction], list[Instruction]]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=30
    ).stdout.splitlines()
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied: set[str] = set()
    for name, rest in (*stages[0], *stages[1]):
        if name == "COPY" and "--from=" not in rest:
            copied.update(word for word in rest.split()[:-1] if not word.startswith("--"))
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for source in copied:
        assert source in tracked or any(path.startswith(f"{source}/") for path in tracked), source


def test_one_process_runs_without_a_shell_or_root(image: dict[str, str]) -> None:
    assert json.loads(image["CMD"]) == ["gasket", "run"]
    assert "ENTRYPOINT" not in image  # so that `docker run <image> alembic current` works as well
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image["USER"])
    assert image["STOPSIGNAL"] == "SIGTERM"


@contextmanager
def _answering(status: int) -> Iterator[int]:
    """The port of a server that answers `GET /health` so, anything else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False), (None, False)])
def test_the_health_check_tells_well_from_ill(image: dict[str, str], status: int | None, healthy: bool) -> None:
    command = json.loads(image["HEALTHCHECK"].partition("CMD")[2])
    assert command[0] == "python"

    def exit_code(port: int) -> int:
        # A proxy is for what the gateway calls, not for calls to the gateway.
        settings = {"LITESTAR_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        check = [sys.executable, *command[1:]]
        return subprocess.run(check, env=settings, stderr=subprocess.DEVNULL, timeout=60).returncode

    if status is None:
        assert exit_code(free_port()) != 0
    else:
        with _answering(status) as port:
            assert (exit_code(port) == 0) is healthy


async def test_the_commands_work_as_written_in_the_image(
    image: dict[str, str], variables: dict[str, str], database_url: str, programs: Programs, tmp_path: Path
) -> None:
    """In a copy of the image's folder, with the image's environment."""
    workdir = tmp_path / image["WORKDIR"].strip("/")
    workdir.mkdir()
    shutil.copy(REPOSITORY / "alembic.ini", workdir)
    shutil.copytree(REPOSITORY / "migrations", workdir / "migrations")
    settings = {name: value.replace(image["WORKDIR"], str(workdir)) for name, value in variables.items()}
    assert Path(settings["ALEMBIC_CONFIG"]) == workdir / "alembic.ini"
    del settings["PATH"]

    async def run(command: str, folder: Path = workdir) -> str:
        started = programs.start(
            *shlex.split(command), settings=settings | {"DATABASE_URL": database_url}, folder=folder
        )
        assert await started.exited(within=60) == 0, str(started)
        return started.output

    await run("litestar database upgrade --no-prompt")
    assert "(head)" in await run("alembic current")
    # `docker exec --workdir` and a shell that changed its folder find the migrations too.
    history = await run("alembic history --verbose", folder=tmp_path)
    assert str(workdir / "migrations" / "versions") in history
    await run("alembic downgrade -1")
    assert "(head)" not in await run("alembic current")

    before = set((workdir / "migrations" / "versions").iterdir())
    await run('alembic revision -m "add_something"')
    [written] = set((workdir / "migrations" / "versions").glob("*.py")) - before
    assert re.fullmatch(r"\d{4}_\d\d_\d\d_\d{4}_add_something\.py", written.name)
