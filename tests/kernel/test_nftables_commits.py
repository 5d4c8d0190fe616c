"""Packets on their way through the rules while a change is committed: each goes where the old plan or the new one says.

The kernel takes the rules of a chain as they were when a packet entered the hook, but the elements of maps as they are
at each look-up. With every commit a few packets see some of both, so thousands of changes meet a flood of new flows.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKind, PlanEntry, SourceRanges
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.syntax import VERSION_CHAIN
from tests.kernel.nftables_net import LB, NODE, PORT, VIP, Network, entry, network, plan_of, pods

SECONDS = 1.5
FEWEST, FEWEST_PACKETS = 10, 10_000
"""Changes that must happen, and packets meanwhile; a busy machine gets more time for them."""
PATIENCE = 120.0
BOTH = pytest.mark.parametrize("version", [4, 6])

_FLOOD = """
import contextlib, socket, sys, time
address, first = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
while True:
    for port in range(first, first + 24000):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(("", port))
            with contextlib.suppress(OSError):
                sock.sendto(b"?", (address, 80))
"""
_COUNT = """table {ip} seen {{
    counter sent {{ }}
    counter forwarded {{ }}
    counter unclaimed {{ }}
    chain before {{
        type filter hook prerouting priority raw;
        {ip} daddr {address} counter name sent
    }}
    chain after {{
        type filter hook forward priority filter;
        {ip} daddr {address} counter name unclaimed drop
        udp dport {port} counter name forwarded drop
    }}
    chain here {{
        type filter hook input priority filter;
        {ip} daddr {address} counter name unclaimed drop
    }}
}}
"""


class Seen(NamedTuple):
    """Datagrams to the frontend: all, those that were sent on to an endpoint, and those that no rule took."""

    sent: int
    forwarded: int
    unclaimed: int


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


def _cluster(version: int, *numbers: int, affinity: int = 0) -> PlanEntry:
    return entry(version, pods(version, *numbers), protocol=Protocol.UDP, affinity=affinity)


def _outside(
    version: int, address: str, ranges: tuple[str, ...] = (), *, external_local: bool = False, affinity: int = 0
) -> PlanEntry:
    """A load balancer's address, or without one a node port."""
    return entry(
        version, pods(version, 0, 1, local=False), pods(version, 0), protocol=Protocol.UDP,
        kind=FrontendKind.LOAD_BALANCER if address else FrontendKind.NODE_PORT, address=address,
        external_local=external_local, affinity=affinity,
        ranges=SourceRanges(ranges) if ranges else None,
    )  # fmt: skip


def _change(plane: NftablesPlane, old: PlanEntry, new: PlanEntry) -> None:
    plane.apply(PlanChange((EntryChange(old, new),)))


def _restart(plane: NftablesPlane, old: PlanEntry, new: PlanEntry) -> None:
    """As a daemon does that has been away."""
    plane.load(plan_of(new))


def _upgrade(plane: NftablesPlane, old: PlanEntry, new: PlanEntry) -> None:
    """As a daemon does that finds tables of a version that it does not know."""
    ip = "ip" if old.key.family is Family.IPV4 else "ip6"
    Nft().run(f"delete chain {ip} hotplane {VERSION_CHAIN}\nadd chain {ip} hotplane version-0\n")
    plane.load(plan_of(new))


def _under_changes(
    net: Network,
    version: int,
    address: str,
    states: tuple[PlanEntry, ...],
    change: Callable[[NftablesPlane, PlanEntry, PlanEntry], None] = _change,
) -> Seen:
    """Go round through the states for some seconds while datagrams come from the client, each a new flow."""
    ip = "ip" if version == 4 else "ip6"
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan_of(states[0]))
    text = _COUNT.format(ip=ip, address=address, port=PORT)
    in_netns(net.node, subprocess.run, ["nft", "-f", "-"], input=text, text=True, check=True)
    floods = [
        in_netns(net.client, subprocess.Popen, [sys.executable, "-c", _FLOOD, address, str(first)])
        for first in (10000, 36000)
    ]
    try:
        begin, turn, enough = time.monotonic(), 0, False
        while time.monotonic() < begin + SECONDS or not enough:
            assert time.monotonic() < begin + PATIENCE, f"{turn} changes, {_seen(net, ip)}"
            in_netns(net.node, change, plane, states[turn % len(states)], states[(turn + 1) % len(states)])
            turn += 1
            if time.monotonic() > begin + SECONDS:
                enough = turn > FEWEST and _seen(net, ip).sent > FEWEST_PACKETS
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()
    before, seen = None, _seen(net, ip)
    while before != seen:
        time.sleep(0.1)  # what stands in a receive queue still comes
        before, seen = seen, _seen(net, ip)
    return seen


def _seen(net: Network, ip: str) -> Seen:
    """What was counted so far."""
    listing = in_netns(
        net.node, subprocess.run, ["nft", "-j", "list", "counters", "table", ip, "seen"],
        capture_output=True, check=True,
    )  # fmt: skip
    counters = [item["counter"] for item in json.loads(listing.stdout)["nftables"] if "counter" in item]
    return Seen(**{counter["name"]: counter["packets"] for counter in counters})


@pytest.mark.parametrize(("version", "change"), [(4, _change), (6, _change), (4, _restart), (6, _upgrade)])
@pytest.mark.parametrize("affinity", [0, 60])
def test_endpoints_that_come_and_go_lose_no_packet(
    net: Network, version: int, affinity: int, change: Callable[[NftablesPlane, PlanEntry, PlanEntry], None]
) -> None:
    states = tuple(_cluster(version, *numbers, affinity=affinity) for numbers in ((0,), (0, 1), (0, 1, 2)))
    seen = _under_changes(net, version, VIP[version], states, change)
    assert seen == (seen.sent, seen.sent, 0)


@BOTH
def test_source_ranges_that_come_and_go_lose_no_packet(net: Network, version: int) -> None:
    everybody, nobody_else = ("0.0.0.0/0", "192.0.2.0/24") if version == 4 else ("::/0", "2001:db8::/64")
    states = tuple(_outside(version, LB[version], ranges) for ranges in ((), (everybody,), (nobody_else,)))
    seen = _under_changes(net, version, LB[version], states)
    assert seen == (seen.sent, seen.sent, 0)


@pytest.mark.parametrize(("version", "affinity"), [(4, 0), (6, 60)])
@pytest.mark.parametrize("address", [LB, {4: "", 6: ""}], ids=["balancer", "node-port"])
def test_a_traffic_policy_that_changes_loses_no_packet(
    net: Network, version: int, affinity: int, address: dict[int, str]
) -> None:
    states = tuple(
        _outside(version, address[version], external_local=local, affinity=affinity) for local in (False, True)
    )
    seen = _under_changes(net, version, address[version] or NODE[version], states)
    assert seen == (seen.sent, seen.sent, 0)


@BOTH
def test_a_restart_with_another_policy_loses_no_packet(net: Network, version: int) -> None:
    ranges = ("192.0.2.0/24",) if version == 4 else ("2001:db8::/64",)
    states = (
        _outside(version, LB[version], affinity=60),
        _outside(version, LB[version], external_local=True),
        _outside(version, LB[version], ranges),
    )
    seen = _under_changes(net, version, LB[version], states, _restart)
    assert seen == (seen.sent, seen.sent, 0)
