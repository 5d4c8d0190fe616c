"""A client that keeps on: new connections all the time, some of them held and used to the end, and a UDP socket.

`python -m tests.kernel.traffic ADDRESS PORT [--rate PER_SECOND] [--hold EVERY]`. Prints `ready`, works until its input
ends, then prints what happened as one line of JSON (see Report). Talks to the lab's echo servers.
"""

import argparse
import json
import select
import socket
import sys
import time
from typing import Any

import msgspec

PATIENCE = 5.0
MOST_HELD = 60


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


def _open(address: str, port: int, report: Report, began: float) -> Held | None:
    try:
        sock = socket.create_connection((address, port), PATIENCE)
        held = Held(sock, _ask(sock))
    except OSError as error:
        report.failed.append(f"{type(error).__name__} at {time.monotonic() - began:.2f} s")
        return None
    report.opened += 1
    return held


def _use(held: list[Held], report: Report, began: float) -> list[Held]:
    alive = []
    for each in held:
        try:
            server = _ask(each.sock)
            report.exchanges += 1
        except OSError as error:
            report.broken.append(f"{type(error).__name__} at {time.monotonic() - began:.2f} s")
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


def work(address: str, port: int, rate: float, hold: int, datagrams: bool) -> Report:
    """Until standard input ends."""
    report, began = Report(), time.monotonic()
    held: list[Held] = []
    udp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(1.0)
    turn = 0
    while not select.select([sys.stdin], [], [], 1 / rate)[0]:
        opened = _open(address, port, report, began)
        if opened is not None:
            if turn % hold == 0 and len(held) < MOST_HELD:
                held.append(opened)
            else:
                opened.sock.close()
        if turn % 5 == 0:
            held = _use(held, report, began)
            if datagrams:
                _datagram(udp, address, port, report)
        turn += 1
    held = _use(held, report, began)
    report.held = len(held)
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--hold", type=int, default=10)
    parser.add_argument("--tcp-only", action="store_true")
    options = parser.parse_args(arguments)
    print("ready", flush=True)
    report = work(options.address, options.port, options.rate, options.hold, not options.tcp_only)
    print(msgspec.json.encode(report).decode(), flush=True)


class Traffic:
    """Clients in places of a lab, from now until `end`."""

    def __init__(self, lab: Any, ways: dict[str, tuple[str, str, int]], *options: str) -> None:
        import subprocess

        self._processes = {
            name: lab.python(
                place, "tests.kernel.traffic", [address, str(port), *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for name, (place, address, port) in ways.items()
        }  # fmt: skip
        for process in self._processes.values():
            assert process.stdout.readline() == "ready\n"

    def end(self) -> dict[str, Report]:
        """What happened to each."""
        reports = {}
        for process in self._processes.values():
            process.stdin.close()
        for name, process in self._processes.items():
            reports[name] = msgspec.json.decode(process.stdout.read(), type=Report)
            process.wait(30)
        return reports


def lost(reports: dict[str, Report]) -> dict[str, list[str]]:
    """Connections that failed or broke, by client."""
    return {name: report.failed + report.broken for name, report in reports.items() if report.failed or report.broken}


if __name__ == "__main__":
    main()
