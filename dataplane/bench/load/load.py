"""The load generator and server in Python, for machines without a C compiler: same requests, same answers as load.c.

python -m dataplane.bench.load.load serve PORT COUNT [tcp]
python -m dataplane.bench.load.load run
"""

import contextlib
import json
import resource
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from dataplane.bench.figures.hdr import bucket
from dataplane.model.net import family_of

PATIENCE_SECONDS = 3.0
QUERY_BYTES, ANSWER_BYTES, FLOOD_BYTES = 40, 120, 64
ONCE, MORE, SINK, ECHO, WHERE = b"1", b"+", b"S", b"E", b"P"
STREAM_BYTES = 128 << 10
STREAM_PATIENCE_SECONDS = 10.0
_RESET = struct.pack("ii", 1, 0)
_BATCH = 32
_RECEIVE_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33
_SO_RXQ_OVFL = 40
_IP_BIND_ADDRESS_NO_PORT = 24


class Target:
    """Where to send, and from which address ("-": whatever the kernel takes)."""

    def __init__(self, address: str, port: int, source: str) -> None:
        ip_address(address)  # names are not looked up
        self.address = (address, port)
        self.family = family_of(address).socket_family
        self.source = source

    def open(self, kind: socket.SocketKind) -> socket.socket:
        """A socket, not connected yet."""
        sock = socket.socket(self.family, kind)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.source != "-":
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self.source, 0))
        sock.settimeout(PATIENCE_SECONDS)
        return sock

    def connected(self, kind: socket.SocketKind) -> socket.socket:
        """A connected socket. Raises OSError."""
        sock = self.open(kind)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return sock


def _connect(target: Target) -> int:
    with target.open(socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        begin = time.perf_counter_ns()
        sock.connect(target.address)
        return time.perf_counter_ns() - begin


def _connect_and_ask(target: Target) -> int:
    begin = time.perf_counter_ns()
    with target.connected(socket.SOCK_STREAM) as sock:
        sock.send(ONCE)
        if sock.recv(1) != ONCE or sock.recv(1):
            raise ConnectionError("the server does not answer with a byte and close")
        return time.perf_counter_ns() - begin


def _query(target: Target) -> int:
    begin = time.perf_counter_ns()
    with target.connected(socket.SOCK_DGRAM) as sock:
        sock.send(b"Q" + bytes(QUERY_BYTES - 1))
        sock.recv(ANSWER_BYTES)
    return time.perf_counter_ns() - begin


def _percentiles(times: list[int]) -> dict[str, int]:
    ordered = sorted(times) or [0]
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in shares.items()}


def _measure(operate: Callable[[], int], seconds: float, rate: float) -> dict[str, Any]:
    if rate > 0:
        return _paced(operate, seconds, rate)
    times: list[int] = []
    failures = 0
    start = time.perf_counter()
    while not (times or failures) or time.perf_counter() - start < seconds:
        try:
            times.append(operate())
        except OSError:  # refused, timed out or unreachable: each of them is an operation that failed
            failures += 1
    took = time.perf_counter() - start
    return {"operations": len(times), "failures": failures, "seconds": took, **_percentiles(times)}


def _paced(operate: Callable[[], int], seconds: float, rate: float) -> dict[str, Any]:
    times: list[int] = []
    failures = behind = 0
    start = time.perf_counter_ns()
    for number in range(int(rate * seconds)):
        moment = start + int(number * 1e9 / rate)
        left = moment - time.perf_counter_ns()
        if left > 0:
            time.sleep(left / 1e9)
        else:
            behind += 1
        try:
            operate()
            times.append(time.perf_counter_ns() - moment)
        except OSError:
            failures += 1
            if time.perf_counter_ns() - start > (seconds + PATIENCE_SECONDS) * 1e9:
                break
    took = (time.perf_counter_ns() - start) / 1e9
    counts = sorted(Counter(map(bucket, times)).items())
    found = {"operations": len(times), "failures": failures, "seconds": took, **_percentiles(times)}
    return {**found, "behind": behind, "counts": counts}


def _warm(target: Target, kind: socket.SocketKind, byte: bytes, seconds: float, rate: float) -> dict[str, Any]:
    try:
        sock = target.connected(kind)
    except OSError:
        return {"operations": 0, "failures": 1, "seconds": seconds}

    def operate() -> int:
        begin = time.perf_counter_ns()
        sock.send(byte)
        if len(sock.recv(1)) != 1:
            raise ConnectionError("the server has closed the connection")
        return time.perf_counter_ns() - begin

    with sock:
        return _measure(operate, seconds, rate)


def _counted(sock: socket.socket) -> int:
    sock.send(b"C")
    return int(sock.recv(FLOOD_BYTES))


def _flood(target: Target, seconds: float) -> dict[str, Any]:
    payload = b"F" + bytes(FLOOD_BYTES - 1)
    sent = 0
    try:
        with target.connected(socket.SOCK_DGRAM) as sock:
            before = _counted(sock)
            start = time.perf_counter()
            while not sent or time.perf_counter() - start < seconds:
                for _ in range(_BATCH):
                    sock.send(payload)
                sent += _BATCH
            took = time.perf_counter() - start
            return {"operations": _counted(sock) - before, "failures": 0, "seconds": took, "sent": sent}
    except OSError:  # no answer to the count: nothing can be said about what arrived
        return {"operations": 0, "failures": 1, "seconds": seconds, "sent": sent}


def _stream(target: Target, seconds: float) -> dict[str, Any]:
    payload = SINK * STREAM_BYTES
    start = time.perf_counter()
    try:
        with target.connected(socket.SOCK_STREAM) as sock:
            sock.sendall(payload)
            while time.perf_counter() - start < seconds:
                sock.sendall(payload)
            sock.settimeout(STREAM_PATIENCE_SECONDS)
            sock.shutdown(socket.SHUT_WR)
            arrived = int(b"".join(iter(lambda: sock.recv(64), b"")) or b"0")
    except OSError:
        arrived = 0
    return {"operations": arrived, "failures": int(not arrived), "seconds": time.perf_counter() - start}


def obey(line: str) -> dict[str, Any]:
    """One request and its answer, as load.c documents them."""
    try:
        name, address, port, seconds, source, *rest = line.split()
        target, length, rate = Target(address, int(port), source), float(seconds), float(rest[0]) if rest else 0.0
    except ValueError:
        return {"error": "not a request"}
    if rate < 0:
        return {"error": "not a request"}
    match name:
        case "connect":
            return _measure(lambda: _connect(target), length, rate)
        case "crr":
            return _measure(lambda: _connect_and_ask(target), length, rate)
        case "dns":
            return _measure(lambda: _query(target), length, rate)
        case "rr":
            return _warm(target, socket.SOCK_STREAM, MORE, length, rate)
        case "urr":
            return _warm(target, socket.SOCK_DGRAM, ECHO, length, rate)
        case "udp":
            return _flood(target, length)
        case "stream":
            return _stream(target, length)
    return {"error": f"no operation {name}"}


class Server:
    """Echoes TCP; answers and counts UDP, unless it is to be TCP only."""

    def __init__(self, port: int, count: int, *, only_tcp: bool = False) -> None:
        self._kinds = (socket.SOCK_STREAM,) if only_tcp else (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        self._selector = selectors.DefaultSelector()
        for number in range(port, port + count):
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                self._listen(family, anywhere, number)

    def _listen(self, family: socket.AddressFamily, anywhere: str, port: int) -> None:
        for kind in self._kinds:
            sock = socket.socket(family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((anywhere, port))
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen(4096)
                self._selector.register(sock, selectors.EVENT_READ, self._accept)
            else:
                with contextlib.suppress(PermissionError):  # as root only; a flood then meets a smaller buffer
                    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
                self._selector.register(sock, selectors.EVENT_READ, _Counter().receive)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, _ = sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # reset while it waited
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
            if data.startswith(SINK):
                self._selector.modify(connection, selectors.EVENT_READ, _Sink(len(data), self._closed).receive)
                return
            if data.startswith(WHERE):
                connection.sendall(connection.getsockname()[1].to_bytes(2))
            elif data:
                connection.sendall(data)
            if data and not data.startswith(ONCE):
                return
        except OSError:  # reset: over, as at its orderly end
            data = b""
        self._closed(connection)

    def _closed(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


class _Sink:
    """One stream: counts what comes, and says how much it was at its end."""

    def __init__(self, came: int, close: Callable[[socket.socket], None]) -> None:
        self._came, self._close = came, close

    def receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(STREAM_BYTES)
            self._came += len(data)
            if data:
                return
            connection.sendall(str(self._came).encode())
        except BlockingIOError:
            return
        except OSError:  # reset: nobody asks any more
            pass
        self._close(connection)


class _Counter:
    """One UDP port: what came, and what found the socket's buffer full."""

    def __init__(self) -> None:
        self._came = self._overflowed = 0

    def receive(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, control, _, client = sock.recvmsg(FLOOD_BYTES, 64)
            except (BlockingIOError, ConnectionRefusedError):  # nothing more, or an earlier client has gone
                return
            for _, kind, value in control:
                if kind == _SO_RXQ_OVFL:
                    self._overflowed = int.from_bytes(value[:4], sys.byteorder)
            if data[:1] == b"F":
                self._came += 1
            elif data[:1] == b"C":
                sock.sendto(str(self._came + self._overflowed).encode(), client)
            else:
                sock.sendto(bytes(1 if data[:1] == ECHO else ANSWER_BYTES), client)


def main(arguments: list[str]) -> None:
    """Entry point of both programs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments[0] == "serve":
        server = Server(int(arguments[1]), int(arguments[2]), only_tcp=arguments[3:] == ["tcp"])
        print("ready", flush=True)
        server.run()
    for line in sys.stdin:
        print(json.dumps(obey(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
