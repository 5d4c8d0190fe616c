"""A lab of two nodes behind the packet programs, for packets that are hard on them: over VXLAN, which is narrower than
the uplinks, with echo servers in all pods."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node, PodLink, Routing
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.test_tc_traffic import PORT, Server

REMOTE, LOCAL, BOTH = 30080, 30081, 30082
"""Node ports, by where the endpoints are."""
OWN_PORT = 10001
"""Port of a Service at node 1's own addresses."""
FAMILIES = (Family.IPV4, Family.IPV6)
_SERVICE = """---
kind: Service
apiVersion: v1
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  selector: {{app: {name}}}
  ports:
  - {{name: tcp, port: {port}, targetPort: {target}, nodePort: {node_port}}}
  - {{name: udp, protocol: UDP, port: {port}, targetPort: {target}, nodePort: {node_port}}}
status: {{loadBalancer: {{ingress: [{ingress}]}}}}
"""


HEARD: list[tuple[int, tuple[str, int]]] = []
"""What the pods' servers heard over UDP, newest last: the number of the server's socket, and the client."""


class _Listener(Server):
    """Says in HEARD whom it answers."""

    def _answer(self, sock: socket.socket) -> None:
        while True:
            try:
                data, client = sock.recvfrom(65536)
            except OSError:
                return
            if not data:
                return
            HEARD.append((sock.fileno(), (client[0].removeprefix("::ffff:"), client[1])))
            sock.sendto(data, client)


@contextmanager
def packet_lab(xdp: bool, fragments: int = 4096) -> Iterator[tuple[Lab, LabProxy]]:
    """The lab with Services `remote`, `local` and `both`, and `own` at node 1's addresses. fragments: how many
    fragmented datagrams the programs have room for."""

    def make(lab: Lab, node: Node) -> Plane:
        return EbpfPlane(NftablesPlane(), [PacketHook(xdp=xdp)], msgspec.structs.replace(SMALL, fragments=fragments))

    name = f"packets{os.getpid()}-{'xdp' if xdp else 'tc'}"
    spec = LabSpec(name=name, nodes=2, pods=2, routing=Routing.VXLAN, pod_link=PodLink.BRIDGE, ipv6=True)
    with Lab.up(spec) as lab, LabProxy(lab, "ebpf", make) as proxy:
        own = ", ".join(f"{{ip: '{address}'}}" for address in lab.nodes[0].addresses.values())
        named = (
            ("remote", 80, REMOTE, ""),
            ("local", 80, LOCAL, ""),
            ("both", 80, BOTH, ""),
            ("own", OWN_PORT, 30083, own),
        )
        manifest = "".join(
            _SERVICE.format(name=name, port=port, target=PORT, node_port=node_port, ingress=ingress)
            for name, port, node_port, ingress in named
        )
        here, there = pods(lab.topology, "pod1-1"), pods(lab.topology, "pod2-1")
        workloads = {"remote": there, "local": here, "both": (*here, *there), "own": here}
        decoded = cluster_objects(manifest.encode(), workloads, spec.families, "manifest")
        proxy.update(decoded.objects)
        for pod in lab.pods:  # their answers may be cut
            lab.run(pod.name, ["sysctl", "-qw", "net.ipv4.ip_no_pmtu_disc=1"])
        server = _Listener([pod.netns for pod in lab.pods])
        try:
            yield lab, proxy
        finally:
            server.close()


@contextmanager
def counted(proxy: LabProxy) -> Iterator[dict[str, int]]:
    """Fills the dictionary with what the nodes' programs counted meanwhile, by `hook:reason`."""
    found: dict[str, int] = {}
    before = proxy.counters()
    yield found
    found |= {name: now - before.get(name, 0) for name, now in proxy.counters().items() if now != before.get(name)}


@contextmanager
def in_order() -> Iterator[None]:
    """Stay on one processor meanwhile: each hands over what was sent on it in that order, but not after what was sent
    on another one before."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def look_for_devices(proxy: LabProxy) -> None:
    """Let the nodes' programs have the devices that came since."""
    for node in proxy.nodes.values():
        assert isinstance(node.plane, EbpfPlane)
        with netns(node.node.netns):
            for hook in node.plane.hooks:
                assert isinstance(hook, PacketHook)
                hook.refresh()


def open_socket(lab: Lab, where: str, family: Family, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """A socket in a place of the lab, with a minute of patience."""
    with netns(lab.place(where).netns):
        made = socket.socket(family.socket_family, kind)
    made.settimeout(60)
    return made
