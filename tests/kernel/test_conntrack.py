"""Removing UDP entries from conntrack: exactly those that are named, in both families, NATed or not."""

import platform
import re
import socket
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Iterable

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink import conntrack
from dataplane.kernel.netlink.conntrack import FlowFilter, delete_udp
from dataplane.kernel.netlink.conntrack_list import masqueraded_connections, translated_connections
from dataplane.kernel.netlink.netlink import attribute
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.model.net import Family, Protocol
from dataplane.plan.udp import StaleFlows

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)
ADDRESSES = {Family.IPV4: ("10.1.0.1", "10.1.0.2", "10.1.0.3"), Family.IPV6: ("fd00::1", "fd00::2", "fd00::3")}
TAKES_FILTERS = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 2)
"""Linux 6.1 refuses a filter in a deletion."""

RULES = """
table {ip} t {{
  chain c {{
    type nat hook output priority -100
    {ip} daddr {first} udp dport 53 dnat to {second}:5353
  }}
}}
"""


def entries(family: Family) -> set[tuple[str, int, str, int]]:
    """(destination, port, answering address, its port) of every UDP entry."""
    name = "ipv6" if family is Family.IPV6 else "ipv4"
    listing = subprocess.run(["conntrack", "-f", name, "-L", "-p", "udp"], capture_output=True, text=True, check=True)
    found = set()
    for line in listing.stdout.splitlines():
        words = [word.split("=", 1) for word in line.split() if "=" in word]
        first, second = words[:4], words[4:8]
        found.add((first[1][1], int(first[3][1]), second[0][1], int(second[2][1])))
    return found


def make_flows(family: Family) -> None:
    """Every address at ports 53 and 54; the first address at 53 is translated to the second at 5353."""
    first, second, _ = ADDRESSES[family]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ADDRESSES[family]:
        nodad = ["nodad"] if family is Family.IPV6 else []
        subprocess.run(["ip", "address", "add", address, "dev", "lo", *nodad], check=True)
    words = {"ip": "ip6" if family is Family.IPV6 else "ip", "first": first}
    words["second"] = f"[{second}]" if family is Family.IPV6 else second
    subprocess.run(["nft", "-f", "-"], input=RULES.format(**words), text=True, check=True)
    with socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
        for address in ADDRESSES[family]:
            for port in (53, 54):
                sock.sendto(b"x", (address, port))


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[Family]:
    """Of which family entries were listed in order to be deleted, in place of the kernel's filter."""
    real, seen = conntrack._delete_listed, []

    def listed(netlink: Nfnetlink, family: Family, wanted: Iterable[FlowFilter]) -> int:
        seen.append(family)
        return real(netlink, family, wanted)

    monkeypatch.setattr(conntrack, "_delete_listed", listed)
    return seen


@FAMILIES
@pytest.mark.parametrize("listed", [False, True], ids=["filtered", "listed"])
def test_exactly_the_named_flows_go(
    family: Family,
    listed: bool,
    lists: list[Family],
    make_namespace: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dataplane.kernel.netlink.conntrack._listing_is_cheaper", lambda deletes: listed)
    first, second, third = ADDRESSES[family]
    with netns(make_namespace("conntrack")):
        make_flows(family)
        before = entries(family)
        assert len(before) == 6
        translated = (first, 53, second, 5353)
        assert translated in before
        # Another backend of the same frontend, a port and an address that nobody uses: nothing goes.
        delete_udp([StaleFlows(family, first, 53, (second, 5354)), StaleFlows(family, first, 53, (third, 5353))])
        delete_udp([StaleFlows(family, first, 55), StaleFlows(family, second, 53, (first, 53))])
        assert entries(family) == before
        done = delete_udp([StaleFlows(family, first, 53, (second, 5353))])
        assert entries(family) == before - {translated}
        assert {family: cleaned.entries for family, cleaned in done.items()} == {family: 1}
        done = delete_udp([StaleFlows(family, second, 53), StaleFlows(family, third, 54)])
        assert (done[family].entries, 0 < done[family].seconds < 60) == (2, True)
        assert entries(family) == before - {translated, (second, 53, second, 53), (third, 54, third, 54)}
        delete_udp([])
        assert len(entries(family)) == 3
    by_filter = family is Family.IPV4 and not listed and TAKES_FILTERS
    assert bool(lists) is not by_filter, "each deletion by the kernel's filter, or by a list"


def test_where_the_kernel_takes_no_filter_the_flows_are_listed(
    make_namespace: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter with flags that no kernel knows is refused as any filter is by Linux 6.1."""
    unknown = attribute(0x8000 | 25, attribute(1, struct.pack("=I", 1 << 31)))  # CTA_FILTER, CTA_FILTER_ORIG_FLAGS
    monkeypatch.setattr("dataplane.kernel.netlink.conntrack._filter", lambda flows: unknown)
    first, second, _ = ADDRESSES[Family.IPV4]
    with netns(make_namespace("conntrack")):
        make_flows(Family.IPV4)
        before = entries(Family.IPV4)
        done = delete_udp([StaleFlows(Family.IPV4, first, 53, (second, 5353))])
        assert done[Family.IPV4].entries == 1
        assert entries(Family.IPV4) == before - {(first, 53, second, 5353)}


@FAMILIES
def test_all_but_some_and_a_port_at_any_address(family: Family, make_namespace: Callable[[str], str]) -> None:
    first, second, third = ADDRESSES[family]
    with netns(make_namespace("conntrack")):
        make_flows(family)
        before, translated = entries(family), (first, 53, second, 5353)
        delete_udp([StaleFlows(family, first, 53, keep=frozenset({(second, 5353)}))])
        delete_udp([StaleFlows(family, "", 53, keep=frozenset({(second, 5353)}))])
        delete_udp([StaleFlows(family, "", 53, (third, 5353)), StaleFlows(family, "", 54)])
        assert entries(family) == before, "what was not translated is nobody's, whatever its port"
        delete_udp([StaleFlows(family, second, 53, keep=frozenset({(third, 5353)}))])
        assert entries(family) == before - {(second, 53, second, 53)}
        delete_udp([StaleFlows(family, "", 53, (second, 5353))])
        assert entries(family) == before - {(second, 53, second, 53), translated}


@FAMILIES
def test_a_flow_that_begins_anew_while_entries_are_listed_stays(
    family: Family, make_namespace: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program removes the entry, and the client's next packet has one to another endpoint by then."""
    first, second, third = ADDRESSES[family]
    dump = Nfnetlink.dump
    name = "ipv6" if family is Family.IPV6 else "ipv4"
    monkeypatch.setattr("dataplane.kernel.netlink.conntrack._listing_is_cheaper", lambda deletes: True)
    with netns(make_namespace("conntrack")), socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
        make_flows(family)
        client.bind((first, 4000))
        client.sendto(b"x", (first, 53))

        def listed(self: Nfnetlink, kind: int, number: int, parts: bytes, beginning: bytes = b"") -> list[memoryview]:
            found = dump(self, kind, number, parts, beginning)
            asked = ["conntrack", "-f", name, "-D", "-p", "udp", "--sport", "4000"]
            subprocess.run(asked, check=True, capture_output=True)
            words = {"ip": "ip6" if family is Family.IPV6 else "ip", "first": first}
            words["second"] = f"[{third}]" if family is Family.IPV6 else third
            rules = f"delete table {words['ip']} t\n{RULES.format(**words)}"
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            client.sendto(b"x", (first, 53))
            return found

        monkeypatch.setattr(Nfnetlink, "dump", listed)
        delete_udp([StaleFlows(family, first, 53, (second, 5353))])
        assert (first, 53, third, 5353) in entries(family)
        assert (first, 53, second, 5353) not in entries(family)


@FAMILIES
def test_flows_of_a_port_to_whom_no_longer_serves_go_at_any_address(
    family: Family, make_namespace: Callable[[str], str]
) -> None:
    first, second, third = ADDRESSES[family]
    with netns(make_namespace("conntrack")):
        make_flows(family)
        before = entries(family)
        delete_udp([StaleFlows(family, "", 53, keep=frozenset({(third, 5353)}))])
        assert entries(family) == before - {(first, 53, second, 5353)}


def test_many_deletes_of_few_entries_are_one_listing(
    make_namespace: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = []
    real = Nfnetlink.dump

    def dump(netlink: Nfnetlink, kind: int, family: int, attributes: bytes) -> list[memoryview]:
        dumps.append(kind)
        return real(netlink, kind, family, attributes)

    monkeypatch.setattr(Nfnetlink, "dump", dump)
    first, second, _ = ADDRESSES[Family.IPV4]
    with netns(make_namespace("conntrack")):
        make_flows(Family.IPV4)
        delete_udp([StaleFlows(Family.IPV4, first, 55)])
        assert dumps == []
        many = [StaleFlows(Family.IPV4, first, port, (second, 5353)) for port in range(53, 553)]
        delete_udp(many)
        assert len(dumps) == 1
        assert len(entries(Family.IPV4)) == 5


@FAMILIES
def test_a_listing_holds_what_it_is_asked_for_and_little_else(
    family: Family, make_namespace: Callable[[str], str]
) -> None:
    """A full table has hundreds of thousands of flows, of which few are masqueraded."""
    first, second, third = ADDRESSES[family]
    others = 3000
    with netns(make_namespace("conntrack")):
        make_flows(family)
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
            for port in range(10_000, 10_000 + others):
                sock.sendto(b"x", (third, port))
        assert len(entries(family)) == others + 6
        tracemalloc.start()
        try:
            masqueraded, translated = list(masqueraded_connections()), list(translated_connections())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert masqueraded == []
    [flow] = translated
    assert (flow.family, flow.protocol, flow.state) == (family, Protocol.UDP, "")
    assert (flow.frontend, flow.backend, flow.client[0]) == ((first, 53), (second, 5353), first)
    assert 0 < flow.seconds_left <= 180
    assert peak / others < 1000, "bytes a flow that nobody asked for"
