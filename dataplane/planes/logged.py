"""Refused packets as rules hand them over: by `log` rules to a group of nfnetlink_log, whose prefix is the reason."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping

from dataplane.kernel.devices import device_name
from dataplane.kernel.netlink.netlink import Refused
from dataplane.kernel.netlink.nflog import Logged, PacketLog
from dataplane.planes.base import PlaneError
from dataplane.planes.captures import Captured, Link

GROUP = 0x4850
"""Of nfnetlink_log; the numbers below are those that other programs take."""

_IPV4_LENGTH, _IPV6_LENGTH, _IPV6_HEADER = slice(2, 4), slice(4, 6), 40


def open_log(snap: int) -> PacketLog:
    """Open the group in this network namespace. snap: bytes of a packet that are kept. Raises PlaneError if somebody
    has it already, or there is no right to."""
    try:
        return PacketLog(GROUP, snap)
    except Refused as error:
        if error.number in (errno.EBUSY, errno.EPERM) and os.geteuid() == 0:  # of another socket's group: EPERM
            raise PlaneError("refused packets are captured by another process already; end it first") from error
        raise PlaneError(f"refused packets cannot be captured: {error}; run as root") from error
    except OSError as error:
        raise PlaneError(f"refused packets cannot be captured: {error.strerror}; run as root") from error


def captured(packets: Iterable[Logged], where: str, fates: Mapping[str, str]) -> Iterator[Captured]:
    """Yield packets as a capture has them. where: the mode whose rules refused them. fates: by reason."""
    for packet in packets:
        ifindex = packet.device_in or packet.device_out
        reason, data = packet.prefix, packet.data
        fate, length = fates.get(reason, ""), _length(data)
        yield Captured(packet.ns, device_name(ifindex), ifindex, Link.RAW, data, length, where, reason, fate)


def _length(data: bytes) -> int:
    """The length of an IP packet by its header; of the data where that says less."""
    told = 0
    if len(data) >= _IPV4_LENGTH.stop and data[0] >> 4 == 4:
        told = int.from_bytes(data[_IPV4_LENGTH], "big")
    elif len(data) >= _IPV6_LENGTH.stop and data[0] >> 4 == 6:
        told = int.from_bytes(data[_IPV6_LENGTH], "big") + _IPV6_HEADER
    return max(told, len(data))
