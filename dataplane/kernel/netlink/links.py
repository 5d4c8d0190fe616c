"""Devices, addresses, routes, rules and neighbours of one network namespace, over rtnetlink.

A thin layer on pyroute2: devices by name, either family by the text of an address, and errors that say what and where.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family, family_of
from dataplane.resource import Resource

VXLAN_ID = 1
VXLAN_PORT = 8472
"""UDP port of Linux's (and flannel's) VXLAN from before IANA assigned 4789."""

_IFA_F_NODAD = 0x02
_NTF_SELF = 0x02
_NUD_PERMANENT = 0x80
_SIOCETHTOOL = 0x8946
_ETHTOOL_SGRO = 0x2C
_ETHTOOL_STXCSUM = 0x17
_ETHTOOL_GCHANNELS, _ETHTOOL_SCHANNELS = 0x3C, 0x3D
_FOREVER = 0xFFFFFFFF
_SCOPE_LINK = 253


class LinkError(HotplaneError):
    """The kernel refused a change of links, addresses or routes. The text says what, in which namespace, and why."""


class Links(Resource):
    """An rtnetlink connection to one named namespace; a context manager.

    >>> with Links("hp-lab-node1") as links:
    ...     links.address("eth0", "172.18.0.1/16")
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._index: dict[str, int] = {}
        self._ipr = netns.in_netns(namespace, IPRoute)

    def close(self) -> None:
        """Close the connection."""
        self._ipr.close()

    def _do(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except NetlinkError as error:
            raise LinkError(f"namespace {self.namespace}: {what}: {error}") from error

    def index(self, device: str) -> int:
        """Interface index of a device. Raises LinkError when there is none of that name."""
        if device not in self._index:
            found = self._ipr.link_lookup(ifname=device)
            if not found:
                raise LinkError(f"namespace {self.namespace}: there is no device {device}")
            self._index[device] = found[0]
        return self._index[device]

    def add_bridge(self, device: str, mtu: int) -> None:
        """A bridge that forwards at once (no spanning tree, no multicast snooping), up. mtu: in bytes."""
        self._do(f"add bridge {device}", self._ipr.link, "add", ifname=device, kind="bridge", mtu=mtu,
                 address=_new_mac(), br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)  # fmt: skip
        self.up(device)

    def add_veth(self, device: str, peer: "Links", peer_device: str, mtu: int) -> None:
        """A veth pair: one end here, the other in `peer`'s namespace; both up. mtu: in bytes."""
        with open(netns.NETNS_DIR / peer.namespace) as target:
            other = {"ifname": peer_device, "net_ns_fd": target.fileno(), "mtu": mtu, "address": _new_mac()}
            self._do(f"add veth {device}", self._ipr.link, "add", ifname=device, kind="veth", mtu=mtu,
                     address=_new_mac(), peer=other)  # fmt: skip
        self.up(device)
        peer.up(peer_device)

    def add_vxlan(self, device: str, uplink: str, local: str, mtu: int, mac: str) -> None:
        """A VXLAN device that learns nothing: what it forwards to comes from `fdb`. Up. mtu: in bytes."""
        self._do(f"add vxlan {device}", self._ipr.link, "add", ifname=device, kind="vxlan", address=mac, mtu=mtu,
                 vxlan_id=VXLAN_ID, vxlan_link=self.index(uplink), vxlan_local=local, vxlan_port=VXLAN_PORT,
                 vxlan_learning=0)  # fmt: skip
        self.up(device)

    def up(self, device: str) -> None:
        """Bring a device up."""
        self._do(f"set {device} up", self._ipr.link, "set", index=self.index(device), state="up")

    def enslave(self, device: str, bridge: str, *, hairpin: bool = False) -> None:
        """Put a device on a bridge; `hairpin` lets a frame leave by the port it came in on."""
        self._do(f"put {device} on {bridge}", self._ipr.link, "set", index=self.index(device),
                 master=self.index(bridge))  # fmt: skip
        if hairpin:
            self._do(f"hairpin mode on {device}", self._ipr.brport, "set", index=self.index(device), mode=1)

    def mac(self, device: str) -> str:
        """Hardware address of a device."""
        return str(self._ipr.get_links(self.index(device))[0].get_attr("IFLA_ADDRESS"))

    def address(self, device: str, cidr: str, *, deprecated: bool = False) -> None:
        """Add `address/length`, usable at once (no duplicate detection). `deprecated`: never chosen as a source."""
        text, _, length = cidr.partition("/")
        extra: dict[str, int] = {}
        if family_of(text) is Family.IPV6:
            extra["ifa_flags"] = _IFA_F_NODAD
            if deprecated:
                extra |= {"preferred": 0, "valid": _FOREVER}
        self._do(f"add address {cidr} to {device}", self._ipr.addr, "add", index=self.index(device), address=text,
                 prefixlen=int(length), **extra)  # fmt: skip

    def route(
        self, cidr: str, *, device: str = "", via: str = "", source: str = "", onlink: bool = False, table: int = 254,
        kind: str = "unicast", replace: bool = False,
    ) -> None:  # fmt: skip
        """Add (or replace) a route to `cidr`: by device, by gateway, or neither for kinds such as "unreachable"."""
        family = family_of(cidr)
        options: dict[str, Any] = {"dst": cidr, "family": int(family.socket_family), "table": table, "type": kind}
        if device:
            options["oif"] = self.index(device)
        if via:
            options["gateway"] = via
        elif device and family is Family.IPV4:
            options["scope"] = _SCOPE_LINK
        if source:
            options["prefsrc"] = source
        if onlink:
            options["flags"] = ["onlink"]
        self._do(f"add route to {cidr}", self._ipr.route, "replace" if replace else "add", **options)

    def rule(
        self, family: Family, priority: int, table: int, *, incoming: str = "", source: str = "", default: bool = True
    ) -> None:
        """A routing policy rule: packets of this source address that came in by this device look in `table`. default:
        its default routes count."""
        options: dict[str, Any] = {"family": int(family.socket_family), "priority": priority, "table": table}
        if incoming:
            options["iifname"] = incoming
        if source:
            options |= {"src": source, "src_len": family.bits}
        if not default:
            options["suppress_prefixlen"] = 0
        self._do(f"add rule {priority}", self._ipr.rule, "add", **options)

    def neighbour(self, device: str, address: str, mac: str) -> None:
        """A permanent neighbour (ARP or ND) entry."""
        self._do(f"add neighbour {address} on {device}", self._ipr.neigh, "replace", dst=address, lladdr=mac,
                 family=int(family_of(address).socket_family), ifindex=self.index(device),
                 state=_NUD_PERMANENT)  # fmt: skip

    def fdb(self, device: str, mac: str, remote: str) -> None:
        """On a VXLAN device: frames for `mac` go to the tunnel endpoint `remote`."""
        self._do(f"add forwarding entry {mac} on {device}", self._ipr.fdb, "append", ifindex=self.index(device),
                 lladdr=mac, dst=remote, flags=_NTF_SELF, state=_NUD_PERMANENT)  # fmt: skip

    def set_gro(self, device: str, on: bool) -> None:
        """Generic receive offload. On a veth it also makes the device take frames that its peer sends by XDP_TX
        or redirect (the kernel gives such a veth a NAPI queue, 5.13 and later)."""
        self._ethtool(device, _ETHTOOL_SGRO, on)

    def set_tx_checksum(self, device: str, on: bool) -> None:
        """Transmit checksum offload. Packets that leave a veth with it have no finished checksum, which is fine between
        sockets of one machine; but XDP at the other end cannot see that, and would send them on as they are."""
        self._ethtool(device, _ETHTOOL_STXCSUM, on)

    def set_queues(self, device: str, count: int) -> int:
        """Give a veth up to so many queues each way, and answer how many it has then: no more than it was made with,
        which is one for each possible processor since Linux 5.15. Raises OSError (EINVAL while its peer has XDP and
        fewer queues, EOPNOTSUPP before 5.15)."""
        with netns.netns(self.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            known = bytearray(struct.pack("=9I", _ETHTOOL_GCHANNELS, *(0,) * 8))
            fcntl.ioctl(sock, _SIOCETHTOOL, _interface_request(device, known))
            _, most_in, most_out, *_ = struct.unpack("=9I", known)
            wanted = min(count, int(most_in), int(most_out))
            buffer = bytearray(struct.pack("=9I", _ETHTOOL_SCHANNELS, *(0,) * 4, wanted, wanted, 0, 0))
            fcntl.ioctl(sock, _SIOCETHTOOL, _interface_request(device, buffer))
        return wanted

    def _ethtool(self, device: str, command: int, value: int) -> None:
        buffer = bytearray(struct.pack("=II", command, value))
        with netns.netns(self.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = _interface_request(device, buffer)
            fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _new_mac() -> str:
    """A random unicast address of local administration. systemd's udevd gives a device another address some time after
    it came when the kernel chose the first one, and leaves alone what was asked for."""
    first, *others = os.urandom(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *others))


def _interface_request(device: str, buffer: bytearray) -> bytes:
    """struct ifreq whose data pointer is `buffer` (which must stay alive during the call)."""
    pointer = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    return struct.pack("16sP", device.encode(), pointer) + bytes(16)
