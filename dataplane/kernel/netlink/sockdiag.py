"""sock_diag(7): list connected UDP sockets of the current network namespace, and disconnect single ones.

Byte order: addresses and ports are in network order on the wire and here decoded; cookies are those of
bpf_get_socket_cookie(). Needs CONFIG_INET_DIAG_DESTROY for `destroy`.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import SOCK_DIAG, Netlink, Refused

_DESTROY, _BY_FAMILY = 21, 20
_ESTABLISHED = 1 << 1  # a UDP socket that is connected is in this state
_REQUEST_HEAD = struct.Struct("=BBBBI")
_SOCKET_ID = 48
_ID_IN_ANSWER = 4


class ConnectedSocket(NamedTuple):
    """A connected UDP socket. identity: the kernel's own description of it, as `destroy` wants it back."""

    family: int
    destination: bytes
    port: int
    cookie: int
    identity: bytes


def _body(family: int, identity: bytes) -> bytes:
    return _REQUEST_HEAD.pack(family, socket.IPPROTO_UDP, 0, 0, _ESTABLISHED) + identity


@contextmanager
def _sock_diag() -> Iterator[Netlink]:
    """A netlink socket whose refusals say what they are about."""
    with Netlink(SOCK_DIAG) as netlink:
        try:
            yield netlink
        except Refused as refusal:
            raise Refused(refusal.number, "UDP sockets by sock_diag") from refusal


def connected_udp_sockets() -> list[ConnectedSocket]:
    """Every connected UDP socket here. Destinations are 16 bytes, IPv4 mapped. O(number of UDP sockets).

    Raises Refused, OSError.
    """
    found = []
    with _sock_diag() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in netlink.dump(_BY_FAMILY, _body(family, bytes(_SOCKET_ID))):
                identity = bytes(answer[_ID_IN_ANSWER : _ID_IN_ANSWER + _SOCKET_ID])
                raw = identity[20:36]
                destination = raw if answer[0] == socket.AF_INET6 else bytes(10) + b"\xff\xff" + raw[:4]
                (port,) = struct.unpack_from(">H", identity, 2)
                (cookie,) = struct.unpack_from("=Q", identity, 40)
                found.append(ConnectedSocket(family, destination, port, cookie, identity))
    return found


def destroy(target: ConnectedSocket) -> bool:
    """Disconnect a socket: its owner's calls fail with ECONNABORTED, once. False when it is gone already.

    Raises Refused (EOPNOTSUPP: the kernel was built without CONFIG_INET_DIAG_DESTROY), OSError.
    """
    with _sock_diag() as netlink:
        try:
            netlink.request(_DESTROY, _body(target.family, target.identity))
        except Refused as refusal:
            if refusal.number == errno.ENOENT:
                return False
            raise
    return True
