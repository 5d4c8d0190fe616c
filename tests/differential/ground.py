"""The network that random clusters are tried in: one node, three pods of it, and the world behind its uplink.

    world (outside clients, the other node and its pods)  --  node, 172.18.0.1  --  pod1, pod2, pod3, a veth each

The world answers for whole prefixes (AnyIP: routes of type local), so endpoints need no devices. It is a router of its
own side only: what the node sends there and nobody has, it refuses with ICMP host unreachable, so that "nobody claims
it" differs from "dropped" on the wire.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import reduction
from pathlib import Path

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.netlink.links import Links
from tests.namespaces import namespaces

NODE_IPS = ("172.18.0.1", "fd00:18::1")
NODE_ADDRESSES = (*NODE_IPS, "172.18.1.1", "fd00:18::11")
NODE_POD_CIDRS = ("10.244.1.0/24", "fd00:244:1::/64")
PLACES = ("node", "pod1", "pod2", "pod3", "world")
PODS = {4: ("10.244.1.11", "10.244.1.12", "10.244.1.13"), 6: ("fd00:244:1::11", "fd00:244:1::12", "fd00:244:1::13")}
REMOTE_PODS = {4: ("10.244.2.11", "10.244.2.12"), 6: ("fd00:244:2::11", "fd00:244:2::12")}
OTHER_NODE = {4: "172.18.0.2", 6: "fd00:18::2"}
ENDPOINTS = {
    version: (
        *((pod, "node1") for pod in PODS[version]),
        *((pod, "node2") for pod in REMOTE_PODS[version]),
        (NODE_IPS[version // 6], "node1"),
        (OTHER_NODE[version], "node2"),
    )
    for version in (4, 6)
}
"""Address and node of everything that can be an endpoint: pods and host-network processes."""
SERVER_PORTS = (8080, 8081)
CLIENTS = {
    version: (
        ("pod1", PODS[version][0], False),
        ("pod3", PODS[version][2], False),
        ("node", "", False),
        ("node", NODE_ADDRESSES[2 + version // 6], True),
        ("world", outside, True),
        ("world", farther, True),
        ("world", REMOTE_PODS[version][0], True),
    )
    for version, outside, farther in ((4, "198.51.100.2", "198.51.100.200"), (6, "fd00:198::2", "fd00:198:1::2"))
}
"""Place, address ("" for what the kernel chooses) and whether to bind to it."""
_ROUTER = {4: "172.18.0.254", 6: "fd00:18::fe"}
_GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
_WORLD = {
    4: ("198.51.100.0/24", "10.244.2.0/24", "172.18.0.2/32"),
    6: ("fd00:198::/32", "fd00:244:2::/64", "fd00:18::2/128"),
}
_NOBODY = """table inet nobody {
    chain forward {
        type filter hook forward priority 0
        iifname up reject with icmpx type host-unreachable
    }
}
"""
"""Rules, not an unreachable route, whose ICMP errors have a limit of their own (one a second and sender)."""


def source_of(destination: str) -> str:
    """The address from which the node itself sends, where nothing is bound."""
    if destination in NODE_ADDRESSES or destination == "127.0.0.1":
        return destination
    return NODE_IPS[1 if ":" in destination else 0]


class Ground:
    """The namespaces by place, and sockets in them."""

    def __init__(self, spaces: dict[str, str], group: Path) -> None:
        self.spaces, self.group = spaces, group
        self._descriptors = {place: os.open(netns.NETNS_DIR / name, os.O_RDONLY) for place, name in spaces.items()}
        self._maker = _Maker(spaces, group)

    def socket(self, place: str, family: int, kind: int) -> socket.socket:
        """A new socket in a place, without blocking; on the node and in its pods in the node's control group."""
        if place == "world":
            with netns.netns(self.spaces[place]):
                made = socket.socket(family, kind)
        else:
            made = self._maker.make(place, family, kind)
        made.setblocking(False)
        return made

    def close(self) -> None:
        """End the helper."""
        self._maker.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)


class _Maker:
    """A child in the node's control group that makes sockets for us: a socket belongs to the group of its maker."""

    def __init__(self, spaces: dict[str, str], group: Path) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._here.close()
                cgroup.enter(group)
                self._serve(there, spaces)
                status = 0
            finally:
                os._exit(status)
        there.close()
        self._here.settimeout(20)

    @staticmethod
    def _serve(channel: socket.socket, spaces: dict[str, str]) -> None:
        while request := channel.recv(64):
            place, family, kind = request.decode().split()
            with netns.netns(spaces[place]):
                with socket.socket(int(family), int(kind)) as made:
                    reduction.sendfds(channel, [made.fileno()])

    def make(self, place: str, family: int, kind: int) -> socket.socket:
        self._here.send(f"{place} {int(family)} {int(kind)}".encode())
        (descriptor,) = reduction.recvfds(self._here, 1)
        return socket.socket(fileno=descriptor)

    def close(self) -> None:
        self._here.close()
        os.waitpid(self._pid, 0)


def _ip(space: str, *lines: str) -> None:
    command = ["ip", "-n", space, "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)


def _settings(place: str) -> None:
    """Sysctls of the namespace this thread is in. The world's own addresses come back to it from the node."""
    for scope in ("all", "default"):
        for name, value in (("rp_filter", 0), ("send_redirects", 0), ("accept_redirects", 0)):
            sysctl.write(f"net/ipv4/conf/{scope}/{name}", value)
        sysctl.write(f"net/ipv4/conf/{scope}/accept_local", int(place == "world"))
        for name in ("accept_dad", "dad_transmits", "accept_ra", "accept_redirects"):
            sysctl.write(f"net/ipv6/conf/{scope}/{name}", 0)
    sysctl.write("net/ipv4/icmp_ratemask", 0)
    sysctl.write("net/ipv6/icmp/ratelimit", 0)
    sysctl.write_if_present("net/ipv6/icmp/ratemask", 254)  # one unused type: the list cannot be made empty
    sysctl.write("net/ipv6/ip_nonlocal_bind", 1)
    if place in ("node", "world"):
        sysctl.write("net/ipv4/ip_forward", 1)
        sysctl.write("net/ipv6/conf/all/forwarding", 1)
    if place == "node":  # node ports at 127.0.0.1, as kube-proxy sets it
        sysctl.write("net/ipv4/conf/all/route_localnet", 1)


def _build(spaces: dict[str, str], links: dict[str, Links]) -> None:
    for place, space in spaces.items():
        with netns.netns(space):
            _settings(place)
    node, world = links["node"], links["world"]
    node.add_veth("eth0", world, "up", 1500)
    for end, device in ((node, "eth0"), (world, "up")):
        end.set_gro(device, True)
    world.set_tx_checksum("up", False)
    for address in NODE_ADDRESSES:
        node.address("eth0", f"{address}/{64 if ':' in address else 16}", deprecated=address not in NODE_IPS)
    for version, router in _ROUTER.items():
        world.address("up", f"{router}/{64 if version == 6 else 16}")
    _neighbours(node, world)
    for version, prefixes in _WORLD.items():
        own = NODE_IPS[version // 6]
        six = ["-6"] if version == 6 else []
        lines = [f"route add local {prefix} dev lo table local" for prefix in prefixes]
        lines += [f"route add default via {own}"]
        command = ["ip", *six, "-n", spaces["world"], "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)
        node.route("::/0" if six else "0.0.0.0/0", via=_ROUTER[version], source=own)
        node.route(prefixes[1], via=OTHER_NODE[version])
    with netns.netns(spaces["world"]):
        subprocess.run(["nft", "-f", "-"], input=_NOBODY, text=True, check=True)
    for number in (1, 2, 3):
        _pod(node, links[f"pod{number}"], number)


def _neighbours(node: Links, world: Links) -> None:
    for version in (4, 6):
        for address in (_ROUTER[version], OTHER_NODE[version]):
            node.neighbour("eth0", address, world.mac("up"))
        for address in (a for a in NODE_ADDRESSES if (":" in a) == (version == 6)):
            world.neighbour("up", address, node.mac("eth0"))


def _pod(node: Links, pod: Links, number: int) -> None:
    device = f"pod{number}"
    node.add_veth(device, pod, "eth0", 1500)
    node.address(device, "fe80::1/64")
    for version in (4, 6):
        address, bits, hop = PODS[version][number - 1], 128 if version == 6 else 32, _GATEWAY[version]
        pod.address("eth0", f"{address}/{bits}")
        pod.neighbour("eth0", hop, node.mac(device))
        if version == 4:
            pod.route(f"{hop}/32", device="eth0")
        pod.route("::/0" if version == 6 else "0.0.0.0/0", device="eth0", via=hop)
        node.route(f"{address}/{bits}", device=device, source=NODE_IPS[version // 6])
        node.neighbour(device, address, pod.mac("eth0"))


@contextmanager
def ground() -> Iterator[Ground]:
    """The network, up; it goes away again."""
    with ExitStack() as stack:
        make = stack.enter_context(namespaces())
        spaces = {place: make(f"d{place}") for place in PLACES}
        links = {place: stack.enter_context(Links(space)) for place, space in spaces.items()}
        _build(spaces, links)
        group = cgroup.ensure_root() / f"hotplane-test-{spaces['node']}"
        group.mkdir()
        stack.callback(cgroup.remove, group)
        made = Ground(spaces, group)
        stack.callback(made.close)
        yield made
