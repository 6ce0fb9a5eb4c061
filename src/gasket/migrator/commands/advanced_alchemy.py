"""The commands that Advanced Alchemy brings, in Gasket's words."""

from __future__ import annotations

import click

_HELP = {
    "branches": "Show the revisions on which more than one other stands.",
    "check": "Compare the models with the database, which has to be at head.",
    "dump-data": "Write the rows of tables to JSON files.",
    "edit": "Open the file of REVISION in $EDITOR. The file of an applied revision has to stay as it is.",
    "ensure-version": "Make the version table, without applying a revision.",
    "heads": "Show the newest revision of the migration files.",
    "history": "Show all revisions of the migration files, newest first.",
    "init": "Make a new folder for migrations. Gasket has one.",
    "list-templates": "List the templates from which `init` can make a folder.",
    "make-migrations": "Write a migration file with the difference between the models and the database.",
    "show": "Show one revision: its file, its message, and the one before it.",
    "show-current-revision": "Show which revision is applied.",
}
_OPTIONS = {
    "autogenerate": "Compare the models with the database, or write an empty file.",
    "branch_label": "A label for the branch that begins with the new revision.",
    "dump_dir": "The folder for the files. [default: fixtures]",
    "head": "The revision on which the new one stands. [default: head]",
    "indicate_current": "Mark the applied revision.",
    "message": "What the revision does, in a few words.",
    "no_prompt": "Do not ask.",
    "resolve_dependencies": "Treat depends_on like down_revision.",
    "rev_id": "The id of the new revision. [default: 12 random hexadecimal digits]",
    "rev_range": "Show only these, such as `base:head` or `-3:current`.",
    "splice": "Let --head name a revision that is not a head.",
    "sql": "Print the SQL instead of running it.",
    "table_names": "A table to write; may be given several times. `*` means all.",
    "verbose": "Show the file and the whole message of each revision.",
    "version_path": "The folder for the file, if there are several.",
}
_OF_NO_USE = {"init", "list-templates"}
"""Commands for a project that has no migrations yet."""
_OF_NO_USE_OPTIONS = {"bind_key"}
"""Gasket has one database."""


def in_our_words(command: click.Command) -> click.Command:
    """The same command, with Gasket's help texts; what is of no use here is hidden."""
    name = command.name or ""
    command.help = _HELP.get(name, command.help)
    command.hidden = command.hidden or name in _OF_NO_USE
    for option in command.params:
        if isinstance(option, click.Option):
            option.help = _OPTIONS.get(option.name or "", option.help)
            option.hidden = option.hidden or option.name in _OF_NO_USE_OPTIONS
    return command
