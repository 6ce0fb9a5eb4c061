"""Which addresses backends may have: GASKET_BACKEND_NETWORKS, and what is denied in any case."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local (RFC 3927); clouds serve machines' credentials at 169.254.169.254
        "fe80::/10",  # link-local (RFC 4291, 2.5.6)
        "fd00:ec2::/32",  # Amazon's metadata over IPv6
        "fd20:ce::254/128",  # Google's
        "fd00:42::42/128",  # Scaleway's
        "100.100.100.200/32",  # Alibaba's metadata
        "168.63.129.16/32",  # Azure's wire server
        "0.0.0.0/8",  # "this host" (RFC 1122, 3.2.1.3)
        "::/128",
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ACTIONS = {"allow": True, "deny": False}
_NAME = re.compile(r"(?:\*\.)?(?:[a-z0-9_-]+\.)*[a-z0-9_-]*[a-z][a-z0-9_-]*\.?")
"""A host's name in ASCII. Its last label has a letter: an address with a part missing is no name."""


class _Rule(NamedTuple):
    allows: bool
    network: Network | None
    name: str
    """`*`, a host's name, or `*.` and the end of one; empty where there is a network."""

    def matches(self, host: str, address: _Address) -> bool:
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        return self.matches_name(host)

    def matches_name(self, host: str) -> bool:
        if self.name.startswith("*."):
            return host.endswith(self.name[1:])
        return self.name in ("*", host)


class BackendNetworks(msgspec.Struct, frozen=True):
    """The rules in their order: the first that matches an address or its name decides, and without one it is denied.

    Without any rule every address is allowed but those that are denied in any case.
    """

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> BackendNetworks:
        """Rules as in `deny 10.0.0.0/8, deny secret.example, allow *`.

        Raises:
            ValueError: one cannot be understood; the message says which by its number, and does not show it.
        """
        rules = [rule.strip() for rule in text.split(",") if rule.strip()]
        return cls(tuple(_parse_rule(number, rule) for number, rule in enumerate(rules, start=1)))

    def allowed(self, host: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of a host's addresses that may be connected to."""
        name = host.lower().rstrip(".")
        return tuple(address for address in addresses if self._allows(name, _parse_address(address)))

    def allows_name(self, host: str) -> bool:
        """Whether a proxy may be asked for this host. Only rules with names say so, unless the host is an address."""
        name = host.lower().rstrip(".")
        try:
            return bool(self.allowed(name, [name]))
        except ValueError:
            named = (rule for rule in self.rules if rule.network is None)
            return next((rule.allows for rule in named if rule.matches_name(name)), not self.rules)

    def _allows(self, host: str, address: _Address) -> bool:
        if any(address.version == network.version and address in network for network in _NEVER):
            return False
        return next((rule.allows for rule in self.rules if rule.matches(host, address)), not self.rules)


def _parse_rule(number: int, rule: str) -> _Rule:
    action, _, target = rule.partition(" ")
    target = target.strip().lower()
    if action.lower() not in _ACTIONS or not target or " " in target:
        raise ValueError(f"must have in rule {number} `allow` or `deny`, then one network, host name or *")
    allows = _ACTIONS[action.lower()]
    try:
        return _Rule(allows, ipaddress.ip_network(target, strict=False), "")
    except ValueError:
        if target != "*" and not _NAME.fullmatch(target):  # it would match nothing, and a `deny` deny nothing
            raise ValueError(f"must name a network, a host or * in rule {number}") from None
        return _Rule(allows, None, target.rstrip("."))


def _parse_address(text: str) -> _Address:
    """An IPv4 address inside of an IPv6 one (RFC 4291, 2.5.5.2; RFC 3056, 2; RFC 6052, 2.1) is judged as what it leads
    to.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is not None:
            return inside
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
