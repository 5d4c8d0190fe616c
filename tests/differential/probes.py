"""Packets and what became of them: every client and every server is a socket of this process, so nothing is guessed.

Each packet carries a number. A server that gets one tells where it was and whom it saw; the client tells how it ended.
"""

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests.differential.generate import Flow
from tests.differential.ground import PLACES, SERVER_PORTS, Ground

PATIENCE = 60.0
"""Seconds for what must come: retransmissions of a SYN (after 1, 3, 7, 15 and 31 s) among them."""
QUIET = 0.06
"""Seconds without any event after which silence, where it is wanted, is taken for silence."""
FIRST_PORT, LAST_PORT = 33000, 60000
"""Ports that clients have, ephemeral ones, since packet programs give lower ones out. No two have one: two
connections of a pod from one port, one through a frontend and one to the same endpoint's own address, are one flow at
that endpoint, and one of them is never answered (docs/decisions.md, eBPF plane)."""
_PKTINFO = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")
_RESET = struct.pack("ii", 1, 0)
_IP_RECVERR, _IPV6_RECVERR, _IP_PKTINFO, _BIND_NO_PORT, _LOCAL_PORT_RANGE = 11, 25, 8, 24, 51
_OUTCOMES = {
    "ECONNREFUSED": "refused",
    "EHOSTUNREACH": "unreachable",
    "ENETUNREACH": "unreachable",
    "EPERM": "forbidden",
}


class Seen(NamedTuple):
    """Addresses that a server saw: its own address and port, and its client's address."""

    address: str
    port: int
    client: str


class Result(NamedTuple):
    """Outcome of one packet. outcome: answered, refused, unreachable, forbidden (EPERM here), or silence.
    servers: who got it, in order."""

    outcome: str
    servers: tuple[Seen, ...]
    detail: str = ""


class _Attempt:
    __slots__ = ("detail", "flow", "number", "outcome", "servers", "sock", "started")

    def __init__(self, number: int, flow: Flow, sock: socket.socket) -> None:
        self.number, self.flow, self.sock = number, flow, sock
        self.outcome, self.detail = "", ""
        self.servers: list[Seen] = []


class Prober:
    """Servers in every place, and as many clients as are asked for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._selector = selectors.DefaultSelector()
        self._servers: list[socket.socket] = []
        self._attempts: dict[int, _Attempt] = {}
        self._number, self._port = 0, FIRST_PORT
        for place in PLACES:
            for family in (socket.AF_INET, socket.AF_INET6):
                for port in SERVER_PORTS:
                    self._listen(place, family, port)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._servers:
            sock.close()
        self._selector.close()

    def _listen(self, place: str, family: int, port: int) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = self._ground.socket(place, family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
            if kind == socket.SOCK_STREAM:
                sock.listen(256)
            handler = self._accept if kind == socket.SOCK_STREAM else self._datagram
            self._selector.register(sock, selectors.EVENT_READ, (handler, sock))
            self._servers.append(sock)

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, _ = sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._selector.register(connection, selectors.EVENT_READ, (self._stream, connection))

    def _stream(self, connection: socket.socket) -> None:
        """The first bytes of a connection tell whose it is."""
        try:
            data = connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if len(data) == 4:
            own, client = connection.getsockname(), connection.getpeername()
            self._note(data, Seen(own[0], own[1], client[0]))
            connection.sendall(data)
            return
        self._selector.unregister(connection)
        connection.close()

    def _datagram(self, sock: socket.socket) -> None:
        while True:
            try:
                data, control, _, client = sock.recvmsg(64, 128)
            except BlockingIOError:
                return
            except OSError:  # of an answer that nobody took
                continue
            for level, kind, raw in control:
                if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                    own, source = socket.inet_ntop(socket.AF_INET, raw[8:12]), _PKTINFO.pack(0, raw[8:12], bytes(4))
                else:
                    own, source = socket.inet_ntop(socket.AF_INET6, raw[:16]), _PKTINFO6.pack(raw[:16], 0)
                self._note(data, Seen(own, sock.getsockname()[1], client[0]))
                try:
                    sock.sendmsg([data], [(level, kind, source)], 0, client)
                except OSError as error:
                    self._note_failure(data, error)

    def _note(self, data: bytes, seen: Seen) -> None:
        attempt = self._attempts.get(int.from_bytes(data, "big"))
        if attempt is not None:
            attempt.servers.append(seen)

    def _note_failure(self, data: bytes, error: OSError) -> None:
        attempt = self._attempts.get(int.from_bytes(data, "big"))
        if attempt is not None:
            attempt.detail = f"the answer could not be sent: {errno.errorcode.get(error.errno or 0)}"

    def run(self, flows: Sequence[tuple[Flow, bool]]) -> list[Result]:
        """Send one packet, or open one connection, for each flow; all at once. The flag: something must come of it, so
        that silence is only believed after a long time."""
        begun = [self._begin(flow) for flow, _ in flows]
        wanted = {attempt.number for attempt, (_, flag) in zip(begun, flows, strict=True) if flag}
        end, quiet = time.monotonic() + PATIENCE, 0.0
        while True:
            events = self._selector.select(QUIET / 4)
            for key, mask in events:
                handler, subject = key.data
                if isinstance(subject, _Attempt):
                    self._client(subject, mask)
                else:
                    handler(subject)
            now = time.monotonic()
            quiet = now if events or not quiet else quiet
            waiting = any(not a.outcome and a.number in wanted for a in begun)
            if now > end or (now - quiet > QUIET and not waiting):
                break
            if not any(not a.outcome for a in begun) and not events:
                break
        return [self._end(attempt) for attempt in begun]

    def _begin(self, flow: Flow) -> _Attempt:
        family = socket.AF_INET6 if ":" in flow.destination else socket.AF_INET
        kind = socket.SOCK_STREAM if flow.protocol == "TCP" else socket.SOCK_DGRAM
        sock = self._ground.socket(flow.place, family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self._number += 1
        attempt = self._attempts[self._number] = _Attempt(self._number, flow, sock)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.setsockopt(socket.IPPROTO_IP, _BIND_NO_PORT, 1)
        try:
            self._bind(sock, flow, kind)
            sock.connect((flow.destination, flow.port))
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(attempt, error)
            return attempt
        if kind == socket.SOCK_DGRAM:
            self._send(attempt)
        self._selector.register(
            sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if kind == socket.SOCK_STREAM else 0), (None, attempt)
        )
        return attempt

    def _bind(self, sock: socket.socket, flow: Flow, kind: int) -> None:
        """Clients come from ports that none came from for long: whatever tracks flows must not know them. A connection
        takes its port when it is made, from a range of one, since balancing at connect time leaves alone who is bound
        to a port; before Linux 6.3 the kernel chooses it."""
        self._port = self._port + 1 if self._port < LAST_PORT else FIRST_PORT
        if kind == socket.SOCK_DGRAM:
            sock.bind((flow.source if flow.bound else "", self._port))
            return
        with contextlib.suppress(OSError):  # ENOPROTOOPT
            sock.setsockopt(socket.IPPROTO_IP, _LOCAL_PORT_RANGE, struct.pack("=HH", self._port, self._port))
        if flow.bound:
            sock.bind((flow.source, 0))

    def _send(self, attempt: _Attempt) -> None:
        try:
            attempt.sock.send(attempt.number.to_bytes(4, "big"))
        except OSError as error:
            self._failed(attempt, error)

    def _client(self, attempt: _Attempt, mask: int) -> None:
        if attempt.outcome and attempt.outcome != "forbidden":
            self._drain(attempt)
            return
        if mask & selectors.EVENT_WRITE:
            number = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._selector.modify(attempt.sock, selectors.EVENT_READ, (None, attempt))
            if number:
                self._failed(attempt, OSError(number, "connect"))
                return
            self._send(attempt)
            return
        try:
            data = attempt.sock.recv(64)
        except BlockingIOError:
            self._drain(attempt)
            return
        except OSError as error:
            self._failed(attempt, error)
            return
        if data == attempt.number.to_bytes(4, "big"):
            attempt.outcome = "answered"
        elif not data and not attempt.outcome:
            attempt.outcome, attempt.detail = "refused", "closed"

    def _drain(self, attempt: _Attempt) -> None:
        """Nothing more is wanted of a socket that keeps reporting."""
        if attempt.flow.protocol == "TCP" and attempt.outcome:
            self._selector.unregister(attempt.sock)
            attempt.sock.close()
            return
        try:
            attempt.sock.recvmsg(64, 256, socket.MSG_ERRQUEUE)
        except OSError:
            with contextlib.suppress(OSError):
                attempt.sock.recv(64)

    def _failed(self, attempt: _Attempt, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, str(error))
        attempt.outcome, attempt.detail = _OUTCOMES.get(name, name), name

    def _end(self, attempt: _Attempt) -> Result:
        del self._attempts[attempt.number]
        if attempt.sock.fileno() >= 0:
            with contextlib.suppress(KeyError):  # it failed before it was watched
                self._selector.unregister(attempt.sock)
            attempt.sock.close()
        return Result(attempt.outcome or "silence", tuple(attempt.servers), attempt.detail)
