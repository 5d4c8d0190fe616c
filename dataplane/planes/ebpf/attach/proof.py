"""Tests on this kernel that each hook translates packets and connections: runs the real programs with their own
small maps, in a temporary network namespace and control group.

    client 198.18.0.9 ---- up0 [node 198.18.0.1] -- next hop 198.18.0.2 -- backend 198.18.1.7:8080

BPF_PROG_TEST_RUN is called without a context, which kernels before 5.15 refuse for XDP. The packet's device is then
the loopback device, whose hardware address is zero.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataplane.errors import HotplaneError
from dataplane.kernel import sysctl
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bcc_loader import CompileError
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.netlink import clsact
from dataplane.kernel.netlink.clsact import ClsactError
from dataplane.kernel.netlink.links import Links
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, PlanEntry
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.packet_hooks import DEVICE, TC_SOURCE, XDP_SOURCE
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, CONNECT_SOURCE, load_programs
from dataplane.planes.ebpf.attach.tc import DIRECTIONS
from dataplane.planes.ebpf.attach.xdp import PROGRAM
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import Sizes, constant, hook_names, reason_names
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.tables import Tables
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.routes import cluster_ip_routes, external_routes

NODE, CLIENT, NEXT_HOP, BACKEND = "198.18.0.1", "198.18.0.9", "198.18.0.2", "198.18.1.7"
CLUSTER_IP, EXTERNAL_IP, PORT, TARGET_PORT, CLIENT_PORT = "198.19.0.1", "198.19.0.2", 80, 8080, 4000
_MAC = "02:00:00:00:00:02"
_SIZES = Sizes(**dict.fromkeys(Sizes.__struct_fields__, 64) | {"events": 4096})
_LOOPBACK = 1
_SENT = {"tc": 7, "xdp": 4}  # TC_ACT_REDIRECT, XDP_REDIRECT
_CANNOT = (HotplaneError, PlaneError, BpfError, CompileError, OSError)
_PATIENCE_SECONDS = 5.0


@contextmanager
def _place() -> Iterator[Links]:
    """Create a network namespace with a route to the backend, for the length of a `with`."""
    names = [f"hp-proof-{end}-{os.getpid()}" for end in ("node", "out")]
    try:
        for name in names:
            netns.create(name)
        with netns.netns(names[0]):
            sysctl.write("net/ipv4/ip_forward", 1)
        with Links(names[0]) as node, Links(names[1]) as out:
            node.up("lo")
            node.add_veth("up0", out, "eth0", 1500)
            node.address("up0", f"{NODE}/24")
            node.route("198.18.1.0/24", via=NEXT_HOP)
            node.neighbour("up0", NEXT_HOP, _MAC)
            yield node
    finally:
        for name in names:
            netns.remove(name)


def _tables(maps: MapSet, backend: str) -> None:
    """Write one Service, with TCP and UDP, and this node to the maps."""
    detector = LocalDetector(cidrs=("198.18.2.0/24",))
    node = NodeConfig("proof", addresses=(NODE,), detector=detector, nodeports=NodePortAddresses(any_local=True))
    write_node(maps, node, 1, False)
    inside = cluster_ip_routes(
        has_cluster=True, has_local=False, internal_local=False, detects_pods=True, masquerade_all=False
    )
    outside = external_routes(has_cluster=True, has_local=False, external_local=False)
    chosen = ((FrontendKind.CLUSTER_IP, CLUSTER_IP, inside), (FrontendKind.EXTERNAL_IP, EXTERNAL_IP, outside))
    tables = Tables(maps)
    for protocol in (Protocol.TCP, Protocol.UDP):
        frontends = tuple(
            Frontend(kind, FrontendKey(Family.IPV4, address, protocol, PORT), routes)
            for kind, address, routes in chosen
        )
        key = EntryKey("proof", "proof", "", protocol, Family.IPV4)
        tables.apply([EntryChange(None, PlanEntry(key, (Backend(backend, TARGET_PORT),), (), frontends))])


def _frame() -> bytes:
    """Return a SYN from the client to the external address. Its TCP checksum is not used."""
    tcp = struct.pack(">HHIIBBHHH", CLIENT_PORT, PORT, 1, 0, 5 << 4, 2, 65535, 0, 0)
    addresses = socket.inet_aton(CLIENT) + socket.inet_aton(EXTERNAL_IP)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, socket.IPPROTO_TCP, 0) + addresses
    total = sum(struct.unpack(">10H", ip))
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return bytes(12) + b"\x08\0" + ip[:10] + struct.pack(">H", check) + ip[12:] + tcp


def _endings(maps: MapSet) -> str:
    """Return the nonzero packet counters, `hook:reason`, for messages."""
    found = []
    for h, hook in enumerate(hook_names()):
        for r, reason in enumerate(reason_names()):
            counts = maps.per_cpu("counters", h * constant("REASON_COUNT") + r)
            if any(map(any, counts)):
                found.append(f"{hook}:{reason}")
    return ", ".join(found) or "no program ran"


def packet_proof(hook: str) -> str:
    """Return "" if a hook's program ("tc", "xdp") translates a packet to the backend, masquerades it with the node's
    address and redirects it, else what went wrong."""
    source, kind = (XDP_SOURCE, ProgramType.XDP) if hook == "xdp" else (TC_SOURCE, ProgramType.SCHED_CLS)
    name, attach = (PROGRAM, AttachType.XDP) if hook == "xdp" else ("tc_ingress", AttachType.NONE)
    try:
        with _place() as links, create_maps(_SIZES) as maps:
            _tables(maps, BACKEND)
            role = constant("DEVICE_UPLINK") | constant("DEVICE_XDP_TARGET")
            for index in (_LOOPBACK, links.index("up0")):
                value = DEVICE.pack(role, index, *bytes(6), 0, address_bytes(NODE), bytes(16))
                maps.put("devices", index.to_bytes(4, "little"), value)
            program = load_programs(source, kind, {name: attach}, maps.fds, maps.specs)[name]
            try:
                with netns.netns(links.namespace):
                    out = bpf.run_program(program.fd, _frame())
            finally:
                program.close()
            return _packet_problem(hook, out.result, out.data, _endings(maps))
    except _CANNOT as error:
        return str(error)


def _packet_problem(hook: str, result: int, data: bytes, endings: str) -> str:
    source, destination = (socket.inet_ntoa(data[at : at + 4]) for at in (26, 30))
    if (result, destination) != (_SENT[hook], BACKEND):
        return f"a packet to a Service was not sent on to its backend (verdict {result}, {endings})"
    if source != NODE:
        return f"a packet was masqueraded with {source} instead of the node's own {NODE}"
    return ""


def tc_attachment() -> tuple[str, str]:
    """Return how tc programs are attached on this kernel, "tcx" or "clsact", and why that fails, or ""."""
    code = b"\xb7\0\0\0\xff\xff\xff\xff\x95\0\0\0\0\0\0\0"  # return TC_ACT_UNSPEC
    attachment = "tcx"
    try:
        program = bpf.program_load(code, ProgramType.SCHED_CLS, name="hotplane_probe")
        try:
            with _place() as links, netns.netns(links.namespace):
                for name, kind in DIRECTIONS.items():
                    try:
                        os.close(bpf.link_create(program, links.index("up0"), kind))
                    except BpfError:
                        attachment = "clsact"
                        clsact.attach(links.index("up0"), program, name, egress=kind is AttachType.TCX_EGRESS)
        finally:
            os.close(program)
    except (*_CANNOT, ClsactError) as error:
        return attachment, str(error)
    return attachment, ""


def connect_proof(group: Path) -> tuple[bool, str]:
    """Test connect-time balancing for a process in a new control group below `group`: (tried, problem).

    tried: False if no group can be created there; then it is only known that the programs load.
    """
    own = group / f"hotplane-proof-{os.getpid()}"
    try:
        own.mkdir()
    except OSError as error:
        return False, f"no control group can be made in {group} ({error.strerror})"
    try:
        with _place() as links, create_maps(_SIZES) as maps:
            _tables(maps, NODE)
            return True, _connect_problem(own, links.namespace, maps)
    except _CANNOT as error:
        return True, str(error)
    finally:
        cgroup.remove(own)


def _connect_problem(group: Path, namespace: str, maps: MapSet) -> str:
    programs = load_programs(CONNECT_SOURCE, ProgramType.CGROUP_SOCK_ADDR, CONNECT_PROGRAMS, maps.fds, maps.specs)
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    links: list[int] = []
    try:
        for name, program in programs.items():
            links.append(bpf.link_create(program.fd, directory, CONNECT_PROGRAMS[name]))
        with netns.netns(namespace):
            problem = _from_inside(group)
        return problem and f"{problem} ({_endings(maps)})"
    finally:
        for fd in (*links, directory):
            os.close(fd)
        for program in programs.values():
            program.close()


def _from_inside(group: Path) -> str:
    """Use the Service from a process in the group, in this thread's network namespace. Returns the problem, or ""."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        problem = "the process in the control group ended early"
        try:
            cgroup.enter(group)
            problem = _use_tcp() or _use_udp()
        except OSError as error:
            problem = f"a socket did not reach its Service: {error}"
        finally:
            os.write(writer, problem.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        problem = answer.read().decode()
    os.waitpid(child, 0)
    return problem


def _use_tcp() -> str:
    with socket.create_server((NODE, TARGET_PORT)), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(_PATIENCE_SECONDS)
        client.connect((CLUSTER_IP, PORT))
        return _misnamed(client.getpeername())


def _use_udp() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        for sock in (server, client):
            sock.settimeout(_PATIENCE_SECONDS)
        server.bind((NODE, TARGET_PORT))
        client.sendto(b"?", (CLUSTER_IP, PORT))
        server.sendto(b"!", server.recvfrom(1)[1])
        return _misnamed(client.recvfrom(1)[1])


def _misnamed(peer: tuple[str, int]) -> str:
    return "" if peer == (CLUSTER_IP, PORT) else f"a socket was shown {peer[0]}:{peer[1]} instead of its Service"
