"""What the rules refuse is counted by its reason, in nftables and iptables mode, whatever becomes of the rules."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import pytest

from ctl.ui.counters import read
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKind, Plan, SourceRanges
from dataplane.planes.base import Plane
from dataplane.planes.iptables import counts as iptables_counts
from dataplane.planes.iptables.clients import saved_counts
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import (
    GATEWAY,
    LB,
    NODE_CONFIG,
    UNUSED,
    VIP,
    Network,
    ask,
    entry,
    network,
    plan_of,
    pods,
)

QUICK = 0.4
BOTH = pytest.mark.parametrize("version", [4, 6])
AWAY = {4: "10.96.0.11", 6: "fd96::11"}
SERVED = {4: "10.96.0.12", 6: "fd96::12"}
RANGES = {4: "203.0.113.0/24", 6: "2001:db8:99::/48"}


class Try(NamedTuple):
    """Where somebody asks for, what he sees, and the reason under which it is counted."""

    address: str
    port: int
    seen: str
    reason: str


def plan(version: int) -> Plan:
    """A Service without endpoints, one with endpoints elsewhere alone, one that serves, one that lets few in. All UDP:
    what is refused is one packet, where TCP may try again before it gives up."""
    udp, guarded = Protocol.UDP, SourceRanges((RANGES[version],))
    here, elsewhere = pods(version, 0), pods(version, 0, local=False)
    lb = FrontendKind.LOAD_BALANCER
    away = entry(version, elsewhere, (), protocol=udp, name="away", address=AWAY[version], internal_local=True)
    return plan_of(
        entry(version, (), protocol=udp, name="nobody"),
        msgspec.structs.replace(away, internal_local=True),
        entry(version, here, protocol=udp, name="served", address=SERVED[version]),
        entry(version, here, protocol=udp, kind=lb, address=LB[version], ranges=guarded, name="guarded"),
    )


def tries(version: int) -> tuple[Try, ...]:
    return (
        Try(VIP[version], 80, "refused", "no_endpoint"),
        Try(AWAY[version], 80, "silence", "policy_drop"),
        Try(LB[version], 80, "silence", "source_range"),
        Try(SERVED[version], 81, "refused", "unknown_port"),
        Try(UNUSED[version], 80, "silence", "unallocated"),
    )


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


def send(net: Network, address: str, port: int = 80, seen: str = "") -> str:
    """What becomes of a datagram of the client's."""
    return ask(net.client, address, port, Protocol.UDP, wait=QUICK if seen == "silence" else 60)


def counted(net: Network, plane: Plane) -> dict[str, int]:
    """Packets by reason."""
    return {each.reason: each.times for each in in_netns(net.node, lambda: plane.refused() or ())}


@BOTH
def test_nftables_counts_each_packet_that_it_refuses_under_its_reason(net: Network, version: int) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(version))
    send(net, SERVED[version])  # so that the neighbours are known, and no answer is lost
    assert counted(net, plane) == {}
    expected: dict[str, int] = {}
    for times, (address, port, seen, reason) in enumerate(tries(version), 1):
        for _ in range(times):
            assert send(net, address, port, seen) == seen
        expected[reason] = times
        assert counted(net, plane) == expected
    assert send(net, SERVED[version]) == f"0 {GATEWAY[version]}"
    assert counted(net, plane) == expected, "what is served is in no counter"

    nft(net.node, "flush", "map", "ip" if version == 4 else "ip6", "hotplane", "endpoints")
    assert send(net, SERVED[version], 80, "silence") == "silence"
    assert counted(net, plane) == expected | {"in_change": 1}


@BOTH
def test_nftables_counts_go_on_over_reloads_changes_and_restarts(net: Network, version: int) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(version))
    send(net, SERVED[version])
    for address, port, seen, _ in tries(version):
        send(net, address, port, seen)
    before = counted(net, plane)
    assert set(before.values()) == {1}
    plane.load(plan(version))
    later = in_netns(net.node, NftablesPlane)
    changed = plan(version)
    changed.node = msgspec.structs.replace(NODE_CONFIG, masquerade_mark=0x8000)  # other rules in constant chains
    later.load(changed)
    assert counted(net, later) == before
    assert send(net, VIP[version]) == "refused"
    assert counted(net, later)["no_endpoint"] == 2
    later.cleanup()
    assert counted(net, later) == {}


@pytest.mark.parametrize("version", [4, 6])
def test_iptables_counts_by_frontend_and_reason_and_takes_no_refusal_for_a_connection(
    net: Network, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with netns(net.node):
        plane = IptablesPlane()
        plane.load(plan(version))
    send(net, SERVED[version])
    for address, port, seen, reason in tries(version)[:3]:
        assert send(net, address, port, seen) == seen, reason
    with netns(net.node):
        found = plane.refused()
        assert {(each.frontend and each.frontend.address, each.reason, each.times) for each in found} == {
            (VIP[version], "no_endpoint", 1), (AWAY[version], "policy_drop", 1), (LB[version], "source_range", 1),
        }  # fmt: skip
        counts = {key.address: tuple(each) for key, each in plane.frontend_counts().items()}
        saves: list[tuple[Family, str]] = []

        def saved(family: Family, table: str) -> str:
            saves.append((family, table))
            return saved_counts(family, table)

        monkeypatch.setattr(iptables_counts, "saved_counts", saved)
        reading = read(plane)
    assert counts[SERVED[version]] == (1, 0)
    assert counts[LB[version]] == (0, 1)
    assert (reading.refused, {key.address: each for key, each in (reading.frontends or {}).items()}) == (found, counts)
    assert sorted(saves) == [(family, table) for family in Family for table in ("filter", "nat")], "each once"
