"""Alembic and SQLAlchemy, whose code is synchronous, over a connection of asyncpg's.

It is made of what `sqlalchemy.ext.asyncio` is made of, and not of that package: importing it imports SQLAlchemy's ORM,
a tenth of the CPU time of a command that has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import asyncpg
from sqlalchemy import Connection, StaticPool, create_engine
from sqlalchemy.util import greenlet_spawn

from gasket.migrator.sql.splitting import run_one_at_a_time
from gasket.postgres.driver import connect_over

T = TypeVar("T")


async def run_sync(connection: asyncpg.Connection, work: Callable[[Connection], T]) -> T:
    """Call `work` with a SQLAlchemy connection over the given one, which stays open.

    `work` commits by itself; a transaction that it leaves open is rolled back.
    """

    def in_greenlet() -> T:
        engine = create_engine("postgresql+asyncpg://", poolclass=StaticPool, creator=lambda: connect_over(connection))
        run_one_at_a_time(engine)
        with engine.connect() as sqlalchemy_connection:
            return work(sqlalchemy_connection)

    return await greenlet_spawn(in_greenlet)
