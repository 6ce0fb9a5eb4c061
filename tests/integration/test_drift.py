"""How the live schema differs from the models, in words that need no knowledge of Alembic."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import sqlalchemy as sa
from sqlalchemy import MetaData

from gasket.migrator.connection import MigratorConfig
from gasket.migrator.drift import find_drift


def _models() -> MetaData:
    metadata = MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, server_default=sa.text("1")),
        sa.Column("parent", sa.Integer, sa.ForeignKey("parents.id", name="fk_parent")),
        sa.Column("missing", sa.Text),
        sa.UniqueConstraint("name", name="uq_name"),
        sa.Index("ix_size", "size"),
    )
    sa.Table("unbuilt", metadata, sa.Column("id", sa.Integer, primary_key=True))
    return metadata


async def test_every_difference_is_a_sentence_of_its_own(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE parents (id int PRIMARY KEY);"
        "CREATE TABLE children (id int PRIMARY KEY, name text, size int, parent int, by_hand int);"
        "CREATE INDEX ix_by_hand ON children (by_hand);"
        "CREATE TABLE others (id int)"
    )
    config = MigratorConfig(database_url=database_url, release="1.0", ini=Path("alembic.ini"), metadata=_models())
    found = await find_drift(connection, config)
    await connection.close()
    assert sorted(found) == [
        "column children.by_hand is not in the models",
        "column children.missing is missing",
        "column children.name: nullable is True, in the models False",
        "column children.size: default is none, in the models 1",
        "column children.size: type is INTEGER, in the models BIGINT",
        "constraint uq_name of children is missing",
        "foreign key fk_parent of children is missing",
        "index ix_by_hand of children is not in the models",
        "index ix_size of children is missing",
        "table others is not in the models",
        "table unbuilt is missing",
    ]
