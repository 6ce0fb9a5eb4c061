"""Which database is about to be changed, and which replicas serve from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import asyncpg
import msgspec

from gasket.migrator.config import MigratorConfig
from gasket.migrator.ledger.read import read_state
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.postgres.connections import connected_address
from gasket.postgres.sessions import Replica, serving_replicas, shown_release


class Target(msgspec.Struct, frozen=True):
    """`address` is `role@host:port/database`; `appliers` has the release that applied each revision.

    Releases are as replicas show them. `own_release` is this command's; it has the files of `own_revisions`.
    """

    address: str
    schema: str
    replicas: Sequence[Replica]
    appliers: Mapping[str, str]
    own_release: str
    own_revisions: Collection[str]

    def __str__(self) -> str:
        if not self.replicas:
            serving = "No replica is serving"
        else:
            serving = f"{_replicas(len(self.replicas))} serving: {_by_release(self.replicas)}"
        return f"Database {self.address}, schema {self.schema}. {serving}."

    def consequence(self, taken_back: Sequence[str]) -> str:
        """What a downgrade means to the replicas that serve, in one sentence.

        Those of a release that has applied one of the revisions have its file, and need it. Of other releases it is not
        known which revisions they need.
        """
        if not self.replicas:
            return "No replica is serving."
        need = {self.appliers[revision] for revision in taken_back if revision in self.appliers}
        if set(taken_back) & set(self.own_revisions):
            need.add(self.own_release)
        will = [replica for replica in self.replicas if replica.release in need]
        may = [replica for replica in self.replicas if replica.release not in need]
        count = _replicas(len(self.replicas))
        if not may:
            return f"{count} serving and will stop being ready."
        if not will:
            return f"{count} serving and may stop being ready: {_by_release(may)}."
        return f"{count} serving: {_by_release(will)} will stop being ready, {_by_release(may)} may."


async def find_target(connection: asyncpg.Connection, config: MigratorConfig) -> Target:
    """Look, over a connection of the migrating role's."""
    database = await read_state(connection, config.schema)
    return Target(
        address=connected_address(connection, config.migration_url),
        schema=config.schema,
        replicas=await serving_replicas(connection, config.schema),
        appliers={entry.revision: shown_release(entry.release) for entry in database.ledger.values() if entry.release},
        own_release=shown_release(config.release),
        own_revisions=configured_revisions(config.ini).keys(),
    )


def _replicas(count: int) -> str:
    return f"{count} replicas are" if count > 1 else "1 replica is"


def _by_release(replicas: Sequence[Replica]) -> str:
    counts = Counter(replica.release for replica in replicas)
    return ", ".join(f"{count} of release {release}" for release, count in sorted(counts.items()))
