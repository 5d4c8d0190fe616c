"""Collect the faults of one object; checks of single values that several kinds share."""

import re
import sys
from functools import lru_cache
from typing import Generic, TypeGuard, TypeVar

from dataplane.model.net import Network, Protocol, canonical_address, network, stored_address
from dataplane.model.objects import ObjectRef, Problem

# Wider than Kubernetes' own rule (DNS labels), but without any character that a rule's comment, a chain's name or a
# terminal could trip over.
_NAME = re.compile(r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,251}[A-Za-z0-9])?", re.ASCII)

_PROTOCOLS = {None: Protocol.TCP, "": Protocol.TCP, "TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


class Report:
    """Problems and notes of one object while it is validated.

    muted: field paths that were reported already (values of a wrong type, which were taken out of the wire form).
    """

    __slots__ = ("kind", "muted", "name", "namespace", "notes", "problems")

    def __init__(self, kind: str, namespace: str, name: str, muted: frozenset[str] = frozenset()) -> None:
        self.kind = kind
        self.namespace = namespace
        self.name = name
        self.muted = muted
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.kind, self.namespace, self.name)

    def problem(self, field: str, reason: str) -> None:
        """Record a fault; the caller leaves out the value, or the object."""
        self.problems.append(Problem(self.ref, field, reason))

    def note(self, field: str, reason: str) -> None:
        """Record something that is valid but may surprise."""
        self.notes.append(Problem(self.ref, field, reason))

    def null(self, field: str) -> None:
        """Record a list item that is null, unless it is null because its fault was reported before."""
        if field not in self.muted:
            self.problem(field, "is null; remove the item or fill it in")


def valid_name(text: str) -> bool:
    """True if the text can name an object or a port."""
    return _NAME.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def valid_port_name(text: str) -> bool:
    """`valid_name` with a memory: few port names serve many Services."""
    return valid_name(text)


def is_port(number: int | None) -> TypeGuard[int]:
    """True if this is a port number that can be used."""
    return number is not None and 1 <= number <= 65535


def port_reason(number: int | None) -> str:
    """Return the reason for a port that `is_port` rejects."""
    found = "is missing" if number is None else f"is {number}"
    return f"{found}; a port is a whole number from 1 to 65535"


def protocol(text: str | None) -> Protocol | None:
    """Return the protocol of that name, TCP if not given (Kubernetes' default), None if unknown."""
    return _PROTOCOLS.get(text)


def protocol_reason(text: str | None) -> str:
    """Return the reason for a protocol that `protocol` rejects."""
    return f"is {text!r}; write TCP, UDP or SCTP, in capitals"


def address_reason(text: str) -> str:
    """Return the reason for an address that `canonical_address` rejects."""
    try:
        canonical_address(text)
    except ValueError as error:
        return f"{error}; write a plain IPv4 or IPv6 address"
    return ""


def read_address(text: str, field: str, report: Report) -> str:
    """Return the canonical text of a stored address, or "" if invalid (reported). A sloppy one is read and noted."""
    try:
        address = stored_address(text)
    except ValueError:
        report.problem(field, address_reason(text))
        return ""
    if address != text and address_reason(text):
        _note_sloppy(text, address, field, report)
    return address


def _note_sloppy(text: str, read: str, field: str, report: Report) -> None:
    report.note(field, f"is written {text!r} and read as {read}, as kube-proxy does; write {read}")


def read_cidr(text: str, field: str, report: Report) -> str:
    """Return the canonical text of a stored CIDR, or "" if invalid (reported). A sloppy one is read and noted."""
    try:
        return canonical_cidr(text)
    except ValueError as error:
        try:
            cidr = _sloppy_cidr(text.strip())
        except ValueError:
            report.problem(field, str(error))
            return ""
    _note_sloppy(text, cidr, field, report)
    return cidr


def _sloppy_cidr(text: str) -> str:
    """A CIDR whose address is sloppy. The length of an IPv4-mapped one counts the 96 bits before the IPv4 address;
    a shorter one is an IPv6 range. Raises ValueError."""
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit()):
        raise ValueError
    read, bits = stored_address(address), int(length)
    if ":" in address and ":" not in read:
        read, bits = (read, bits - 96) if bits >= 96 else (f"::ffff:{read}", bits)
    return str(network(f"{read}/{bits}"))


def special_reason(address: str, *, link_local: bool) -> str:
    """Return why a canonical address can be neither an endpoint nor a frontend, or "".

    Kubernetes' API refuses unspecified, loopback, link-local and link-local multicast addresses for endpoints and
    externalIPs; no multicast or broadcast address can be balanced either. link_local: also refuse link-local unicast.
    """
    if ":" in address:
        special = {"::": "the unspecified address", "::1": "the loopback address"}.get(address, "")
        if address.startswith("ff") and not special:
            special = _multicast_v6(address)
        if link_local and address[:3] in ("fe8", "fe9", "fea", "feb") and address.index(":") == 4:
            special = "a link-local address"
    else:
        special = _special_v4(address, link_local)
    return (
        f"{address} is {special}, which no Service can use; write an address that other hosts reach" if special else ""
    )


def _multicast_v6(address: str) -> str:
    return "a multicast address" if address.index(":") == 4 else ""


def _special_v4(address: str, link_local: bool) -> str:
    first = int(address[: address.index(".")])
    if first == 127:
        return "a loopback address"
    if first >= 224:
        return "the broadcast address" if address == "255.255.255.255" else "a multicast or reserved address"
    if address == "0.0.0.0":
        return "the unspecified address"
    return "a link-local address" if link_local and address.startswith("169.254.") else ""


def canonical_cidr(text: str) -> str:
    """Canonical text of a CIDR: spaces around it trimmed, host bits cleared, as Kubernetes does.

    Raises ValueError with a sentence if it is invalid (netmask notation and IPv4-mapped addresses included).
    """
    stripped = text.strip()
    address, slash, length = stripped.partition("/")
    if not slash or not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} is not a CIDR; write address/prefix length, such as 10.0.0.0/8")
    try:
        parsed: Network = network(f"{canonical_address(address)}/{length}")
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a CIDR ({error}); write address/prefix length, such as 10.0.0.0/8"
        ) from error
    return str(parsed)


_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Cache that returns one object for all equal values that many objects share, such as their ports."""

    _MOST = 4096

    def __init__(self) -> None:
        self._known: dict[_T, _T] = {}

    def __call__(self, value: _T) -> _T:
        """Return the shared object for a value."""
        if len(self._known) >= self._MOST:
            self._known.clear()
        return self._known.setdefault(value, value)


@lru_cache(maxsize=1024)
def interned(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return one shared tuple for equal tuples of zone or node names: thousands of endpoints have the same hints."""
    return tuple(sys.intern(name) for name in names)
