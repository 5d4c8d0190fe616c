"""Services with very many endpoints, which all answer, since a whole range of addresses is one pod's own."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy, NodeProxy
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Service, ServicePortSpec, make_endpoint
from dataplane.plan.rows import rows
from dataplane.policy.node import MOST_BACKENDS
from tests.kernel.modes import MODES, lab_proxy

VIP, PORT, RANGE = "10.96.8.1", 8080, "10.128.0.0/12"
A_SLICE = 100
QUICK, LONG = (1, 1000), (20_000, 60_000)
CONNECTIONS = 600

_SERVE = f"""
import socket
listener = socket.create_server(("0.0.0.0", {PORT}), backlog=1024)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.getsockname()[0].encode())
    connection.close()
"""
_CONNECT = """
import json, socket, sys
found = []
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 80), 60) as connection:
        found.append(connection.recv(64).decode())
print(json.dumps(found))
"""


@dataclass
class Site:
    """A node with a pod that connects and one that is every endpoint."""

    lab: Lab

    def connect(self, count: int) -> Counter[str]:
        """Which endpoints answered so many connections to the Service, one after the other."""
        client = self.lab.pods[0]
        out = self.lab.run(client, [sys.executable, "-c", _CONNECT, VIP, str(count)], timeout=600).stdout
        return Counter(json.loads(out))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    spec = LabSpec(name=f"l{os.getpid()}", nodes=1, pods=2)
    with Lab.up(spec) as lab:
        node, server = lab.nodes[0], lab.pods[1]
        lab.run(server, ["ip", "route", "add", "local", RANGE, "dev", "lo"])
        lab.run(node, ["ip", "route", "add", RANGE, "via", server.addresses[Family.IPV4], *_device(lab)])
        with netns(server.netns):
            process = subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield Site(lab)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _device(lab: Lab) -> list[str]:
    """The node's device towards the pod that is every endpoint."""
    address = lab.pods[1].addresses[Family.IPV4]
    route = json.loads(lab.run(lab.nodes[0], ["ip", "-j", "route", "get", address]).stdout)[0]
    return ["dev", route["dev"], "onlink"]


def _address(number: int) -> str:
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _slice(number: int, addresses: list[str]) -> EndpointSlice:
    port = (EndpointPort("", Protocol.TCP, PORT),)
    items = tuple(make_endpoint(address, node=f"far{int(address.split('.')[3]) % 50}") for address in addresses)
    return EndpointSlice("default", f"large-{number:05}", "large", Family.IPV4, port, items)


SERVICE = Service("default", "large", cluster_ips=(VIP,), ports=(ServicePortSpec("", Protocol.TCP, 80),))


def _check_spread(found: Counter[str], endpoints: list[str]) -> None:
    """Every tenth of the endpoints has its share, within six standard deviations."""
    place = {address: number * 10 // len(endpoints) for number, address in enumerate(endpoints)}
    shares = Counter(place[address] for address in found.elements())
    expected = found.total() / 10
    assert all(abs(shares[tenth] - expected) < 6 * (expected * 0.9) ** 0.5 for tenth in range(10)), shares


@pytest.mark.parametrize("mode", MODES)
def test_every_endpoint_is_reached_until_it_goes(site: Site, mode: str, soak: bool) -> None:
    """The large sizes are for the longer run."""
    with lab_proxy(site.lab, mode) as proxy:
        for count in QUICK + LONG if soak else QUICK:
            items = [_slice(n, addresses) for n, addresses in _slices(count).items()]
            proxy.update([SERVICE, *items])
            (node,) = proxy.nodes.values()
            _check_connections(site, node, count)
            _check_changes(site, proxy, node, count)
            with netns(node.node.netns):
                assert node.plane.read_back() == rows(node.planner.plan)
            proxy.update((), [SERVICE.ref, *(item.ref for item in items)])


def _slices(count: int) -> dict[int, list[str]]:
    """The endpoints of each slice."""
    endpoints = [_address(n + 256) for n in range(count)]
    return {n: endpoints[n * A_SLICE : (n + 1) * A_SLICE] for n in range(-(-count // A_SLICE))}


def _used(node: NodeProxy) -> list[str]:
    """The endpoints that the node's plan uses, in its order."""
    (entry,) = node.planner.plan.entries.values()
    return [backend.address for backend in entry.cluster]


def _check_connections(site: Site, node: NodeProxy, count: int) -> None:
    """As many different endpoints answer as chance wants, and all alike."""
    (entry,) = node.planner.plan.entries.values()
    limited = bool(node.planner.plan.node.most_backends) and count > MOST_BACKENDS
    assert (len(entry.cluster), entry.limited) == ((MOST_BACKENDS, True) if limited else (count, False))
    used = _used(node)
    found = site.connect(CONNECTIONS)
    assert set(found) <= set(used)
    expected = len(used) * (1 - (1 - 1 / len(used)) ** CONNECTIONS)
    assert abs(len(found) - expected) <= 5 * expected**0.5
    if len(used) > 1:
        _check_spread(found, used)


def _check_changes(site: Site, proxy: LabProxy, node: NodeProxy, count: int) -> None:
    """One endpoint is replaced, one goes, one comes; connections go on meanwhile."""
    slices, rng = _slices(count), random.Random(count)
    for turn in range(3):
        number = rng.choice([number for number, addresses in slices.items() if addresses])
        gone = slices[number].pop() if turn == 0 or (turn == 1 and count > 1) else ""
        slices[number] += [_address(count + 300 + turn)] if turn != 1 else []
        proxy.update([_slice(number, slices[number])])
        now = set(_used(node))
        assert gone not in now
        assert set(site.connect(60)) <= now
