"""Lists the translated connections in the conntrack table of this network namespace."""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.kernel.netlink.conntrack import (
    DESTINATION,
    ORIGINAL,
    REPLY,
    SOURCE,
    ConntrackError,
    list_entries,
    one_end,
    protocol_number,
)
from dataplane.kernel.netlink.netlink import Refused, attributes
from dataplane.model.net import Family, Protocol

_IPS_SRC_NAT = 1 << 4
_IPS_DST_NAT = 1 << 5  # linux/netfilter/nf_conntrack_common.h
_PROTOINFO, _TIMEOUT = 4, 7  # CTA_PROTOINFO, CTA_TIMEOUT
_PROTOINFO_TCP, _TCP_STATE = 1, 1
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


class Masqueraded(NamedTuple):
    """A flow with a translated source, by its answers' tuple: who answers, and the address and port it answers to."""

    protocol: Protocol
    backend: tuple[str, int]
    client: tuple[str, int]


def translated_connections() -> Iterator[Connection]:
    """Every TCP, UDP or SCTP connection with a translated destination. Raises ConntrackError."""
    for family, protocol, entry in _entries(_IPS_DST_NAT):
        yield Connection(
            family=family,
            protocol=protocol,
            client=one_end(entry[ORIGINAL], family, SOURCE),
            frontend=one_end(entry[ORIGINAL], family, DESTINATION),
            backend=one_end(entry[REPLY], family, SOURCE),
            state=tcp_state(entry),
            seconds_left=int.from_bytes(entry.get(_TIMEOUT, b""), "big"),
        )


def masqueraded_connections() -> Iterator[Masqueraded]:
    """Every TCP, UDP or SCTP flow with a translated source. Raises ConntrackError."""
    for family, protocol, entry in _entries(_IPS_SRC_NAT):
        reply = entry[REPLY]
        yield Masqueraded(protocol, one_end(reply, family, SOURCE), one_end(reply, family, DESTINATION))


def _entries(status: int) -> Iterator[tuple[Family, Protocol, dict[int, memoryview]]]:
    """Entries of both families, of protocols that Services have. Raises ConntrackError."""
    try:
        for family, entry in list_entries(status):
            number = protocol_number(entry[ORIGINAL])
            if number in set(Protocol):
                yield family, Protocol(number), entry
    except (Refused, OSError) as error:
        raise ConntrackError(f"connection tracking cannot be listed: {error}; run as root") from error


def tcp_state(entry: dict[int, memoryview]) -> str:
    """TCP's state by name, "" for other protocols."""
    info = dict(attributes(entry[_PROTOINFO])) if _PROTOINFO in entry else {}
    if _PROTOINFO_TCP not in info:
        return ""
    return _TCP_STATES[dict(attributes(info[_PROTOINFO_TCP]))[_TCP_STATE][0]]
