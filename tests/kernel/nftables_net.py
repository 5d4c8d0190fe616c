"""A small network for the nftables plane's tests: a node, an outside client and three pods of that node, both families.

client 192.0.2.2, 2001:db8::2  --  node 192.0.2.1, 2001:db8::1  --  pods 10.244.0.2-4, fd10::2-4, a veth each
"""

import contextlib
import errno
import itertools
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.routes import Routes, cluster_ip_routes, external_routes

CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
PODS = {4: ("10.244.0.2", "10.244.0.3", "10.244.0.4"), 6: ("fd10::2", "fd10::3", "fd10::4")}
GATEWAY = {4: "10.244.0.1", 6: "fd10::1"}
VIP = {4: "10.96.0.10", 6: "fd96::10"}
LB = {4: "198.51.100.7", 6: "2001:db8:7::7"}
UNUSED = {4: "10.96.0.99", 6: "fd96::99"}
PORT = 8080
NODE_CONFIG = NodeConfig(
    name="here",
    addresses=(NODE[4], NODE[6], GATEWAY[4], GATEWAY[6]),
    detector=LocalDetector(("10.244.0.0/16", "fd10::/16")),
    nodeports=NodePortAddresses(addresses=(NODE[4], NODE[6])),
)


_ports = itertools.cycle(range(33000, 60000))


def ip(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", namespace, *arguments], check=True)


def _sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
        file.write(value)


class Network:
    """The namespaces, with echo servers in every pod that answer with `pod-number client-address`."""

    def __init__(self, make: Callable[[str], str]) -> None:
        self.node, self.client = make("nftnode"), make("nftclient")
        self.pods = [make(f"nftpod{number}") for number in range(3)]
        self._socks: list[socket.socket] = []
        for path in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            in_netns(self.node, _sysctl, path, "1")
        # Without limits: many rejects in a row must all be heard, or they look like drops.
        for path, value in (("net/ipv4/icmp_ratemask", "0"), ("net/ipv6/icmp/ratelimit", "0")):
            in_netns(self.node, _sysctl, path, value)
        self._link(self.client, "c0", CLIENT, NODE, ("24", "64"), ("24", "64"))
        for version in (4, 6):  # so that the node's own packets to addresses of Services have a route
            ip(self.node, f"-{version}", "route", "add", "default", "via", CLIENT[version])
        for number, pod in enumerate(self.pods):
            addresses = {4: PODS[4][number], 6: PODS[6][number]}
            self._link(pod, f"p{number}", addresses, GATEWAY, ("32", "128"), ("32", "128"))
            for version in (4, 6):
                ip(self.node, f"-{version}", "route", "add", addresses[version], "dev", f"p{number}")
            for version in (4, 6):
                self._serve(pod, number, Family(version))

    def _link(
        self,
        inside: str,
        name: str,
        here: dict[int, str],
        gateway: dict[int, str],
        bits: tuple[str, str],
        node_bits: tuple[str, str],
    ) -> None:
        ip(self.node, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inside)
        for namespace, device in ((self.node, name), (inside, "eth0")):
            ip(namespace, "link", "set", device, "up")
        for version, own, node_own in zip((4, 6), bits, node_bits, strict=True):
            flags = ("nodad",) if version == 6 else ()
            ip(inside, "address", "add", f"{here[version]}/{own}", "dev", "eth0", *flags)
            ip(self.node, "address", "add", f"{gateway[version]}/{node_own}", "dev", name, *flags)
            via = ("via", gateway[version], "onlink")
            ip(inside, f"-{version}", "route", "add", "default", *via, "dev", "eth0")

    def _serve(self, pod: str, number: int, family: Family) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = in_netns(pod, socket.socket, family.socket_family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is Family.IPV6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if family is Family.IPV6 else "0.0.0.0", PORT))
            self._socks.append(sock)
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            target = self._streams if kind == socket.SOCK_STREAM else self._datagrams
            threading.Thread(target=target, args=(sock, number), daemon=True).start()

    @staticmethod
    def _streams(sock: socket.socket, number: int) -> None:
        while True:
            try:
                connection, peer = sock.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):  # the client gave up; it tells why
                connection.sendall(f"{number} {peer[0]}".encode())

    @staticmethod
    def _datagrams(sock: socket.socket, number: int) -> None:
        while True:
            try:
                _, peer = sock.recvfrom(100)
            except OSError:
                return
            if peer is None:  # shut down
                return
            sock.sendto(f"{number} {peer[0]}".encode(), peer)

    def close(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextlib.contextmanager
def network(make: Callable[[str], str]) -> Iterator[Network]:
    """The network, its servers stopped afterwards."""
    net = Network(make)
    try:
        yield net
    finally:
        net.close()


def ask(
    namespace: str,
    address: str,
    port: int = 80,
    protocol: Protocol = Protocol.TCP,
    source: str = "",
    wait: float = 60.0,
    source_port: int = 0,
) -> str:
    """One request: `pod client-address`, "refused" or "silence" (nothing within `wait` seconds). From `source` and
    `source_port`, if they are given, though the port may have been used before. Otherwise datagrams come from a port
    that none came from before: one chosen at random may be that of a flow which conntrack still leads to a pod that
    went, since a plane alone does not clean up after it."""
    if protocol is Protocol.UDP:
        source_port = source_port or next(_ports)
    family = Family.IPV6 if ":" in address else Family.IPV4
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with in_netns(namespace, socket.socket, family.socket_family, kind) as sock:
        sock.settimeout(wait)
        if source or source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, source_port))
        try:
            sock.connect((address, port))
            if protocol is Protocol.UDP:
                # A packet that this very host rejects or drops fails here with EPERM; only the answer tells which.
                with contextlib.suppress(PermissionError):
                    sock.send(b"?")
            return sock.recv(100).decode()
        except TimeoutError:
            return "silence"
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return "refused"
            raise


def pods(version: int, *numbers: int, local: bool = True) -> tuple[Backend, ...]:
    return tuple(Backend(PODS[version][number], PORT, local) for number in numbers)


def entry(
    version: int,
    cluster: tuple[Backend, ...],
    local: tuple[Backend, ...] | None = None,
    *,
    protocol: Protocol = Protocol.TCP,
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    address: str | None = None,
    port: int = 80,
    external_local: bool = False,
    internal_local: bool = False,
    affinity: int = 0,
    ranges: SourceRanges | None = None,
    name: str = "echo",
) -> PlanEntry:
    """An entry with one frontend, its routes as policy makes them."""
    family = Family(version)
    here = cluster if local is None else local
    routes: Routes
    if kind is FrontendKind.CLUSTER_IP:
        routes = cluster_ip_routes(
            has_cluster=bool(cluster),
            has_local=bool(here),
            internal_local=internal_local,
            detects_pods=True,
            masquerade_all=False,
        )
    else:
        routes = external_routes(has_cluster=bool(cluster), has_local=bool(here), external_local=external_local)
    where = VIP[version] if address is None else address
    frontend = Frontend(kind, FrontendKey(family, where, protocol, port), routes, ranges)
    key = EntryKey("default", name, "", protocol, family)
    return PlanEntry(key, cluster, here, (frontend,), affinity)


def plan_of(*entries: PlanEntry, node: NodeConfig = NODE_CONFIG) -> Plan:
    return Plan(node, {e.key: e for e in entries}, ("10.96.0.0/16", "fd96::/112"))
