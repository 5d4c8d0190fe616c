"""Lists the addresses of this network namespace, ordered by preference as the node's own address."""

import errno
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.model.net import Family, canonical_address, is_loopback, packed

_ANYWHERE = {Family.IPV4: "1.1.1.1", Family.IPV6: "2000::1"}
"""Addresses that only a default route leads to; nothing is sent there."""
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)  # none, unreachable, prohibit, blackhole
_TEMPORARY, _DEPRECATED = 0x01, 0x20
_NOT_YET = 0x48  # IFA_F_DADFAILED, IFA_F_TENTATIVE; linux/if_addr.h. The first bit of IPv4 means "secondary".


def own_addresses() -> list[str]:
    """Global addresses of this network namespace, canonical, without loopback; the first of each family is the one that
    node ports answer on where no Node object says which.

    That is the source address of the default route (a temporary one, RFC 8981, gives way to the address most like it
    on its device), then addresses on default routes' devices, in the kernel's order for IPv4, the oldest first for
    IPv6, then all others. Deprecated and temporary addresses come last, tentative ones not at all (RFC 4862).
    """
    with IPRoute() as netlink:
        messages = [m for m in netlink.get_addr() if m["scope"] == 0 and not _flags(m) & _NOT_YET]
        devices = {
            route.get_attr("RTA_OIF")
            for family in Family
            for route in netlink.get_default_routes(family=int(family.socket_family))
        }
        sources = [source for family in Family if (source := _source(netlink, family))]
    order = [message for message in messages if ":" not in _address(message)]
    order += [message for message in reversed(messages) if ":" in _address(message)]
    order.sort(key=lambda m: (_standing(m), -_likeness(m, messages, sources), m["index"] not in devices, m["index"]))
    return [address for address in dict.fromkeys(map(_address, order)) if not is_loopback(address)]


def _flags(message: Any) -> int:
    return int(message.get_attr("IFA_FLAGS") or message["flags"])


def _address(message: Any) -> str:
    return canonical_address(str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))


def _standing(message: Any) -> int:
    """Return 0 for a stable address, 1 for a deprecated one, 2 for a temporary (privacy) one."""
    flags = _flags(message)
    if ":" in _address(message) and flags & _TEMPORARY:
        return 2
    return 1 if flags & _DEPRECATED else 0


def _likeness(message: Any, messages: list[Any], sources: list[str]) -> int:
    """Return how many leading bits an address shares with a preferred source of routes on the same device, else 0."""
    address = _address(message)
    for source in sources:
        if (":" in source) == (":" in address):
            on = {other["index"] for other in messages if _address(other) == source}
            if message["index"] in on:
                return _common(address, source)
    return 0


def _common(one: str, other: str) -> int:
    """Number of leading bits that two addresses of a family share, and one more, so that none is 0 too."""
    first, second = packed(one), packed(other)
    return 8 * len(first) + 1 - (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).bit_length()


def _source(netlink: IPRoute, family: Family) -> str:
    """The address that the kernel would send from to somewhere far, or ""."""
    try:
        found = netlink.route("get", dst=_ANYWHERE[family], family=int(family.socket_family))
    except NetlinkError as error:
        if error.code in _NO_WAY:
            return ""
        raise
    return next((str(a) for route in found if (a := route.get_attr("RTA_PREFSRC"))), "")
