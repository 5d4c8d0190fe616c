"""A lab of three nodes whose Services are forwarded with the client's address kept, from plan values made by hand."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy, NodeProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node, PodLink, Routing
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EXTERNAL, EntryKey, PlanEntry
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.records import open_instance
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Dispatch, Forwarding
from tests.kernel.ebpf_lab import SMALL

PORT, NODE_PORT = 8080, 30080
INGRESS = {Family.IPV4: "203.0.113.80", Family.IPV6: "fd00:203:113::80"}
_MANIFEST = f"""
kind: Service
apiVersion: v1
metadata: {{name: all}}
spec:
  type: LoadBalancer
  selector: {{app: all}}
  ports:
  - {{name: tcp, port: 80, targetPort: {PORT}, nodePort: {NODE_PORT}}}
  - {{name: udp, protocol: UDP, port: 80, targetPort: {PORT}, nodePort: {NODE_PORT}}}
status: {{loadBalancer: {{ingress: [{{ip: '{INGRESS[Family.IPV4]}'}}, {{ip: '{INGRESS[Family.IPV6]}'}}]}}}}
"""


def ask(sock: socket.socket) -> tuple[str, str]:
    """One exchange with a pod on a connected socket: who answered, and whom it saw, address and port."""
    sock.sendall(b"?\n")
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(4096)
        assert piece, "the server closed"
        data += piece
    said = json.loads(data)
    return said["server"], said["client"]


def host(end: str) -> str:
    """The address of an address and port."""
    return end.rpartition(":")[0].strip("[]")


def tunnelled(lab: Lab, node: Node, entry: PlanEntry, way: Forwarding) -> PlanEntry:
    """A node's entry with traffic to other nodes forwarded."""
    if way is Forwarding.SNAT or not any(frontend.kind in EXTERNAL for frontend in entry.frontends):
        return replace(entry, forwarding=Forwarding.SNAT, tunnels=())
    family = entry.key.family
    homes = {pod.addresses[family]: other for other in lab.nodes for pod in other.pods}
    ways = [homes[backend.address] for backend in entry.cluster]
    return replace(
        entry,
        forwarding=way,
        tunnels=tuple("" if home.name == node.name else home.addresses[family] for home in ways),
    )


def _without(entry: PlanEntry, gone: set[str]) -> PlanEntry:
    """The entry without endpoints at these addresses."""
    stays = [at for at, backend in enumerate(entry.cluster) if backend.address not in gone]
    return replace(
        entry,
        cluster=tuple(entry.cluster[at] for at in stays),
        local=tuple(backend for backend in entry.local if backend.address not in gone),
        tunnels=tuple(entry.tunnels[at] for at in stays) if entry.tunnels else (),
    )


class ForwardingLab:
    """The lab and its proxies. use: give all Services a way; until then it is SNAT."""

    def __init__(self, lab: Lab, proxy: LabProxy) -> None:
        self.lab, self.proxy = lab, proxy
        self._held: dict[str, dict[EntryKey, PlanEntry]] = {
            name: dict(each.planner.plan.entries) for name, each in proxy.nodes.items()
        }

    def send_in(self, dispatch: Dispatch, *nodes: str) -> None:
        """Have these nodes, or all, wrap packets to the others like this."""
        for name, each in self.proxy.nodes.items():
            if not nodes or name in nodes:
                others = (other for other in self.lab.nodes if other.name != name)
                addresses = [address for other in others for address in other.addresses.values()]
                with netns(each.node.netns):
                    each.plane.apply(PlanChange(tunnel_formats=dict.fromkeys(addresses, dispatch)))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have every node's devices watched meanwhile, as a daemon does."""
        with ExitStack() as stack:
            watches = []
            for each in self.proxy.nodes.values():
                assert isinstance(each.plane, EbpfPlane)
                [hook] = [hook for hook in each.plane.hooks if isinstance(hook, PacketHook)]
                with netns(each.node.netns):
                    watches.append(stack.enter_context(hook.watch()))
            yield
        assert [watch.problems for watch in watches] == [[] for _ in watches]

    def use(self, way: Forwarding, *nodes: str, algorithm: Algorithm = Algorithm.RANDOM) -> None:
        """Have these nodes, or all, forward this way, to endpoints that are chosen like this."""
        for name, each in self.proxy.nodes.items():
            if not nodes or name in nodes:
                entries = each.planner.plan.entries.values()
                self.bring(
                    each,
                    [replace(tunnelled(self.lab, each.node, entry, way), algorithm=algorithm) for entry in entries],
                )

    def leave(self, pod: str, *nodes: str) -> None:
        """Have these nodes, or all, do without an endpoint."""
        gone = set(self.lab.place(pod).addresses.values())
        for name, each in self.proxy.nodes.items():
            if not nodes or name in nodes:
                self.bring(each, [_without(entry, gone) for entry in self._held[name].values()])

    def forget_flows(self) -> None:
        """Have the programs forget all flows, as if their time were over."""
        for each in self.proxy.nodes.values():
            with netns(each.node.netns):
                maps = open_instance(default_instance())
            assert maps is not None
            with maps:
                for table in FLOW_TABLES:
                    maps.remove(table, [key for key, _ in maps.items(table)])

    def bring(self, each: NodeProxy, wanted: list[PlanEntry]) -> None:
        """Bring a node from what it holds to these entries, and have it accept packets from the others."""
        held = self._held[each.node.name]
        changes = tuple(EntryChange(held.get(entry.key), entry) for entry in wanted if held.get(entry.key) != entry)
        others = (other for other in self.lab.nodes if other.name != each.node.name)
        peers = frozenset(address for other in others for address in other.addresses.values())
        with netns(each.node.netns):
            each.plane.apply(PlanChange(changes, tunnel_peers=peers))
        held |= {entry.key: entry for entry in wanted}


@contextmanager
def forwarding_lab(
    word: str, *, xdp: bool = False, routing: Routing = Routing.DIRECT, link: PodLink = PodLink.VETH, only: str = "",
    past_stack: bool = False, nodes: int = 3,
) -> Iterator[ForwardingLab]:  # fmt: skip
    """Nodes with a pod each, behind one Service, and echo servers in the pods. only: the one pod behind the
    Service, without an echo server. past_stack: with host routing, once the nodes have looked (`watching`)."""

    def make(lab: Lab, node: Node) -> Plane:
        host = HostRouting(lasting=True) if past_stack else None
        sizes = replace(SMALL, slots=1 << 17)  # with room for Maglev tables
        return EbpfPlane(NftablesPlane(), [PacketHook(xdp=xdp, host=host)], sizes, host_routing=host)

    spec = LabSpec(name=f"{word}{os.getpid()}", nodes=nodes, pods=1, routing=routing, pod_link=link, ipv6=True)
    with Lab.up(spec) as lab, LabProxy(lab, "ebpf", make) as proxy:
        if not only:
            lab.start_echo(lab.pods, [PORT])
        workloads = {"all": pods(lab.topology, *([only] if only else [pod.name for pod in lab.pods]))}
        proxy.update(cluster_objects(_MANIFEST.encode(), workloads, spec.families, "manifest").objects)
        yield ForwardingLab(lab, proxy)
