"""Door to connection tracking: remove entries of UDP flows, by netlink, in the current network namespace."""

from collections.abc import Iterable
from typing import Any

from pyroute2 import NFCTSocket
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import (
    FILTER_FLAG_CTA_IP_DST,
    FILTER_FLAG_CTA_IP_SRC,
    FILTER_FLAG_CTA_PROTO_DST_PORT,
    FILTER_FLAG_CTA_PROTO_NUM,
    FILTER_FLAG_CTA_PROTO_SRC_PORT,
    IPCTNL_MSG_CT_DELETE,
    nfct_msg,
)

from dataplane.errors import HotplaneError
from dataplane.model.net import Family, Protocol
from dataplane.plan.udp import StaleFlows

_ORIGINAL = FILTER_FLAG_CTA_IP_DST | FILTER_FLAG_CTA_PROTO_NUM | FILTER_FLAG_CTA_PROTO_DST_PORT
_REPLY = FILTER_FLAG_CTA_IP_SRC | FILTER_FLAG_CTA_PROTO_NUM | FILTER_FLAG_CTA_PROTO_SRC_PORT


class ConntrackError(HotplaneError):
    """The kernel refused to remove conntrack entries."""


def _tuple(family: Family, side: str, address: str, port: int) -> dict[str, Any]:
    """A CTA_TUPLE_* attribute with one side ("SRC" or "DST") filled in; ports in network byte order on the wire."""
    version = "V6" if family is Family.IPV6 else "V4"
    return {
        "attrs": [
            ("CTA_TUPLE_IP", {"attrs": [(f"CTA_IP_{version}_{side}", address)]}),
            ("CTA_TUPLE_PROTO", {"attrs": [("CTA_PROTO_NUM", int(Protocol.UDP)), (f"CTA_PROTO_{side}_PORT", port)]}),
        ]
    }


def _request(flows: StaleFlows) -> nfct_msg:
    """A filtered delete (Linux 5.8 and later): the kernel walks its table and removes only what matches."""
    message = nfct_msg()
    flags = [("CTA_FILTER_ORIG_FLAGS", _ORIGINAL)]
    attributes: list[tuple[str, Any]] = [("CTA_TUPLE_ORIG", _tuple(flows.family, "DST", flows.address, flows.port))]
    if flows.backend is not None:
        attributes.append(("CTA_TUPLE_REPLY", _tuple(flows.family, "SRC", *flows.backend)))
        flags.append(("CTA_FILTER_REPLY_FLAGS", _REPLY))
    attributes.append(("CTA_FILTER", {"attrs": flags}))
    message["attrs"] = attributes
    return message


def delete_udp(stale: Iterable[StaleFlows]) -> int:
    """Remove the conntrack entries of these UDP flows; returns the number of requests made.

    One request per item, each a walk of the conntrack table in the kernel. Raises ConntrackError.
    """
    requests = 0
    by_family: dict[Family, list[StaleFlows]] = {}
    for flows in stale:
        by_family.setdefault(flows.family, []).append(flows)
    for family, group in by_family.items():
        with NFCTSocket(nfgen_family=family.socket_family) as door:
            for flows in group:
                requests += 1
                _delete(door, flows)
    return requests


def _delete(door: NFCTSocket, flows: StaleFlows) -> None:
    try:
        door.request(
            _request(flows),
            IPCTNL_MSG_CT_DELETE,
            msg_flags=NLM_F_REQUEST | NLM_F_ACK,
            terminate=lambda message: bool(message["header"]["type"] == NLMSG_ERROR),
        )
    except NetlinkError as error:
        raise ConntrackError(
            f"conntrack entries of UDP flows to {flows.address} port {flows.port} could not be removed: {error}; "
            "their clients may stay with an endpoint that is gone until the entries time out"
        ) from error
