"""This node's settings in the maps `node`, `addresses` and `detector`."""

from pathlib import Path

from dataplane.model.net import Family, is_loopback
from dataplane.planes.ebpf.encode import address_bytes, prefix_key_bytes
from dataplane.planes.ebpf.layout import constant, record
from dataplane.planes.ebpf.maps import NODE_KEY, MapSet
from dataplane.policy.node import NodeConfig

NODE = record(
    "node",
    *("netns_cookie", "flags", "masquerade_mark", "snat_port_low", "snat_port_high"),
    *("tcp_syn_seconds", "tcp_established_seconds", "tcp_closing_seconds", "udp_seconds", "udp_stream_seconds"),
    *("masquerade_ipv4", "masquerade_ipv6"),
)
TCP_SYN_SECONDS, TCP_ESTABLISHED_SECONDS, TCP_CLOSING_SECONDS = 120, 86400, 120
UDP_SECONDS, UDP_STREAM_SECONDS = 30, 120
"""Idle times after which flows are forgotten: the kernel's own for connection tracking, established TCP as kube-proxy
sets it (conntrack.tcpEstablishedTimeout, 24 h)."""

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_NODE_PORTS_END = 32767
_LEAST_SNAT_PORTS = 1024


def snat_ports() -> tuple[int, int]:
    """Source ports that SNAT may use, both included: outside the host's ephemeral range and the usual node ports.

    Above the ephemeral range where there is room, otherwise below it.
    """
    low, high = map(int, _PORT_RANGE.read_text().split())
    if 65535 - high >= _LEAST_SNAT_PORTS:
        return max(high, _NODE_PORTS_END) + 1, 65535
    return max(1024, min(low - 1 - 20000, 10000)), min(low - 1, 29999)


def _flags(node: NodeConfig, kube_proxy_masquerade: bool) -> int:
    detector = node.detector
    chosen = {
        "NODE_READY": True,
        "NODE_DETECTS_IPV4": detector.implemented(Family.IPV4),
        "NODE_DETECTS_IPV6": detector.implemented(Family.IPV6),
        "NODE_DETECTS_BY_CIDR": bool(detector.cidrs) and not detector.interface,
        "NODE_MASQUERADE_ALL": node.masquerade_all,
        "NODE_KUBE_PROXY_PARITY": kube_proxy_masquerade,
        "NODE_LOOPBACK_NODE_PORTS": node.nodeports.loopback,
    }
    return sum(constant(name) for name, on in chosen.items() if on)


def _addresses(node: NodeConfig) -> dict[bytes, bytes]:
    local, answers = constant("ADDRESS_LOCAL"), constant("ADDRESS_NODE_PORT")
    found = {}
    for address in dict.fromkeys((*node.addresses, *node.nodeports.addresses)):
        flags = (local if node.is_local(address) else 0) | (answers if node.answers_node_ports(address) else 0)
        if flags and not is_loopback(address):
            found[address_bytes(address)] = flags.to_bytes(4, "little")
    if node.nodeports.loopback:
        found[address_bytes("127.0.0.1")] = (local | answers).to_bytes(4, "little")
    return found


def write_node(maps: MapSet, node: NodeConfig, netns_cookie: int, kube_proxy_masquerade: bool) -> None:
    """Write everything that `node` says; from then on the programs work (NODE_READY).

    New addresses come before, old ones go after the settings, so that none is missing in between.
    """
    wanted = {
        "addresses": _addresses(node),
        "detector": {prefix_key_bytes(cidr): b"\1\0\0\0" for cidr in node.detector.cidrs},
    }
    held = {name: dict(maps.items(name)) for name in wanted}
    for name, elements in wanted.items():
        new = {key: value for key, value in elements.items() if held[name].get(key) != value}
        maps.put_many(name, b"".join(new), b"".join(new.values()), len(new))
    primary = {family: node.primary(family) for family in Family}
    maps.put(
        "node",
        NODE_KEY,
        NODE.pack(
            *(netns_cookie, _flags(node, kube_proxy_masquerade), node.masquerade_mark, *snat_ports()),
            *(TCP_SYN_SECONDS, TCP_ESTABLISHED_SECONDS, TCP_CLOSING_SECONDS, UDP_SECONDS, UDP_STREAM_SECONDS),
            *(address_bytes(text) if text else bytes(16) for text in primary.values()),
        ),
    )
    for name, elements in wanted.items():
        maps.remove(name, [key for key in held[name] if key not in elements])
