"""Which packet programs a device has, and which of them somebody took away."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from dataplane.kernel.netlink import clsact
from dataplane.planes.ebpf.attach.programs import lost_links
from dataplane.planes.ebpf.attach.tc import DEVICE_MASK, DIRECTIONS
from dataplane.planes.ebpf.attach.xdp import PROGRAM, pin_name
from dataplane.planes.ebpf.maps.pins import PinDirectory


class DeviceStatus(NamedTuple):
    """Programs attached to a device. tc: "tcx" or "clsact"; xdp: "native", "generic" or ""; problem: why XDP is missing
    or generic."""

    name: str
    ifindex: int
    roles: Sequence[str]
    tc: str
    xdp: str
    problem: str = ""


def lost_programs(devices: Collection[DeviceStatus], pins: PinDirectory) -> dict[int, list[str]]:
    """Return, by ifindex, the names of programs that devices have no more, whether their links were detached or
    unpinned or their filters deleted. devices: as the programs were attached; these devices still exist."""
    links: dict[str, tuple[int, str]] = {}
    for each in devices:
        if each.tc == "tcx":
            links |= {f"{name}-{each.ifindex}": (each.ifindex, name) for name in DIRECTIONS}
        if each.xdp:
            links[pin_name(each.ifindex, each.xdp)] = (each.ifindex, PROGRAM)
    lost: dict[int, list[str]] = {}
    for pin in lost_links(pins, {pin: index for pin, (index, _) in links.items()}, DEVICE_MASK) if links else ():
        index, name = links[pin]
        lost.setdefault(index, []).append(name)
    filters = {each.ifindex: (False, True) for each in devices if each.tc == "clsact"}
    for index, egress in clsact.lost(filters) if filters else ():
        lost.setdefault(index, []).append("tc_egress" if egress else "tc_ingress")
    return lost
