"""Addresses, families and protocols: the values that every layer shares.

An address is stored as *canonical text* (the output of inet_ntop), the form of manifests, nftables, iptables and
messages; `packed()` gives the network-byte-order form.
"""

import enum
import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

# Plain integers: a member of AddressFamily makes each call of inet_pton take twice as long.
AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAPPED = b"\0" * 10 + b"\xff\xff"
_LEADING_ZEROS = re.compile(r"(?<![0-9A-Fa-f])0+(?=[0-9A-Fa-f])")


class Family(enum.IntEnum):
    """An IP family; the value is the IP version number."""

    IPV4 = 4
    IPV6 = 6

    @property
    def bits(self) -> int:
        """Length of an address in bits."""
        return 32 if self is Family.IPV4 else 128

    @property
    def socket_family(self) -> socket.AddressFamily:
        """The AF_* constant of this family."""
        return socket.AF_INET if self is Family.IPV4 else socket.AF_INET6


class Protocol(enum.IntEnum):
    """A transport protocol that a Service can name; the value is the IANA protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132

    @property
    def text(self) -> str:
        """Lower-case name, as iptables, nftables and kube-proxy's chain hashes spell it."""
        return self.name.lower()


def canonical_address(text: str) -> str:
    """Return the canonical text of an IPv4 or IPv6 address.

    Raises ValueError for anything else, IPv4-mapped IPv6 (`::ffff:a.b.c.d`) included: Kubernetes
    reads that as IPv4 in some places and as IPv6 in others, so it is unsafe as a frontend.
    """
    try:
        if ":" in text:
            packed_address = socket.inet_pton(socket.AF_INET6, text)
            if packed_address.startswith(MAPPED):
                raise ValueError(f"IPv4-mapped IPv6 address {text!r}; write it as IPv4")
            return socket.inet_ntop(socket.AF_INET6, packed_address)
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
    except (OSError, UnicodeEncodeError) as error:
        raise ValueError(f"{text!r} is not an IP address") from error


def stored_address(text: str) -> str:
    """Return the canonical text of an address in an object that an older API server may have stored.

    As kube-proxy reads it: numbers with leading zeros are decimal, IPv4-mapped IPv6 is plain IPv4. Newer API servers
    refuse both in new objects and keep them in old ones (KEP-4858). Raises ValueError for anything else.
    """
    try:
        return canonical_address(text)
    except ValueError:
        plain = _LEADING_ZEROS.sub("", text)
        try:
            packed_address = socket.inet_pton(socket.AF_INET6, plain) if ":" in plain else b""
        except (OSError, UnicodeEncodeError):
            packed_address = b""
        if packed_address.startswith(MAPPED):
            return socket.inet_ntop(socket.AF_INET, packed_address[len(MAPPED) :])
        return canonical_address(plain)


def family_of(address: str) -> Family:
    """Return the family of an address or CIDR in text form."""
    return Family.IPV6 if ":" in address else Family.IPV4


def packed(address: str) -> bytes:
    """Return the address in network byte order, 4 or 16 bytes."""
    return socket.inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def mapped(address: str) -> bytes:
    """Return the address in network byte order, 16 bytes; IPv4 is mapped (RFC 4291, 2.5.5.2)."""
    return socket.inet_pton(AF_INET6, address) if ":" in address else MAPPED + socket.inet_pton(AF_INET, address)


@lru_cache(maxsize=4096)
def network(cidr: str) -> Network:
    """Parse a CIDR, host bits allowed (they are cleared, as Kubernetes does). Raises ValueError."""
    if "/" not in cidr:
        raise ValueError(f"{cidr!r} is not a CIDR: the prefix length is missing")
    return ipaddress.ip_network(cidr, strict=False)


def contains(cidrs: Iterable[str], address: str) -> bool:
    """True if any of the CIDRs holds the address; CIDRs of the other family never do."""
    parsed = ipaddress.ip_address(address)
    return any(net.version == parsed.version and parsed in net for net in map(network, cidrs))


def is_loopback(address: str) -> bool:
    """True if the address is in 127.0.0.0/8 or is ::1."""
    return address.startswith("127.") or address == "::1"


def host_port(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
