"""A node with pods, as small as connect-time balancing can be tried on: three namespaces, two control groups, processes
that do as they are told, and a slow path that serves nobody (so that whatever arrives was balanced at connect time)."""

import ctypes
import itertools
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges, Table
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.routes import Routes, cluster_ip_routes, external_routes

SMALL = Sizes(
    frontends=512,
    slots=1024,
    backends=512,
    services=256,
    source_ranges=64,
    detector=16,
    addresses=64,
    affinity=512,
    peers=4096,
    sockets=4096,
    tcp_flows=16384,
    udp_flows=8192,
    tunnels=64,
    pods=64,
    direct_tcp=8192,
    direct_udp=8192,
    fragments=256,
    events=4096,
)
NODE_ADDRESSES = ("10.244.0.1", "fd00:244::1")
POD_ADDRESSES = ("10.244.1.2", "fd00:244:1::2")
BACKENDS = {Family.IPV4: [f"10.244.2.{n}" for n in (2, 3, 4)], Family.IPV6: [f"fd00:244:2::{n}" for n in (2, 3, 4)]}
CLUSTER_IP = {Family.IPV4: "172.30.0.10", Family.IPV6: "fd00:30::10"}
BACKEND_PORT = 8080
PATIENCE = 60.0
"""Seconds for an answer that must come."""
_counter = itertools.count()


class NoSlowPath(Plane):
    """A slow path that holds nothing; it remembers the plan for read-back."""

    name = "none"

    def __init__(self) -> None:
        self.rows: Table = {}

    def load(self, plan: Plan) -> PlanChange:
        return PlanChange(entries=())

    def apply(self, change: PlanChange) -> None:
        return None

    def read_back(self) -> Table:
        return self.rows

    def cleanup(self) -> None:
        return None


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)


class Process:
    """A child in a network namespace and a control group; `call` runs one of its methods there."""

    def __init__(self, namespace: str, group: Path) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            here.close()
            status = 1
            try:
                cgroup.enter(group)
                netns.enter(namespace)
                self._serve(there)
                status = 0
            finally:
                os._exit(status)
        there.close()
        self._channel = here
        self._channel.settimeout(10 * PATIENCE)

    def _serve(self, channel: socket.socket) -> None:
        sockets = Sockets()
        while request := channel.recv(1 << 16):
            method, arguments = pickle.loads(request)
            try:
                answer = (True, getattr(sockets, method)(*arguments))
            except OSError as error:
                answer = (False, error)
            channel.send(pickle.dumps(answer))

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method of Sockets in the child; an OSError there is raised here."""
        self._channel.send(pickle.dumps((method, arguments)))
        fine, answer = pickle.loads(self._channel.recv(1 << 16))
        if not fine:
            raise answer
        return answer

    def end(self) -> None:
        self._channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Sockets:
    """What a child can do; sockets are kept under names."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket] = {}

    def serve(self, addresses: list[str], port: int) -> None:
        """Become a server for good: answer every TCP connection and datagram with `own address|client address`."""
        waiting = selectors.DefaultSelector()
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(family, kind)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(512)
                waiting.register(sock, selectors.EVENT_READ, (address, kind))
        if os.fork() == 0:
            self._answer(waiting)

    def _answer(self, waiting: selectors.BaseSelector) -> None:
        while True:
            for key, _ in waiting.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                address, kind = key.data
                if kind == socket.SOCK_STREAM:
                    connection, client = sock.accept()
                    connection.sendall(f"{address}|{client[0]}".encode())
                    connection.close()
                else:
                    _, client = sock.recvfrom(2048)
                    sock.sendto(f"{address}|{client[0]}".encode(), client)

    def fetch(
        self, family: int, address: str, port: int, patience: float = PATIENCE
    ) -> tuple[str, str, tuple[str, int]]:
        """One TCP connection: who answered, whom it saw, and what getpeername says."""
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(patience)
            # Closing with RST keeps thousands of tests' ports out of TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect((address, port))
            peer = sock.getpeername()[:2]
            server, _, client = sock.recv(100).decode().partition("|")
            return server, client, peer

    def fetch_many(self, family: int, address: str, port: int, count: int) -> list[str]:
        """Who answered each of many TCP connections."""
        return [self.fetch(family, address, port)[0] for _ in range(count)]

    def open(self, name: str, family: int, kind: int, patience: float = PATIENCE) -> None:
        """A socket. patience: seconds that each call on it waits."""
        self._held[name] = socket.socket(family, kind)
        self._held[name].settimeout(patience)

    def connect(self, name: str, address: str, port: int) -> tuple[str, int]:
        """Connect; returns what getpeername says."""
        self._held[name].connect((address, port))
        peer: tuple[str, int] = self._held[name].getpeername()[:2]
        return peer

    def peer(self, name: str) -> tuple[str, int]:
        """What getpeername says."""
        peer: tuple[str, int] = self._held[name].getpeername()[:2]
        return peer

    def disconnect(self, name: str) -> None:
        """connect(2) with AF_UNSPEC: the socket has no peer any more."""
        nobody = struct.pack("=H14x", socket.AF_UNSPEC)
        if ctypes.CDLL(None, use_errno=True).connect(self._held[name].fileno(), nobody, len(nobody)):
            raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")

    def ask(self, name: str) -> tuple[str, tuple[str, int]]:
        """Send on a connected UDP socket: who answered, and from whom recvfrom says it came."""
        self._held[name].send(b"?")
        data, sender = self._held[name].recvfrom(100)
        return data.decode().partition("|")[0], sender[:2]

    def ask_at(self, name: str, address: str, port: int) -> tuple[str, tuple[str, int]]:
        """The same with sendto."""
        self._held[name].sendto(b"?", (address, port))
        data, sender = self._held[name].recvfrom(100)
        return data.decode().partition("|")[0], sender[:2]

    def bind(self, name: str, address: str, port: int) -> None:
        """Bind to an address and a port that others may have too; the socket was not bound before."""
        self._held[name].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held[name].bind((address, port))

    def receive(self, name: str) -> tuple[str, int]:
        """From whom recvfrom says that the next datagram came."""
        sender: tuple[str, int] = self._held[name].recvfrom(100)[1][:2]
        return sender

    def send(self, name: str) -> None:
        self._held[name].send(b"?")

    def send_at(self, name: str, address: str, port: int) -> None:
        self._held[name].sendto(b"?", (address, port))

    def clear_error(self, name: str) -> int:
        """The error that waits for the socket's owner; it is gone then."""
        return self._held[name].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self, name: str) -> None:
        self._held.pop(name).close()


class Node:
    """The namespaces `node`, `pod` and `back`, routed by the node, and the control groups of its processes and pods."""

    def __init__(self, word: str) -> None:
        tag = f"{os.getpid()}-{next(_counter)}"
        self.names = {part: f"hp-{word}{part[0]}-{tag}" for part in ("node", "pod", "back")}
        self.group = cgroup.ensure_root() / f"hotplane-test-{word}-{tag}"
        self.processes: list[Process] = []

    def build(self) -> None:
        for name in self.names.values():
            netns.create(name)
            _ip("-n", name, "link", "set", "lo", "up")
            with netns.netns(name):  # or nobody is asked for neighbours until link-local addresses are known to be free
                for scope in ("all", "default"):
                    sysctl.write(f"net/ipv6/conf/{scope}/accept_dad", 0)
                    sysctl.write(f"net/ipv6/conf/{scope}/dad_transmits", 0)
        self.group.mkdir()
        with netns.netns(self.names["node"]):
            sysctl.write("net/ipv4/ip_forward", 1)
            sysctl.write("net/ipv6/conf/all/forwarding", 1)
        self._wire("pod", 1, [POD_ADDRESSES])
        self._wire("back", 2, list(zip(BACKENDS[Family.IPV4], BACKENDS[Family.IPV6], strict=True)))
        self.process("back").call("serve", [a for every in BACKENDS.values() for a in every], BACKEND_PORT)

    def _wire(self, part: str, number: int, addresses: list[tuple[str, str]]) -> None:
        node, name = self.names["node"], self.names[part]
        _ip("-n", node, "link", "add", f"to-{part}", "type", "veth", "peer", "name", "eth0", "netns", name)
        for own in (f"10.244.{number}.1/24", f"fd00:244:{number}::1/64"):
            _ip("-n", node, "addr", "add", own, "dev", f"to-{part}", *(["nodad"] if ":" in own else []))
        _ip("-n", node, "link", "set", f"to-{part}", "up")
        for ipv4, ipv6 in addresses:
            _ip("-n", name, "addr", "add", f"{ipv4}/24", "dev", "eth0")
            _ip("-n", name, "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "route", "add", "default", "via", f"10.244.{number}.1")
        _ip("-n", name, "route", "add", "default", "via", f"fd00:244:{number}::1")
        for own in NODE_ADDRESSES:
            if number == 1:
                _ip("-n", node, "addr", "add", own, "dev", "lo")

    def process(self, part: str, group: Path | None = None) -> Process:
        """A new process in one of the namespaces, in this node's control group."""
        process = Process(self.names[part], group or self.group)
        self.processes.append(process)
        return process

    def remove(self) -> None:
        for process in self.processes:
            process.end()
        cgroup.remove(self.group)
        for name in self.names.values():
            netns.remove(name)


@contextmanager
def built_node(word: str) -> Iterator[Node]:
    """A node that goes away again."""
    node = Node(word)
    try:
        node.build()
        yield node
    finally:
        node.remove()


NODE = NodeConfig(
    name="n1",
    addresses=NODE_ADDRESSES,
    detector=LocalDetector(cidrs=("10.244.0.0/16", "fd00:244::/32")),
    nodeports=NodePortAddresses(any_local=True),
)


def service(
    name: str,
    protocol: Protocol = Protocol.TCP,
    family: Family = Family.IPV4,
    count: int = 3,
    backends: tuple[Backend, ...] | None = None,
    local: tuple[Backend, ...] = (),
    affinity: int = 0,
    node_port: int = 0,
    address: str = "",
    external_local: bool = False,
    internal_local: bool = False,
    masquerade_all: bool = False,
    ranges: SourceRanges | None = None,
) -> PlanEntry:
    """A Service port of the test's, with a clusterIP (or another address) on port 80."""
    chosen = (
        tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[family][:count]) if backends is None else backends
    )
    inside = cluster_ip_routes(
        has_cluster=bool(chosen),
        has_local=bool(local),
        internal_local=internal_local,
        detects_pods=True,
        masquerade_all=masquerade_all,
    )
    outside = external_routes(has_cluster=bool(chosen), has_local=bool(local), external_local=external_local)
    frontends = [frontend(FrontendKind.CLUSTER_IP, family, address or CLUSTER_IP[family], protocol, 80, inside, ranges)]
    if node_port:
        frontends.append(frontend(FrontendKind.NODE_PORT, family, "", protocol, node_port, outside))
    return PlanEntry(
        EntryKey("test", name, "", protocol, family),
        chosen,
        local,
        tuple(frontends),
        affinity,
        internal_local,
        external_local,
    )


def frontend(
    kind: FrontendKind,
    family: Family,
    address: str,
    protocol: Protocol,
    port: int,
    routes: Routes,
    ranges: SourceRanges | None = None,
) -> Frontend:
    return Frontend(kind, FrontendKey(family, address, protocol, port), routes, ranges)


def plan_of(*entries: PlanEntry, node: NodeConfig = NODE) -> Plan:
    return Plan(node, {entry.key: entry for entry in entries})
