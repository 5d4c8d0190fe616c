"""The Ethernet devices of a network namespace, as rtnetlink tells them (linux/if_link.h), read without a library."""

import struct
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import Netlink, attributes, text_of

ROUTE = 0  # NETLINK_ROUTE
_GET_LINK = 18  # RTM_GETLINK
_HEADER = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_NAME, _MASTER = 3, 10  # IFLA_IFNAME, IFLA_MASTER
_ETHERNET = 1  # ARPHRD_ETHER


class EthernetDevice(NamedTuple):
    """A device with an Ethernet header, whatever is behind it. number: its ifindex. master: number of the bridge,
    bond or VRF that it is a port of; 0 = none."""

    name: str
    number: int
    master: int


def ethernet_devices(netlink: Netlink) -> list[EthernetDevice]:
    """Return the devices of the network namespace of a socket of protocol ROUTE. Raises Refused, OSError."""
    found = []
    for message in netlink.dump(_GET_LINK, _HEADER.pack(0, 0, 0, 0, 0)):
        _, kind, index, _, _ = _HEADER.unpack_from(message)
        parts = dict(attributes(message[_HEADER.size :]))
        if kind == _ETHERNET:
            master = int.from_bytes(parts.get(_MASTER, b""), "little")
            found.append(EthernetDevice(text_of(parts[_NAME]), index, master))
    return found
