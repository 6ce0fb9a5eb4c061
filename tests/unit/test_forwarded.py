from __future__ import annotations

import pytest

from gasket.forwarded import TrustedProxies

PROXIES = TrustedProxies.parse("10.0.0.0/8, 192.0.2.1, 2001:db8::/32")


def client(peer: str | None, *fields: tuple[str, str], proxies: TrustedProxies = PROXIES) -> str | None:
    return proxies.client(peer, [(name.encode(), value.encode("latin-1")) for name, value in fields])


FOR = "x-forwarded-for"


@pytest.mark.parametrize(
    ("peer", "fields", "found"),
    [
        ("203.0.113.9", [(FOR, "198.51.100.1")], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "198.51.100.1")], "198.51.100.1"),
        ("::ffff:10.0.0.1", [(FOR, "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [(FOR, "::ffff:198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [(FOR, "1.1.1.1, 198.51.100.1, 10.9.9.9,192.0.2.1")], "198.51.100.1"),
        ("10.0.0.1", [(FOR, "1.1.1.1"), (FOR, "198.51.100.1"), (FOR, "10.9.9.9")], "198.51.100.1"),
        ("10.0.0.1", [(FOR, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("10.0.0.1", [(FOR, "198.51.100.1:4711")], "198.51.100.1"),
        ("10.0.0.1", [(FOR, "2001:db9::1")], "2001:db9::1"),
        ("2001:db8::1", [(FOR, "[2001:DB9::1]:80")], "2001:db9::1"),
        ("10.0.0.1", [(FOR, "1.1.1.1, evil\n12:00 forged, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [(FOR, "1.1.1.1, fe80::1%\nx")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "1.1.1.1, unknown")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "1.1.1.1,")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "010.1.1.1")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "1.1.1.1 2.2.2.2")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=198.51.100.1;proto=https")], "198.51.100.1"),
        ("10.0.0.1", [("forwarded", 'proto=https; For="[2001:db9::1]:80" , for=10.0.0.2')], "2001:db9::1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1"), ("forwarded", "by=10.0.0.2;for=198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1;, for=198.51.100.1;")], "198.51.100.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1, ;by=10.0.0.2;for=198.51.100.1,, ")], "198.51.100.1"),
        ("10.0.0.1", [("forwarded", "")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1, for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1, proto=https")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", 'for="1.1.1.1, for=2.2.2.2')], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1, nonsense, for=2.2.2.2")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=198.51.100.1"), (FOR, "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("forwarded", "for=1.1.1.1"), (FOR, "198.51.100.1")], "10.0.0.1"),
        (None, [(FOR, "198.51.100.1")], None),
    ],
)
def test_the_client_is_the_last_one_that_no_trusted_proxy_is(
    peer: str | None, fields: list[tuple[str, str]], found: str | None
) -> None:
    assert client(peer, *fields) == found


def test_a_proxy_on_a_unix_socket_has_no_address() -> None:
    proxies = TrustedProxies.parse("unix")
    assert client(None, (FOR, "198.51.100.1"), proxies=proxies) == "198.51.100.1"
    assert client(None, (FOR, "nonsense"), proxies=proxies) is None
    assert client("10.0.0.1", (FOR, "198.51.100.1"), proxies=proxies) == "10.0.0.1"


def test_without_networks_nobody_is_believed() -> None:
    assert not TrustedProxies.parse("")
    assert client("127.0.0.1", (FOR, "198.51.100.1"), proxies=TrustedProxies()) == "127.0.0.1"


def test_a_peer_whose_address_cannot_be_read_is_not_one_on_a_unix_socket() -> None:
    """An address with a zone (RFC 4007) is one."""
    proxies = TrustedProxies.parse("unix")
    assert client("fe80::1%eth0", (FOR, "198.51.100.1"), proxies=proxies) == "fe80::1%eth0"
    assert proxies.has(None)
    assert not proxies.has("fe80::1%eth0")
