"""Source ports in the packet programs' range that the kernel's masquerading gave out before the programs came.

Once the programs work, the kernel keeps off their ports (see port_split); flows from before may have some of them. Such
a flow's answers must not be taken for those of a flow of ours, so its tuple is entered as one that is passed on.
"""

import errno
import time
from socket import htons

from dataplane.kernel import bpf
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.conntrack_list import masqueraded_connections
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.encode import address_bytes
from dataplane.planes.ebpf.events import TUPLE
from dataplane.planes.ebpf.layout import constant, layout_version, record
from dataplane.planes.ebpf.maps import MapSet
from dataplane.planes.ebpf.pins import PinDirectory

_TRANSLATION_FIELDS = (
    *("source", "destination", "source_port", "destination_port", "flags", "backend", "backend_generation"),
    *("service", "ifindex", "last_ns", "packets", "bytes"),
    *("hop_until_ns", "hop_ifindex", "hop_destination", "hop_source", "hop_mtu"),
    *("header_change", "transport_change", "pad"),
)
_NOEXIST = 1
_NO_HOP = (0,) * (3 + 6 + 6 + 3)


def reserve_ports(maps: MapSet) -> int:
    """Enter the answers' tuples of masqueraded flows that conntrack holds on the programs' ports; returns how many.

    Raises ConntrackError, PlaneError.
    """
    node = maps.node()
    low, high = node["snat_port_low"], node["snat_port_high"]
    if not isinstance(low, int) or not isinstance(high, int):
        return 0
    translation = record("translation", *_TRANSLATION_FIELDS)
    count = 0
    for flow in masqueraded_connections():
        if not low <= flow.client[1] <= high:
            continue
        source, destination = address_bytes(flow.backend[0]), address_bytes(flow.client[0])
        ports = htons(flow.backend[1]), htons(flow.client[1])
        value = translation.pack(
            *(source, destination, *ports, constant("FLOW_REPLY"), 0, 0, 0xFFFFFFFF, 0, time.monotonic_ns(), 0, 0),
            *_NO_HOP,
        )
        key = TUPLE.pack(source, destination, *ports, int(flow.protocol), 0, 0, 0)
        count += _add(maps, key, value)
    return count


def _add(maps: MapSet, key: bytes, value: bytes) -> bool:
    """Store an entry unless there is one; whether it is new."""
    try:
        bpf.map_update(maps.fds["connections"], key, value, _NOEXIST)
    except BpfError as error:
        if error.errno == errno.EEXIST:
            return False
        raise PlaneError(f"map connections: {error.strerror}") from error
    return True


def reserve_once(maps: MapSet, pins: PinDirectory) -> None:
    """`reserve_ports`, unless it was done for these maps; a mark beside their pins says so. Call it when the kernel
    keeps off the ports already, so that none is given out meanwhile. Raises ConntrackError, PlaneError.

    Not by whether the kernel was told already: whoever told it may have been killed before this.
    """
    mark = pins.maps(layout_version(maps.sizes)) / "reserved"
    if not mark.is_dir():
        reserve_ports(maps)
        mark.mkdir()
