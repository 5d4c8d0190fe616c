"""sock_diag(7): list connected UDP sockets of the current network namespace, and disconnect single ones.

Byte order: addresses and ports are in network order on the wire and here decoded; cookies are those of
bpf_get_socket_cookie(). Needs CONFIG_INET_DIAG_DESTROY for `destroy`.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_DESTROY, _BY_FAMILY = 21, 20
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_ESTABLISHED = 1 << 1  # a UDP socket that is connected is in this state
_HEADER = struct.Struct("=IHHII")
_REQUEST_HEAD = struct.Struct("=BBBBI")
_SOCKET_ID = 48
_ID_IN_ANSWER = _HEADER.size + 4


class ConnectedSocket(NamedTuple):
    """A connected UDP socket. identity: the kernel's own description of it, as `destroy` wants it back."""

    family: int
    destination: bytes
    port: int
    cookie: int
    identity: bytes


def _request(kind: int, flags: int, family: int, states: int, identity: bytes) -> bytes:
    body = _REQUEST_HEAD.pack(family, socket.IPPROTO_UDP, 0, 0, states) + identity
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _answers(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Messages of an answer, without the closing one. Raises OSError for what the kernel reports as error."""
    while True:
        data = sock.recv(1 << 20)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if number:
                    raise OSError(-number, f"sock_diag: {os.strerror(-number)}")
                return
            yield kind, data[at : at + length]
            at += (length + 3) & ~3


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)


def connected_udp_sockets() -> list[ConnectedSocket]:
    """Every connected UDP socket here. Destinations are 16 bytes, IPv4 mapped. O(number of UDP sockets)."""
    found = []
    with _open() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            sock.send(_request(_BY_FAMILY, _REQUEST | _DUMP, family, _ESTABLISHED, bytes(_SOCKET_ID)))
            for _, answer in _answers(sock):
                identity = answer[_ID_IN_ANSWER : _ID_IN_ANSWER + _SOCKET_ID]
                raw = identity[20:36]
                destination = raw if answer[_HEADER.size] == socket.AF_INET6 else bytes(10) + b"\xff\xff" + raw[:4]
                (port,) = struct.unpack_from(">H", identity, 2)
                (cookie,) = struct.unpack_from("=Q", identity, 40)
                found.append(ConnectedSocket(family, destination, port, cookie, identity))
    return found


def destroy(target: ConnectedSocket) -> bool:
    """Disconnect a socket: its owner's calls fail with ECONNABORTED, once. False when it is gone already.

    Raises OSError (EOPNOTSUPP: the kernel was built without CONFIG_INET_DIAG_DESTROY).
    """
    with _open() as sock:
        sock.send(_request(_DESTROY, _REQUEST | _ACK, target.family, _ESTABLISHED, target.identity))
        try:
            for _ in _answers(sock):
                continue
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True
