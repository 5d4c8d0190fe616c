"""Addresses: one canonical text for one address, and nothing that only looks like one."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.model.net import (
    Family,
    canonical_address,
    contains,
    family_of,
    host_port,
    is_loopback,
    packed,
    stored_address,
)


@given(st.ip_addresses())
def test_canonical_text_round_trips(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if mapped:
        with pytest.raises(ValueError, match="IPv4-mapped"):
            canonical_address(str(address))
        return
    text = canonical_address(address.exploded)
    assert ipaddress.ip_address(text) == address
    assert canonical_address(text) == text
    assert family_of(text) == address.version
    assert packed(text) == address.packed


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.04", "1.2.3.4 ", "1.2.3.256", "::ffff:1.2.3.4", "g::", "é", "fe80::1%eth0"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        canonical_address(text)


@given(st.ip_addresses(v=4), st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_stored_addresses_are_read_as_decimal_and_plain_ipv4(address: ipaddress.IPv4Address, zeros: list[int]) -> None:
    text = ".".join("0" * more + octet for more, octet in zip(zeros, str(address).split("."), strict=True))
    assert stored_address(text) == str(address)
    assert stored_address(f"::ffff:{text}") == str(address)
    assert stored_address(f"0:0:0:0:0:FFFF:{text}") == str(address)


@given(st.ip_addresses())
def test_what_is_stored_plainly_is_read_plainly(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    assert stored_address(address.exploded) == str(mapped or canonical_address(str(address)))


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.0400", "0x1.2.3.4", "1.2.3.4 ", "g::", "é", "::ffff:1.2.3"])
def test_what_no_stored_address_is(text: str) -> None:
    with pytest.raises(ValueError):
        stored_address(text)


@given(st.ip_addresses(), st.integers(0, 128))
def test_contains_agrees_with_ipaddress(address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> None:
    net = ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False)
    assert contains((str(net),), str(address))
    for number in (int(address) ^ 1, int(address) ^ (1 << (address.max_prefixlen - 1))):
        other = type(address)(number)
        assert contains((str(net),), str(other)) == (other in net)
    assert not contains(("10.0.0.0/8",), "fd00::1")


def test_spelling() -> None:
    assert host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert host_port("fd00::1", 80) == "[fd00::1]:80"
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert (Family.IPV4.bits, Family.IPV6.bits) == (32, 128)
