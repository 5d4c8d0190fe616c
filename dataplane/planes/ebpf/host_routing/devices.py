"""Which devices host routing may use, which pods are behind them, and why not the others. Pure: from what was read."""

import ipaddress
from collections.abc import Collection, Mapping
from typing import NamedTuple

from dataplane.planes.ebpf.attach.devices import OVERLAY, POD, UPLINK, Device, Link, Network
from dataplane.planes.ebpf.host_routing.surroundings import Surroundings

_PLAIN_QDISCS = frozenset({"noqueue", "pfifo_fast", "fq", "fq_codel", "mq", "clsact"})
"""Queueing disciplines that a kernel or distribution puts on devices by default: they limit nobody's rate."""
_NO_MAC = bytes(6)


class LocalPod(NamedTuple):
    """A pod behind a device: what struct pod in bpf/structs.h says. mtu: bytes; mac, gateway: six bytes."""

    ifindex: int
    routed: int
    bridged: bool
    mtu: int
    mac: bytes
    gateway: bytes


class Judgement(NamedTuple):
    """reasons: why a device is not used, None if it is, by name in the order of ifindexes. usable: ifindexes of those
    that are. pods: by address in canonical text. problems: why a pod's address has no entry."""

    reasons: Mapping[str, str | None] = {}
    usable: frozenset[int] = frozenset()
    pods: Mapping[str, LocalPod] = {}
    problems: Mapping[str, str] = {}


def judge(network: Network, devices: Collection[Device], around: Surroundings) -> Judgement:
    """Judge the devices that carry packet programs. network: as read; devices: as chosen from it."""
    links = {link.ifindex: link for link in network.links}
    reasons: dict[str, str | None] = {}
    usable = set()
    for device in devices:
        reason = _reason(device, links, around)
        reasons[device.name] = reason
        if reason is None:
            usable.add(device.ifindex)
    pods, problems = _pods(network, {d.ifindex: d for d in devices if d.flags & POD}, links, around)
    names = {d.ifindex: d.name for d in devices}
    for address, pod in list(pods.items()):
        if pod.ifindex not in usable:
            problems[address] = f"device {names[pod.ifindex]}: {reasons[names[pod.ifindex]]}"
            del pods[address]
    return Judgement(reasons, frozenset(usable), pods, problems)


def _reason(device: Device, links: Mapping[int, Link], around: Surroundings) -> str | None:
    """Why a device is not used, None if it is."""
    link, names = links[device.ifindex], {index: link.name for index, link in links.items()}
    master = links.get(link.master)
    if device.raw_ip:
        return "it has no link-layer header"
    if around.ipsec:
        return "the node has IPsec policies, which the stack applies"
    if master is not None and master.kind != "bridge":
        return f"it belongs to {names[link.master]} ({master.kind or 'unknown kind'})"
    if device.ifindex in around.filters:
        return around.filters[device.ifindex]
    if device.flags & POD and not device.flags & (UPLINK | OVERLAY):
        return _pod_reason(link, master, around)
    return None


def _pod_reason(link: Link, master: Link | None, around: Surroundings) -> str | None:
    """The same for a pod's device, into which packets would be handed."""
    if link.kind != "veth":
        return f"it is no veth, but {link.kind or 'a device of unknown kind'}"
    if not link.leads_away:
        return "its other end is in the node's own network namespace"
    if master is not None and master.vlan_aware:
        return f"bridge {master.name} filters VLANs"
    if link.isolated:
        return "its port of the bridge is isolated"
    other = [kind for kind in around.qdiscs.get(link.ifindex, ()) if kind not in _PLAIN_QDISCS]
    return f"queueing discipline {other[0]} limits what goes to the pod" if other else None


def _pods(
    network: Network, devices: Mapping[int, Device], links: Mapping[int, Link], around: Surroundings
) -> tuple[dict[str, LocalPod], dict[str, str]]:
    """Pods by address, and problems of addresses: those with a host route by their own device, and neighbours of the
    pods' bridges."""
    pods: dict[str, LocalPod] = {}
    problems: dict[str, str] = {}
    own = {address for _, address in network.addresses}
    for route in network.routes:
        address = _host(route.cidr)
        if (
            address is None
            or address in own
            or route.ifindex not in devices
            or devices[route.ifindex].routed != route.ifindex
        ):
            continue
        link = links[route.ifindex]
        mac = around.neighbours.get((route.ifindex, address), _NO_MAC)
        if mac == _NO_MAC:
            problems[address] = f"its hardware address on {link.name} is not known yet"
            continue
        pods[address] = LocalPod(
            link.ifindex, link.ifindex, False, _mtu(link, route.mtu), mac, devices[route.ifindex].mac
        )
    bridges = {device.routed for device in devices.values() if device.routed != device.ifindex}
    for (bridge, address), mac in around.neighbours.items():
        if bridge not in bridges or address in own or not _is_pods(address):
            continue
        port = around.stations.get((bridge, mac))
        if port is None or port not in devices:
            problems.setdefault(address, f"bridge {links[bridge].name} does not know the port of {mac.hex(':')}")
            continue
        route_mtu = min((r.mtu for r in network.routes if r.ifindex == bridge and r.mtu), default=0)
        pods[address] = LocalPod(
            port, bridge, True, min(_mtu(links[bridge], route_mtu), _mtu(links[port], 0)), mac, _mac(links[bridge])
        )
    return pods, problems


def _mtu(link: Link, route: int) -> int:
    """MTU of a way: a route's own, or the device's."""
    return min(link.mtu, route) if route else link.mtu


def _mac(link: Link) -> bytes:
    return bytes.fromhex(link.mac.replace(":", "")) if link.mac else _NO_MAC


def _host(cidr: str) -> str | None:
    """The address of a host route to a pod, None for other routes."""
    if not cidr:
        return None
    net = ipaddress.ip_network(cidr, strict=False)
    address = str(net.network_address)
    return address if net.prefixlen == net.max_prefixlen and _is_pods(address) else None


def _is_pods(text: str) -> bool:
    """True if a pod may have the address."""
    address = ipaddress.ip_address(text)
    return not (address.is_link_local or address.is_multicast or address.is_loopback or address.is_unspecified)
