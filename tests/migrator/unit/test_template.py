"""The files that the template makes pass the checks that every file of the repository passes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two heads on one revision, made with the template."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    for name in ("alembic.ini", "migrations/script.py.mako", "migrations/env.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    config = Config(str(tmp_path / "alembic.ini"))
    command.revision(config, message="first", rev_id="first")
    for side in ("left", "right"):
        command.revision(config, message=side, rev_id=side, head="first", splice=True)
    return config


def files(config: Config, name: str) -> list[str]:
    return [str(path) for path in Path(str(config.config_file_name)).parent.glob(f"migrations/versions/*_{name}.py")]


def ruff(*words: str) -> None:
    options = ["--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words[:1], *options, *words[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "options",
    [{}, {"branch_label": "both"}, {"message": 'It\'s a "merge"'}],
    ids=["plain", "with a label", "with quotes in its message"],
)
def test_a_merge_passes_the_linter_and_the_formatter(config: Config, options: dict[str, str]) -> None:
    command.merge(config, ["left", "right"], **{"message": "merge heads", "rev_id": "joined", **options})  # type: ignore[arg-type]
    [merge] = [path for path in files(config, "*") if '"joined"' in Path(path).read_text()]
    ruff("check", merge)
    ruff("format", "--check", merge)
    assert 'down_revision: tuple[str, ...] = ("left", "right")' in Path(merge).read_text()
    assert "backward_compatible: bool = True" in Path(merge).read_text()


def test_a_plain_revision_is_formatted(config: Config) -> None:
    ruff("format", "--check", *files(config, "left"), *files(config, "first"))
