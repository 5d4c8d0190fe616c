"""tc programs on devices through a clsact qdisc, for kernels without tcx (before Linux 6.6)."""

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import HotplaneError

INGRESS_PARENT, EGRESS_PARENT = 0xFFFFFFF2, 0xFFFFFFF3
PRIORITY = 0x4850
"""Preference of hotplane's filters: late, and a number that nobody else is likely to use."""
_ETH_P_ALL = 0x0003
_EEXIST, _ENOENT, _EINVAL = 17, 2, 22


class ClsactError(HotplaneError):
    """The kernel refused a tc filter; the text says where."""


def _parent(egress: bool) -> int:
    return EGRESS_PARENT if egress else INGRESS_PARENT


def attach(index: int, program: int, name: str, *, egress: bool) -> None:
    """Put a program (descriptor) on a device of the current network namespace, or replace ours there atomically.

    index: ifindex. name: shown by `tc filter show`. Raises ClsactError.
    """
    with IPRoute() as door:
        try:
            door.tc("add", "clsact", index=index)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise ClsactError(f"clsact on device {index}: {error}") from error
        try:
            door.tc(
                "replace-filter", "bpf", index=index, handle=1, fd=program, name=name, parent=_parent(egress),
                prio=PRIORITY, protocol=_ETH_P_ALL, classid=1, direct_action=True,
            )  # fmt: skip
        except NetlinkError as error:
            raise ClsactError(f"tc filter on device {index}: {error}") from error


def detach(index: int) -> None:
    """Take our filters off a device, and the qdisc with the last filter of all; fine when there is none."""
    with IPRoute() as door:
        for egress in (False, True):
            try:
                door.tc("del-filter", index=index, parent=_parent(egress), prio=PRIORITY, protocol=_ETH_P_ALL)
            except NetlinkError as error:
                if error.code not in (_ENOENT, _EINVAL):
                    raise ClsactError(f"tc filter on device {index}: {error}") from error
        if not any(filters(index, egress=egress, everybody=True) for egress in (False, True)) and _has_qdisc(
            door, index
        ):
            door.tc("del", "clsact", index=index)


def _has_qdisc(door: IPRoute, index: int) -> bool:
    return any(q["index"] == index and q.get_attr("TCA_KIND") == "clsact" for q in door.get_qdiscs())


def filters(index: int, *, egress: bool, everybody: bool = False) -> list[str]:
    """Names of our filters on a device (or of everybody's), for status and cleanup."""
    with IPRoute() as door:
        if not _has_qdisc(door, index):
            return []
        found = []
        for item in door.get_filters(index=index, parent=_parent(egress)):
            options = item.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if options is not None and hasattr(options, "get_attr") else None
            if name is not None and (everybody or item["info"] >> 16 == PRIORITY):
                found.append(str(name))
        return found
