"""Probes of one Service: `python -m dataplane.bench.peer.probe ADDRESS PORT NETNS PLACE=PORT...` in the client's pod.

It serves, too: for each PLACE it listens in the server's namespace and greets every connection with the place's letter,
so that a client knows which endpoint it has met. A probe is a TCP connection of its own, from a port of its own; it
counts when its first SYN was answered. Obeys JSON lines (`Order`), each answered at once by a line.
"""

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.model.net import family_of

LEAST_GAP, SHARE = 0.001, 0.01
"""Seconds between two probes, and that gap as a share of the time since the first one, whichever is longer: what is
found is as exact as that."""
PATIENCE = 0.9
"""Seconds until a probe is given up: before its SYN is sent again."""
_RESET = struct.pack("ii", 1, 0)
_NICE = -10
_IDLE = 3600.0


class Order(msgspec.Struct, frozen=True):
    """do: "begin" (probe until an endpoint at `place` answers, or another order comes), "result"."""

    do: str
    place: str = ""


class Prober:
    """Listens at the places and probes the Service, in one loop over sockets and standard input."""

    def __init__(self, target: tuple[str, int], listen: Mapping[str, int], namespace: str) -> None:
        self._target, self._family = target, family_of(target[0]).socket_family
        self._selector = selectors.DefaultSelector()
        for place, port in listen.items():
            listener = in_netns(namespace, socket.create_server, ("", port), family=self._family, backlog=1024)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, ("listener", place))
        self._open: dict[socket.socket, int] = {}
        self._wanted = ""
        self._started = self._due = time.monotonic_ns()
        self._found: dict[str, float] = {}

    def run(self) -> None:
        """Until standard input ends."""
        self._selector.register(sys.stdin.buffer.fileno(), selectors.EVENT_READ, ("orders", ""))
        rest = b""
        while True:
            for key, _ in self._selector.select(self._wait()):
                what, place = key.data
                if what == "orders":
                    data = os.read(key.fd, 65536)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._obey(msgspec.json.decode(line, type=Order))
                elif what == "listener":
                    self._greet(key.fileobj, place)  # type: ignore[arg-type]
                else:
                    self._answered(key.fileobj)  # type: ignore[arg-type]
            self._probe()

    def _wait(self) -> float:
        if not self._wanted:
            return _IDLE
        return max(0.0, (self._due - time.monotonic_ns()) / 1e9)

    def _obey(self, order: Order) -> None:
        answer: dict[str, Any] = {}
        if order.do == "begin":
            for sock in list(self._open):
                self._close(sock)
            self._wanted, self._found = order.place, {"at": 0.0, "probes": 0.0, "failures": 0.0, "others": 0.0}
            self._started = self._due = time.monotonic_ns()
        else:
            answer = dict(self._found)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()

    def _greet(self, listener: socket.socket, place: str) -> None:
        with contextlib.suppress(OSError):  # the client has gone already
            connection, _ = listener.accept()
            with connection:
                connection.send(place.encode())

    def _probe(self) -> None:
        """Give up what is too old, and send what is due."""
        now = time.monotonic_ns()
        for sock, begun in list(self._open.items()):
            if now - begun < PATIENCE * 1e9:
                break  # they are in the order of their beginning
            self._close(sock, failed=True)
        if not self._wanted or now < self._due:
            return
        self._due = now + int(max(LEAST_GAP, SHARE * (now - self._started) / 1e9) * 1e9)
        self._found["probes"] += 1
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._open[sock] = now
        self._selector.register(sock, selectors.EVENT_READ, ("probe", ""))
        if sock.connect_ex(self._target) not in (0, errno.EINPROGRESS):
            self._close(sock, failed=True)

    def _answered(self, sock: socket.socket) -> None:
        if sock not in self._open:
            return  # closed by an order of this very turn
        try:
            letter = sock.recv(1).decode()
        except OSError:  # refused, unreachable
            letter = ""
        at = time.monotonic_ns()
        self._close(sock, failed=not letter)
        if letter and letter == self._wanted:
            self._found["at"], self._wanted = float(at), ""
            for other in list(self._open):
                self._close(other)
        elif letter:
            self._found["others"] += 1

    def _close(self, sock: socket.socket, *, failed: bool = False) -> None:
        if failed:
            self._found["failures"] += 1
        del self._open[sock]
        self._selector.unregister(sock)
        sock.close()


def main(arguments: list[str]) -> None:
    """Entry point: address and port of the Service, the servers' namespace, places with their ports."""
    address, port, namespace, *places = arguments
    listen = {place: int(number) for place, _, number in (text.partition("=") for text in places)}
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)
    prober = Prober((address, int(port)), listen, namespace)
    print("{}", flush=True)
    prober.run()


if __name__ == "__main__":
    main(sys.argv[1:])
