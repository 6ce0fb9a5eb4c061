"""GASKET_BACKEND_NETWORKS: which addresses may be connected to."""

from __future__ import annotations

import pytest

from gasket.networks import BackendNetworks

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("rules", "host", "address", "allowed"),
    [
        ("", "api.example", PUBLIC, True),
        ("", "api.example", "127.0.0.1", True),
        ("deny 10.0.0.0/8, deny secret.example, allow *", "api.example", PUBLIC, True),
        ("deny 10.0.0.0/8, deny secret.example, allow *", "api.example", "10.1.2.3", False),
        ("deny 10.0.0.0/8, deny secret.example, allow *", "Secret.Example.", PUBLIC, False),
        ("deny 10.0.0.0/8, allow *", "api.example", "::ffff:10.1.2.3", False),
        ("deny 10.0.0.0/8, allow *", "api.example", "64:ff9b::a01:203", False),
        ("deny 10.0.0.0/8, allow *", "api.example", "2002:a01:203::1", False),
        ("allow 10.1.0.0/16, deny 10.0.0.0/8, allow *", "api.example", "10.1.2.3", True),
        ("allow 10.1.0.0/16", "api.example", PUBLIC, False),
        ("allow *.example", "api.example", PUBLIC, True),
        ("allow *.example", "example", PUBLIC, False),
        ("allow *.example", "notexample", PUBLIC, False),
        ("deny fd00::/8, allow *", "api.example", "fd12::1", False),
        ("ALLOW  API.example", "api.example", PUBLIC, True),
        ("allow 10.1.2.3", "api.example", "10.1.2.3", True),
        ("allow *.xn--p1ai.", "a_b.xn--p1ai", PUBLIC, True),
        ("allow vllm-2", "vllm-2", PUBLIC, True),
    ],
)
def test_the_first_match_counts(rules: str, host: str, address: str, allowed: bool) -> None:
    assert BackendNetworks.parse(rules).allowed(host, [address]) == ((address,) if allowed else ())


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:42::42",
        "100.100.100.200",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("rules", ["", "allow *", "allow 0.0.0.0/0, allow ::/0"])
def test_link_local_and_metadata_addresses_are_always_denied(address: str, rules: str) -> None:
    assert BackendNetworks.parse(rules).allowed("api.example", [address]) == ()


def test_of_several_addresses_the_allowed_ones_are_left() -> None:
    networks = BackendNetworks.parse("deny 10.0.0.0/8, allow *")
    assert networks.allowed("api.example", ["10.0.0.1", PUBLIC, "169.254.1.1"]) == (PUBLIC,)


@pytest.mark.parametrize(
    "rules",
    [
        "10.0.0.0/8",
        "refuse *",
        "deny",
        "deny 10.0.0.0/33",
        "deny 10.0.0",
        "deny 10.0.0.1:80",
        "deny [::1]",
        "deny bücher.example",
        "allow a b",
        "deny a*b",
        "deny *.*",
        "deny *internal",
    ],
)
def test_what_is_no_rule_is_named(rules: str) -> None:
    with pytest.raises(ValueError, match="rule 1"):
        BackendNetworks.parse(rules)
