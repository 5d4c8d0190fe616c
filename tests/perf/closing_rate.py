"""New connections per second to a remote endpoint that closes first, by a node port: nftables, then ebpf (tc, xdp).

    python -m tests.perf.closing_rate [--seconds 30] [--workers 24] [--ports N] [--modes nftables,ebpf]

Runs a lab of its own, as root. The endpoint remembers each connection (TIME-WAIT), so that the node must not use its
source ports again too early, nor run out of them. A client with three addresses opens connections as fast as it can,
waits for the endpoint's FIN and closes. Prints per mode the rate, the rate of each second, and how many took long.
--ports: how many source ports the ebpf mode has, instead of all; with few it must give out ports that rest.
"""

import argparse
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from dataplane.kernel.namespaces import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.flows.ports import snat_fields
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.maps.node_settings import NODE
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.registry import mode_of

TARGET, NODE_PORT, SLOW = 9090, 30014, 0.5
FIRST_PORT = 20000
_SNAT_AT = slice(3, 8)
_NO_PORT_YET = 24  # IP_BIND_ADDRESS_NO_PORT
_SIZES = Sizes(tcp_flows=1 << 18)
MANIFEST = f"""
kind: Service
apiVersion: v1
metadata: {{name: closes}}
spec:
  type: NodePort
  selector: {{app: remote}}
  ports:
  - {{port: 80, targetPort: {TARGET}, nodePort: {NODE_PORT}}}
"""


class Outcome(NamedTuple):
    """Of one mode. per_second: connections begun in each second; slow: those that took longer than SLOW to connect;
    worst: the longest, in s; reasons: what the packet programs counted."""

    per_second: list[int]
    slow: int
    failed: int
    worst: float
    reasons: dict[str, int]

    @property
    def connections(self) -> int:
        return sum(self.per_second)


def _serve(sock: socket.socket) -> None:
    while True:
        connection, _ = sock.accept()
        connection.close()


def _fork(namespace: str) -> int:
    """0 in the child, which is in the namespace."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        netns.enter(namespace)
    return pid


@contextmanager
def server(namespace: str) -> Iterator[None]:
    """Two server processes accept every connection to TARGET and close it at once."""
    with netns.netns(namespace):
        sock = socket.create_server(("", TARGET), backlog=4096)
    children = []
    for _ in range(2):
        pid = _fork(namespace)
        if pid == 0:
            try:
                _serve(sock)
            finally:
                os._exit(1)
        children.append(pid)
    try:
        yield
    finally:
        sock.close()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _once(source: str, to: tuple[str, int]) -> tuple[float, bool]:
    """One connection; out: how long it took to connect, and whether it did and was closed."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_IP, _NO_PORT_YET, 1)
        sock.bind((source, 0))
        sock.settimeout(8)
        begun = time.monotonic()
        try:
            sock.connect(to)
            took = time.monotonic() - begun
            return took, sock.recv(1) == b""
        except OSError:
            return time.monotonic() - begun, False


def _work(source: str, to: tuple[str, int], begun: float, seconds: float, found: list[tuple[int, float, bool]]) -> None:
    while (now := time.monotonic()) < begun + seconds:
        found.append((int(now - begun), *_once(source, to)))


def _client(namespace: str, source: str, to: tuple[str, int], workers: int, seconds: float) -> tuple[int, int]:
    """A process that connects from one address; out: its id, and where its findings can be read."""
    read, write = os.pipe()
    pid = _fork(namespace)
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        found: list[tuple[int, float, bool]] = []
        arguments = (source, to, time.monotonic(), seconds, found)
        threads = [threading.Thread(target=_work, args=arguments) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(found, pipe)
        status = 0
    finally:
        os._exit(status)


def load(lab: Lab, sources: Sequence[str], seconds: int, workers: int) -> Outcome:
    """Connect from all sources at once for so long."""
    to = (lab.nodes[0].addresses[Family.IPV4], NODE_PORT)
    children = [_client(lab.client.netns, source, to, workers // len(sources), seconds) for source in sources]
    begun: Counter[int] = Counter()
    durations, failed = [], 0
    for pid, read in children:
        with os.fdopen(read, "rb") as pipe:
            found: list[tuple[int, float, bool]] = pickle.load(pipe)
        os.waitpid(pid, 0)
        begun.update(second for second, _, _ in found)
        durations += [took for _, took, _ in found]
        failed += sum(1 for _, _, fine in found if not fine)
    slow = sum(1 for took in durations if took > SLOW)
    return Outcome([begun[second] for second in range(seconds)], slow, failed, max(durations), {})


def _plane(mode: str) -> Plane:
    if mode == "ebpf":
        return EbpfPlane(mode_of("nftables").make(), [PacketHook(xdp=True)], _SIZES, report=print)
    return mode_of(mode).make()


def _limit_ports(proxy: LabProxy, count: int) -> None:
    """The programs of every node have so many source ports."""
    for node in proxy.nodes.values():
        if isinstance(node.plane, EbpfPlane):
            maps = node.plane.tables.maps
            raw = maps.get("node", NODE_KEY)
            assert raw is not None
            fields = list(NODE.unpack(raw))
            fields[_SNAT_AT] = snat_fields([(FIRST_PORT, FIRST_PORT + count - 1)])
            maps.put("node", NODE_KEY, NODE.pack(*fields))


def _sources(lab: Lab) -> list[str]:
    """Two more addresses for the client, next to its own; out: all three."""
    first = lab.client.addresses[Family.IPV4]
    network, _, last = first.rpartition(".")
    more = [f"{network}.{int(last) + n}" for n in (1, 2)]
    [route] = lab.run("client", ["ip", "-4", "-o", "address", "show", "to", f"{first}/32"]).stdout.splitlines()
    _, device, _, cidr, *_ = route.split()
    for address in more:
        lab.run("client", ["ip", "address", "add", f"{address}/{cidr.partition('/')[2]}", "dev", device])
    return [first, *more]


def measure(modes: Sequence[str], seconds: int, workers: int, ports: int = 0) -> dict[str, Outcome]:
    """Each mode in turn in one lab."""
    spec = LabSpec(name=f"closing{os.getpid()}", nodes=2, pods=1)
    found = {}

    def make(mode: str) -> LabProxy:
        def maker(_lab: Lab, _node: Node) -> Plane:
            return _plane(mode)

        return LabProxy(lab, mode, maker)

    with Lab.up(spec) as lab, server(next(pod.netns for pod in lab.pods if pod.name == "pod2-1")):
        sources = _sources(lab)
        decoded = cluster_objects(
            MANIFEST.encode(), {"remote": pods(lab.topology, "pod2-1")}, spec.families, "manifest"
        )
        for mode in modes:
            with make(mode) as proxy:
                proxy.update(decoded.objects)
                if ports:
                    _limit_ports(proxy, ports)
                found[mode] = load(lab, sources, seconds, workers)._replace(reasons=proxy.counters())
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--ports", type=int, default=0)
    parser.add_argument("--modes", default="nftables,ebpf")
    options = parser.parse_args()
    for mode, outcome in measure(options.modes.split(","), options.seconds, options.workers, options.ports).items():
        total = outcome.connections
        print(f"{mode}: {total / options.seconds:.0f}/s, slower than {SLOW} s {outcome.slow} ", end="")
        print(f"({100 * outcome.slow / total:.2f} %), failed {outcome.failed}, worst {outcome.worst:.2f} s")
        print(f"  each second: {' '.join(map(str, outcome.per_second))}")
        print(f"  counted: {outcome.reasons}")


if __name__ == "__main__":
    main()
