"""Who the client is behind proxies: GASKET_TRUSTED_PROXIES, X-Forwarded-For and Forwarded (RFC 7239)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gasket.peers import Address, Peers, read_address

Fields = Iterable[tuple[bytes, bytes]]

# An element of Forwarded (RFC 7239, 4): pairs, of which a value is a token or a quoted string. Pairs may be empty, and
# so may elements (RFC 9110, 5.6.1).
_PAIR = re.compile(r"""\s*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s",;]*)\s*)?(;|,|\Z)""")


class TrustedProxies(Peers, frozen=True):
    """The proxies whose word about the client's address is believed."""

    def client(self, peer: str | None, fields: Fields) -> str | None:
        """The client's address: the last one that no trusted proxy has, going back from `peer`.

        An entry that is no address is not believed, nor what stands before it: the client is then whoever handed it
        over. If X-Forwarded-For and Forwarded are both there and differ, a client may have written one of them, and
        neither is believed.
        """
        if not self.has(peer):
            return peer
        address = None if peer is None else read_address(peer)
        found = {self._behind(address, hops) for hops in _hops(fields)}
        client = found.pop() if len(found) == 1 else address
        return peer if client is None else str(client)

    def _behind(self, client: Address | None, hops: Sequence[str]) -> Address | None:
        for hop in reversed(hops):
            address = read_address(hop)
            if address is None:
                break
            client = address
            if address not in self:
                break
        return client


def _hops(fields: Fields) -> list[list[str]]:
    """The hops of X-Forwarded-For and those of Forwarded, whichever there are, the nearest one last."""
    values: dict[bytes, list[str]] = {}
    for name, value in fields:
        if name in (b"x-forwarded-for", b"forwarded"):
            values.setdefault(name, []).append(value.decode("latin-1"))
    return [
        [hop.strip() for hop in ",".join(lines).split(",")] if name == b"x-forwarded-for" else _nodes(",".join(lines))
        for name, lines in values.items()
    ]


def _nodes(text: str) -> list[str]:
    """The `for` of each element of Forwarded; empty where it has none, and one empty if it cannot be read."""
    nodes: list[str] = []
    node: str | None = None
    end, at = ",", 0
    while end:
        pair = _PAIR.match(text, at)
        if pair is None:
            return [""]
        name, value, end = pair.groups(default="")
        if name.lower() == "for":
            node = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        elif name:
            node = node or ""
        if end != ";" and node is not None:
            nodes.append(node)
            node = None
        at = pair.end()
    return nodes
