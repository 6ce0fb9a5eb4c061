"""What the requests of a replica hold at once, and how much of that may be one key's: requests, and bytes of bodies."""

from __future__ import annotations

from gasket.proxy.errors import BusyError, LimitedError

_CODE = "concurrency_limit_exceeded"
_RETRY_AFTER = 1.0


class Room:
    """The bytes of bodies that a replica may have at once. The reader of a body gives its bytes back."""

    __slots__ = ("_available",)

    def __init__(self, size: int) -> None:
        self._available = size

    def take(self, size: int) -> None:
        """Raises BusyError if fewer bytes are available."""
        if size > self._available:
            raise BusyError("This replica has as many bytes of requests as it may have at once.")
        self._available -= size

    def give_back(self, size: int) -> None:
        """These bytes are free again."""
        self._available += size


class Share:
    """What one key has of a replica now. Each of its requests is let in by `Shares.enter`, and leaves once."""

    __slots__ = ("_bytes", "_key", "_shares", "requests")

    def __init__(self, shares: Shares, key: int) -> None:
        self._shares = shares
        self._key = key
        self._bytes = 0
        self.requests = 0

    def take(self, size: int) -> None:
        """Bytes of a body have arrived.

        Raises:
            LimitedError: the key has too many.
            BusyError: all keys together have too many.
        """
        self._shares.room.take(size)
        if self._bytes + size > self._shares.most_bytes:
            self._shares.room.give_back(size)
            words = "The requests of this key have as many bytes as one key may have at once."
            raise LimitedError(words, code=_CODE, retry_after=_RETRY_AFTER)
        self._bytes += size

    def give_back(self, size: int) -> None:
        """These bytes are free again."""
        self._bytes -= size
        self._shares.room.give_back(size)

    def leave(self) -> None:
        """A request has ended, and has given its bytes back."""
        self.requests -= 1
        if not self.requests:
            self._shares.forget(self._key)


class Shares:
    """The shares of all keys that have a request now."""

    def __init__(self, room: Room, *, most_requests: int, most_bytes: int) -> None:
        """The numbers are those for one key."""
        self.room = room
        self.most_bytes = most_bytes
        self._most_requests = most_requests
        self._keys: dict[int, Share] = {}

    def enter(self, key: int) -> Share:
        """One more request of this key.

        Raises:
            LimitedError: it has as many as it may have.
        """
        share = self._keys.get(key)
        if share is None:
            share = self._keys[key] = Share(self, key)
        elif share.requests >= self._most_requests:
            words = "This key has as many requests as one key may have at once."
            raise LimitedError(words, code=_CODE, retry_after=_RETRY_AFTER)
        share.requests += 1
        return share

    def forget(self, key: int) -> None:
        """This key has no request any more."""
        del self._keys[key]
