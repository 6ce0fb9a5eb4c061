"""Networks that a peer's address may be in: GASKET_TRUSTED_PROXIES and GASKET_ADMIN_TOKEN_NETWORKS."""

from __future__ import annotations

import ipaddress
import re
from typing import Self

import msgspec

from gasket.networks import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNIX = "unix"
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::\d{1,5})?")


class Peers(msgspec.Struct, frozen=True):
    """Networks, and with `unix` the peers on a Unix socket."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Networks and addresses, and `unix`, comma-separated.

        Raises:
            ValueError: one cannot be understood; the message says which by its number, and does not show it.
        """
        networks, unix = [], False
        for number, entry in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
            if entry.lower() == _UNIX:
                unix = True
                continue
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                raise ValueError(f"must have a network, an address or `unix` in entry {number}") from None
        return cls(tuple(networks), unix)

    def __bool__(self) -> bool:
        return bool(self.networks) or self.unix

    def has(self, peer: str | None) -> bool:
        """Whether the peer of a connection is one of them; None is a peer on a Unix socket."""
        if peer is None:
            return self.unix
        address = read_address(peer)
        return address is not None and address in self

    def __contains__(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


def read_address(text: str) -> Address | None:
    """An address, with or without a port; an IPv4 address inside of an IPv6 one is that IPv4 address."""
    if "%" in text:
        return None
    found = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
