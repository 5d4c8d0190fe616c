"""A soak of the eBPF mode's flows: idle connections, new flows, endpoints that come and go, daemons that are killed.

    python -m tests.perf.flow_soak [--minutes 30] [--idle 1000] [--rate 1000] [--log docs/soak-flows.log]

As root, in a lab of its own with an API server and a daemon on each node, all hooks. Idle connections are opened at the
start, left alone and used again at the end; new flows (TCP and UDP, each from a socket of its own) come from outside by
node ports, from a pod of another node, and from a pod by the clusterIP. Endpoints leave and come back each second; the
first node's daemon is killed (SIGKILL) every 20 seconds. Whatever is lost is printed; exit status 1 then.
"""

import argparse
import re
import resource
import selectors
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from tests.apiserver.objects import endpoint, endpoint_slice, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, NodeDaemon, daemon_lab, http

BACKENDS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
NODE_PORT = 30088
PATIENCE = 15.0
KILL_SECONDS = 20.0
_RESET = struct.pack("ii", 1, 0)


class Done(msgspec.Struct):
    """What a client did. lost: what did not work, in words (the first hundred)."""

    opened: int = 0
    asked: int = 0
    idle: int = 0
    slow: int = 0
    lost: list[str] = msgspec.field(default_factory=list)

    def lose(self, what: str) -> None:
        if len(self.lost) < 100:
            self.lost.append(f"{what} at {time.monotonic():.1f}")


def _exchange(sock: socket.socket) -> None:
    """A line there and back. Raises OSError."""
    sock.sendall(b"?\n")
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(4096)
        if not chunk:
            raise ConnectionResetError("closed by the server")
        data += chunk


def _connected(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), PATIENCE)


def _open_idle(address: str, port: int, count: int, done: Done) -> list[socket.socket]:
    held = []
    for _ in range(count):
        try:
            held.append(_connected(address, port))
            _exchange(held[-1])
        except OSError as error:
            done.lose(f"opening an idle connection: {error!r}")
    return held


def _one_tcp(address: str, port: int, done: Done) -> None:
    begun = time.monotonic()
    try:
        with _connected(address, port) as sock:
            _exchange(sock)
            if done.opened % 2:  # half end with an RST, half in order
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        done.opened += 1
    except OSError as error:
        done.lose(f"new connection: {error!r}")
    done.slow += time.monotonic() - begun > 0.5


def _one_udp(address: str, port: int, done: Done) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.sendto(b"?\n", (address, port))
            sock.recv(4096)
            done.asked += 1
        except OSError as error:
            done.lose(f"datagram: {error!r}")


def work(address: str, port: int, idle: int, rate: float) -> Done:
    """Until standard input ends. rate: new flows a second, half TCP and half UDP."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (idle + 1000, idle + 1000))
    done = Done()
    held = _open_idle(address, port, idle, done)
    print("ready", flush=True)
    waiting = selectors.DefaultSelector()
    waiting.register(sys.stdin, selectors.EVENT_READ)
    begun, turn = time.monotonic(), 0
    while not waiting.select(max(0.0, begun + turn / rate - time.monotonic())):
        (_one_udp if turn % 2 else _one_tcp)(address, port, done)
        turn += 1
        if turn % 1000 == 0 and time.monotonic() > begun + turn / rate + 1:
            begun = time.monotonic() - turn / rate  # behind: do not catch up in a burst
    for sock in held:
        try:
            sock.settimeout(PATIENCE)
            _exchange(sock)
            done.idle += 1
        except OSError as error:
            done.lose(f"idle connection from port {sock.getsockname()[1]}: {error!r}")
    return done


class Client:
    """`work` in a place of the lab."""

    def __init__(self, lab: Lab, place: str, address: str, port: int, idle: int, rate: float) -> None:
        import subprocess

        arguments = ["work", address, str(port), str(idle), str(rate)]
        self._process = lab.python(
            lab.place(place), "tests.perf.flow_soak", arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def end(self) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        return msgspec.json.decode(self._process.stdout.read(), type=Done)


def _choose(cluster: DaemonLab, pods: tuple[str, ...]) -> None:
    """These pods are behind the Service. All of them live on, whoever is chosen."""
    for protocol in ("TCP", "UDP"):
        items = [endpoint(cluster.lab.place(p).addresses[Family.IPV4], f"node{p[3]}") for p in pods]
        cluster.server.apply(endpoint_slice(f"echo-{protocol.lower()}", items, protocol=protocol))


def _series(daemon: NodeDaemon, *names: str) -> Iterator[str]:
    """Some of a daemon's metrics, as `name{labels}=value`."""
    text = http(daemon.netns, "127.0.0.1", 10249, "/metrics")[2].decode()
    for line in text.splitlines():
        if line.startswith(names) and not line.endswith(" 0.0"):
            yield line.replace(" ", "=").removeprefix("hotplane_")


def _report(cluster: DaemonLab, begun: float, kills: int, out: TextIO) -> None:
    """One line about the node whose daemon lives on."""
    daemon = cluster.daemons[1]
    kilobytes = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())[0])
    series = _series(daemon, "hotplane_map_entries", "hotplane_map_collected", "hotplane_map_refused",
                     "hotplane_collector_seconds")  # fmt: skip
    found = " ".join(s for s in series if "flows" in s or "peers" in s)
    print(f"{time.monotonic() - begun:6.0f} s, {kills} kills, daemon {kilobytes} kB; {found}", file=out, flush=True)


def soak(minutes: float, idle: int, rate: float, out: TextIO) -> int:
    """Run it; returns how much was lost."""
    with tempfile.TemporaryDirectory() as folder, Lab.up(LabSpec("soak", nodes=2, pods=3)) as lab:
        lab.start_echo([lab.place(name) for name in BACKENDS], [PORT])
        with daemon_lab(lab, Path(folder), "ebpf") as cluster:
            for protocol in ("TCP", "UDP"):
                ports: list[dict[str, Any]] = [{"port": 80, "protocol": protocol, "nodePort": NODE_PORT}]
                cluster.server.apply(service(f"echo-{protocol.lower()}", VIP, type="NodePort", ports=ports))
            _choose(cluster, BACKENDS)
            cluster.start()
            node1, node2 = (lab.place(n).addresses[Family.IPV4] for n in ("node1", "node2"))
            clients = {
                "outside by node1": Client(lab, "client", node1, NODE_PORT, idle * 4 // 10, rate * 4 / 10),
                "outside by node2": Client(lab, "client", node2, NODE_PORT, idle * 3 // 10, rate * 3 / 10),
                "pod of node1 by clusterIP": Client(lab, "pod1-3", VIP, 80, idle * 2 // 10, rate * 2 / 10),
                "pod of node2 by node1": Client(lab, "pod2-3", node1, NODE_PORT, idle // 10, rate / 10),
            }
            for client in clients.values():
                client.ready()
            kills = _disturb(cluster, minutes * 60, out)
            results = {name: client.end() for name, client in clients.items()}
    for name, done in results.items():
        print(f"{name}: {done.opened} connections ({done.slow} over 0.5 s), {done.asked} datagrams answered, "
              f"{done.idle} idle connections used again, {len(done.lost)} lost", file=out)  # fmt: skip
        print(*(f"  {what}" for what in done.lost), sep="\n", file=out) if done.lost else None
    lost = sum(len(done.lost) for done in results.values())
    total = sum(done.opened + done.asked for done in results.values())
    print(f"{total} new flows, {kills} daemons killed, {lost} lost", file=out, flush=True)
    return lost


def _disturb(cluster: DaemonLab, seconds: float, out: TextIO) -> int:
    """Endpoints come and go, the first daemon is killed; returns how often."""
    begun = time.monotonic()
    kills, turn, next_report = 0, 0, begun + 60
    while time.monotonic() < begun + seconds:
        time.sleep(1)
        turn += 1
        gone = BACKENDS[turn % len(BACKENDS)]
        _choose(cluster, tuple(pod for pod in BACKENDS if pod != gone))
        if time.monotonic() > begun + KILL_SECONDS * (kills + 1):
            kills += 1
            cluster.daemons[0].kill()
            cluster.daemons[0].start("--master", cluster.server.url, wait=False)
        if time.monotonic() > next_report:
            next_report += 60
            _report(cluster, begun, kills, out)
    return kills


def main() -> int:
    if sys.argv[1:2] == ["work"]:
        address, port, idle, rate = sys.argv[2:]
        print(msgspec.json.encode(work(address, int(port), int(idle), float(rate))).decode(), flush=True)
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    out = options.log.open("w") if options.log else sys.stdout
    what = f"{options.minutes:g} minutes, {options.idle} idle connections, {options.rate:g} new flows a second"
    print(f"{what}, endpoints change each second, a daemon is killed every {KILL_SECONDS:g} s", file=out, flush=True)
    return 1 if soak(options.minutes, options.idle, options.rate, out) else 0


if __name__ == "__main__":
    raise SystemExit(main())
