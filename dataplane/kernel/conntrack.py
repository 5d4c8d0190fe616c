"""Door to connection tracking: remove entries by netlink, in the current network namespace."""

import errno
from collections.abc import Iterable
from typing import Any

from pyroute2 import NFCTSocket
from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import (
    FILTER_FLAG_CTA_IP_DST,
    FILTER_FLAG_CTA_IP_SRC,
    FILTER_FLAG_CTA_PROTO_DST_PORT,
    FILTER_FLAG_CTA_PROTO_NUM,
    FILTER_FLAG_CTA_PROTO_SRC_PORT,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    nfct_msg,
)

from dataplane.errors import HotplaneError
from dataplane.model.net import Family, Protocol, canonical_address, host_port
from dataplane.plan.udp import StaleFlows

_ADDRESS = FILTER_FLAG_CTA_IP_DST
_PORT = FILTER_FLAG_CTA_PROTO_NUM | FILTER_FLAG_CTA_PROTO_DST_PORT
_REPLY = FILTER_FLAG_CTA_IP_SRC | FILTER_FLAG_CTA_PROTO_NUM | FILTER_FLAG_CTA_PROTO_SRC_PORT

Attributes = list[tuple[str, Any]]


class ConntrackError(HotplaneError):
    """The kernel refused to remove conntrack entries."""


def delete_udp(stale: Iterable[StaleFlows]) -> None:
    """Remove the conntrack entries of these UDP flows. Raises ConntrackError.

    IPv4: one filtered delete for each (Linux 5.8), in which the kernel walks its own table. IPv6: the kernel's filter
    compares IPv6 addresses the wrong way round (it keeps the equal ones; seen on 6.18), so it is asked only for the
    entries of the port, and what matches is deleted one by one.
    """
    by_family: dict[Family, list[StaleFlows]] = {}
    for flows in stale:
        by_family.setdefault(flows.family, []).append(flows)
    for family, group in by_family.items():
        try:
            with NFCTSocket(nfgen_family=family.socket_family) as door:
                if family is Family.IPV4:
                    for flows in group:
                        _delete_filtered(door, flows)
                else:
                    _delete_listed(door, group)
        except NetlinkError as error:
            names = ", ".join(sorted({host_port(flows.address, flows.port) for flows in group}))
            raise ConntrackError(
                f"conntrack entries of UDP flows to {names} could not be removed: {error}; their clients may stay with "
                "an endpoint that is gone until the entries time out"
            ) from error


def forget_all() -> None:
    """Remove every conntrack entry of the current network namespace. Raises ConntrackError."""
    try:
        with NFCTSocket() as door:
            door.flush()
    except NetlinkError as error:
        raise ConntrackError(f"conntrack entries could not be removed: {error}; is nf_conntrack loaded?") from error


def _tuple(*, address: Attributes, protocol: Attributes) -> dict[str, Any]:
    """A CTA_TUPLE_* attribute; ports are in network byte order on the wire (pyroute2 swaps them)."""
    parts: Attributes = [("CTA_TUPLE_IP", {"attrs": address})] if address else []
    return {"attrs": [*parts, ("CTA_TUPLE_PROTO", {"attrs": [("CTA_PROTO_NUM", int(Protocol.UDP)), *protocol]})]}


def _acknowledged(door: NFCTSocket, attributes: Attributes) -> None:
    message = nfct_msg()
    message["attrs"] = attributes
    door.request(
        message,
        IPCTNL_MSG_CT_DELETE,
        msg_flags=NLM_F_REQUEST | NLM_F_ACK,
        terminate=lambda answer: bool(answer["header"]["type"] == NLMSG_ERROR),
    )


def _delete_filtered(door: NFCTSocket, flows: StaleFlows) -> None:
    original = _tuple(address=[("CTA_IP_V4_DST", flows.address)], protocol=[("CTA_PROTO_DST_PORT", flows.port)])
    attributes: Attributes = [("CTA_TUPLE_ORIG", original)]
    flags = [("CTA_FILTER_ORIG_FLAGS", _ADDRESS | _PORT)]
    if flows.backend is not None:
        address, port = flows.backend
        reply = _tuple(address=[("CTA_IP_V4_SRC", address)], protocol=[("CTA_PROTO_SRC_PORT", port)])
        attributes.append(("CTA_TUPLE_REPLY", reply))
        flags.append(("CTA_FILTER_REPLY_FLAGS", _REPLY))
    _acknowledged(door, [*attributes, ("CTA_FILTER", {"attrs": flags})])


def _delete_listed(door: NFCTSocket, group: list[StaleFlows]) -> None:
    wanted = set(group)
    for port in {flows.port for flows in group}:
        message = nfct_msg()
        message["attrs"] = [
            ("CTA_TUPLE_ORIG", _tuple(address=[], protocol=[("CTA_PROTO_DST_PORT", port)])),
            ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", _PORT)]}),
        ]
        entries = list(door.request(message, IPCTNL_MSG_CT_GET, msg_flags=NLM_F_REQUEST | NLM_F_DUMP))
        for entry in entries:
            original, reply = entry.get_attr("CTA_TUPLE_ORIG"), entry.get_attr("CTA_TUPLE_REPLY")
            address, backend = _side(original, "DST"), _side(reply, "SRC")
            if not wanted.isdisjoint(
                {StaleFlows(Family.IPV6, *address), StaleFlows(Family.IPV6, *address, backend=backend)}
            ):
                _delete_entry(door, entry)


def _side(entry_tuple: Any, side: str) -> tuple[str, int]:
    address = entry_tuple.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_V6_{side}")
    return canonical_address(address), entry_tuple.get_attr("CTA_TUPLE_PROTO").get_attr(f"CTA_PROTO_{side}_PORT")


def _delete_entry(door: NFCTSocket, entry: Any) -> None:
    """Delete one entry by its own tuple and zone; fine when it timed out meanwhile."""
    source, destination = (_side(entry.get_attr("CTA_TUPLE_ORIG"), side) for side in ("SRC", "DST"))
    attributes: Attributes = [
        (
            "CTA_TUPLE_ORIG",
            _tuple(
                address=[("CTA_IP_V6_SRC", source[0]), ("CTA_IP_V6_DST", destination[0])],
                protocol=[("CTA_PROTO_SRC_PORT", source[1]), ("CTA_PROTO_DST_PORT", destination[1])],
            ),
        )
    ]
    zone = entry.get_attr("CTA_ZONE")
    if zone is not None:
        attributes.append(("CTA_ZONE", zone))
    try:
        _acknowledged(door, attributes)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
