"""A node, two pods and an outside client in network namespaces, with echo servers: for the kernel tests."""

import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyroute2 import netns

_numbers = itertools.count()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block in a network namespace; sockets made there stay there."""
    netns.pushns(name)
    try:
        yield
    finally:
        netns.popns()


@contextmanager
def namespace(kind: str) -> Iterator[str]:
    """A network namespace of a unique name with its loopback up, removed at the end."""
    name = f"hp-ipt-{os.getpid()}-{next(_numbers)}-{kind}"
    netns.create(name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        netns.remove(name)


def _sysctl(name: str, *settings: str) -> None:
    subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", *settings], check=True)


def _link(node: str, peer: str, device: str, node_addresses: list[str], addresses: list[str]) -> None:
    """A veth from the node to a peer, whose default routes lead to the node."""
    ip("-n", node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", peer)
    for name, dev, held in ((node, device, node_addresses), (peer, "eth0", addresses)):
        ip("-n", name, "link", "set", dev, "up")
        for address in held:
            ip("-n", name, "address", "add", address, "dev", dev, *(["nodad"] if ":" in address else []))


class Cluster:
    """node: 192.168.0.2, 2001:db8::2. pods a and b: 10.42.0.9 and .10, fd00:10:42::9 and ::10. client: 192.168.0.9 and
    172.20.0.9, 2001:db8::9. Pods answer TCP and UDP on port 8080 with `their address` `the client's address`."""

    def __init__(self, node: str, pods: tuple[str, str], client: str) -> None:
        self.node, self.pods, self.client = node, pods, client
        _sysctl(node, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0")
        # Without limits: many rejects in a row must all be heard, or they look like drops.
        _sysctl(node, "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0")
        # A redirect would send the client back to itself: service addresses are routed to it by default.
        _sysctl(node, "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0")
        for pod, host in zip(pods, ("9", "10"), strict=True):
            device = f"veth{host}"
            _link(
                node,
                pod,
                device,
                ["10.42.0.1/32", "fd00:10:42::1/128"],
                [f"10.42.0.{host}/32", f"fd00:10:42::{host}/128"],
            )
            ip("-n", node, "route", "add", f"10.42.0.{host}", "dev", device)
            ip("-n", node, "route", "add", f"fd00:10:42::{host}", "dev", device)
            for router in ("10.42.0.1", "fd00:10:42::1"):
                ip("-n", pod, "route", "add", router, "dev", "eth0")
                ip("-n", pod, "route", "add", "default", "via", router)
        _link(node, client, "uplink", ["192.168.0.2/24", "2001:db8::2/64"],
              ["192.168.0.9/24", "172.20.0.9/32", "2001:db8::9/64"])  # fmt: skip
        ip("-n", node, "route", "add", "172.20.0.9", "dev", "uplink")
        for name, router in ((client, "192.168.0.2"), (client, "2001:db8::2"), (node, "192.168.0.9")):
            ip("-n", name, "route", "add", "default", "via", router)
        ip("-n", node, "route", "add", "default", "via", "2001:db8::9")
        self._servers: list[socket.socket] = []

    def serve(self) -> None:
        for pod in self.pods:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with inside(pod):
                    server = socket.socket(socket.AF_INET6, kind)
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                server.bind(("::", 8080))
                self._servers.append(server)
                host = "9" if pod == self.pods[0] else "10"
                target = _serve_tcp if kind == socket.SOCK_STREAM else _serve_udp
                if kind == socket.SOCK_STREAM:
                    server.listen(64)
                threading.Thread(target=target, args=(server, host), daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            with suppress(OSError):  # not connected: a datagram socket wakes up all the same
                server.shutdown(socket.SHUT_RDWR)
            server.close()

    def ask(
        self, where: str, address: str, port: int, *, source: str = "", udp: bool = False, wait: float = 60
    ) -> tuple[str, str]:
        """Connect (or send) and return who answered ("9" or "10") and the source address that it saw."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(where):
            client = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        with client:
            client.settimeout(wait)
            if source:
                client.bind((source, 0))
            client.connect((address, port))
            client.sendall(b"?")
            host, seen = client.recv(200).decode().split()
        return host, seen.removeprefix("::ffff:")


def _serve_tcp(server: socket.socket, host: str) -> None:
    with suppress(OSError):  # closed by `close`: the end of the test
        while True:
            connection, peer = server.accept()
            with connection:
                connection.sendall(f"{host} {peer[0]}".encode())


def _serve_udp(server: socket.socket, host: str) -> None:
    with suppress(OSError):  # closed by `close`: the end of the test
        while True:
            data, peer = server.recvfrom(100)
            if not data:
                return
            server.sendto(f"{host} {peer[0]}".encode(), peer)


@contextmanager
def cluster() -> Iterator[Cluster]:
    with namespace("node") as node, namespace("a") as a, namespace("b") as b, namespace("client") as client:
        made = Cluster(node, (a, b), client)
        try:
            made.serve()
            yield made
        finally:
            made.close()
