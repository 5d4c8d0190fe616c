"""Writes this node's settings to the maps `node`, `addresses` and `detector`."""

import struct
import threading
from socket import htonl, htons

from dataplane.model.net import Family, is_loopback
from dataplane.planes.ebpf.flows.ports import snat_fields, snat_ports
from dataplane.planes.ebpf.maps.encode import address_bytes, prefix_key_bytes
from dataplane.planes.ebpf.maps.layout import constant, fields_of, record
from dataplane.planes.ebpf.maps.mapset import NODE_KEY, MapSet
from dataplane.policy.maglev import seed_of
from dataplane.policy.node import NodeConfig

NODE = record(
    "node",
    *("netns_cookie", "flags", "masquerade_mark", "snat_ports", "snat_first", "snat_first_count", "snat_second", "pad"),
    "connect_off",
    *("tcp_syn_seconds", "tcp_established_seconds", "tcp_half_closed_seconds", "tcp_closing_seconds"),
    *("tcp_reset_seconds", "tcp_rest_seconds", "udp_seconds", "udp_stream_seconds"),
    *("masquerade_ipv4", "masquerade_ipv6", "tunnel_vni", "tunnel_port", "pad2", "hash_seed"),
)
_WORD = struct.Struct("=I")
_VNI_SHIFT = 8
"""Of the VXLAN network identifier in its word of the header (RFC 7348, section 5)."""
_CONNECT_OFF, _TAKES_OVER = constant("NODE_CONNECT_OFF"), constant("NODE_TAKES_OVER")
_NOTES_ANSWERS = constant("NODE_NOTES_ANSWERS")
_record = threading.Lock()  # one thread looks after the node, another after those for whom connect time is off
LIFETIMES = {
    "tcp_syn_seconds": 120,
    "tcp_established_seconds": 86400,
    "tcp_half_closed_seconds": 3600,
    "tcp_closing_seconds": 120,
    "tcp_reset_seconds": 10,
    "tcp_rest_seconds": 120,
    "udp_seconds": 30,
    "udp_stream_seconds": 120,
}
"""Idle times after which flows expire: the kernel's defaults for connection tracking, established and half-closed TCP
as kube-proxy sets them (conntrack.tcpEstablishedTimeout, 24 h; conntrack.tcpCloseWaitTimeout, 1 h)."""


def _flags(node: NodeConfig, kube_proxy_masquerade: bool, ready: bool) -> int:
    detector = node.detector
    chosen = {
        "NODE_READY": ready,
        "NODE_DETECTS_IPV4": detector.implemented(Family.IPV4),
        "NODE_DETECTS_IPV6": detector.implemented(Family.IPV6),
        "NODE_DETECTS_BY_CIDR": bool(detector.cidrs) and not detector.interface,
        "NODE_MASQUERADE_ALL": node.masquerade_all,
        "NODE_KUBE_PROXY_PARITY": kube_proxy_masquerade,
        "NODE_LOOPBACK_NODE_PORTS": node.nodeports.loopback,
        "NODE_LOOPBACK_NODE_PORTS_IPV6": node.nodeports.loopback_ipv6,
    }
    return sum(constant(name) for name, on in chosen.items() if on)


def _addresses(node: NodeConfig) -> dict[bytes, bytes]:
    local, answers = constant("ADDRESS_LOCAL"), constant("ADDRESS_NODE_PORT")
    found = {}
    for address in dict.fromkeys((*node.addresses, *node.nodeports.addresses)):
        flags = (local if node.is_local(address) else 0) | (answers if node.answers_node_ports(address) else 0)
        if flags and not is_loopback(address):
            found[address_bytes(address)] = flags.to_bytes(4, "little")
    for address in ("127.0.0.1", "::1"):
        if node.answers_node_ports(address):
            found[address_bytes(address)] = (local | answers).to_bytes(4, "little")
    return found


def write_node(
    maps: MapSet,
    node: NodeConfig,
    netns_cookie: int,
    kube_proxy_masquerade: bool,
    *,
    tunnel: bool = False,
    ready: bool = True,
) -> None:
    """Write all settings of `node`, and NODE_READY, which makes the programs work, or not if `ready` is False. tunnel:
    packets that other nodes forward are taken.

    New addresses come before, old ones go after the settings, so that none is missing in between. For whom connect time
    is off stays as it is, and so does `write_takes_over`.
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
    flags = _flags(node, kube_proxy_masquerade, ready)
    with _record:
        off = _connect_off(maps)
        flags |= _held_flags(maps) & (_TAKES_OVER | _NOTES_ANSWERS)
        maps.put(
            "node",
            NODE_KEY,
            NODE.pack(
                *(netns_cookie, flags | (_CONNECT_OFF if off else 0), node.masquerade_mark),
                *(*snat_fields(snat_ports()), off),
                *LIFETIMES.values(),
                *(address_bytes(text) if text else bytes(16) for text in primary.values()),
                *(htonl(node.lb_vni << _VNI_SHIFT), htons(node.lb_port) if tunnel else 0, 0),
                seed_of(node.hash_seed),
            ),
        )
    for name, elements in wanted.items():
        maps.remove(name, [key for key in held[name] if key not in elements])


def _connect_off(maps: MapSet) -> int:
    value = maps.node()["connect_off"]
    assert isinstance(value, int), "a number in the header"
    return value


def write_connect_off(maps: MapSet, levels: int) -> None:
    """Write which levels the map `connect_off` has entries for (node.connect_off in bpf/structs.h). Thread-safe."""
    _patch(maps, "connect_off", 0xFFFFFFFF, levels)


def write_ready(maps: MapSet, ready: bool) -> None:
    """Make all programs work, or pass every packet to the stack."""
    _patch(maps, "flags", constant("NODE_READY"), constant("NODE_READY") if ready else 0)


def takes_over(maps: MapSet) -> bool:
    """True if packet programs go on with connections that other nodes took."""
    return bool(_held_flags(maps) & _TAKES_OVER)


def _held_flags(maps: MapSet) -> int:
    value = maps.node()["flags"]
    assert isinstance(value, int), "a number in the header"
    return value


def write_notes_answers(maps: MapSet) -> None:
    """Make packet programs note connections of the slow path from now on, when they answer a SYN. Comes before those
    that there are already are listed."""
    _patch(maps, "flags", _NOTES_ANSWERS, _NOTES_ANSWERS)


def write_takes_over(maps: MapSet, on: bool) -> None:
    """Make packet programs go on with connections that other nodes took, or not. on: every connection of the slow path
    has its entry (flows/reserve.py, leave_connections), and later ones are noted."""
    both = _TAKES_OVER | _NOTES_ANSWERS
    _patch(maps, "flags", both, both if on else 0)


def _patch(maps: MapSet, field: str, mask: int, value: int) -> None:
    """Change bits of one field of the node's record, and the flags derived from it, in one store."""
    offsets = fields_of("node")
    with _record:
        raw = bytearray(maps.get("node", NODE_KEY) or b"")
        (held,) = _WORD.unpack_from(raw, offsets[field])
        _WORD.pack_into(raw, offsets[field], held & ~mask | value)
        (off,), (flags,) = _WORD.unpack_from(raw, offsets["connect_off"]), _WORD.unpack_from(raw, offsets["flags"])
        _WORD.pack_into(raw, offsets["flags"], flags & ~_CONNECT_OFF | (_CONNECT_OFF if off else 0))
        maps.put("node", NODE_KEY, bytes(raw))
