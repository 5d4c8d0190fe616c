"""tc programs on devices through a clsact qdisc, for kernels without tcx (before Linux 6.6)."""

import socket
from collections.abc import Collection, Mapping
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import HotplaneError

INGRESS_PARENT, EGRESS_PARENT = 0xFFFFFFF2, 0xFFFFFFF3
PRIORITY = 0x4850
"""Preference of hotplane's filters: after usual ones, and a number that other programs are unlikely to use."""
_MADE, _FOUND = 1, 2
"""Class ids of hotplane's filters, which mean nothing to a program that decides itself: whether hotplane made the qdisc
or found it there."""
_ETH_P_ALL = 0x0003
_INFO = PRIORITY << 16 | socket.htons(_ETH_P_ALL)
"""tcm_info of hotplane's filters. A request to delete that lacks it takes everybody's: pyroute2 makes it of `prio` only
where a kind of filter is named."""
_EEXIST, _ENOENT, _EINVAL, _ENODEV = 17, 2, 22, 19


class ClsactError(HotplaneError):
    """The kernel refused a tc filter; the text says where."""


def _parent(egress: bool) -> int:
    return EGRESS_PARENT if egress else INGRESS_PARENT


def attach(index: int, program: int, name: str, *, egress: bool) -> None:
    """Put a program (descriptor) on a device of the current network namespace, or replace ours there atomically.

    index: ifindex. name: shown by `tc filter show`. Raises ClsactError.
    """
    with IPRoute() as netlink:
        mark = _MADE
        try:
            netlink.tc("add", "clsact", index=index)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise ClsactError(f"clsact on device {index}: {error}") from error
            mark = _mark(netlink, index) or _FOUND
        try:
            netlink.tc(
                "replace-filter", "bpf", index=index, handle=1, fd=program, name=name, parent=_parent(egress),
                prio=PRIORITY, protocol=_ETH_P_ALL, classid=mark, direct_action=True,
            )  # fmt: skip
        except NetlinkError as error:
            raise ClsactError(f"tc filter on device {index}: {error}") from error


def detach(index: int) -> None:
    """Take our filters off a device, and the qdisc if we made it and no filter of any kind is left; fine when there is
    nothing of ours."""
    with IPRoute() as netlink:
        mark = _mark(netlink, index)
        if not mark:
            return
        for egress in (False, True):
            _delete(netlink, "del-filter", index=index, parent=_parent(egress), info=_INFO)
        if mark == _MADE and not any(_anybody(netlink, index, egress=egress) for egress in (False, True)):
            _delete(netlink, "del", "clsact", index=index)


def _delete(netlink: IPRoute, *what: str, index: int, **more: int) -> None:
    """Delete something of a device, unless it went, or the device did, since it was looked at. Raises ClsactError."""
    try:
        netlink.tc(*what, index=index, **more)
    except NetlinkError as error:
        if error.code not in (_ENOENT, _EINVAL, _ENODEV):
            raise ClsactError(f"{' '.join(what)} on device {index}: {error}") from error


def _anybody(netlink: IPRoute, index: int, *, egress: bool) -> list[Any]:
    """Return all filters of any kind on one side of a device."""
    return list(netlink.get_filters(index=index, parent=_parent(egress)))


def _mark(netlink: IPRoute, index: int) -> int:
    """The class id of a filter of ours on a device; 0 = there is none."""
    if not _has_qdisc(netlink, index):
        return 0
    for egress in (False, True):
        for item in _anybody(netlink, index, egress=egress):
            options = item.get_attr("TCA_OPTIONS")
            if item["info"] >> 16 == PRIORITY and item.get_attr("TCA_KIND") == "bpf" and hasattr(options, "get_attr"):
                number = options.get_attr("TCA_BPF_CLASSID")
                if number:
                    return int(number)
    return 0


def _has_qdisc(netlink: IPRoute, index: int) -> bool:
    return index in _with_qdisc(netlink)


def _with_qdisc(netlink: IPRoute) -> frozenset[int]:
    return frozenset(int(q["index"]) for q in netlink.get_qdiscs() if q.get_attr("TCA_KIND") == "clsact")


def devices() -> frozenset[int]:
    """Return the devices (ifindex) of the current network namespace that have a clsact qdisc, whoever made it."""
    with IPRoute() as netlink:
        return _with_qdisc(netlink)


def lost(wanted: Mapping[int, Collection[bool]]) -> list[tuple[int, bool]]:
    """Return those sides of devices that lack our filter. wanted: by ifindex the sides to look at, True for egress."""
    with IPRoute() as netlink:
        marked = _with_qdisc(netlink)
        return [
            (index, egress)
            for index, sides in wanted.items()
            for egress in sides
            if index not in marked
            or all(item["info"] >> 16 != PRIORITY for item in _anybody(netlink, index, egress=egress))
        ]


def filters(index: int, *, egress: bool) -> list[str]:
    """Names of our filters on a device, for status and cleanup."""
    with IPRoute() as netlink:
        if not _has_qdisc(netlink, index):
            return []
        found = []
        for item in netlink.get_filters(index=index, parent=_parent(egress)):
            options = item.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if options is not None and hasattr(options, "get_attr") else None
            if name is not None and item["info"] >> 16 == PRIORITY:
                found.append(str(name))
        return found
