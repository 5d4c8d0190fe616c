"""The daemon in a lab: an API server on the underlay, `hotplane run` on every node, and traffic that counts losses."""

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.lab.apiserver.server import ApiServer
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, Pod
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import endpoint, endpoint_slice, node, service

PORT = 8080
VIP = "10.96.0.10"
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0
_RESET = struct.pack("ii", 1, 0)
_IP_LOCAL_PORT_RANGE = 51


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for something that must come true; only a defect makes anyone wait so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _now() -> str:
    """The time as the daemons' logs say it."""
    return datetime.now(UTC).strftime("%H:%M:%S.%f")


class NodeDaemon:
    """`hotplane run` (or another command that takes its options) on one node."""

    def __init__(self, lab: Lab, node_name: str, folder: Path, mode: str = "nftables") -> None:
        self.lab, self.node, self.mode = lab, node_name, mode
        self.folder = folder / node_name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log"
        self.wrapper: tuple[str, ...] = ()
        self.options: tuple[str, ...] = ()
        self.program: tuple[str, ...] = ("-P", "-m", "ctl.main")
        self._process: subprocess.Popen[Any] | None = None

    @property
    def netns(self) -> str:
        return self.lab.place(self.node).netns

    @property
    def text(self) -> str:
        """The daemon's log since its last start."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def command(self, command: str, *options: str) -> list[str]:
        common = ["--node-name", self.node, "--state-dir", str(self.folder / "state")]
        common += ["--mode", self.mode] if self.mode else []
        common += ["--cgroup", str(self.lab.cgroup(self.node))] if self.mode == "ebpf" else []
        common += self.options
        own = ["--cluster-cidr", CLUSTER_CIDR[Family.IPV4]] if command in ("run", "adopt") else []
        return [*self.wrapper, sys.executable, *self.program, *common, command, *own, *options]

    def start(self, *options: str, wait: bool = True) -> None:
        with netns(self.netns), self.log.open("wb") as out:
            self._process = subprocess.Popen(self.command("run", *options), stderr=out, cwd=ROOT)
        if wait:
            until(lambda: " loaded " in self.text or not self.alive, f"{self.node} loads: {self.text}")
            assert self.alive, self.text

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hangup(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """End it in order; its exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def run(self, command: str, *options: str) -> str:
        """Another command on this node, to its end; its standard error."""
        done = in_netns(
            self.netns, subprocess.run, self.command(command, *options), capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        return done.stderr


def looking_plane(mode: str) -> Plane:
    """A plane that only reads back, for this thread's network namespace."""
    return mode_of(mode).make(Making(PlaneOptions(hooks=())))


class DaemonLab:
    """A lab, its API server, and a daemon for each node."""

    def __init__(self, lab: Lab, folder: Path, mode: str = "nftables") -> None:
        self.lab = lab
        underlay = lab.topology.underlay
        with netns(underlay.netns):
            self.server = ApiServer(underlay.addresses[Family.IPV4])
        self.daemons = [NodeDaemon(lab, each.name, folder, mode) for each in lab.nodes]

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.server.behave(bookmark_seconds=0.2)
        self.server.apply(*[node(each.name, each.addresses[Family.IPV4]) for each in self.lab.nodes])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in self.daemons:
            if daemon.alive:
                daemon.kill()
            with netns(daemon.netns):
                for mode in dict.fromkeys((daemon.mode or "nftables", "nftables", "iptables")):
                    looking_plane(mode).cleanup()
        self.server.__exit__(None, None, None)

    def start(self, *options: str) -> None:
        for daemon in self.daemons:
            daemon.start("--master", self.server.url, *options)

    def synced(self, daemons: Sequence[NodeDaemon] | None = None) -> None:
        """Wait until every daemon (or these) has taken in all that the API server has said so far.

        A marker Service and its slice go in behind it; when the kernel has both, it has everything before. After
        trouble a watch may wait for a minute before it tries again.
        """
        self._marks = getattr(self, "_marks", 0) + 1
        name = f"mark-{self._marks}"
        self.server.apply(service(name, f"10.96.200.{self._marks % 250 + 1}"), endpoint_slice(name, ["10.244.1.99"]))
        for daemon in self.daemons if daemons is None else daemons:
            until(lambda d=daemon: self._served(d, f"default/{name}"), f"{daemon.node} follows")  # type: ignore[misc]
        self.server.delete("Service", "default", name)
        self.server.delete("EndpointSlice", "default", f"{name}-abcde")

    def holds(self, daemon: NodeDaemon, service_port: str) -> bool:
        """True if the kernel of a node has a Service port."""
        with netns(daemon.netns):
            return service_port in {row.service for row in looking_plane(daemon.mode).read_back().values()}

    def _served(self, daemon: NodeDaemon, service_port: str) -> bool:
        """True if the kernel of a node has a Service port with an endpoint."""
        with netns(daemon.netns):
            return any(
                row.cluster for row in looking_plane(daemon.mode).read_back().values() if row.service == service_port
            )

    def pods(self) -> tuple[Pod, ...]:
        return self.lab.pods

    def serve(self, *states: tuple[Pod, str], name: str = "echo", protocol: str = "TCP") -> None:
        """A Service's endpoints: pods, each "ready", "terminating" (still serving) or "gone" (not ready)."""
        items = [
            endpoint(
                pod.addresses[Family.IPV4], pod.node, ready=state == "ready", serving=state != "gone",
                terminating=state == "terminating",
            )
            for pod, state in states
        ]  # fmt: skip
        self.server.apply(endpoint_slice(name, items, protocol=protocol))


def http(namespace: str, host: str, port: int, path: str = "/") -> tuple[int, dict[str, str], bytes]:
    """GET, from inside a namespace: status, headers in lower case, body."""
    with in_netns(namespace, socket.create_connection, (host, port), PATIENCE) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        data = b""
        while part := connection.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


class Traffic:
    """Connections through a frontend while a test goes on: new ones all the time, and some that live throughout.

    ports: of the client. A place that sends both to a Service and to its endpoint itself needs two ranges: with one
    port for both its connections would be one there (docs/decisions.md, eBPF plane).

    failures: every connection attempt or exchange that did not work, in words. made: new connections that worked.
    """

    def __init__(
        self,
        namespace: str,
        address: str = VIP,
        port: int = 80,
        lasting: int = 8,
        pause: float = 0.002,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self._namespace, self._address, self._port, self._lasting = namespace, address, port, lasting
        self._pause, self._ports = pause, ports
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._short, self._long)]
        self.failures: list[str] = []
        self.made = self.exchanged = 0
        self.servers: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: (self.made > 10 and (self.exchanged > 0 or not self._lasting)) or bool(self.failures), "traffic")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _connect(self) -> socket.socket:
        connection = in_netns(self._namespace, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(60)
        if self._ports is not None:
            low, high = self._ports
            connection.setsockopt(socket.SOL_IP, _IP_LOCAL_PORT_RANGE, struct.pack("=I", high << 16 | low))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.connect((self._address, self._port))
        return connection

    @staticmethod
    def _exchange(connection: socket.socket) -> str:
        connection.sendall(b"?\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = connection.recv(4096)
            if not part:
                raise ConnectionResetError("closed by the server")
            answer += part
        return answer.split(b'"')[3].decode()

    def _short(self) -> None:
        while not self._end.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    self.servers[self._exchange(connection)] += 1
                self.made += 1
            except OSError as error:
                self.failures.append(f"new connection {self.made} at {_now()}: {error!r}")
            time.sleep(self._pause)

    def _long(self) -> None:
        connections = [self._connect() for _ in range(self._lasting)]
        while connections and not self._end.is_set():
            for connection in list(connections):
                try:
                    self._exchange(connection)
                    self.exchanged += 1
                except OSError as error:
                    self.failures.append(f"lasting connection at {_now()}: {error!r}")
                    connections.remove(connection)
            time.sleep(0.01)
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def daemon_lab(lab: Lab, folder: Path, mode: str = "nftables") -> Iterator[DaemonLab]:
    """Daemons on all nodes of a lab, gone afterwards, their rules too."""
    with DaemonLab(lab, folder, mode) as cluster:
        yield cluster
