"""A lab of nodes with host routing, and what tests ask of it: by which way packets went, and who saw them."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node, PodLink, Routing
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL

PORT, LOCAL, REMOTE = 8080, 30080, 30081
CLUSTER_IP = {
    "local": {Family.IPV4: "10.96.0.80", Family.IPV6: "fd00:10:96::80"},
    "remote": {Family.IPV4: "10.96.0.81", Family.IPV6: "fd00:10:96::81"},
}
FAMILIES = (Family.IPV4, Family.IPV6)
_SERVICE = """---
kind: Service
apiVersion: v1
metadata: {{name: {name}}}
spec:
  type: NodePort
  clusterIP: {ipv4}
  clusterIPs: [{ipv4}, '{ipv6}']
  externalTrafficPolicy: Cluster
  selector: {{app: {name}}}
  ports:
  - {{name: tcp, port: 80, targetPort: 8080, nodePort: {port}}}
  - {{name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: {port}}}
"""
WATCH = """table inet watch {
    counter passed { }
    chain forward {
        type filter hook forward priority -10;
        meta l4proto { tcp, udp } counter name passed
    }
}"""


class HostLab:
    """Node 1 has pods 1 and 2, node 2 pods 3 and 4 (`pod2-1`). Echo servers on PORT in all; Service `local` leads to
    pod1-2, `remote` to pod2-1. Node 1's forward chain counts TCP and UDP packets to pods and the client."""

    def __init__(self, lab: Lab, proxy: LabProxy) -> None:
        self.lab, self.proxy = lab, proxy
        self.node = lab.nodes[0]

    def host(self, node: str = "node1") -> HostRouting:
        plane = self.proxy.nodes[node].plane
        assert isinstance(plane, EbpfPlane)
        assert plane.host_routing is not None
        return plane.host_routing

    def look(self) -> None:
        """Have all nodes look at their devices again."""
        for name, proxy in self.proxy.nodes.items():
            with netns(proxy.node.netns):
                self.host(name).refresh()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have node 1's devices watched meanwhile, as a daemon does."""
        plane = self.proxy.nodes["node1"].plane
        assert isinstance(plane, EbpfPlane)
        [hook] = [hook for hook in plane.hooks if isinstance(hook, PacketHook)]
        with netns(self.node.netns):
            watch = hook.watch()
        with watch:
            yield
        assert watch.problems == []

    def address(self, place: str, family: Family) -> str:
        return self.lab.place(place).addresses[family]

    def passed(self) -> int:
        """TCP and UDP packets that node 1's stack forwarded since the lab is up."""
        listed = json.loads(self.lab.run(self.node, ["nft", "-j", "list", "counter", "inet", "watch", "passed"]).stdout)
        return int(next(each["counter"]["packets"] for each in listed["nftables"] if "counter" in each))

    @contextmanager
    def ways(self) -> Iterator[dict[str, int]]:
        """Fills a dictionary with packets by way on node 1 meanwhile, with what the stack forwarded (`forwarded`), and
        with the flows that tc.c opened (`translated`)."""
        found: dict[str, int] = {}
        before, passed, opened = dict(self.host().counts()), self.passed(), self._opened()
        yield found
        found |= {way: count - before[way] for way, count in self.host().counts().items()}
        found |= {"forwarded": self.passed() - passed, "translated": self._opened() - opened}

    def _opened(self) -> int:
        with netns(self.node.netns):
            traffic = self.proxy.nodes["node1"].plane.traffic()
        assert traffic is not None
        return sum(way.times for way in traffic.hook_exits if way.hook == "tc_ingress" and way.reason == "new_flow")

    def open(self, where: str, family: Family, kind: socket.SocketKind) -> socket.socket:
        with netns(self.lab.place(where).netns):
            made = socket.socket(family.socket_family, kind)
        made.settimeout(60)
        return made

    def connected(self, where: str, to: tuple[str, int], kind: socket.SocketKind) -> socket.socket:
        made = self.open(where, Family.IPV6 if ":" in to[0] else Family.IPV4, kind)
        made.connect(to)
        return made

    def transfer(self, client: str, server: str, family: Family, size: int) -> None:
        """Send so many bytes over a TCP connection, and see them arrive as they were."""
        with self.open(server, family, socket.SOCK_STREAM) as listener:
            listener.bind((self.address(server, family), 0))
            listener.listen()
            got: list[bytes] = []

            def take() -> None:
                connection, _ = listener.accept()
                with connection:
                    while data := connection.recv(1 << 20):
                        got.append(data)

            taker = threading.Thread(target=take)
            taker.start()
            sent = os.urandom(1 << 16) * (size >> 16)
            with self.connected(client, listener.getsockname()[:2], socket.SOCK_STREAM) as sock:
                sock.sendall(sent)
            taker.join(60)
            assert b"".join(got) == sent


def ask(sock: socket.socket) -> tuple[str, str]:
    """One exchange with an echo server: its name, and the client's address that it saw."""
    sock.send(b"?\n")
    answer = json.loads(sock.recv(4096))
    return answer["server"], answer["client"].rpartition(":")[0].strip("[]")


def fetch(lab: HostLab, where: str, to: tuple[str, int], kind: socket.SocketKind, times: int = 3) -> tuple[str, str]:
    """A connection with so many exchanges."""
    with lab.connected(where, to, kind) as sock:
        for _ in range(times):
            found = ask(sock)
        return found


@contextmanager
def host_lab(
    routing: Routing = Routing.DIRECT, link: PodLink = PodLink.VETH, *, connect: bool = False, name: str = "",
    sizes: Sizes = SMALL, report: Callable[[str], None] | None = None, past_stack: bool = True, xdp: bool = False,
) -> Iterator[HostLab]:  # fmt: skip
    """sizes: of the maps. report: hears of full maps, and flows that are over are collected. past_stack: False leaves
    host routing out."""

    def make(lab: Lab, node: Node) -> Plane:
        host = HostRouting(lasting=True) if past_stack else None
        hooks = [ConnectHook(lab.cgroup(node))] if connect else []
        packets = PacketHook(xdp=xdp, host=host)
        return EbpfPlane(NftablesPlane(), [*hooks, packets], sizes, host_routing=host, report=report)

    spec = LabSpec(
        name=name or f"host{os.getpid()}-{routing}-{link}", nodes=2, pods=2, routing=routing, pod_link=link, ipv6=True
    )
    with Lab.up(spec) as lab:
        lab.start_echo(lab.pods, [PORT])
        with LabProxy(lab, "ebpf", make) as proxy:
            manifest = "".join(
                _SERVICE.format(
                    name=each, ipv4=CLUSTER_IP[each][Family.IPV4], ipv6=CLUSTER_IP[each][Family.IPV6], port=port
                )
                for each, port in (("local", LOCAL), ("remote", REMOTE))
            )
            workloads = {"local": pods(lab.topology, "pod1-2"), "remote": pods(lab.topology, "pod2-1")}
            proxy.update(cluster_objects(manifest.encode(), workloads, spec.families, "manifest").objects)
            made = HostLab(lab, proxy)
            lab.run(made.node, ["nft", "-f", "-"], input=WATCH)
            for pod in lab.pods:  # so that the nodes know their pods' hardware addresses
                for family in spec.families:
                    node = next(n for n in lab.nodes if n.name == pod.node)
                    fetch(made, node.name, (pod.addresses[family], PORT), socket.SOCK_DGRAM, 1)
            if past_stack:
                made.look()
            yield made
