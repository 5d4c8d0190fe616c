"""Sends the packet that is traced: a TCP connection that is opened and closed, or one UDP datagram.

A child process does it, in the network namespace and the control group of whom it is sent for: connect-time programs
go by the group that a socket was made in. The child waits until it is told to begin.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from dataplane.errors import HotplaneError, UsageError
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.model.net import Protocol, family_of
from dataplane.oracle.types import Packet
from dataplane.resource import Resource

DATAGRAM = b"hotplane trace\n"
_NETNS_COOKIE = 71  # SO_NETNS_COOKIE, Linux 5.14
_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT: the port is chosen when it connects, as without bind
_DISCARD = 9
"""A port to which a socket is connected, without a packet, to learn which source address routing chooses."""


class Origin(NamedTuple):
    """Where a packet is sent from. netns: a name, or a path; "" is this one. group: directory of a control group, None
    is this process's. who: for messages."""

    netns: str = ""
    group: Path | None = None
    who: str = "this node"


class Sent(NamedTuple):
    """What became of it. outcome: answered, refused, silence (no answer in time), error. detail: of refused and error,
    as text. port: the sender's own. began, ended: CLOCK_MONOTONIC."""

    outcome: str
    detail: str
    port: int
    began: float
    ended: float


def of_process(pid: int) -> Origin:
    """Where a process's packets come from. Raises UsageError for one that is not there, HotplaneError."""
    path = Path(f"/proc/{pid}")
    try:
        groups = (path / "cgroup").read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--from-pid {pid}: {error.strerror}; name a process that is running") from error
    own = next((line[3:] for line in groups if line.startswith("0::")), "")
    mounted = cgroup.mount_points()
    group = mounted[0] / own.lstrip("/") if own and mounted else None
    return Origin(str(path / "ns/net"), group if group is not None and group.is_dir() else None, f"process {pid}")


class Sender(Resource):
    """The child. timeout: seconds to wait for an answer. cookie: of its network namespace, 0 if the kernel does not
    tell. Raises HotplaneError if it cannot be where it is to send from, or the source is no address there."""

    def __init__(self, packet: Packet, origin: Origin, timeout: float) -> None:
        if packet.protocol is Protocol.SCTP:
            raise UsageError("--send: SCTP is not sent; use TCP or UDP, or leave --send out and connect yourself")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._go, go = os.pipe()[::-1]
        self._said, out = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._go)
            os.close(self._said)
            _child(packet, origin, timeout, go, out)
        os.close(go)
        os.close(out)
        self._rest = b""
        ready = self._line()
        if "error" in ready:
            self.close()
            raise HotplaneError(f"the packet cannot be sent from {origin.who}: {ready['error']}")
        self.cookie = int(ready.get("cookie", 0))

    def fileno(self) -> int:
        """For poll and the like: it can be read when `result` does not wait."""
        return self._said

    def begin(self) -> None:
        """Send now."""
        os.write(self._go, b"!")

    def result(self) -> Sent:
        """What became of it; waits for it. Raises HotplaneError."""
        found = self._line()
        if "outcome" not in found:
            raise HotplaneError(f"the sending process ended early: {found.get('error', 'no reason told')}")
        return Sent(**found)

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            read = os.read(self._said, 4096)
            if not read:
                return {}
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def let_go(self) -> None:
        """Close the connection; for after `result`."""
        os.write(self._go, b".")

    def close(self) -> None:
        """End the child; may be called twice."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._go)
            os.close(self._said)
            self._pid = 0


def _child(packet: Packet, origin: Origin, timeout: float, go: int, out: int) -> None:
    """Go where the origin is, wait, send, tell, end. Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it and ends this process
        with socket_at(packet, origin) as sock:
            _tell(out, cookie=_cookie(sock))
            if os.read(go, 1):
                _tell(out, **_exchange(sock, packet, timeout)._asdict())
                os.read(go, 1)  # the connection stays open until the parent has seen it
        status = 0
    except OSError as error:
        _tell(out, error=f"{error.strerror or error}")
    except BaseException as error:  # noqa: BLE001 - the parent tells it
        _tell(out, error=f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def socket_at(packet: Packet, origin: Origin) -> socket.socket:
    """A socket in the origin's control group and network namespace, which this thread enters for good. It is bound only
    if routing would choose another source. Raises OSError."""
    if origin.group is not None:
        cgroup.enter(origin.group)
    if origin.netns:
        netns.enter(origin.netns)
    family = family_of(packet.source).socket_family
    sock = socket.socket(family, socket.SOCK_STREAM if packet.protocol is Protocol.TCP else socket.SOCK_DGRAM)
    if _routed_source(packet) != packet.source:
        sock.setsockopt(socket.SOL_IP, _ADDRESS_NO_PORT, 1)
        try:
            sock.bind((packet.source, 0))
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            raise OSError(error.errno, f"{packet.source} is no address there") from error
    return sock


def _routed_source(packet: Packet) -> str:
    """The source that routing chooses, "" if there is no route."""
    with socket.socket(family_of(packet.source).socket_family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((packet.destination, _DISCARD))
        except OSError:
            return ""
        return str(sock.getsockname()[0])


def _cookie(sock: socket.socket) -> int:
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8), "little")
    except OSError:
        return 0


def _exchange(sock: socket.socket, packet: Packet, timeout: float) -> Sent:
    """Connect and close, or send one datagram and wait for an answer."""
    sock.settimeout(timeout)
    began, outcome, detail = time.monotonic(), "answered", ""
    try:
        sock.connect((packet.destination, packet.port))
        if packet.protocol is Protocol.UDP:
            sock.send(DATAGRAM)
            sock.recv(2048)
    except TimeoutError:
        outcome = "silence"
    except OSError as error:
        outcome = "refused" if error.errno == errno.ECONNREFUSED else "error"
        detail = errno.errorcode.get(error.errno or 0, str(error))
    ended, port = time.monotonic(), int(sock.getsockname()[1])
    return Sent(outcome, detail, port, began, ended)


def _tell(out: int, **fields: object) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        os.write(out, json.dumps(fields).encode() + b"\n")
