"""IPv6 packets with extension headers: in the ebpf mode as the kernel's own NAT treats them, packet by packet, at every
hook and by every way to the pod; answers never leave as the pod's."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec, Node
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.forwarding import LbMode
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.extension_lab import KINDS, PLAIN, TOO_MANY, Ends, Seen
from tests.kernel.modes import lab_proxy
from tests.kernel.packet_lab import counted
from tests.kernel.services_lab import EXTERNAL, PORT, ServicesLab
from tests.kernel.test_behaviours import VIP

ALL_PLAIN = dict.fromkeys(KINDS, KINDS["plain"])
Rounds = dict[str, dict[str, Seen]]
FRONTENDS = {"client": (EXTERNAL[Family.IPV6], 80), "pod1-1": (VIP[Family.IPV6], 80)}
PODS = {"client": ("pod1-2", "pod2-1"), "pod1-1": ("pod1-2", "pod2-1")}
_numbers = iter(range(20000, 32000, 100))


def rounds(made: ServicesLab, client: str, pod: str) -> Rounds:
    """Exchanges of all kinds: the first packets of their flows and the answers, the answers alone, and questions in the
    middle of flows."""
    ends = Ends(made.lab, client, FRONTENDS[client], pod, PORT)
    first, second = next(_numbers), next(_numbers)
    return {
        "from the first packet on": ends.exchange(first, KINDS, KINDS),
        "answers": ends.exchange(second, PLAIN, KINDS),
        "later questions": ends.exchange(second, KINDS, ALL_PLAIN),
    }


@contextmanager
def ebpf(lab: Lab, *, host_routing: bool = False) -> Iterator[tuple[ServicesLab, dict[str, HostRouting]]]:
    """The lab, node 1 with tc and XDP, node 2 with tc alone, and connect time, which is not for packets that tests make
    by hand."""
    hosts: dict[str, HostRouting] = {}

    def make(lab: Lab, node: Node) -> Plane:
        hosts[node.name] = HostRouting(lasting=True)
        host = hosts[node.name] if host_routing else None
        hooks: list[Hook] = [ConnectHook(lab.cgroup(node)), PacketHook(xdp=node.name == "node1", host=host)]
        return EbpfPlane(NftablesPlane(), hooks, replace(SMALL, slots=1 << 17), host_routing=host)

    with LabProxy(lab, "ebpf", make, lb_mode=LbMode.SNAT) as proxy:
        yield ServicesLab(lab, proxy), hosts


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"ext{os.getpid()}", nodes=2, pods=2, ipv6=True)) as made:
        yield made


@pytest.fixture(scope="module")
def by_kernel(lab: Lab) -> Mapping[tuple[str, str], Rounds]:
    """What the kernel's own NAT does, by client and pod."""
    with lab_proxy(lab, "iptables") as proxy:
        made, found = ServicesLab(lab, proxy), {}
        for client, pods in PODS.items():
            for pod in pods:
                made.serve("snat", pod)
                found[client, pod] = rounds(made, client, pod)
    return found


@pytest.fixture(scope="module")
def made(lab: Lab, by_kernel: Mapping[tuple[str, str], Rounds]) -> Iterator[ServicesLab]:
    with ebpf(lab) as (made, _):
        yield made


def answered(seen: Seen) -> bool:
    return seen == Seen((True, True), (frozenset({"frontend"}), True), frozenset())


def test_what_the_kernel_does(by_kernel: Mapping[tuple[str, str], Rounds]) -> None:
    """A pod that is not to read a header does not take the packet. If it says so, it does as the frontend."""
    not_for_it = {name for name in KINDS if "on its way" in name or name.startswith(("segments", "authenticated"))}
    for found in by_kernel.values():
        for name, seen in found["from the first packet on"].items():
            assert answered(seen) == (name not in not_for_it), name
            assert seen.asked[0], name
            assert seen.refused <= {"frontend"}, name
        assert found["from the first packet on"]["routing 0, on its way"].refused == {"frontend"}
        assert {who for seen in found["answers"].values() for who in seen.answered[0]} == {"frontend"}


@pytest.mark.parametrize(
    ("way", "entry", "pod"),
    [
        ("snat", "node1", "pod1-2"),
        ("snat", "node1", "pod2-1"),
        ("snat", "node2", "pod1-2"),
        ("dsr", "node2", "pod1-2"),
        ("tunnel", "node1", "pod2-1"),
    ],
)
def test_clients_from_outside(
    made: ServicesLab, by_kernel: Mapping[tuple[str, str], Rounds], way: str, entry: str, pod: str
) -> None:
    made.lab.set_entry(entry)
    made.serve(way, pod)
    with counted(made.proxy) as ways:
        assert rounds(made, "client", pod) == by_kernel["client", pod]
    assert "tc_ingress:ipv6_extension" not in ways
    assert ("tc_ingress:forwarded" in ways) == (way != "snat")


@pytest.mark.parametrize("pod", PODS["pod1-1"])
def test_pods_as_clients(made: ServicesLab, by_kernel: Mapping[tuple[str, str], Rounds], pod: str) -> None:
    made.serve("snat", pod)
    assert rounds(made, "pod1-1", pod) == by_kernel["pod1-1", pod]


@pytest.mark.parametrize(("entry", "pod"), [("node1", "pod1-2"), ("node2", "pod2-1")])
def test_more_headers_than_are_read(made: ServicesLab, entry: str, pod: str) -> None:
    """A question goes to the stack. An answer in a flow of the programs is dropped by name, and leaks no address."""
    made.lab.set_entry(entry)
    made.serve("snat", pod)
    ends = Ends(made.lab, "client", FRONTENDS["client"], pod, PORT)
    with counted(made.proxy) as ways:
        found = ends.exchange(next(_numbers), PLAIN, TOO_MANY)
    assert (found["too many"].answered, answered(found["plain"])) == ((frozenset(), False), True)
    assert ways["tc_egress:header_chain"] == 1
    with counted(made.proxy) as ways:
        found = ends.exchange(next(_numbers), TOO_MANY, {"too many": KINDS["plain"], "plain": KINDS["plain"]})
    assert answered(found["too many"])
    assert ways["tc_ingress:ipv6_extension"] == 1


SCRIPT = """
import json, socket, sys
padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET6, kind) as sock:
        sock.settimeout(10)
        for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, padding)
        sock.connect((sys.argv[1], 80))
        sock.send(b"?\\n")
        print(json.loads(sock.recv(4096))["client"], sock.getpeername()[0])
"""


def test_sockets_with_options_at_connect_time(made: ServicesLab) -> None:
    """Their packets carry the endpoint's address from the start, and the answers that of the socket."""
    made.lab.start_echo(["pod2-2"], [PORT])
    made.serve("snat", "pod2-2")
    with counted(made.proxy) as ways:
        said = made.lab.run("pod1-1", ["python3", "-c", SCRIPT, VIP[Family.IPV6]]).stdout.split()
    own = made.lab.place("pod1-1").addresses[Family.IPV6]
    assert [each.strip("[]").partition("]")[0] for each in said] == [own, VIP[Family.IPV6]] * 2
    assert ways["connect:connected"] == 2


def look(made: ServicesLab, hosts: dict[str, HostRouting]) -> None:
    """Have all nodes look at their devices again."""
    for name, proxy in made.proxy.nodes.items():
        with netns(proxy.node.netns):
            hosts[name].refresh()


def test_host_routing(lab: Lab, by_kernel: Mapping[tuple[str, str], Rounds]) -> None:
    """Packets with extension headers go by the stack, plain ones past it."""
    with ebpf(lab, host_routing=True) as (made, hosts):
        for each in lab.pods:  # so that nodes know their pods' hardware addresses
            with netns(lab.place(each.node).netns), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"?", (each.addresses[Family.IPV6], 9))
        look(made, hosts)
        for client, pod, way in (("client", "pod1-2", "into_pod"), ("pod1-1", "pod2-1", "out_of_node")):
            made.serve("snat", pod)
            before = dict(hosts["node1"].counts())
            assert rounds(made, client, pod) == by_kernel[client, pod]
            assert hosts["node1"].counts()[way] > before[way]
