"""What is declared and what is pinned say the same, and what guards the migrations in `.ci` finds what it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gasket.migrator.revisions.configuration import configured_revisions

REPOSITORY = Path(__file__).parents[2]


def _pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_declared_package_is_pinned_to_a_version_it_allows() -> None:
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    project = document["project"]
    declared = [*document["build-system"]["requires"], *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        declared.extend(extra)
    pins = _pins()
    for requirement in map(Requirement, declared):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name
    assert "gasket" not in pins


class Clone:
    """A repository with `.ci/append-only` and one migration, committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = folder / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        script = folder / ".ci" / "append-only"
        script.parent.mkdir()
        script.write_bytes((REPOSITORY / ".ci" / "append-only").read_bytes())
        script.chmod(0o755)
        self.git("init", "--quiet", "--initial-branch=main")
        (self.versions / "first.py").write_text("first\n")
        self.commit()

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=self.folder, env=_git_environment(), check=True, timeout=30)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=A change")

    def verdict(self) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / ".ci" / "append-only")]
        return subprocess.run(command, env=_git_environment(), capture_output=True, text=True, timeout=30)


def _git_environment() -> dict[str, str]:
    """Without what a hook that runs the tests would leave in it: GIT_DIR points to another repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_a_migration_may_be_added_and_a_first_commit_has_nothing_before_it(clone: Clone) -> None:
    assert clone.verdict().returncode == 0
    (clone.versions / "second.py").write_text("second\n")
    clone.commit()
    assert clone.verdict().returncode == 0


@pytest.mark.parametrize("change", ["edited", "removed", "renamed", "not committed"])
def test_a_migration_that_main_holds_may_not_be_touched(clone: Clone, change: str) -> None:
    (clone.versions / "second.py").write_text("second\n")
    clone.commit()
    first = clone.versions / "first.py"
    if change == "removed":
        first.unlink()
    elif change == "renamed":
        first.rename(clone.versions / "renamed.py")
    else:
        first.write_text("other\n")
    if change != "not committed":
        clone.commit()
    verdict = clone.verdict()
    assert verdict.returncode == 1
    assert "migrations/versions/first.py" in verdict.stderr


def test_a_branch_is_compared_with_where_it_left_main(clone: Clone) -> None:
    clone.git("update-ref", "refs/remotes/origin/main", "HEAD")
    (clone.versions / "second.py").write_text("second\n")
    clone.commit()
    (clone.versions / "second.py").write_text("second, while nobody has run it\n")
    clone.commit()
    assert clone.verdict().returncode == 0
    (clone.versions / "first.py").write_text("other\n")
    clone.commit()
    (clone.versions / "third.py").write_text("third\n")
    clone.commit()
    assert clone.verdict().returncode == 1


_MIGRATION = """
from alembic import op

revision: str = "newest"
down_revision: str | None = "{head}"
backward_compatible: bool = True
{more}


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    op.execute("DROP INDEX by_name")
"""
_INDEX = 'op.execute("CREATE INDEX by_name ON api_keys (name)")'
_ALLOWED = 'allowed_findings: dict[str, str] = {"squawk/require-concurrent-index-creation": "a test"}'


@pytest.mark.parametrize(
    ("upgrade", "more", "code", "says"),
    [
        (_INDEX, "", 1, "require-concurrent-index-creation"),
        (_INDEX, _ALLOWED, 0, "1 new migrations, nothing found"),
        ("raise RuntimeError('asks the database')", "", 1, "squawk cannot read it"),
    ],
    ids=["harm", "allowed harm", "no SQL"],
)
def test_harm_in_the_sql_of_a_new_migration_is_found(
    clone: Clone, upgrade: str, more: str, code: int, says: str
) -> None:
    (clone.versions / "first.py").unlink()
    for name in (".ci/squawk", ".ci/squawk.toml", "alembic.ini"):
        shutil.copy(REPOSITORY / name, clone.folder / name)
    shutil.copytree(REPOSITORY / "migrations", clone.folder / "migrations", dirs_exist_ok=True)
    clone.commit()
    [head] = configured_revisions(REPOSITORY / "alembic.ini").heads
    (clone.versions / "2030_newest.py").write_text(_MIGRATION.format(head=head, more=more, upgrade=upgrade))
    clone.commit()
    environment = {name: value for name, value in _git_environment().items() if name != "ALEMBIC_CONFIG"}
    command = [sys.executable, str(clone.folder / ".ci" / "squawk")]
    verdict = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert verdict.returncode == code, verdict
    assert says in verdict.stdout, verdict
