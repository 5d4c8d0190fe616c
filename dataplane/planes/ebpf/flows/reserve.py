"""Reserves source ports in the programs' range that the kernel's masquerading used before the programs were attached.

port_split keeps the kernel from these ports from then on, but existing flows may have some of them. Their replies must
not match a flow of the programs, so their tuples are stored as flows that the programs pass to the stack.
"""

import errno
import time
from socket import htons

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.netlink.conntrack_list import masqueraded_connections
from dataplane.model.net import Protocol
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.flows.entries import FOREIGN, NO_HOP, REPLY, TRANSLATION, flow_key
from dataplane.planes.ebpf.flows.ports import snat_runs
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import layout_version
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.ebpf.views.events import TUPLE

_NOEXIST = 1
_TABLES = {Protocol.TCP: "tcp_flows", Protocol.UDP: "udp_flows"}
_NOBODY = 0xFFFFFFFF


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
        source, destination = address_bytes(flow.backend[0]), address_bytes(flow.client[0])
        ports = htons(flow.backend[1]), htons(port)
        own = TUPLE.pack(source, destination, *ports, int(flow.protocol), 0, 0, 0)
        value = TRANSLATION.pack(
            *(source, destination, *ports, REPLY | FOREIGN, 0, 0, 0, _NOBODY, 0, time.monotonic_ns(), 0, 0),
            *(0, 0, 0, 0, *NO_HOP, own),
        )
        count += _add(maps, _TABLES[flow.protocol], flow_key(own), value)
    return count


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
