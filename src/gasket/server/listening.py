"""The sockets of a replica. They listen before anything else is started."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gasket.errors import GasketError

_BACKLOG = 2048
"""As uvicorn has it."""
_REASONS = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "this account may not use it; a port below 1024 is for administrators",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
}


class AddressError(GasketError):
    """The address cannot be listened on."""

    def __init__(self, address: str, reason: str, mend: str) -> None:
        super().__init__(f"cannot listen on {address}: {reason}; nothing was started. {mend}")


def listen_on_port(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host.

    Raises:
        AddressError: another program listens there, the port needs rights, or the host is not one of this machine.
    """
    address, mend = f"{host}:{port}", "Choose another --host or --port."
    if not 0 <= port < 2**16:
        raise AddressError(f"port {port}", "a port is from 1 to 65535", "Choose another --port.")
    listening: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listening.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
    except OSError as error:
        for listener in listening:
            listener.close()
        raise AddressError(address, _reason(error), mend) from None
    return listening


def listen_on_path(path: str) -> socket.socket:
    """A listening UNIX domain socket. The file of one that nobody listens on any more is replaced, and keeps its mode.

    Raises:
        AddressError: another program listens there, or the file cannot be made.
    """
    place, mode = Path(path), 0o666
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            found = place.stat().st_mode
            if stat.S_ISSOCK(found):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    if probe.connect_ex(path) == 0:
                        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
                mode = stat.S_IMODE(found)
                place.unlink()
            else:
                raise AddressError(path, "there is a file that is not a socket", "Choose another --uds.")
        listener.bind(path)
        place.chmod(mode)
        listener.listen(_BACKLOG)
    except AddressError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise AddressError(path, _reason(error), "Choose another --uds.") from None
    return listener


def remover_of(path: str) -> Callable[[], None]:
    """Call what this returns to remove the file of a socket that was just made, unless another program replaced it."""
    made = _identity(path)

    def remove() -> None:
        with suppress(FileNotFoundError):
            if _identity(path) == made:
                os.unlink(path)

    return remove


def _identity(path: str) -> tuple[int, int, int]:
    """With its time: a number of a file is given again. A change of its mode does not change that time."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def listen_on_descriptor(descriptor: int) -> socket.socket:
    """The socket of an open file descriptor, with the family that it has.

    Raises:
        AddressError: it is none that can listen.
    """
    try:
        listener = socket.socket(fileno=os.dup(descriptor))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise AddressError(f"file descriptor {descriptor}", _reason(error), "Choose another --fd.") from None
    return listener


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)
