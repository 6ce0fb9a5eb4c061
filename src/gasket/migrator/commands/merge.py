"""`gasket database merge`."""

from __future__ import annotations

import alembic.command
import click

from gasket.migrator.config import MigratorConfig
from gasket.migrator.revisions.scripts import alembic_config


def merge_command(config: MigratorConfig) -> click.Command:
    """The command, for the migration files that `config` names."""

    @click.command("merge", help="Write a file that joins these heads into one.")
    @click.argument("revisions", nargs=-1, required=True)
    @click.option("-m", "--message", default="merge heads", show_default=True, help="What the revision does.")
    @click.option("--branch-label", help="A label for the branch.")
    @click.option("--rev-id", help="The id of the new revision.")
    @click.option("--no-prompt", is_flag=True, help="Nothing is asked anyway.")
    def merge(
        revisions: tuple[str, ...], message: str, branch_label: str | None, rev_id: str | None, no_prompt: bool
    ) -> None:
        alembic.command.merge(
            alembic_config(config.ini), revisions, message=message, branch_label=branch_label, rev_id=rev_id
        )

    return merge
