"""Where Alembic's configuration leads: the files that Gasket reads are those that Alembic runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from gasket.migrator.errors import AlembicConfigurationError, RevisionFileError
from gasket.migrator.revisions.configuration import Locations, configured_revisions, read_locations
from gasket.migrator.revisions.scripts import require_same_files, script_directory

REVISION = '"""one"""\nrevision = {revision!r}\ndown_revision = {down!r}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with migrations in several places, of which an ini names some."""
    down: str | None = None
    for place in ("changes/versions", "changes/versions/2026", "more", "shop/changes/versions"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        revision = place.replace("/", "_")
        (tmp_path / place / "one.py").write_text(REVISION.format(revision=revision, down=down))
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')")
    (tmp_path / "changes" / "versions" / "__init__.py").write_text("")
    (tmp_path / "changes" / "versions" / ".#one.py").write_text("an editor's")
    (tmp_path / "changes" / "versions" / "__pycache__").mkdir()
    (tmp_path / "changes" / "versions" / "__pycache__" / "two.py").write_text("not looked at")
    return tmp_path


@pytest.fixture(autouse=True)
def path_of_imports() -> Iterator[None]:
    """Alembic's `prepend_sys_path` changes it."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("shop", None)


def write_ini(folder: Path, *lines: str) -> Path:
    ini = folder / "alembic.ini"
    ini.write_text("\n".join(["[alembic]", *lines, ""]))
    return ini


PLAIN = "script_location = %(here)s/changes"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([PLAIN], {"changes_versions"}),
        ([PLAIN, "path_separator = os", "version_locations = %(here)s/more"], {"more"}),
        (
            [PLAIN, "path_separator = os", "version_locations = %(here)s/more:%(here)s/changes/versions"],
            {"more", "changes_versions"},
        ),
        (
            [PLAIN, "path_separator = newline", "version_locations =", "  %(here)s/more", "  %(here)s/shop"],
            {"more"},
        ),
        ([PLAIN, "recursive_version_locations = true"], {"changes_versions", "changes_versions_2026"}),
        ([PLAIN, "recursive_version_locations = false"], {"changes_versions"}),
        (
            ["script_location = shop:changes", "prepend_sys_path = %(here)s", "path_separator = os"],
            {"shop_changes_versions"},
        ),
        ([PLAIN, "path_separator = os", "version_locations = %(here)s/more:%(here)s/more"], {"more"}),
    ],
)
@pytest.mark.filterwarnings("ignore:File .* loaded twice")
def test_the_files_are_those_that_alembic_runs(folder: Path, lines: list[str], found: set[str]) -> None:
    ini = write_ini(folder, *lines)
    assert set(configured_revisions(ini)) == found
    alembic = ScriptDirectory.from_config(Config(str(ini)))
    assert {script.revision for script in alembic.walk_revisions()} == found


def test_a_relative_folder_is_one_below_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ini = write_ini(folder / "more", "script_location = changes")
    monkeypatch.chdir(folder)
    assert read_locations(ini) == Locations(folder / "changes", (folder / "changes" / "versions",))


@pytest.mark.parametrize(
    ("ini", "pyproject", "found"),
    [
        ("[alembic]\n", '[tool.alembic]\nscript_location = "%(here)s/changes"\n', {"changes_versions"}),
        (
            "[alembic]\n" + PLAIN,
            '[tool.alembic]\nversion_locations = ["%(here)s/more", "%(here)s/changes/versions"]\n',
            {"more", "changes_versions"},
        ),
        ("[alembic]\n" + PLAIN, "[tool]\nalembic = {recursive_version_locations = true}\n", None),
        ("[alembic]\n" + PLAIN, '[project]\ndependencies = ["alembic"]\n[tool.ruff]\n', {"changes_versions"}),
        (None, '[tool.alembic]\nscript_location = "%(here)s/changes"\n', {"changes_versions"}),
    ],
)
def test_a_pyproject_beside_the_ini_counts(folder: Path, ini: str | None, pyproject: str, found: set[str]) -> None:
    (folder / "pyproject.toml").write_text(pyproject)
    path = folder / ("alembic.ini" if ini is not None else "pyproject.toml")
    if ini is not None:
        path.write_text(ini)
    assert set(configured_revisions(path)) == (found or {"changes_versions", "changes_versions_2026"})


@pytest.mark.parametrize(
    ("ini", "problem"),
    [
        ("[alembic]\n", "No 'script_location' key found"),
        ("", "script_location"),
        ("[loggers]\n", "script_location"),
        ("[alembic]\nscript_location = %(here)s/nowhere\n", "/nowhere, and there is no such folder"),
        ("[alembic]\nscript_location = %(there)s/changes\n", "there"),
        ("[alembic]\nscript_location = %(here)s/changes\nscript_location = b\n", "already exists"),
        (
            "[alembic]\nscript_location = %(here)s/changes\nsourceless = true\n",
            "alembic.ini sets `sourceless`: compiled migrations cannot be checked; nothing was changed. "
            "Remove that option, and ship the .py files.",
        ),
        ("[alembic]\nscript_location = nosuchpackage:changes\n", "No module named 'nosuchpackage'"),
        (
            "[alembic]\nscript_location = broken:changes\nprepend_sys_path = %(here)s\npath_separator = os\n",
            "out of order",
        ),
        ("script_location = changes\n", "no section headers"),
        (f"[alembic]\n{PLAIN}\nversion_locations = a:b\npath_separator = pipe\n", "'pipe' is not a valid value"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_a_sentence(folder: Path, ini: str, problem: str) -> None:
    path = folder / "alembic.ini"
    path.write_text(ini)
    with pytest.raises(AlembicConfigurationError) as refusal:
        read_locations(path)
    assert problem in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).count("nothing was changed") == 1


def test_an_ini_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(AlembicConfigurationError, match=r"No such file or directory .*missing\.ini"):
        read_locations(folder / "missing.ini")


@pytest.mark.parametrize("location", ["", "'%(nowhere)s'", "7", "{}"])
def test_a_pyproject_that_cannot_be_used_is_refused(folder: Path, location: str) -> None:
    ini = write_ini(folder)
    (folder / "pyproject.toml").write_text(f"[tool.alembic]\nscript_location = {location}\n")
    for read in (read_locations, script_directory):
        with pytest.raises(AlembicConfigurationError) as refusal:
            read(ini)
        assert "\n" not in str(refusal.value)
        assert str(refusal.value).count("nothing was changed") == 1


def test_alembic_may_not_be_given_other_files_than_gasket_reads(folder: Path) -> None:
    ini = write_ini(folder, PLAIN)
    require_same_files(ini, script_directory(ini), str(ini))
    other = folder / "more" / "alembic.ini"
    other.write_text(f"[alembic]\nscript_location = {folder}/changes\nrecursive_version_locations = true\n")
    with pytest.raises(AlembicConfigurationError, match=f"alembic -c {ini}"):
        require_same_files(ini, script_directory(other), str(other))


def test_a_link_that_leads_nowhere_is_refused_by_name(folder: Path) -> None:
    ini = write_ini(folder, PLAIN)
    (folder / "changes" / "versions" / "two.py").symlink_to(folder / "gone.py")
    with pytest.raises(
        RevisionFileError, match=r"two\.py cannot be read \(No such file or directory, a link to .*gone"
    ):
        configured_revisions(ini)


def test_a_file_with_null_bytes_is_refused_by_name(folder: Path) -> None:
    """A crash of the machine can leave them."""
    (folder / "changes" / "versions" / "two.py").write_bytes(bytes(512))
    with pytest.raises(RevisionFileError, match="two.py has null bytes"):
        configured_revisions(write_ini(folder, PLAIN))


def test_a_folder_that_looks_like_a_file_is_none(folder: Path) -> None:
    ini = write_ini(folder, PLAIN)
    (folder / "changes" / "versions" / "three.py").mkdir()
    assert set(configured_revisions(ini)) == {"changes_versions"}


def test_a_missing_versions_folder_has_no_files(folder: Path) -> None:
    (folder / "empty").mkdir()
    revisions = configured_revisions(write_ini(folder, "script_location = %(here)s/empty"))
    assert (len(revisions), revisions.folders) == (0, (folder / "empty" / "versions",))
