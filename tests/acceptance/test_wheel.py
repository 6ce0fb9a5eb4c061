"""What somebody who installs a release gets: its files, and a gateway that needs nothing beside them.

The wheel is built from the source distribution, as for a release, and pip installs it into a virtual environment that
holds nothing else. The packages it declares, and theirs, are then linked from the environment of the tests instead of
downloaded: whatever Gasket imports without declaring it is missing there. Not covered is that an index has those
packages; `make` and the container image, which install from one, show that.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.acceptance.processes import Replica, environment, free_port

REPOSITORY = Path(__file__).parents[2]
SERVING = {
    "GASKET_ADMIN_TOKEN": "a-token-for-the-wheel",
    "GASKET_SECRET_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
}


@dataclass(frozen=True)
class Release:
    """What `make build` makes."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, timeout=120)
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Release(sdist, wheel)


@pytest.fixture(scope="module")
def bin_folder(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and what it declares."""
    folder = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(symlinks=True).create(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(release.wheel)], check=True, timeout=120)
    [site] = folder.glob("lib/python3.*/site-packages")
    [gasket] = distributions(name="gasket", path=[str(site)])
    for name in _closure(gasket.requires or ()):
        _link(name, site)
    return folder / "bin"


def _closure(requirements: Iterable[str], extras: Iterable[str] = ()) -> Iterator[str]:
    """The names of the required distributions and of those that they require, some more than once."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement.name
            yield from _closure(distribution(requirement.name).requires or (), requirement.extras)


def _link(name: str, site: Path) -> None:
    installed = distribution(name)
    for top in {Path(file).parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
        if not (site / top).is_symlink():
            (site / top).symlink_to(Path(str(installed.locate_file(top))))


def _tree(folder: str) -> set[str]:
    """The files of a folder of the repository, by their paths from there."""
    files = (file for file in (REPOSITORY / folder).rglob("*") if file.is_file())
    return {str(file.relative_to(REPOSITORY)) for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_the_package_its_migrations_and_the_licence_alone(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    package = {name.removeprefix("src/") for name in _tree("src/gasket")}
    migrations = {f"gasket/{name}" for name in _tree("migrations")}
    assert {"gasket/py.typed", "gasket/migrations/env.py", "gasket/migrations/script.py.mako"} <= names
    assert names - metadata == package | migrations | {"gasket/alembic.ini", "gasket/commit"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in metadata)


def test_the_source_distribution_holds_what_a_build_and_a_test_run_need(release: Release) -> None:
    with tarfile.open(release.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _tree("src") | _tree("migrations") | _tree("tests") | _tree(".ci") <= names
    assert {"alembic.ini", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md"} <= names
    assert not {name for name in names if name.startswith((".venv", ".git/"))}


def _start(gasket: Path, folder: Path, log: Path, database_url: str) -> Replica:
    port = free_port()
    command = [str(gasket), "run", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"PATH": os.defpath, "DATABASE_URL": database_url, "WEB_CONCURRENCY": "3", **SERVING}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(folder) | settings, stdout=output, stderr=output
        )
    return Replica(command, process, log, port)


def test_the_commands_that_messages_and_documents_name_are_there(
    bin_folder: Path, database_url: str, tmp_path: Path
) -> None:
    """From an empty folder, without LITESTAR_APP."""

    def run(*command: str) -> str:
        environ = environment(tmp_path) | {"DATABASE_URL": database_url}
        words = [str(bin_folder / "python"), "-m", *command]
        done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    files = [
        REPOSITORY / "README.md",
        REPOSITORY / "CHANGELOG.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "src").rglob("*.py"),
    ]
    texts = [file.read_text() for file in files]
    for group in ("database", "backends"):
        shown = run("litestar", group, "--help")
        named = {name for text in texts for name in re.findall(rf"(?:gasket|litestar) {group} ([a-z][a-z-]+)", text)}
        assert named - set(shown.split()) == set()
        assert named
    assert run("litestar", "database", "status").startswith("behind: ")
    assert run("gasket", "database", "status").startswith("behind: ")


async def test_it_migrates_and_serves_from_an_empty_folder(bin_folder: Path, database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    gateway = _start(bin_folder / "gasket", folder, tmp_path / "log", database_url)
    try:
        answer = await gateway.ready()
        assert answer["revision"] == answer["head"] is not None
        assert gateway.output.count("Started server process") == 1  # whatever WEB_CONCURRENCY says
        gateway.signal(signal.SIGTERM)
        # uvicorn shuts down, then lets the signal end the process.
        assert await gateway.exited(within=10) in (0, -signal.SIGTERM), str(gateway)
    finally:
        await gateway.stop()
    assert list(folder.iterdir()) == []
