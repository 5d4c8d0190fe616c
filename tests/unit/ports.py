"""Ports of this machine that nobody else is given while a test uses them.

A port that the system gave out for port 0 may be anybody's again once its socket is closed: another process's, or even
the source port of the very connection that is made to it, which TCP then establishes with itself (RFC 9293, 3.5).
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_LOWEST = 10000
_STEP = 97


def _outside() -> list[int]:
    """Ports that the system gives to no socket by itself: those outside net.ipv4.ip_local_port_range."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return [port for port in range(_LOWEST, 65536) if not low <= port <= high]


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket that has this port at every address, IPv4 and IPv6. Raises OSError."""
    sock = socket.socket(socket.AF_INET6, kind)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def free_ports(count: int = 1) -> Iterator[int]:
    """The first of so many neighbouring ports, for servers of the test's own: free for TCP and UDP, and no other test's
    until the end, though that runs at the same time (an abstract socket stands for each)."""
    candidates = _outside()
    start = os.getpid() * _STEP % len(candidates)
    for first in candidates[start:] + candidates[:start]:
        with ExitStack() as mine:
            try:
                for port in range(first, first + count):
                    mark = mine.enter_context(socket.socket(socket.AF_UNIX))
                    mark.bind(f"\0hotplane-test-port-{port}")
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        _bound(kind, port).close()
            except (OSError, OverflowError):  # somebody has it; or there is no port 65536
                continue
            yield first
            return
    raise AssertionError(f"no {count} neighbouring ports are free")


def _deaf(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """A UDP socket that hears nobody but itself."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.connect((address, port))
    return sock


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses TCP and UDP on 127.0.0.1 and ::1: its sockets keep it from others, but the one does not
    listen, and the others hear nobody."""
    with free_ports() as port, _bound(socket.SOCK_STREAM, port):
        with _deaf(socket.AF_INET, "127.0.0.1", port), _deaf(socket.AF_INET6, "::1", port):
            yield port
