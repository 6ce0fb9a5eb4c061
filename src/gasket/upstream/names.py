"""Looks up the names of backends: without threads, each name once at a time, and for a bounded time.

The event loop's own look-ups run in a few threads, and a look-up that its caller has given up keeps its thread: a few
names whose servers are silent stopped every look-up of the process. c-ares waits for all answers on one thread. It is
imported with the first name: backends that are given by their addresses do without.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gasket.upstream.failures import NameNotResolvedError, NotConnectedError

if TYPE_CHECKING:
    import aiodns

_FRESH_FOR = 30.0
_STALE_FOR = 3600.0
_FAILURE_FOR = 1.0
"""Seconds for which an answer is used without a new look-up, is used while a new look-up runs, and a failure stands."""
_AGAIN_WITHIN = 0.25
"""Seconds for which a caller waits for a name again, if no name server said anything of it the last time. A name server
that is back answers within them; a silent one must not hold up each request for all its tries."""
_LIMIT = 10.0
"""Seconds for which one look-up may run, all name servers and tries together."""
_OTHER_FAMILY_WITHIN = 0.05
"""Seconds: RFC 8305's "Resolution Delay"."""
_MOST = 1000
_NO_SUCH_NAME = frozenset({1, 4, 8})  # ARES_ENODATA, ARES_ENOTFOUND, ARES_EBADNAME (ares.h)

Addresses = tuple[str, ...]


class _Answer(NamedTuple):
    addresses: Addresses
    failure: NotConnectedError | None
    at: float


class Names:
    """The names that this process has looked up. `options` are those of `pycares.Channel`."""

    def __init__(self, **options: Any) -> None:
        self._options: dict[str, Any] = {"timeout": 2.0, "tries": 2, **options}
        self._resolver: aiodns.DNSResolver | None = None
        self._answers: dict[str, _Answer] = {}
        self._looking: dict[str, asyncio.Task[_Answer]] = {}

    async def addresses(self, host: str) -> Addresses:
        """The addresses of a host, at least one, in the order in which to try them.

        Raises:
            NotConnectedError: the name does not exist.
            NameNotResolvedError: no name server said whether it does.
        """
        if (literal := _literal(host)) is not None:
            return (literal,)
        answer = self._answers.get(host)
        age = time.monotonic() - answer.at if answer else 0.0
        if answer is None or age >= (_STALE_FOR if answer.failure is None else _FAILURE_FOR):
            look_up = self._look_up(host)
            if answer is not None and isinstance(answer.failure, NameNotResolvedError) and age < _FRESH_FOR:
                await asyncio.wait([look_up], timeout=_AGAIN_WITHIN)
                if not look_up.done():
                    raise answer.failure
            # Shielded: one caller may give up, and the others still wait for the answer.
            answer = await asyncio.shield(look_up)
        elif age >= _FRESH_FOR:
            self._look_up(host)
        if answer.failure is not None:
            raise answer.failure
        return answer.addresses

    async def close(self) -> None:
        """End all look-ups."""
        for task in list(self._looking.values()):
            task.cancel()
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None

    def _look_up(self, host: str) -> asyncio.Task[_Answer]:
        task = self._looking.get(host)
        if task is None:
            task = self._looking[host] = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda _: self._looking.pop(host, None))
        return task

    async def _ask(self, host: str) -> _Answer:
        """Look the name up and keep the answer; a failure takes the place of no addresses that are still known."""
        import aiodns

        failure: NotConnectedError
        try:
            async with asyncio.timeout(_LIMIT):
                addresses = await self._resolve(host)
            answer = _Answer(addresses, None, time.monotonic())
        except aiodns.error.DNSError as error:
            code, words = error.args[0], str(error.args[1]).lower()
            kind = NotConnectedError if code in _NO_SUCH_NAME else NameNotResolvedError
            failure = kind(f"cannot be found: the name {host} does not resolve ({words})")
            answer = _Answer((), failure, time.monotonic())
        except TimeoutError:
            words = f"no name server answered within {_LIMIT:.0f} s"
            failure = NameNotResolvedError(f"cannot be found: the name {host} does not resolve ({words})")
            answer = _Answer((), failure, time.monotonic())
        known = self._answers.get(host)
        if isinstance(answer.failure, NameNotResolvedError) and known is not None and known.failure is None:
            return known
        if len(self._answers) >= _MOST:
            self._answers.pop(next(iter(self._answers)))
        self._answers[host] = answer
        return answer

    async def _resolve(self, host: str) -> Addresses:
        """Both families at once. Who has one family waits a moment for the other (RFC 8305, 3), and not until it fails:
        some name servers never answer for IPv6.
        """
        import aiodns

        if self._resolver is None:
            self._resolver = aiodns.DNSResolver(loop=asyncio.get_running_loop(), **self._options)
        asked = [
            self._resolver.getaddrinfo(host, family=family, type=socket.SOCK_STREAM)
            for family in (socket.AF_INET6, socket.AF_INET)
        ]
        try:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if any(look_up.done() and look_up.exception() is None for look_up in asked):
                await asyncio.wait(asked, timeout=_OTHER_FAMILY_WITHIN)
            else:
                await asyncio.wait(asked)
            done = [look_up for look_up in asked if look_up.done()]
            found = [look_up.result() for look_up in done if look_up.exception() is None]
            if not found:
                raise _worst([error for look_up in done if (error := look_up.exception()) is not None])
        finally:
            for look_up in asked:
                look_up.cancel()
        return tuple(dict.fromkeys(node.addr[0].decode("ascii") for result in found for node in result.nodes))


def _worst(errors: list[BaseException]) -> BaseException:
    """The error of a name server that did not say whether the name exists, if there is one."""
    return next((error for error in errors if error.args[0] not in _NO_SUCH_NAME), errors[-1])


def _literal(host: str) -> str | None:
    """The address that the host is, if it is no name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
