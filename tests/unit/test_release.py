"""The name of a release: read from the clone's files, as git would tell it."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from gasket.release import commit_of, release_name

REPOSITORY = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        env=kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=first")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=second")
    return folder


@pytest.mark.parametrize(
    "prepare",
    [
        ("status",),
        ("checkout", "--quiet", "--detach", "HEAD~"),
        ("pack-refs", "--all"),
        ("checkout", "--quiet", "-b", "feature/one"),
    ],
    ids=["branch", "detached", "packed", "branch in a folder"],
)
def test_the_commit_is_the_one_that_is_checked_out(clone: Path, prepare: tuple[str, ...]) -> None:
    git(clone, *prepare)
    assert commit_of(clone) == git(clone, "rev-parse", "HEAD")[:7]


@pytest.mark.parametrize("packed", [False, True])
def test_a_worktree_has_a_commit_of_its_own(clone: Path, tmp_path: Path, packed: bool) -> None:
    tree = tmp_path / "tree"
    git(clone, "worktree", "add", "--quiet", "-b", "other", str(tree), "HEAD~")
    if packed:
        git(clone, "pack-refs", "--all")
    assert commit_of(tree) == git(tree, "rev-parse", "HEAD")[:7]
    assert commit_of(tree) != commit_of(clone)


def test_what_is_no_clone_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "missing") is None
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    assert commit_of(tmp_path) is None, "there is no commit yet"


def test_a_release_is_named_by_version_and_commit() -> None:
    commit = git(REPOSITORY, "rev-parse", "HEAD")[:7]
    assert release_name() == f"{version('gasket')}+g{commit}"
