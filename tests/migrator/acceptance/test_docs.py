"""The examples of docs/commands.md: every command prints what the document shows.

An example is a `console` block: lines that begin with `$`, each followed by what the command prints. To write the
output of today into the document: UPDATE_DOCS=1 make test ARGS=tests/migrator/acceptance/test_docs.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.installation import REPOSITORY, Installation

DOCUMENT = REPOSITORY / "docs" / "commands.md"
HEAD = "19e6a3d5f870"
"""Where the release of the examples ends: a new migration changes none of them. `check` needs the one of the models."""
FILE = '''\
"""add quota to keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "5f20c7d81e3b"
down_revision: str | None = {down!r}
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

backward_compatible: bool = True
{declares}

def upgrade() -> None:
    op.add_column("api_keys", sa.Column("quota", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "quota")
'''
A_KEY = """
INSERT INTO backend_profiles (name) VALUES ('team');
INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id, last_used_at)
SELECT 'ada@example.com', 'laptop', md5('a key'), 'gsk_...', id, now() FROM backend_profiles;
"""

LEAVES_WORK = """\
from gasket.migrator.background import Backfill, IndexBuild

background = [
    Backfill(table="api_keys", set="quota = 100", where="quota IS NULL"),
    IndexBuild("CREATE INDEX CONCURRENTLY ix_api_keys_quota ON api_keys (quota)"),
]
"""

Prepare = Callable[[Installation], Awaitable[None]]


async def nothing(_installation: Installation) -> None:
    """The schema is at head, and its tables are empty."""


async def a_key_was_used(installation: Installation) -> None:
    await (await installation.look()).execute(A_KEY)


async def a_revision_is_pending(installation: Installation) -> None:
    write_new_revision(installation)


async def the_new_revision_is_applied(installation: Installation) -> None:
    write_new_revision(installation)
    await succeeds(installation, "upgrade", "--no-prompt")


async def its_file_is_gone(installation: Installation) -> None:
    await the_new_revision_is_applied(installation)
    new_file(installation).unlink()


async def its_file_is_edited(installation: Installation) -> None:
    await the_new_revision_is_applied(installation)
    file = new_file(installation)
    file.write_text(file.read_text().replace("sa.Integer()", "sa.BigInteger()"))


async def the_key_is_in_the_archive(installation: Installation) -> None:
    await a_key_was_used(installation)
    await succeeds(installation, "downgrade", "--no-prompt", "-1")


async def background_work_is_pending(installation: Installation) -> None:
    await a_key_was_used(installation)
    write_new_revision(installation, declares=LEAVES_WORK)
    await succeeds(installation, "upgrade", "--no-prompt")


async def no_version_table(installation: Installation) -> None:
    await (await installation.look()).execute("DROP TABLE alembic_version")


async def the_column_was_added_by_hand(installation: Installation) -> None:
    write_new_revision(installation)
    await (await installation.look()).execute("ALTER TABLE api_keys ADD COLUMN quota integer")


SITUATIONS: dict[str, Prepare] = {
    "status": a_revision_is_pending,
    "plan": a_revision_is_pending,
    "upgrade": a_revision_is_pending,
    "downgrade": a_key_was_used,
    "rollback": its_file_is_gone,
    "archive": the_key_is_in_the_archive,
    "background": background_work_is_pending,
    "accept": its_file_is_edited,
    "adopt": no_version_table,
    "stamp": the_column_was_added_by_hand,
    "history": nothing,
    "check": nothing,
}
"""What holds before the examples of a section run."""


def write_new_revision(installation: Installation, declares: str = "") -> None:
    new_file(installation).write_text(FILE.format(down=installation.project.shipped[-1], declares=declares))


def new_file(installation: Installation) -> Path:
    return installation.project.versions / "2026_12_01_0900_add_quota_to_keys.py"


async def succeeds(installation: Installation, *command: str) -> None:
    done = await installation.run("gasket", "database", *command)
    assert done.exit_code == 0, done.output


def examples(section: str) -> Iterator[re.Match[str]]:
    """The `console` blocks of a section."""
    return re.finditer(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    """The text below each heading."""
    titles_and_texts = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(titles_and_texts[::2], titles_and_texts[1::2], strict=True))


def unchanging(output: str, installation: Installation) -> str:
    """The output with fixed values for what differs from run to run."""
    url = urlsplit(installation.database_url)
    for pattern, value in (
        (re.escape(url.path[1:]), "gasket"),
        (rf"\({re.escape(url.username or '')}\)", "(gasket)"),
        (r"\S+@\S+/gasket\b", "gasket@db:5432/gasket"),
        (r"20\d\d-\d\d-\d\d([ T])\d\d:\d\d:\d\d([.,]\d+)?", r"2026-11-30\g<1>10:00:00"),
        (r"\b\d+(\.\d+)? s\b", "0.1 s"),
        (r"\b\d+ ms\b", "10 ms"),
        (r"\b\d+ kB\b", "40 kB"),
        (r"\bpid \d+\b", "pid 4711"),
    ):
        output = re.sub(pattern, value, output)
    return output.rstrip() + "\n" if output.strip() else ""


def test_every_section_has_a_situation() -> None:
    assert [title for title, text in sections().items() if next(examples(text), None)] == list(SITUATIONS)


@pytest.mark.parametrize("section", SITUATIONS)
async def test_the_examples_are_true(installation: Installation, section: str) -> None:
    installation.settings |= {"GASKET_RELEASE": "1.4.0", "GASKET_LOG_FORMAT": "text", "COLUMNS": "80"}
    if section != "check":
        installation.project.end_at(HEAD)
    await installation.migrate()
    await SITUATIONS[section](installation)
    for example in examples(sections()[section]):
        shown = example[1]
        printed = ""
        for command in re.findall(r"^\$ (.*)$", shown, re.MULTILINE):
            done = await installation.run(*command.split())
            assert "Traceback" not in done.output
            printed += f"$ {command}\n{unchanging(done.output, installation)}"
        if os.environ.get("UPDATE_DOCS"):
            DOCUMENT.write_text(DOCUMENT.read_text().replace(shown, printed))
        else:
            assert printed == shown
