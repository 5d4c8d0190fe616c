"""What the kernel has around the devices of a node that host routing must know of: queueing disciplines, other
programs' filters, neighbours, learnt stations of bridges, IPsec policies. Of the current network namespace."""

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError
from dataplane.kernel.netlink import clsact
from dataplane.kernel.netlink.netlink import Netlink, Refused, attributes

_AF_BRIDGE = 7
_NETLINK_XFRM, _XFRM_MSG_GETPOLICY, _XFRM_POLICY_ID_SIZE = 6, 0x15, 64  # linux/xfrm.h; sizeof(xfrm_userpolicy_id)
_UNUSABLE = 0x01 | 0x20  # NUD_INCOMPLETE, NUD_FAILED
_NOT_HERE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV)
_PARENTS = (clsact.INGRESS_PARENT, clsact.EGRESS_PARENT)


class Surroundings(NamedTuple):
    """qdiscs: kinds of queueing disciplines by ifindex. filters: what another program has at ingress or egress of a
    device, as a clause, by ifindex. neighbours: hardware address by (ifindex, address in canonical text). stations: by
    (ifindex of a bridge, hardware address) the ifindex of the port behind which it is. ipsec: the node has policies.
    Hardware addresses as six bytes."""

    qdiscs: Mapping[int, Collection[str]] = {}
    filters: Mapping[int, str] = {}
    neighbours: Mapping[tuple[int, str], bytes] = {}
    stations: Mapping[tuple[int, bytes], int] = {}
    ipsec: bool = False


def read_surroundings(devices: Collection[int], programs: Collection[int]) -> Surroundings:
    """Read them. devices: ifindexes to ask for filters. programs: ids of hotplane's own. Raises OSError, Refused."""
    with IPRoute() as rtnetlink:
        qdiscs: dict[int, list[str]] = {}
        for message in rtnetlink.get_qdiscs():
            qdiscs.setdefault(int(message["index"]), []).append(str(message.get_attr("TCA_KIND")))
        filters = {index: said for index in devices if (said := _filters(rtnetlink, index, qdiscs, programs))}
        neighbours = {
            (int(message["ifindex"]), str(message.get_attr("NDA_DST"))): mac
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in rtnetlink.get_neighbours(family=family)
            if not message["state"] & _UNUSABLE and (mac := _mac(message))
        }
        stations = {
            (int(message.get_attr("NDA_MASTER")), mac): int(message["ifindex"])
            for message in rtnetlink.get_neighbours(family=_AF_BRIDGE)
            if message.get_attr("NDA_MASTER") and (mac := _mac(message))
        }
    return Surroundings(qdiscs, filters, neighbours, stations, ipsec=ipsec_policies())


def _mac(message: Any) -> bytes:
    """The hardware address of a neighbour, empty where there is none of Ethernet's."""
    text = str(message.get_attr("NDA_LLADDR") or "")
    try:
        raw = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return b""
    return raw if len(raw) == 6 else b""


def _filters(
    rtnetlink: IPRoute, index: int, qdiscs: Mapping[int, Collection[str]], programs: Collection[int]
) -> str | None:
    """What others have at ingress or egress of a device, None if nothing."""
    kinds = qdiscs.get(index, ())
    if "ingress" in kinds:
        return "an ingress queueing discipline of another program"
    if "clsact" in kinds:
        for parent in _PARENTS:
            for message in rtnetlink.get_filters(index=index, parent=parent):
                if message["info"] >> 16 != clsact.PRIORITY:
                    return f"a tc filter of another program (preference {message['info'] >> 16})"
    return next((f"a tc program of another program (id {number})" for number in _attached(index, programs)), None)


def _attached(index: int, programs: Collection[int]) -> Iterator[int]:
    """Ids of others' programs on a device by tcx; none on kernels without it, or when the device has gone."""
    for kind in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
        try:
            yield from (number for number in bpf.attached_programs(index, kind) if number not in programs)
        except BpfError as error:
            if error.errno not in _NOT_HERE:
                raise


def ipsec_policies() -> bool:
    """True if the network namespace has IPsec policies. A kernel without IPsec has none. Raises OSError, Refused."""
    try:
        with Netlink(_NETLINK_XFRM) as netlink:
            return bool(netlink.dump(_XFRM_MSG_GETPOLICY, bytes(_XFRM_POLICY_ID_SIZE)))
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False
        raise
    except Refused as error:
        if error.number in (errno.EINVAL, errno.EOPNOTSUPP):  # the module that answers is not there, so has no policy
            return False
        raise


class NeighbourNews(NamedTuple):
    """A neighbour or a bridge's station that the kernel told of. address: "" for a station. gone: it was removed."""

    family: int
    ifindex: int
    address: str
    mac: bytes
    gone: bool


_NDMSG = struct.Struct("=BxxxiHBB")
_NEW, _REMOVED = 28, 29  # RTM_NEWNEIGH, RTM_DELNEIGH
_DST, _LLADDR = 1, 2


def neighbour_news(kind: int, body: memoryview) -> NeighbourNews | None:
    """Decode a notification of rtnetlink, None if it is no neighbour's. body: behind the netlink header."""
    if kind not in (_NEW, _REMOVED) or len(body) < _NDMSG.size:
        return None
    family, ifindex, state, _, _ = _NDMSG.unpack_from(body)
    found = {number: bytes(payload) for number, payload in attributes(body[_NDMSG.size :])}
    address = found.get(_DST, b"")
    text = socket.inet_ntop(family, address) if family in (socket.AF_INET, socket.AF_INET6) and address else ""
    return NeighbourNews(family, ifindex, text, found.get(_LLADDR, b""), kind == _REMOVED or bool(state & _UNUSABLE))
