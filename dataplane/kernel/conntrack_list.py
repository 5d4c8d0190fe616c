"""Door to connection tracking: the translated connections that the kernel holds now, in this network namespace."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.kernel.conntrack import ConntrackError
from dataplane.model.net import Family, Protocol

_IPS_SRC_NAT = 1 << 4
_IPS_DST_NAT = 1 << 5  # linux/netfilter/nf_conntrack_common.h
_TCP_STATES = (
    "none", "syn-sent", "syn-received", "established", "fin-wait", "close-wait", "last-ack", "time-wait", "close",
)  # fmt: skip


class Connection(NamedTuple):
    """One connection with a translated destination: who, to which address, and where it really goes.

    state: TCP's state in lower case, "" for other protocols. Ports in host order.
    """

    family: Family
    protocol: Protocol
    client: tuple[str, int]
    frontend: tuple[str, int]
    backend: tuple[str, int]
    state: str
    seconds_left: int


def _tuple(message: Any, side: str, which: str) -> tuple[str, int]:
    """(address, port) of one end ("SRC" or "DST") of one direction's tuple."""
    version = "V6" if message["nfgen_family"] == Family.IPV6.socket_family else "V4"
    both = message.get_attr(f"CTA_TUPLE_{which}")
    address = both.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_{version}_{side}")
    return str(address), int(both.get_attr("CTA_TUPLE_PROTO").get_attr(f"CTA_PROTO_{side}_PORT") or 0)


def _state(message: Any) -> str:
    info = message.get_attr("CTA_PROTOINFO")
    tcp = info.get_attr("CTA_PROTOINFO_TCP") if info is not None else None
    return _TCP_STATES[tcp.get_attr("CTA_PROTOINFO_TCP_STATE")] if tcp is not None else ""


def translated_connections() -> Iterator[Connection]:
    """Every TCP, UDP or SCTP connection with a translated destination. Raises ConntrackError."""
    try:
        for family in Family:
            with NFCTSocket(nfgen_family=family.socket_family) as door:
                yield from (_connection(message, family) for message in door.dump() if _translated(message))
    except (NetlinkError, OSError) as error:
        raise ConntrackError(f"connection tracking cannot be listed: {error}; run as root") from error


class Masqueraded(NamedTuple):
    """A flow with a translated source, by its answers' tuple: who answers, and the address and port it answers to."""

    protocol: Protocol
    backend: tuple[str, int]
    client: tuple[str, int]


def masqueraded_connections() -> Iterator[Masqueraded]:
    """Every TCP, UDP or SCTP flow with a translated source. Raises ConntrackError."""
    try:
        for family in Family:
            with NFCTSocket(nfgen_family=family.socket_family) as door:
                for message in door.dump():
                    if _translated(message, _IPS_SRC_NAT):
                        number = (
                            message.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM")
                        )
                        answers = _tuple(message, "SRC", "REPLY"), _tuple(message, "DST", "REPLY")
                        yield Masqueraded(Protocol(number), *answers)
    except (NetlinkError, OSError) as error:
        raise ConntrackError(f"connection tracking cannot be listed: {error}; run as root") from error


def _translated(message: Any, how: int = _IPS_DST_NAT) -> bool:
    number = message.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM")
    return bool(message.get_attr("CTA_STATUS") & how) and number in set(Protocol)


def _connection(message: Any, family: Family) -> Connection:
    number = message.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM")
    return Connection(
        family=family,
        protocol=Protocol(number),
        client=_tuple(message, "SRC", "ORIG"),
        frontend=_tuple(message, "DST", "ORIG"),
        backend=_tuple(message, "SRC", "REPLY"),
        state=_state(message),
        seconds_left=int(message.get_attr("CTA_TIMEOUT") or 0),
    )
