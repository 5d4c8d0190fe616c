"""Enters flows that connection tracking has and that the programs must leave alone.

Source ports in the programs' range that the kernel's masquerading used before the programs were attached: port_split
keeps the kernel from these ports from then on, but existing flows may have some of them. Their replies must not match a
flow of the programs, so their tuples are stored as flows that the programs pass to the stack.

Connections whose destination it translates: their segments must not be taken for those of a connection that another
node took.
"""

import errno
import time
from socket import htons

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.netlink.conntrack_list import masqueraded_connections, translated_connections
from dataplane.model.net import Protocol
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.flows.entries import FOREIGN, LEFT, NO_HOP, REPLY, TRANSLATION, flow_key
from dataplane.planes.ebpf.flows.ports import snat_runs
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import layout_version
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.ebpf.views.events import TUPLE

_NOEXIST = 1
_TABLES = {Protocol.TCP: "tcp_flows", Protocol.UDP: "udp_flows"}
_NOBODY = 0xFFFFFFFF
_OVER = {"time-wait", "close"}
"""States of TCP connections in which no segment is to be passed on any more."""


def reserve_ports(maps: MapSet) -> int:
    """Store the reply tuples of masqueraded conntrack flows on the programs' ports; returns their number.

    Raises ConntrackError, PlaneError.
    """
    runs = snat_runs(maps.node())
    count = 0
    for flow in masqueraded_connections():
        port = flow.client[1]
        if flow.protocol not in _TABLES or not any(low <= port <= high for low, high in runs):
            continue
        count += _enter(maps, flow.protocol, flow.backend, flow.client, 0)
    return count


def leave_connections(maps: MapSet) -> int:
    """Store the tuples of the clients' segments of TCP connections whose destination connection tracking translates,
    but those that are over; returns their number. Call this when the programs see all packets: from then on they note
    such connections themselves (bpf/left.h).

    Raises ConntrackError, PlaneError.
    """
    count = 0
    for flow in translated_connections():
        if flow.protocol is Protocol.TCP and flow.state not in _OVER:
            count += _enter(maps, flow.protocol, flow.client, flow.frontend, LEFT)
    return count


def _enter(maps: MapSet, protocol: Protocol, sender: tuple[str, int], receiver: tuple[str, int], flags: int) -> bool:
    """Store an entry for packets from `sender` to `receiver` as the stack's own, unless they have one. Returns True if
    it was stored."""
    source, destination = address_bytes(sender[0]), address_bytes(receiver[0])
    ports = htons(sender[1]), htons(receiver[1])
    own = TUPLE.pack(source, destination, *ports, int(protocol), 0, 0, 0)
    value = TRANSLATION.pack(
        *(source, destination, *ports, REPLY | FOREIGN | flags, 0, 0, 0, _NOBODY, 0, time.monotonic_ns(), 0, 0),
        *(0, 0, 0, 0, *NO_HOP, own),
    )
    return _add(maps, _TABLES[protocol], flow_key(own), value)


def _add(maps: MapSet, table: str, key: bytes, value: bytes) -> bool:
    """Store an entry unless the key exists. Returns True if it was stored."""
    try:
        bpf.map_update(maps.fds[table], key, value, _NOEXIST)
    except BpfError as error:
        if error.errno == errno.EEXIST:
            return False
        raise PlaneError(f"map {table}: {error.strerror}") from error
    return True


def reserve_once(maps: MapSet, pins: PinDirectory) -> None:
    """Call `reserve_ports` unless a mark beside the pins says that it was done for these maps. Call this after
    `split_ports`, so that the kernel allocates none of the ports meanwhile. Raises ConntrackError, PlaneError.

    The nftables table is no such mark: the process that loaded it may have been killed before this call.
    """
    mark = pins.maps(layout_version(maps.sizes)) / "reserved"
    if not mark.is_dir():
        reserve_ports(maps)
        mark.mkdir()
