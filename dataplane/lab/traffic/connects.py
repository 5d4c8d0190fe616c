"""How long new TCP connections take: a server that only accepts, and a client that only connects.

Two programs, run in places of a lab: `python -m dataplane.lab.traffic.connects serve PORT` says "ready" and accepts;
`python -m dataplane.lab.traffic.connects measure` reads requests (JSON lines) and answers each with a Sample.
The time of connect(2) is what is measured: the handshake through whatever rules are on the way, not Python.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterable

import msgspec

from dataplane.lab.lab import Lab
from dataplane.lab.places import Where
from dataplane.lab.spec import LabError
from dataplane.lab.traffic.agents import need_pipe, read_line
from dataplane.model.net import family_of

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BACKLOG = 4096
_PATIENCE = 60.0


class Measure(msgspec.Struct, frozen=True):
    """A request: `count` connections, one after another, each closed by a reset (no TIME_WAIT, no port is used up)."""

    address: str
    port: int
    count: int


class Sample(msgspec.Struct, frozen=True):
    """Connect times in nanoseconds, in the order they were made, and the seconds that all of it took."""

    nanoseconds: tuple[int, ...]
    seconds: float

    def percentile(self, share: float) -> float:
        """The connect time in microseconds that `share` (0..1) of the connections did not exceed."""
        ordered = sorted(self.nanoseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000

    @property
    def rate(self) -> float:
        """Connections per second of connect time."""
        return len(self.nanoseconds) / (sum(self.nanoseconds) / 1e9)


def _serve(port: int) -> None:
    sock = socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    print("ready", flush=True)
    while True:
        sock.accept()[0].close()


def _measure(request: Measure) -> Sample:
    family = family_of(request.address).socket_family
    target = (request.address, request.port)
    times = []
    clock = time.perf_counter_ns
    start = time.perf_counter()
    for _ in range(request.count):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            before = clock()
            sock.connect(target)
            times.append(clock() - before)
    return Sample(tuple(times), time.perf_counter() - start)


def main(arguments: list[str]) -> None:
    """Entry point of both programs."""
    if arguments[0] == "serve":
        _serve(int(arguments[1]))
    for line in sys.stdin.buffer:
        sample = _measure(msgspec.json.decode(line, type=Measure))
        sys.stdout.buffer.write(msgspec.json.encode(sample) + b"\n")
        sys.stdout.buffer.flush()


def start_servers(lab: Lab, places: Iterable[Where], port: int) -> None:
    """Start a server that only accepts in each place; returns when all listen. They end with the lab. Raises
    LabError."""
    import subprocess

    module = "dataplane.lab.traffic.connects"
    started = {
        lab.place(where).name: lab.python(where, module, ["serve", str(port)], stdout=subprocess.PIPE)
        for where in places
    }
    for name, process in started.items():
        if need_pipe(process.stdout).readline() != b"ready\n":
            raise LabError(f"{name}: the server on port {port} does not start")


class ConnectClient:
    """The measuring client in one place of a lab; as a context manager."""

    def __init__(self, lab: Lab, where: Where) -> None:
        import subprocess

        self._process = lab.python(
            where, "dataplane.lab.traffic.connects", ["measure"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def measure(self, address: str, port: int, count: int) -> Sample:
        """Make `count` connections. Raises msgspec.DecodeError when the client died (its traceback is on stderr)."""
        pipe = need_pipe(self._process.stdin)
        pipe.write(msgspec.json.encode(Measure(address, port, count)) + b"\n")
        pipe.flush()
        return msgspec.json.decode(read_line(self._process, time.monotonic() + _PATIENCE), type=Sample)

    def close(self) -> None:
        """End the client."""
        need_pipe(self._process.stdin).close()
        self._process.wait(timeout=10)
        need_pipe(self._process.stdout).close()


if __name__ == "__main__":
    main(sys.argv[1:])
