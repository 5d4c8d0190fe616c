"""A client's first packets that two processors see at once go to one endpoint in nftables mode, too: when nobody knows
the client yet, and when the endpoint that it had is gone. The programs' own test is in test_processors."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.conntrack_list import translated_connections
from dataplane.model.net import Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.nftables_net import PODS, VIP, Network, ask, entry, ip, network, plan_of, pods

CLIENTS = 1000
"""Of these, a fifth had two endpoints where the rules did not look at what another processor had remembered meanwhile;
where only a client whose endpoint is gone was not looked at again, five."""

PATIENCE = 60.0
"""Seconds for the network's links to come up."""

SOURCES = {4: "198.18.0.0/16", 6: "2001:db8:9::/112"}
_SENDERS = """
import ipaddress, mmap, os, socket, sys
address, sources, clients, senders = sys.argv[1], ipaddress.ip_network(sys.argv[2]), *map(int, sys.argv[3:])
family, level, freebind = (socket.AF_INET6, 41, 78) if ":" in address else (socket.AF_INET, 0, 15)
turns = memoryview(mmap.mmap(-1, 8)).cast("I")
me = 0 if senders == 1 or os.fork() else 1
other = (me + 1) % senders
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[me]})
for number in range(1, clients + 1):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, freebind, 1)
        sock.bind((str(sources[number]), 20000 * senders + me))
        turns[me] = number
        while turns[other] < number:
            os.sched_yield()
        sock.sendto(b"?", (address, 80))
if me == 0 and senders > 1:
    sys.exit(os.wait()[1])
"""


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


def send(net: Network, version: int, senders: int) -> dict[str, set[str]]:
    """One datagram of each client from each of so many processors at once; where each client's went."""
    words = (sys.executable, "-c", _SENDERS, VIP[version], SOURCES[version], str(CLIENTS), str(senders))
    subprocess.run(["ip", "netns", "exec", net.client, *words], check=True)
    went: dict[str, set[str]] = defaultdict(set)
    for one in in_netns(net.node, lambda: list(translated_connections())):
        if ip_address(one.client[0]) in ip_network(SOURCES[version]) and one.client[1] // 20000 == senders:
            went[one.client[0]].add(one.backend[0])
    return went


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("stale", [False, True], ids=["new", "stale"])
def test_a_clients_first_packets_at_once_go_to_one_endpoint(net: Network, version: int, stale: bool) -> None:
    assert len(os.sched_getaffinity(0)) > 1, "this test needs two processors"
    ip(net.client, f"-{version}", "route", "add", "local", SOURCES[version], "dev", "lo")
    old, new = (
        entry(version, pods(version, *numbers), protocol=Protocol.UDP, affinity=600) for numbers in ((0,), (1, 2))
    )
    end = time.monotonic() + PATIENCE
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan_of(old if stale else new))
    while ask(net.client, VIP[version], protocol=Protocol.UDP, wait=1.0) == "silence":
        assert time.monotonic() < end, "nobody answers"
    if stale:
        assert set(map(tuple, send(net, version, 1).values())) == {PODS[version][:1]}
        plane.apply(PlanChange((EntryChange(old, new),)))
    went = send(net, version, 2)
    assert len(went) == CLIENTS
    assert [client for client, servers in went.items() if len(servers) > 1] == []
    assert set().union(*went.values()) == set(PODS[version][1:])
