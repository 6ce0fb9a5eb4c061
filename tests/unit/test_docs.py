"""The documents say what the code says."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from gasket.environment import comes_from_kubernetes
from gasket.migrator import errors
from gasket.migrator.apply import events
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.proxy.exchange import Outcome
from gasket.settings import Settings, is_secret, variables

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    rows = [entry.metadata for entry in fields(Settings)]
    return "\n".join(f"| `{row['env']}` | {row['shown_default']} | {row['meaning']} |" for row in rows)


def test_every_setting_is_listed_with_its_default_and_meaning() -> None:
    """On failure, put the expected table in its place."""
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text(), f"\n{settings_table()}"


def test_every_secret_is_listed_with_its_file() -> None:
    secrets = [entry.metadata["env"] for entry in fields(Settings) if is_secret(entry)]
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((name, f"{name}_FILE") for name in secrets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_a_setting(document: Path) -> None:
    named = set(re.findall(r"\bGASKET_[A-Z_]+[A-Z]\b", document.read_text()))
    assert {name for name in named if not comes_from_kubernetes(name)} <= variables()


def test_every_refusal_of_the_migrator_is_in_the_table_of_what_to_do() -> None:
    table = (ROOT / "docs" / "refusals.md").read_text()
    listed = re.findall(r"^\| `(\w+Error)` \|", table, re.MULTILINE)
    refusals = [
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__base__ is errors.MigratorError
    ]
    assert sorted(listed) == sorted(refusals)


def test_every_event_of_a_migration_is_in_the_table() -> None:
    document = (ROOT / "docs" / "schema-management.md").read_text()
    table = document.partition("\n## What does a migration log?")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (?!beside)", table, re.MULTILINE)
    emitted = re.findall(r'"event": "(\w+)"', Path(inspect.getfile(events)).read_text())
    assert listed == emitted


def test_every_way_in_which_a_request_can_end_is_listed() -> None:
    [listed] = re.findall(r"how it ended \((`[^)]*)\)", (ROOT / "docs" / "gateway.md").read_text())
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(Outcome)


def test_every_rule_has_its_recipe() -> None:
    document = (ROOT / "docs" / "migration-recipes.md").read_text()
    table = document.partition("\n## Which rules are there?")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(SQL_RULES)


def test_every_file_that_is_named_exists() -> None:
    """A path is a word in backquotes that begins with one of the folders of the repository."""
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:src|tests|docs|bench|deploy|migrations)/[\w./-]+)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_every_room_is_in_the_architecture() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    for folder in (ROOT / "src/gasket").iterdir():
        if (folder / "__init__.py").exists():
            assert f"`src/gasket/{folder.name}/`" in document


def test_the_architecture_lists_what_is_in_the_migrator() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    table = document.partition("| in `src/gasket/migrator/` |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+(?:\.py|/))`", row.split("|")[1])]
    entries = (ROOT / "src" / "gasket" / "migrator").iterdir()
    there = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries if entry.name[:2] != "__"]
    assert sorted(listed) == sorted(there)


def test_every_decision_has_a_context_a_decision_and_a_price() -> None:
    for decision in (ROOT / "docs" / "decisions.md").read_text().split("\n### ")[1:]:
        title, *paragraphs = re.split(r"\n## |\n\n(?!- )", decision.partition("\n## ")[0].strip())
        assert len(paragraphs) == 3, title


def test_decisions_begin_with_a_list_of_their_rooms() -> None:
    head, *rooms = (ROOT / "docs" / "decisions.md").read_text().split("\n## ")
    assert re.findall(r"^- \[(.+)\]\(#", head, re.MULTILINE) == [room.partition("\n")[0] for room in rooms]


def test_decisions_are_grouped_by_room() -> None:
    """A heading of the second level is a room, and has decisions; else a decision got the wrong level."""
    for room in (ROOT / "docs" / "decisions.md").read_text().split("\n## ")[1:]:
        assert "\n### " in room, room.partition("\n")[0]
        assert room.partition("\n")[2].strip().startswith("### "), room.partition("\n")[0]
