"""A node in a namespace of its own, with the packet programs loaded but not attached: packets go through test runs.

    out ---- up0 [node 172.18.0.1] pod0 ---- pod 10.244.1.11

The pods of node 2 (10.244.2.0/24) are behind 172.18.0.2, everybody else behind the router 172.18.0.254.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether

from dataplane.kernel import sysctl
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, ProgramRun, ProgramType
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges
from dataplane.planes.ebpf.attach.packet_hooks import (
    FORWARD_PROGRAMS,
    FORWARD_SOURCE,
    XDP_FORWARD_PROGRAMS,
    XDP_FORWARD_SOURCE,
)
from dataplane.planes.ebpf.attach.programs import Program, load_programs
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES, flow_key
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import Sizes, constant, enumeration, record, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.tables import Tables
from dataplane.planes.ebpf.views.events import TUPLE
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.routes import Routes, cluster_ip_routes, external_routes
from tests.namespaces import namespaces

NODE, NODE2, ROUTER, CLIENT = "172.18.0.1", "172.18.0.2", "172.18.0.254", "198.51.100.2"
NODE_6, NODE2_6, ROUTER_6, CLIENT_6 = "fd00:172:18::1", "fd00:172:18::2", "fd00:172:18::fe", "fd00:198:51:100::2"
POD, POD_6 = "10.244.1.11", "fd00:10:244:1::11"
REMOTE, REMOTE_6 = "10.244.2.11", "fd00:10:244:2::11"
NODE2_MAC, ROUTER_MAC, POD_MAC = "02:00:00:00:00:02", "02:00:00:00:00:fe", "02:00:00:00:00:11"
SIZES = Sizes(
    frontends=256, slots=1024, backends=1024, services=256, source_ranges=64, detector=16, addresses=32, devices=16,
    affinity=1024, peers=16, sockets=16, tcp_flows=4096, udp_flows=4096, fragments=1024, events=1 << 16,
    tunnels=16, pods=16, direct_tcp=4096, direct_udp=4096,
)  # fmt: skip
TC_NEXT, TC_SHOT, TC_STOLEN, TC_REDIRECT = 0xFFFFFFFF, 2, 4, 7
XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4
DEVICE = record("device", "flags", "ifindex", "mac", "mtu", "source_ipv4", "source_ipv6")
_TC_CONTEXT, _TC_IFINDEX_AT = 192, 40


def node_config(**changes: Any) -> NodeConfig:
    """The bench's node."""
    settings: dict[str, Any] = {
        "name": "node1",
        "addresses": (NODE, NODE_6),
        "detector": LocalDetector(cidrs=("10.244.0.0/16", "fd00:10:244::/48")),
        "nodeports": NodePortAddresses(any_local=True),
    }
    return NodeConfig(**(settings | changes))


def entry(
    name: str,
    backends: Iterable[str],
    *,
    protocol: Protocol = Protocol.TCP,
    ip: str = "",
    load_balancer: str = "",
    node_port: int = 0,
    port: int = 80,
    target: int = 8080,
    local_policy: bool = False,
    affinity: int = 0,
    ranges: tuple[str, ...] | None = None,
    family: Family = Family.IPV4,
) -> PlanEntry:
    """A Service port. backends: pod addresses; those of 10.244.1 and fd00:10:244:1 are local."""
    found = tuple(sorted(Backend(a, target, a.startswith(("10.244.1.", "fd00:10:244:1:", NODE))) for a in backends))
    local = tuple(b for b in found if b.local)
    sets = {"has_cluster": bool(found), "has_local": bool(local)}
    inside = cluster_ip_routes(**sets, internal_local=False, detects_pods=True, masquerade_all=False)
    outside = external_routes(**sets, external_local=local_policy)
    frontends = []

    def add(kind: FrontendKind, address: str, number: int, routes: Routes) -> None:
        guard = SourceRanges(ranges) if ranges is not None and kind is FrontendKind.LOAD_BALANCER else None
        frontends.append(Frontend(kind, FrontendKey(family, address, protocol, number), routes, guard))

    if ip:
        add(FrontendKind.CLUSTER_IP, ip, port, inside)
    if load_balancer:
        add(FrontendKind.LOAD_BALANCER, load_balancer, port, outside)
    if node_port:
        add(FrontendKind.NODE_PORT, "", node_port, outside)
    key = EntryKey("default", name, "", protocol, family)
    return PlanEntry(key, found, local, tuple(frontends), affinity, external_local=local_policy)


class Bench:
    """See the module. `up`, `pod`: ifindex of the two devices; `up_mac`, `pod_mac`: their addresses."""

    def __init__(
        self, namespace: str, maps: MapSet, programs: dict[str, Program], links: Links, flags: Sequence[str] = ()
    ) -> None:
        self.namespace, self.maps, self.programs, self._flags = namespace, maps, programs, flags
        self.up, self.pod = links.index("up0"), links.index("pod0")
        self.up_mac, self.pod_mac = links.mac("up0"), links.mac("pod0")
        self.links = links
        self.tables = Tables(maps)
        self.plan = Plan(node_config())
        self.configure(self.plan.node)
        for index, mac, role in (
            (self.up, self.up_mac, constant("DEVICE_UPLINK") | constant("DEVICE_XDP_TARGET")),
            (self.pod, self.pod_mac, constant("DEVICE_POD")),
        ):
            self.describe(index, mac, role)

    def describe(self, index: int, mac: str, role: int, ipv4: str = "", ipv6: str = "", mtu: int = 1500) -> None:
        """Write what a device is; ipv4, ipv6: its addresses to masquerade with, "" = none; mtu: 0 = not known."""
        sources = (address_bytes(text) if text else bytes(16) for text in (ipv4, ipv6))
        raw = DEVICE.pack(role, index, *bytes.fromhex(mac.replace(":", "")), mtu, *sources)
        self.maps.put("devices", index.to_bytes(4, "little"), raw)

    def configure(self, node: NodeConfig, *, parity: bool = False) -> None:
        """Write the node's settings."""
        self.plan.node = node
        self._parity = parity
        write_node(self.maps, node, 1, parity, tunnel=self.tables.tunnels.known)

    def accept(self, *peers: str, dispatch: Dispatch = Dispatch.VXLAN) -> None:
        """Accept packets that these nodes forward, and load what handles them. dispatch: how packets to them go."""
        self.tables.tunnels.use(dict.fromkeys(peers, dispatch))
        self.tables.accept(peers)
        self.configure(self.plan.node, parity=self._parity)
        if "tc_forward" not in self.programs:
            self._load_forwarding()

    def _load_forwarding(self) -> None:
        for source, kind, attach, calls, where in (
            (FORWARD_SOURCE, ProgramType.SCHED_CLS, AttachType.NONE, FORWARD_PROGRAMS, "tail_calls"),
            (XDP_FORWARD_SOURCE, ProgramType.XDP, AttachType.XDP, XDP_FORWARD_PROGRAMS, "xdp_calls"),
        ):
            kinds = dict.fromkeys(calls, attach)
            self.programs |= load_programs(source, kind, kinds, self.maps.fds, self.maps.specs, self._flags)
            services = {"tc_ingress": constant("PROGRAM_SERVICES")} if where == "tail_calls" else {}
            for name, number in (calls | services).items():
                fd = self.programs[name].fd
                self.maps.put(where, number.to_bytes(4, "little"), fd.to_bytes(4, "little"))

    def install(self, *entries: PlanEntry) -> None:
        """Add or replace Services."""
        for new in entries:
            self.tables.apply([EntryChange(self.plan.entries.get(new.key), new)])
            self.plan.entries[new.key] = new

    def remove(self, old: PlanEntry) -> None:
        """Remove a Service."""
        self.tables.apply([EntryChange(self.plan.entries.pop(old.key), None)])

    def tc(self, packet: bytes, *, egress: bool = False, pod: bool = False, repeat: int = 1) -> ProgramRun:
        """Run tc on a packet at the uplink, or at the pod's device."""
        context = bytearray(_TC_CONTEXT)
        struct.pack_into("=I", context, _TC_IFINDEX_AT, self.pod if pod else self.up)
        program = self.programs["tc_egress" if egress else "tc_ingress"].fd
        with netns.netns(self.namespace):
            return bpf.run_program(program, packet, repeat, bytes(context))

    def xdp(self, packet: bytes, *, repeat: int = 1) -> ProgramRun:
        """Run XDP on a packet at the uplink."""
        context = struct.pack("=IIIIII", 0, len(packet), 0, self.up, 0, 0)
        with netns.netns(self.namespace):
            return bpf.run_program(self.programs["xdp_uplink"].fd, packet, repeat, context)

    def reasons(self) -> dict[str, int]:
        """Counters that are not zero, `hook:reason`."""
        hooks = [n.removeprefix("HOOK_").lower() for n in enumeration("hook") if n != "HOOK_COUNT"]
        names = [n.removeprefix("REASON_").lower() for n in enumeration("reason") if n != "REASON_COUNT"]
        found = {}
        for h, hook in enumerate(hooks):
            for r, reason in enumerate(names):
                total = sum(
                    int.from_bytes(raw, "little")
                    for raw in self.maps.per_cpu("counters", h * constant("REASON_COUNT") + r)
                )
                if total:
                    found[f"{hook}:{reason}"] = total
        return found

    @contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """What the counters rose by inside the `with`; filled in at its end."""
        before, risen = self.reasons(), dict[str, int]()
        yield risen
        after = self.reasons()
        risen.update({k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)})

    def flow(
        self, source: str, port: int, destination: str, target: int, protocol: int = socket.IPPROTO_TCP
    ) -> dict[str, Any] | None:
        """The entry of a tuple, with `facts`: all flags, said by either direction."""
        ports = socket.htons(port), socket.htons(target)
        own = TUPLE.pack(address_bytes(source), address_bytes(destination), *ports, protocol, 0, 0, 0)
        raw = self.maps.get("tcp_flows" if protocol == socket.IPPROTO_TCP else "udp_flows", flow_key(own))
        if raw is None:
            return None
        fields = unpack("translation", raw)
        return fields | {"facts": fields["flags"] | fields["noted"]}

    def flows(self, *tables: str) -> int:
        """Number of entries in these tables, or in all that hold flows."""
        return sum(1 for table in tables or FLOW_TABLES for _ in self.maps.items(table))

    def forget(self, *tables: str) -> None:
        """Empty these tables, or all that hold flows or fragments."""
        for table in tables or (*FLOW_TABLES, "fragments"):
            self.maps.remove(table, [key for key, _ in list(self.maps.items(table))])

    def frame(self, ip: Any, *, pod: bool = False) -> bytes:
        """An IP packet as a frame that arrives at the uplink, or at the pod's device."""
        mac = self.pod_mac if pod else self.up_mac
        return bytes(Ether(dst=mac, src=POD_MAC if pod else ROUTER_MAC) / ip)


def _addresses(links: Links, out: Links, pod: Links) -> None:
    for cidr in (f"{NODE}/24", f"{NODE_6}/64"):
        links.address("up0", cidr)
    links.route("10.244.2.0/24", via=NODE2)
    links.route("fd00:10:244:2::/64", via=NODE2_6)
    links.route("0.0.0.0/0", via=ROUTER)
    links.route("::/0", via=ROUTER_6)
    links.route(f"{POD}/32", device="pod0", source=NODE)
    links.route(f"{POD_6}/128", device="pod0", source=NODE_6)
    for address, mac in ((NODE2, NODE2_MAC), (NODE2_6, NODE2_MAC), (ROUTER, ROUTER_MAC), (ROUTER_6, ROUTER_MAC)):
        links.neighbour("up0", address, mac)
    for address in (POD, POD_6):
        links.neighbour("pod0", address, POD_MAC)


@contextmanager
def bench(*flags: str) -> Iterator[Bench]:
    """A bench; `flags` go to the compiler."""
    with namespaces() as make_namespace:
        yield from _bench([make_namespace(word) for word in ("node", "out", "pod")], flags)


def _bench(names: list[str], flags: Sequence[str]) -> Iterator[Bench]:
    with netns.netns(names[0]):
        sysctl.write("net/ipv4/ip_forward", 1)
        sysctl.write("net/ipv6/conf/all/forwarding", 1)
        for scope in ("all", "default"):
            sysctl.write(f"net/ipv6/conf/{scope}/accept_dad", 0)
    with Links(names[0]) as node, Links(names[1]) as out, Links(names[2]) as pod:
        node.add_veth("up0", out, "eth0", 1500)
        node.add_veth("pod0", pod, "eth0", 1500)
        node.set_gro("up0", True)
        _addresses(node, out, pod)
        maps = create_maps(SIZES)
        programs: dict[str, Program] = {}
        try:
            directions = {"tc_ingress": AttachType.NONE, "tc_egress": AttachType.NONE}
            programs |= load_programs("tc.c", ProgramType.SCHED_CLS, directions, maps.fds, maps.specs, flags)
            programs |= load_programs(
                "xdp.c", ProgramType.XDP, {"xdp_uplink": AttachType.XDP}, maps.fds, maps.specs, flags
            )
            yield Bench(names[0], maps, programs, node, flags)
        finally:
            for program in programs.values():
                os.close(program.fd)
            maps.close()


def ip(family: Family, source: str, destination: str, **fields: Any) -> Any:
    """An IP header of either family. fields: as scapy calls those of IPv4 and IPv6; `ttl` stands for both."""
    if family is Family.IPV4:
        return IP(src=source, dst=destination, **fields)
    if "ttl" in fields:
        fields["hlim"] = fields.pop("ttl")
    return IPv6(src=source, dst=destination, **fields)


def too_long(head: Any) -> Any:
    """An IPv6 header with more extension headers behind it than the programs read."""
    for _ in range(9):
        head /= IPv6ExtHdrDestOpt()
    return head


def hops(packet: Any) -> int:
    """How many hops an IP packet still has."""
    return int(packet.ttl if IP in packet else packet.hlim)


def parse(data: bytes) -> Any:
    """A frame as scapy sees it."""
    return Ether(data)


def ip_of(data: bytes) -> Any:
    """The IP layer of a frame."""
    frame = Ether(data)
    return frame[IP] if IP in frame else frame[IPv6]


def rebuilt(layer: Any) -> bytes:
    """The same packet with all lengths and checksums computed afresh."""
    copy = layer.copy()
    for part in copy.iterpayloads():
        for field in ("len", "plen", "chksum", "cksum"):
            if part.fields.get(field) is not None:
                part.delfieldval(field)  # not from `fields`: bytes of a header that was parsed are kept until then
    return bytes(copy)
