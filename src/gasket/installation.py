"""The installation that the environment describes: its settings, its database, its migrations.

Nothing here imports the application. A command that only manages the schema starts without it, and loads the models
only when it compares with them or renders a revision.
"""

from __future__ import annotations

import os
import pkgutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import MetaData

from gasket.embedded import EmbeddedDatabase
from gasket.errors import EmbeddedDatabaseError, SettingsError
from gasket.migrator.config import MigratorConfig
from gasket.notices.webhook import Webhook
from gasket.settings import Settings, read_settings

_MODELS = "gasket.models:metadata"


class Installation:
    """Settings and the database that they name; `embedded` is Gasket's own server, where they name none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.embedded = EmbeddedDatabase(settings.data_dir) if settings.embedded else None
        self._webhook = _webhook(settings)

    @property
    def database_url(self) -> str:
        """DATABASE_URL, or the URL of the embedded server."""
        return self.embedded.url if self.embedded else str(self.settings.database_url)

    @property
    def pseudonym(self) -> bytes:
        """What the replicas call themselves to backends (RFC 9110, 7.6.3); it tells an outsider nothing."""
        url = urlsplit(self.database_url)
        place = f"{url.netloc.rpartition('@')[2]}{url.path} {self.settings.database_schema}"
        return b"gasket-" + sha256(place.encode()).hexdigest()[:16].encode()

    def notify(self, kind: str, text: str, data: Mapping[str, object]) -> None:
        """Tell the receiver at GASKET_WEBHOOK_URL, as `Webhook.notify` does. Without the setting it does nothing."""
        if self._webhook is not None:
            self._webhook.notify(kind, text, data)

    def deliver_notices(self) -> None:
        """Wait for messages that are not delivered yet, at most `FLUSH_LIMIT` seconds."""
        if self._webhook is not None:
            self._webhook.flush()

    @contextmanager
    def running_database(self) -> Iterator[None]:
        """For a command: the embedded server runs for as long as the command does. Then messages are delivered.

        Raises:
            SystemExit: it cannot run here; with a message in one sentence.
        """
        try:
            with EmbeddedDatabase(self.settings.data_dir) if self.embedded else nullcontext():
                yield
        except EmbeddedDatabaseError as error:
            raise SystemExit(f"gasket: {error}") from None
        finally:
            self.deliver_notices()

    def migrator_config(self) -> MigratorConfig:
        """What the migrator has to know."""
        settings = self.settings
        return MigratorConfig(
            database_url=self.database_url,
            migration_database_url=settings.migration_database_url,
            schema=settings.database_schema,
            release=settings.release,
            ini=find_ini(),
            load_metadata=_load_metadata,
            database_wait=settings.database_wait,
            lock_wait=settings.migration_lock_wait,
            ddl_wait=settings.migration_ddl_wait,
            scratch_url=settings.scratch_database_url,
            migrate_on_startup=settings.migrate_on_startup,
            log_format=settings.log_format,
            background_share=settings.background_share,
            start_database=self.running_database,
            notify=self.notify,
        )


def installation_or_exit() -> Installation:
    """The environment's installation; a wrong setting ends the process with its message and nothing else."""
    try:
        return Installation(read_settings(os.environ))
    except SettingsError as error:
        raise SystemExit(f"gasket: {error}") from None


def migrator_config() -> MigratorConfig:
    """For env.py, when a command line runs it."""
    return installation_or_exit().migrator_config()


def find_ini() -> Path:
    """Alembic's ini: ALEMBIC_CONFIG, else the one in the working directory, else the one that came with Gasket."""
    if named := os.environ.get("ALEMBIC_CONFIG"):
        if not Path(named).is_file():
            raise SystemExit(f"gasket: ALEMBIC_CONFIG names {named}, which is not a file.")
        return Path(named).resolve()
    package = Path(__file__).parent
    candidates = [Path("alembic.ini"), package / "alembic.ini", package.parents[1] / "alembic.ini"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise SystemExit("gasket: there is no alembic.ini here and none came with Gasket; set ALEMBIC_CONFIG.")


def _webhook(settings: Settings) -> Webhook | None:
    if settings.webhook_url is None:
        return None
    host = socket.gethostname()
    source = {
        "release": settings.release,
        "host": host,
        "process": f"{host}:{os.getpid()}",
        "schema": settings.database_schema,
    }
    return Webhook(settings.webhook_url, settings.webhook_secret, source)


def _load_metadata() -> MetaData:
    metadata: MetaData = pkgutil.resolve_name(_MODELS)
    return metadata
