"""What the revisions would make, without a database."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gasket.migrator.config import MigratorConfig
from gasket.migrator.revisions.files import RevisionFile, Revisions
from gasket.migrator.revisions.loading import load_scripts
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import names_made as made_by
from gasket.migrator.sql.render import render


def names_made(config: MigratorConfig, revisions: Revisions) -> set[str]:
    """The names of tables, views, types and sequences that the revisions make, without a database."""
    directory = load_scripts(config.ini)
    names: set[str] = set()
    for file in revisions.values():
        upgrade = directory.get_revision(file.revision).module.upgrade
        rendering = render(upgrade, metadata=config.metadata)
        for statement in rendering.statements:
            names.update(made_by(read(statement.sql), config.schema))
        if rendering.reason:
            names.update(_names_in_source(file, config.schema))
    return names


def _names_in_source(file: RevisionFile, schema: str) -> Iterator[str]:
    """What can be read off a revision that cannot be rendered to its end: create_table("..."), SQL in quotes."""
    for node in ast.walk(file.parse()):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from made_by(read(node.value), schema)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "create_table":
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    yield name
