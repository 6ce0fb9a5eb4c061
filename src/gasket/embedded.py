"""The PostgreSQL that Gasket runs itself when no DATABASE_URL is given.

What lies in the data directory:

    postgresql/          the database cluster, 0700; the Unix socket, the only way in, lies there as well
    postgresql.log       what the server says, and the programs that start and stop it
    start.lock           locked while one process looks for the server, starts it or stops it
    users.lock           locked, shared, by every user of the server; the last one out stops the server
    binaries-<version>/  copied programs, only where PostgreSQL's account cannot reach the installed ones

The locks are `flock`s, so a user that is killed is no longer counted: a server that it leaves behind is found
running, and the next one uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from gasket.errors import EmbeddedDatabaseError
from gasket.postgres.errors import describe
from gasket.postgres.programs import (
    ELSEWHERE,
    MAJOR,
    Account,
    closed_part,
    run,
    server_account,
    server_log,
)

logger = logging.getLogger("gasket.embedded")

_PORT = 5432  # there is no TCP: it is a part of the socket's name
_START_LIMIT = 30.0
_STOP_LIMIT = 15.0
_LOG_SIZE = 1_000_000


class EmbeddedDatabase:
    """One user of the server on `data_dir`; any number of them, in any processes, share it.

    Args:
        data_dir: made when it is missing.
        max_connections: like `settings`, it holds only when this user is the one that starts the server.
        settings: further settings of the server, by PostgreSQL's names for them.
    """

    def __init__(
        self, data_dir: Path, *, max_connections: int = 100, settings: Mapping[str, str] | None = None
    ) -> None:
        self._folder = data_dir.resolve()
        self._cluster = self._folder / "postgresql"
        self._log = server_log(self._folder)
        self._socket_folder = _socket_folder(self._cluster)
        self._settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "port": str(_PORT),
            "max_connections": str(max_connections),
            "log_checkpoints": "off",
            **(settings or {}),
        }
        self._users: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """A libpq URL of the database `gasket`, as its owner; known before the server runs."""
        return f"postgresql://gasket@/gasket?host={self._socket_folder}&port={_PORT}"

    def __enter__(self) -> str:
        self.start()
        return self.url

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Use the server; what is not there yet, the data or the server, is made. Blocks up to 30 s.

        Raises:
            EmbeddedDatabaseError: it cannot run here; the message says why and what to do.
        """
        if self._users is not None:
            return
        deadline = time.monotonic() + _START_LIMIT
        with self._errors_in_words():
            _make_folder(self._folder)
            with self._alone(deadline), contextlib.ExitStack() as on_failure:
                users = on_failure.enter_context(_open_lock(self._folder / "users.lock"))
                # Only who holds the start lock ever takes this one exclusively, to see whether it is the last.
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._run_server(deadline)
                on_failure.pop_all()
                self._users = users
        logger.warning(
            "DATABASE_URL is not set: using the embedded PostgreSQL %d, with its data in %s. "
            "It is for trying Gasket out, and for one machine.",
            MAJOR,
            self._folder,
        )

    def stop(self) -> None:
        """Leave the server; the last one out stops it. Blocks up to 15 s, and does nothing the second time.

        Raises:
            EmbeddedDatabaseError: the server did not stop in time; it is left to itself.
        """
        users, self._users = self._users, None
        if users is None:
            return
        with contextlib.closing(users), self._errors_in_words():
            deadline = time.monotonic() + _STOP_LIMIT
            # Unlocked before the start lock is: who comes next must not meet the exclusive lock.
            with self._alone(deadline), users:
                if _try_exclusive(users) and self._answers():
                    self._control("stop", "--mode=fast", deadline=deadline)

    @contextlib.contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedDatabaseError(
                f"The embedded PostgreSQL cannot use {self._folder}: {describe(error)}. "
                f"Set GASKET_DATA_DIR to a folder that this account can write to, {ELSEWHERE}."
            ) from error

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        """Hold the start lock."""
        with _open_lock(self._folder / "start.lock") as lock:
            while not _try_exclusive(lock):
                if time.monotonic() > deadline:
                    raise EmbeddedDatabaseError(
                        f"Another process is still starting or stopping the embedded PostgreSQL: it holds "
                        f"{self._folder / 'start.lock'}. Try again when it is done."
                    )
                time.sleep(0.01)
            yield

    def _run_server(self, deadline: float) -> None:
        self._check_cluster()
        if not self._answers():
            self._launch(deadline)
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise EmbeddedDatabaseError(
                    f"The embedded PostgreSQL in {self._cluster} is still recovering its data after a crash, "
                    f"and goes on with it. Try again in a minute; {self._log} says how far it is."
                )
            time.sleep(0.01)

    def _check_cluster(self) -> None:
        """Refuse what this PostgreSQL cannot or must not use, before anything is changed."""
        if not self._cluster.exists():
            return
        if self._socket_folder.exists():
            _check_private(self._socket_folder, self._cluster.stat().st_uid)
        marker = self._cluster / "PG_VERSION"
        writer = f"PostgreSQL {marker.read_text().strip()}" if marker.exists() else "something else"
        if writer != f"PostgreSQL {MAJOR}":
            raise EmbeddedDatabaseError(
                f"The data in {self._cluster} was written by {writer}, and this Gasket brings PostgreSQL "
                f"{MAJOR}. Nothing was changed. Move the data over with pg_dump and psql of those versions, "
                f"move the folder away to start with an empty database, {ELSEWHERE}."
            )

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._socket_folder / f".s.PGSQL.{_PORT}"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except BlockingIOError:
                return True  # its queue is full
            return True

    def _is_ready(self) -> bool:
        """A server that is starting up answers too; the eighth line of its file is its state (pidfile.h)."""
        lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _launch(self, deadline: float) -> None:
        account = server_account(self._cluster)
        if account and (closed := closed_part(self._folder, account)):
            raise EmbeddedDatabaseError(
                f"PostgreSQL does not run as root but, here, as the account {account.name}, and {closed} is "
                f"closed to that account. Set GASKET_DATA_DIR to a folder outside of it (the default is "
                f"/var/lib/gasket), {ELSEWHERE}."
            )
        if self._log.exists() and self._log.stat().st_size > _LOG_SIZE:
            os.truncate(self._log, 0)
        if not self._cluster.exists():
            self._create_cluster(account, deadline)
        if self._socket_folder != self._cluster:
            _claim_socket_folder(self._socket_folder, self._cluster.stat())
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in self._settings.items())
        self._control("start", f"--options={options}", deadline=deadline)

    def _create_cluster(self, account: Account | None, deadline: float) -> None:
        """Make the cluster and its database beside its place, and rename it: it is there whole or not at all."""
        new = self._cluster.with_suffix(".new")
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        if account:
            os.chown(new, account.uid, account.gid)
        access = ["--username=gasket", "--auth-local=trust", "--auth-host=reject"]
        # C.UTF-8 of the builtin provider is the same everywhere, whatever locales the machine has.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        sync = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        run("initdb", *access, *locale, *sync, cluster=new, account=account, deadline=deadline)
        single = ["--single", "-c", "exit_on_error=on", "postgres"]
        sql = b"CREATE DATABASE gasket"
        run("postgres", *single, cluster=new, account=account, deadline=deadline, script=sql)
        new.rename(self._cluster)

    def _control(self, command: str, option: str, *, deadline: float) -> None:
        limit = max(1, int(deadline - time.monotonic()))
        wait = ["--wait", f"--timeout={limit}", "--silent"]
        account = server_account(self._cluster)
        # Its own limit comes first, because it has more to say.
        run("pg_ctl", command, option, *wait, cluster=self._cluster, account=account, deadline=deadline + 1)


def _make_folder(folder: Path) -> None:
    """Make it, and its parents, when missing; one that is there already is left as it is.

    What root makes can be passed through, because PostgreSQL runs under another account.
    """
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _socket_folder(cluster: Path) -> Path:
    """The cluster itself; a folder under /tmp where its path is too long or too odd for a socket.

    A socket's path has at most 107 bytes, and in a list of hosts a comma ends one. /tmp and not
    `tempfile.gettempdir()`: all users of the server must come to the same folder, whatever their TMPDIR.
    """
    path = str(cluster)
    if re.fullmatch(r"[A-Za-z0-9/._-]+", path) and len(f"{path}/.s.PGSQL.{_PORT}") <= 107:
        return cluster
    digest = hashlib.sha256(os.fsencode(cluster)).hexdigest()
    return Path("/tmp", f"gasket-{digest[:32]}")  # its owner and mode are checked


def _claim_socket_folder(folder: Path, owner: os.stat_result) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner.st_uid, owner.st_gid)
    _check_private(folder, owner.st_uid)


def _check_private(folder: Path, owner: int) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise EmbeddedDatabaseError(
            f"{folder}, which is to hold the socket of the embedded PostgreSQL, belongs to another account or "
            f"is open to others. Find out who made it and remove it, set GASKET_DATA_DIR, {ELSEWHERE}."
        )


def _open_lock(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)


def _try_exclusive(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_or_make_secret(path: Path, make: Callable[[], str]) -> str:
    """The secret that the file holds; where there is no file, `make()` is written to it first, 0600.

    Any number of processes at once agree on one value, and none reads a part of it.

    Raises:
        EmbeddedDatabaseError: the file cannot be read or made, is empty, or is open to other accounts.
    """
    try:
        if not path.exists():
            _make_folder(path.parent)
            _publish(path, make())
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddedDatabaseError(
            f"The secret in {path} cannot be read or made: {describe(error)}. Let this account read it, or set "
            "GASKET_DATA_DIR to a folder that this account can write to."
        ) from error
    if mode & 0o077:
        # To correct the mode silently would hide that others may know the secret.
        raise EmbeddedDatabaseError(
            f"The secret in {path} can be read by other accounts (mode {mode:04o}). "
            f"Run `chmod 600 {path}`, and replace the secret if others may have read it."
        )
    if not secret:
        raise EmbeddedDatabaseError(f"{path} should hold a secret and is empty. Remove it to have one made.")
    return secret


def _publish(path: Path, secret: str) -> None:
    """Written beside its place first: a link to it appears whole, and only where there is none yet."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
