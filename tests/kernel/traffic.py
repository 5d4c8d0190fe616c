"""A client that keeps on: new connections all the time, some of them held and used to the end, and a UDP socket.

`python -m tests.kernel.traffic ADDRESS PORT [--first SOURCE_PORT] [--rate PER_SECOND] [--hold EVERY] [--enough HELD]`.
Prints `ready`, works until its input ends, then prints what happened as one line of JSON (see Report). In between it
prints `used`, once it has done enough for a test to tell something by it. Talks to the lab's echo servers.

Each client has source ports of its own: two connections of one place with one source port, the one to a frontend and
the other to an endpoint's own address, could meet at that endpoint as one (docs/decisions.md, eBPF plane).
"""

import argparse
import errno
import itertools
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

PATIENCE = 30.0
"""Seconds. Long enough for a lost packet to be sent again thrice, on a machine that is busy with other things."""
DATAGRAM_PATIENCE = 10.0
SLOWEST = 180.0
"""Seconds within which a client has done enough, whatever else the machine does."""
ENOUGH_OPENED, ENOUGH_HELD = 20, 2
MOST_HELD = 60
SOURCE_PORTS = 3000
_IP_LOCAL_PORT_RANGE = 51


class Report(msgspec.Struct):
    """What happened. opened, failed: new connections. held: kept to the end, with `exchanges` on them; broken: what
    became of those that did not live, or changed their server. asked, unanswered: datagrams."""

    opened: int = 0
    failed: list[str] = msgspec.field(default_factory=list)
    held: int = 0
    exchanges: int = 0
    broken: list[str] = msgspec.field(default_factory=list)
    asked: int = 0
    unanswered: int = 0


def enough(report: Report, held: int, wanted: int = ENOUGH_HELD) -> bool:
    """Whether a client that holds so many connections has opened, held (`wanted`) and used enough. Once it has, it goes
    on so."""
    return report.opened >= ENOUGH_OPENED and held >= wanted and report.exchanges > 2 * held


class Held:
    """A connection that is used again and again."""

    def __init__(self, sock: socket.socket, server: str) -> None:
        self.sock, self.server = sock, server


def _ask(sock: socket.socket) -> str:
    """One exchange: the server's name."""
    sock.sendall(b"?\n")
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionResetError("the server closed")
        data += piece
    return str(json.loads(data)["server"])


class Ports:
    """Source ports of a client, from `first` on, and its connections that have some of them for long."""

    def __init__(self, first: int, held: list[Held]) -> None:
        self._turn, self._held = itertools.cycle(range(first, first + SOURCE_PORTS)), held

    def others(self) -> Iterator[int]:
        """Those that no held connection has, in turn."""
        for port in self._turn:
            if port not in {each.sock.getsockname()[1] for each in self._held}:
                yield port


def _choose_port(sock: socket.socket, source: int) -> None:
    """Have connect(2) take this port, by a range of one. A socket that is bound beforehand would be another kind of
    client: connect-time balancing leaves it alone. Before Linux 6.3 it is bound all the same."""
    try:
        sock.setsockopt(socket.SOL_IP, _IP_LOCAL_PORT_RANGE, struct.pack("=I", source << 16 | source))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", source))


def _connected(address: str, port: int, ports: Ports) -> socket.socket:
    """A connection from the next of our ports that is free for it: this host may still remember its last one there."""
    for source in ports.others():
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(PATIENCE)
            _choose_port(sock, source)
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise type(error)(f"{error!r} when connecting from port {source}") from error
        else:
            return sock
    raise AssertionError("there is always another port")


def _open(address: str, port: int, ports: Ports, report: Report) -> Held | None:
    try:
        sock = _connected(address, port, ports)
    except OSError as error:
        report.failed.append(f"{error!r} at {time.monotonic():.2f}")
        return None
    try:
        held = Held(sock, _ask(sock))
    except OSError as error:
        source = sock.getsockname()[1]
        report.failed.append(f"{error!r} when first used, from port {source}, at {time.monotonic():.2f}")
        sock.close()
        return None
    report.opened += 1
    return held


def _use(held: list[Held], report: Report) -> list[Held]:
    alive = []
    for each in held:
        try:
            server = _ask(each.sock)
            report.exchanges += 1
        except OSError as error:
            where = f"{each.server} from port {each.sock.getsockname()[1]}"
            report.broken.append(f"{error!r} of {where} at {time.monotonic():.2f}")
            continue
        if server == each.server:
            alive.append(each)
        else:
            report.broken.append(f"{each.server} became {server}")
    return alive


def _datagram(sock: socket.socket, address: str, port: int, report: Report) -> None:
    report.asked += 1
    try:
        sock.sendto(b"?\n", (address, port))
        sock.recv(4096)
    except OSError:
        report.unanswered += 1


def work(address: str, port: int, first: int, rate: float, hold: int, wanted: int, datagrams: bool) -> Report:
    """Until standard input ends."""
    report = Report()
    held: list[Held] = []
    ports = Ports(first, held)
    udp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(DATAGRAM_PATIENCE)
    turn, slowest, told = 0, time.monotonic() + SLOWEST, False
    while not select.select([sys.stdin], [], [], 1 / rate)[0]:
        opened = _open(address, port, ports, report)
        if opened is not None:
            if hold and turn % hold == 0 and len(held) < MOST_HELD:
                held.append(opened)
            else:
                opened.sock.close()
        if turn % 5 == 0:
            held[:] = _use(held, report)
            if datagrams:
                _datagram(udp, address, port, report)
        turn += 1
        if not told and (enough(report, len(held), wanted) or time.monotonic() > slowest):
            told = True
            print("used" if enough(report, len(held), wanted) else "not used", flush=True)
    report.held = len(_use(held, report))
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--hold", type=int, default=10)
    parser.add_argument("--enough", type=int, default=ENOUGH_HELD)
    parser.add_argument("--tcp-only", action="store_true")
    options = parser.parse_args(arguments)
    print("ready", flush=True)
    report = work(
        options.address, options.port, options.first, options.rate, options.hold, options.enough, not options.tcp_only
    )
    print(msgspec.json.encode(report).decode(), flush=True)


def _first(number: int) -> int:
    """First source port of a place's client: within ip_local_port_range, which a socket's own range can only narrow."""
    return 33000 + SOURCE_PORTS * number


class Traffic:
    """Clients in places of a lab, from now until `end`."""

    def __init__(self, lab: Any, ways: dict[str, tuple[str, str, int]], *options: str) -> None:
        import subprocess

        self._processes = {
            name: lab.python(
                place, "tests.kernel.traffic", [address, str(port), f"--first={_first(number)}", *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number, (name, (place, address, port)) in enumerate(ways.items())
        }  # fmt: skip
        for process in self._processes.values():
            assert process.stdout.readline() == "ready\n"

    def until_used(self) -> None:
        """Wait until every client has done enough (see `enough`), which on a busy machine may take it long. At most
        once. Fails the test when one has not within three minutes."""
        slow = [name for name, process in self._processes.items() if process.stdout.readline() != "used\n"]
        assert not slow, f"did not do enough within {SLOWEST} s, or failed: {slow}: {self.end()}"

    def end(self) -> dict[str, Report]:
        """What happened to each."""
        reports = {}
        for process in self._processes.values():
            process.stdin.close()
        for name, process in self._processes.items():
            reports[name] = msgspec.json.decode(process.stdout.read().rpartition("used\n")[2], type=Report)
            process.wait(60)
        return reports

    def kill(self) -> None:
        """End the clients that have not ended, without their reports."""
        for process in self._processes.values():
            process.kill()
            process.wait(60)


def lost(reports: dict[str, Report]) -> dict[str, list[str]]:
    """Connections that failed or broke, by client."""
    return {name: report.failed + report.broken for name, report in reports.items() if report.failed or report.broken}


if __name__ == "__main__":
    main()
