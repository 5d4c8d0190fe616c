"""Transfers without end. `python -m tests.kernel.bulk serve PORT` sends back all it gets, `send ADDRESS PORT --first
SOURCE_PORT` keeps several connections busy until its input ends, looks at every byte that comes back, and prints what
happened as one line of JSON (see Transfer).
"""

import argparse
import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec

PATIENCE = 60.0
BLOCK = 32 << 10
PAUSE = 0.02
AHEAD = 3
"""Blocks that are under way on a connection, so that there always are packets in both directions."""


class Transfer(msgspec.Struct):
    """What happened. carried: bytes that came back as they were sent, by connection; broken: why a connection ended."""

    carried: list[int] = msgspec.field(default_factory=list)
    broken: list[str] = msgspec.field(default_factory=list)


def _block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK // 8)


class _Stream:
    """One connection; its bytes are numbers that grow."""

    def __init__(self, address: str, port: int, source_port: int) -> None:
        self._sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self._sock.settimeout(PATIENCE)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("", source_port))
        self._sock.connect((address, port))
        self._sent = self._back = 0

    def exchange(self, last: bool) -> None:
        """One block more (or, at the end, all that is under way). Raises OSError, ValueError."""
        while not last and self._sent <= self._back + AHEAD:
            self._sock.sendall(_block(self._sent))
            self._sent += 1
        while self._back < (self._sent if last else self._sent - AHEAD):
            data = bytearray()
            while len(data) < BLOCK:
                piece = self._sock.recv(BLOCK - len(data))
                if not piece:
                    raise ConnectionResetError("the server closed")
                data += piece
            if data != _block(self._back):
                raise ValueError(f"block {self._back} came back changed")
            self._back += 1

    @property
    def carried(self) -> int:
        return self._back * BLOCK


def send(address: str, port: int, first: int, count: int) -> Transfer:
    """Until standard input ends."""
    transfer = Transfer()
    streams = [_Stream(address, port, first + number) for number in range(count)]
    alive, last = list(streams), False
    print("ready", flush=True)
    while not last:
        last = bool(select.select([sys.stdin], [], [], PAUSE)[0])
        for stream in list(alive):
            try:
                stream.exchange(last)
            except (OSError, ValueError) as error:
                transfer.broken.append(f"{type(error).__name__} {error} at {time.monotonic():.2f}")
                alive.remove(stream)
    transfer.carried = [stream.carried for stream in streams]
    return transfer


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):  # the client gave up; it tells why
        while data := connection.recv(BLOCK):
            connection.sendall(data)


def serve(port: int) -> None:
    """For ever."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        print("ready", flush=True)
        while True:
            threading.Thread(target=_echo, args=(listener.accept()[0],), daemon=True).start()


def start_servers(lab: Any, places: tuple[str, ...], port: int) -> None:
    """A server in each of these places of a lab, until the lab goes."""
    for place in places:
        server = lab.python(place, "tests.kernel.bulk", ["serve", str(port)], stdout=subprocess.PIPE, text=True)
        assert server.stdout.readline() == "ready\n"


class Bulk:
    """Transfers in a lab, from now until `end`. ways: name -> (place, address, port), as for traffic.Traffic."""

    def __init__(self, lab: Any, ways: dict[str, tuple[str, str, int]], count: int = 1) -> None:
        self._processes = {
            name: lab.python(
                place, "tests.kernel.bulk", ["send", address, str(port), f"--first={28000 + 100 * number}",
                                             f"--count={count}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number, (name, (place, address, port)) in enumerate(ways.items())
        }  # fmt: skip
        for process in self._processes.values():
            assert process.stdout.readline() == "ready\n"

    def end(self) -> dict[str, Transfer]:
        """What happened to each."""
        transfers = {}
        for process in self._processes.values():
            process.stdin.close()
        for name, process in self._processes.items():
            transfers[name] = msgspec.json.decode(process.stdout.read(), type=Transfer)
            process.wait(60)
        return transfers


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("port", type=int)
    client = commands.add_parser("send")
    client.add_argument("address")
    client.add_argument("port", type=int)
    client.add_argument("--first", type=int, required=True)
    client.add_argument("--count", type=int, default=2)
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.port)
    transfer = send(options.address, options.port, options.first, options.count)
    print(msgspec.json.encode(transfer).decode(), flush=True)


if __name__ == "__main__":
    main()
