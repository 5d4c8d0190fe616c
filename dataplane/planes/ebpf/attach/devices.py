"""Which devices carry packet programs: uplinks, pod devices and overlay devices of the current network namespace.

Uplinks hold one of the node's primary addresses or the default route. Overlay devices are tunnels, and all others
without a link-layer header. Pod devices have a host route to a pod, or are ports of a bridge that is itself no uplink.
Where globs are given they decide instead.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from dataplane.kernel import sysctl
from dataplane.planes.ebpf.maps.layout import constant
from dataplane.policy.node import LocalDetector

UPLINK, POD, OVERLAY = constant("DEVICE_UPLINK"), constant("DEVICE_POD"), constant("DEVICE_OVERLAY")
DETECTED, XDP_TARGET = constant("DEVICE_DETECTED"), constant("DEVICE_XDP_TARGET")
RAW_IP = constant("DEVICE_RAW_IP")
REVERSE_PATH = {1: constant("DEVICE_STRICT"), 2: constant("DEVICE_LOOSE")}
"""Device flags by the value of rp_filter."""
_OVERLAY_KINDS = frozenset(
    {"vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "wireguard", "vti", "xfrm"}
)
_NO_XDP_KINDS = frozenset({"bridge", "vlan", "macvlan", "ipvlan", "dummy", "ifb"})
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_MAIN_TABLE = 254
_UP = 1
_IPV4 = 2
_SECONDARY, _NOT_USABLE = 0x01, 0x68  # IFA_F_SECONDARY; IFA_F_DADFAILED, _DEPRECATED, _TENTATIVE


class Link(NamedTuple):
    """A device as the kernel describes it. type: ARPHRD_*; master: ifindex of its bridge or 0; kind: "veth", "" for
    real ones; reverse_path: rp_filter as it is in effect, the larger of the device's own and `all`
    (Documentation/networking/ip-sysctl.rst); mtu: bytes of an IP packet; leads_away: its other end is in another
    network namespace; vlan_aware: a bridge that filters VLANs; isolated: a port that other such ports cannot reach."""

    name: str
    ifindex: int
    kind: str = ""
    type: int = _ARPHRD_ETHER
    mac: str = ""
    master: int = 0
    up: bool = True
    reverse_path: int = 0
    mtu: int = 0
    leads_away: bool = False
    vlan_aware: bool = False
    isolated: bool = False


class Route(NamedTuple):
    """A route of the main table: destination CIDR ("" = default), device, and MTU in bytes (0 = the device's)."""

    cidr: str
    ifindex: int
    mtu: int = 0


class Network(NamedTuple):
    """What a network namespace has, as far as roles depend on it. addresses: (ifindex, address text); sources: those
    of them that packets may be masqueraded with, in the kernel's order."""

    links: tuple[Link, ...] = ()
    addresses: frozenset[tuple[int, str]] = frozenset()
    routes: frozenset[Route] = frozenset()
    sources: tuple[tuple[int, str], ...] = ()


class Device(NamedTuple):
    """A device that carries programs. flags: enum device_flags. raw_ip: no link-layer header. xdp: may carry XDP.
    veth: one end of a pair. routed: ifindex of the device that routes and settings are about, the bridge of a port."""

    name: str
    ifindex: int
    flags: int
    mac: bytes = bytes(6)
    raw_ip: bool = False
    xdp: bool = False
    veth: bool = False
    routed: int = 0


class DeviceSelection(NamedTuple):
    """Devices that the command line selects. uplinks, pods: globs of device names; empty = detect them. detector: its
    interface selects devices whose sources count as pods."""

    uplinks: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    detector: LocalDetector = LocalDetector()


def read_network() -> Network:
    """Read links, addresses and routes of the current network namespace from rtnetlink."""
    with IPRoute() as rtnetlink:
        links = tuple(_link(message) for message in rtnetlink.get_links())
        dump = tuple(rtnetlink.get_addr())
        routes = set()
        for message in rtnetlink.get_routes(table=_MAIN_TABLE):
            destination, length = message.get_attr("RTA_DST"), message["dst_len"]
            cidr = f"{destination}/{length}" if destination else ""
            hops = message.get_attr("RTA_MULTIPATH") or ()
            indices = [message.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]
            metrics = message.get_attr("RTA_METRICS")
            mtu = int(metrics.get_attr("RTAX_MTU") or 0) if metrics is not None else 0
            routes |= {Route(cidr, index, mtu) for index in indices if index}
    addresses = frozenset((a["index"], str(a.get_attr("IFA_ADDRESS"))) for a in dump)
    sources = (
        (int(a["index"]), str(a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS"))) for a in dump if _is_source(a)
    )
    return Network(links, addresses, frozenset(routes), tuple(sources))


def _is_source(message: Any) -> bool:
    """True if the kernel would masquerade with an address: global scope, not tentative or deprecated, for IPv4 not a
    secondary one of its subnet (for IPv6 the same bit marks a temporary address)."""
    flags = int(message.get_attr("IFA_FLAGS") or message["flags"])
    unwanted = _NOT_USABLE | (_SECONDARY if message["family"] == _IPV4 else 0)
    return message["scope"] == 0 and not flags & unwanted


def source_addresses(network: Network, primary: Collection[str]) -> dict[int, tuple[str, str]]:
    """Return, by ifindex, the IPv4 and the IPv6 address that masquerade packets leaving by a device, "" = none.

    The node's primary address where the device has it, else the device's first, as masquerading does. Of several on one
    device that would take the one in the next hop's subnet (IPv4) or most like the destination (IPv6).
    """
    found: dict[int, tuple[str, str]] = {}
    for index, address in sorted(network.sources, key=lambda source: source[1] not in primary):
        ipv4, ipv6 = found.get(index, ("", ""))
        found[index] = (ipv4, ipv6 or address) if ":" in address else (ipv4 or address, ipv6)
    return found


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        str(message.get_attr("IFLA_IFNAME")),
        int(message["index"]),
        str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
        int(message["ifi_type"]),
        str(message.get_attr("IFLA_ADDRESS") or ""),
        int(message.get_attr("IFLA_MASTER") or 0),
        bool(message["flags"] & _UP),
        _reverse_path(str(message.get_attr("IFLA_IFNAME"))),
        int(message.get_attr("IFLA_MTU") or 0),
        message.get_attr("IFLA_LINK_NETNSID") is not None,
        bool(_nested(info, "IFLA_INFO_DATA", "IFLA_BR_VLAN_FILTERING")),
        bool(_nested(info, "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_ISOLATED")),
    )


def _nested(info: Any, where: str, name: str) -> Any:
    """An attribute of a link's kind or of its master's, None where there is none."""
    data: Any = info.get_attr(where) if info is not None else None
    return data.get_attr(name) if data is not None and hasattr(data, "get_attr") else None


def _reverse_path(device: str) -> int:
    """rp_filter in effect on a device; 0 for one that went meanwhile."""
    try:
        return max(int(sysctl.read(f"net/ipv4/conf/{name}/rp_filter")) for name in ("all", device))
    except sysctl.SysctlError:
        return 0


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _uplinks(network: Network, primary: Collection[str], selection: DeviceSelection) -> set[int]:
    if selection.uplinks:
        return {link.ifindex for link in network.links if _matches(link.name, selection.uplinks)}
    holders = {index for index, address in network.addresses if address in primary}
    return holders | {route.ifindex for route in network.routes if not route.cidr}


def _host_route(cidr: str) -> bool:
    if not cidr:
        return False
    net = ipaddress.ip_network(cidr, strict=False)
    return net.prefixlen == net.max_prefixlen and not net.is_link_local and not net.is_multicast


def _pods(network: Network, uplinks: set[int], overlays: set[int], selection: DeviceSelection) -> set[int]:
    if selection.pods:
        return {link.ifindex for link in network.links if _matches(link.name, selection.pods)}
    with_address = {index for index, _ in network.addresses}
    bridges = {link.ifindex for link in network.links if link.kind == "bridge"} & with_address
    ports = {link.ifindex for link in network.links if link.master in bridges - uplinks}
    routed = {route.ifindex for route in network.routes if _host_route(route.cidr)}
    return (ports | (routed - bridges - overlays)) - uplinks


def _tunnel(link: Link) -> bool:
    """True if a link is of a tunnel kind or has no link-layer header, as tun devices have none."""
    return link.kind in _OVERLAY_KINDS or link.type not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)


def raw_devices(network: Network) -> list[int]:
    """Return the ifindexes of devices whose packets have no link-layer header that is Ethernet's."""
    return [link.ifindex for link in network.links if link.type not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)]


def _detected(link: Link, names: dict[int, str], detector: LocalDetector) -> bool:
    """True if the detector's interface matches the link, or the bridge that the link is a port of."""
    if not detector.interface:
        return False
    return any(detector.matches("", name) for name in (link.name, names.get(link.master, "")) if name)


def choose_devices(network: Network, primary: Collection[str], selection: DeviceSelection) -> list[Device]:
    """Return the devices to attach programs to, ordered by ifindex.

    network: as read. primary: the node's primary addresses, canonical text. selection: of the command line.
    """
    uplinks = _uplinks(network, primary, selection)
    overlays = {link.ifindex for link in network.links if _tunnel(link)} - uplinks
    pods = _pods(network, uplinks, overlays, selection)
    names = {link.ifindex: link.name for link in network.links}
    bridges = {link.ifindex: link for link in network.links if link.kind == "bridge"}
    chosen = []
    for link in sorted(network.links, key=lambda link: link.ifindex):
        flags = (
            (UPLINK if link.ifindex in uplinks else 0)
            | (POD if link.ifindex in pods else 0)
            | (OVERLAY if link.ifindex in overlays else 0)
        )
        if not flags or not link.up or link.type == _ARPHRD_LOOPBACK:
            continue
        if _detected(link, names, selection.detector):
            flags |= DETECTED
        ethernet = link.type == _ARPHRD_ETHER
        routed = bridges.get(link.master, link)
        flags |= REVERSE_PATH.get(routed.reverse_path, 0)
        chosen.append(
            Device(
                link.name,
                link.ifindex,
                flags,
                _mac(link.mac) if ethernet else bytes(6),
                raw_ip=not ethernet,
                xdp=bool(flags & UPLINK) and ethernet and link.kind not in _NO_XDP_KINDS | _OVERLAY_KINDS,
                veth=link.kind == "veth",
                routed=routed.ifindex,
            )
        )
    return chosen


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text) else bytes(6)


def roles(flags: int) -> Sequence[str]:
    """Names of a device's roles, for people."""
    known = {UPLINK: "uplink", POD: "pod", OVERLAY: "overlay"}
    return [name for flag, name in known.items() if flags & flag]
