"""What the migrator has to know of the installation that it works for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import MetaData

from gasket.postgres.sessions import MIGRATING, application_name
from gasket.postgres.urls import address_of

Notify = Callable[[str, str, Mapping[str, object]], None]
"""Tells people: a type such as `migration.completed`, a sentence, and the same as values that JSON has."""


def tell_nobody(_kind: str, _text: str, _data: Mapping[str, object]) -> None:
    """The `notify` of an installation where nobody wants to be told."""


@dataclass(frozen=True, kw_only=True)
class MigratorConfig:
    """What the migrator has to know; the application hands it over, the migrator imports nothing of it.

    URLs are libpq URLs, waits are seconds. `load_metadata` imports the models, which takes longer than most commands:
    it is called when `metadata` is first asked for. `start_database` is entered by the command line, which has no
    application whose start would bring an embedded database up. `background_share` is the part of the time, from above
    0 to 1, that a replica's background work takes. `notify` returns at once.
    """

    database_url: str
    migration_database_url: str | None = None
    schema: str = "public"
    release: str
    ini: Path
    load_metadata: Callable[[], MetaData] = MetaData
    database_wait: float = 30.0
    lock_wait: float = 600.0
    ddl_wait: float = 300.0
    scratch_url: str | None = None
    migrate_on_startup: bool = True
    log_format: str | None = None
    background_share: float = 0.5
    start_database: Callable[[], AbstractContextManager[object]] = nullcontext
    notify: Notify = tell_nobody

    @cached_property
    def metadata(self) -> MetaData:
        """The models; of `render`, the naming convention of constraints as well."""
        return self.load_metadata()

    @property
    def migration_url(self) -> str:
        """The URL that schema changes go through."""
        return self.migration_database_url or self.database_url

    @property
    def migration_setting(self) -> str:
        """The name of the variable that `migration_url` comes from."""
        return "GASKET_MIGRATION_DATABASE_URL" if self.migration_database_url else "DATABASE_URL"

    def application_name(self, activity: str) -> str:
        """As `application_name` says it, of this release and schema."""
        return application_name(activity, self.release, self.schema)

    @property
    def process(self) -> str:
        """`<host>:<pid>` of this process."""
        return self.application_name(MIGRATING).rpartition(" ")[2]

    def address(self, *, migrating: bool) -> str:
        """`role@host:port/database` of that URL, and the variable that it comes from: for people."""
        setting = self.migration_setting if migrating else "DATABASE_URL"
        return f"{address_of(self.url(migrating=migrating))} ({setting})"

    def url(self, *, migrating: bool) -> str:
        """The URL of the migrating role, or of the application's."""
        return self.migration_url if migrating else self.database_url
