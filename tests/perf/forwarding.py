"""Forwarding with the client's address kept (tunnel, dsr) beside SNAT and plain forwarding: docs/bench/forwarding.md.

    python -m tests.perf.forwarding [--rounds 25] [--seconds 0.3] [--write]

Runs a lab of its own, as root; takes about five minutes. An outside client asks node ports of node 1, each with one
endpoint, on node 2; both nodes are in ebpf mode with tc and XDP. "plain" is the endpoint's own address by way of
node 3, which has no rules. Every round takes all ways in another order; ratios are of the same round, with their 95 %
confidence interval. SNAT is measured twice, as if it were two ways; the noise floor is what `hotplane bench` calls so.
Prints the tables, and with --write puts them into the page.
"""

import argparse
import functools
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from dataplane.bench.figures.noise import comparisons, floor, line
from dataplane.bench.figures.stats import Ratio, paired_ratio
from dataplane.bench.figures.watched import closed_loop
from dataplane.bench.helper import Helper
from dataplane.bench.load.generator import Generator, take_frames, udp_frame, uplink_ends, uplink_macs
from dataplane.bench.load.native import Tool, load_tool, watch_tool
from dataplane.bench.load.watcher import Watcher
from dataplane.bench.machine.facts import facts
from dataplane.bench.rig import CONNTRACK_SECONDS, exchange, pinned, tune
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import NodeProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabError, LabSpec, Node
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.registry import mode_of
from dataplane.policy.forwarding import LbMode
from tests.perf.page import Row, table, write
from tests.perf.run_statistics import run_statistics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bench" / "forwarding.md"
PATIENCE = 30.0
NODE_PORT, SERVER_PORT, CLIENT_PORT = 30200, 9000, 40000
"""First of each, to which a way's number is added. Endpoints have a port for each way, so that flows of different ways
never meet there."""
AT_ONCE = 16
_FORWARDED = "forwarded"
_SIZES = Sizes(tcp_flows=1 << 19)
"""Room for every port of the client by every way, and for what rests."""
_TRIES = 20
"""Of packets that a busy machine drops, since a processor's backlog is full at times."""

_SERVICE = """
kind: Service
apiVersion: v1
metadata:
  name: {name}
  annotations: {{service.hotplane.io/forwarding-mode: {mode}}}
spec:
  type: NodePort
  selector: {{app: remote}}
  ports:
  - {{name: tcp, port: 80, targetPort: {target}, nodePort: {node_port}}}
  - {{name: udp, protocol: UDP, port: 80, targetPort: {target}, nodePort: {node_port}}}
"""


class Way(NamedTuple):
    """How packets get to the endpoint. mode: what the Service asks for, "" without a Service."""

    name: str
    number: int
    mode: str = ""


SNAT, AGAIN, TUNNEL, DSR = (
    Way(name, number, mode)
    for number, (name, mode) in enumerate(
        (("snat", "snat"), ("snat again", "snat"), ("tunnel", "tunnel"), ("dsr", "dsr"))
    )
)
PLAIN = Way("plain", 4)
WAYS = (SNAT, AGAIN, TUNNEL, DSR, PLAIN)


class Figure(NamedTuple):
    """A rate that is measured. operation: what load.c is told, "live" for the kernel's own packets, "connects" for
    AT_ONCE at a time. scale: of an operation a second to the unit."""

    title: str
    operation: str
    unit: str
    scale: float = 1.0


FIGURES = (
    Figure("new connections/s, one after another", "connect", "1/s"),
    Figure(f"new connections/s, {AT_ONCE} at a time", "connects", "1/s"),
    Figure("TCP_RR, a byte each way", "rr", "1/s"),
    Figure("bulk TCP, one stream", "stream", "Gbit/s", 8e-9),
    Figure("packets/s of the taking node", "live", "Mpps", 1e-6),
)
CONNECT, LIVE = "connect", "live"
KINDS = ("xdp", "tc_ingress", "tc_egress")
"""Of packet programs, by how the names of their links begin."""


class Bar(NamedTuple):
    """A ratio of two ways that is to be reached."""

    operation: str
    way: Way
    base: Way
    least: float


BARS = (
    Bar(CONNECT, DSR, SNAT, 1.3),
    Bar(CONNECT, TUNNEL, SNAT, 1.0),
    Bar(LIVE, DSR, PLAIN, 3.0),
    Bar(LIVE, TUNNEL, PLAIN, 3.0),
)

Rounds = dict[str, dict[Way, list[float]]]
"""Rates by operation and way, one a round."""


def _plane(_lab: Lab, _node: Node) -> Plane:
    report = functools.partial(print, file=sys.stderr)
    return EbpfPlane(mode_of("nftables").make(), [PacketHook(xdp=True)], _SIZES, report=report)


class Ground(NamedTuple):
    """The lab with everything in it. taking: node 1, home: node 2, bare: node 3; proxies: of the first two."""

    lab: Lab
    taking: Node
    home: Node
    bare: Node
    proxies: tuple[NodeProxy, NodeProxy]
    client: Helper
    watcher: Watcher

    def target(self, way: Way) -> tuple[str, int]:
        """Address and port that a way's packets are sent to."""
        if way.mode:
            return self.taking.addresses[Family.IPV4], NODE_PORT + way.number
        return self.home.pods[0].addresses[Family.IPV4], SERVER_PORT + way.number

    def measure(self, way: Way, operation: str, seconds: float) -> dict[str, float]:
        """One operation for so long: operations, failures, seconds. Raises LabError."""
        address, port = self.target(way)
        if operation == LIVE:
            return self._live(way, seconds)
        if operation == "connects":
            answer = self.watcher.closed_loop(operation, (address, port), AT_ONCE, seconds)
            return closed_loop(answer, operation)
        return self.client.ask(f"{operation} {address} {port} {seconds} -".encode(), seconds + PATIENCE)

    def forwarded(self) -> int:
        """How many packets the taking node's programs have forwarded."""
        with netns(self.taking.netns):
            traffic = self.proxies[0].plane.traffic()
        return sum(way.times for way in (traffic.hook_exits if traffic else ()) if way.reason == _FORWARDED)

    def _live(self, way: Way, seconds: float) -> dict[str, float]:
        """Packets of the kernel's own making, of a flow that was answered; they are counted as they leave the node."""
        target, source = self.target(way), CLIENT_PORT + way.number
        if way.mode:
            exchange(self.lab.client.netns, (self.lab.client.addresses[Family.IPV4], source), target)
        ends = uplink_ends(self.lab.topology.underlay.netns, self.taking if way.mode else self.bare)
        addresses = self.lab.client.addresses[Family.IPV4], target[0]
        with Generator(*ends, udp_frame(uplink_macs(*ends), addresses, (source, target[1]))) as generator:
            for _ in range(_TRIES):
                found = generator.run(seconds)
                if found["operations"] >= 0.99 * found["sent"]:
                    break
        if found["operations"] < 0.99 * found["sent"]:
            raise LabError(f"{way.name}: of {found['sent']:.0f} packets only {found['operations']:.0f} came out")
        return found


def _services(lab: Lab, endpoint: str) -> list[ModelObject]:
    """A Service for each way that has one, all with the one endpoint, and its slice."""
    texts = [
        _SERVICE.format(
            name=way.name.replace(" ", "-"), mode=way.mode,
            target=SERVER_PORT + way.number, node_port=NODE_PORT + way.number,
        )
        for way in WAYS
        if way.mode
    ]  # fmt: skip
    manifest = "---".join(texts).encode()
    found = cluster_objects(manifest, {"remote": pods(lab.topology, endpoint)}, lab.spec.families, "manifest")
    return found.objects


def _serve(lab: Lab, pod: str, tool: Tool) -> None:
    process = lab.spawn(
        pod, pinned(1, [*tool.argv, "serve", str(SERVER_PORT), str(len(WAYS))]),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        raise LabError(f"{pod}: the server does not start; its words are above")


def _client(lab: Lab, argv: list[str]) -> Helper:
    process = lab.spawn(
        "client", pinned(0, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    return Helper(process, f"client: {argv[0]}")


@contextmanager
def ground() -> Iterator[Ground]:
    """The lab, loaded; goes without a trace. Raises LabError where there is no C compiler."""
    tool, watch = load_tool(), watch_tool()
    if watch is None:
        raise LabError("this load needs a C compiler: apt-get install gcc libc6-dev")
    with Lab.up(LabSpec(name=f"forward{os.getpid()}", nodes=3, pods=1)) as lab, ExitStack() as undo:
        taking, home, bare = lab.nodes
        for node in lab.nodes:
            tune(node.netns, CONNTRACK_SECONDS)
        _serve(lab, home.pods[0].name, tool)
        client = _client(lab, [*tool.argv, "run"])
        undo.callback(client.close)
        watcher = Watcher(_client(lab, [str(watch)]))
        undo.callback(watcher.close)
        objects = _services(lab, home.pods[0].name)
        proxies = []
        for node in (taking, home):
            proxies.append(NodeProxy(lab, node, "ebpf", _plane, LbMode.SNAT))
            undo.callback(proxies[-1].cleanup)
            proxies[-1].update(objects, ())
        for node in (taking, bare):
            take_frames(node, home, Family.IPV4)
        with Links(lab.topology.underlay.netns) as links:  # the client's packets to that pod pass by node 3
            links.route(home.pod_cidrs[Family.IPV4], via=bare.addresses[Family.IPV4], replace=True)
        yield Ground(lab, taking, home, bare, (proxies[0], proxies[1]), client, watcher)


def check(made: Ground) -> None:
    """Raises LabError where a way is not what its name says."""
    for way in WAYS:
        before = made.forwarded()
        found = made.measure(way, CONNECT, 0.1)
        packets = (made.forwarded() - before) / max(1.0, found["operations"])
        if found["failures"] or not found["operations"]:
            raise LabError(f"{way.name}: {found['failures']:.0f} failures in {found['operations']:.0f} connections")
        if (packets > 2.5) is not (way in (TUNNEL, DSR)):
            raise LabError(f"{way.name}: {packets:.1f} packets a connection were forwarded by {made.taking.name}")


def measured(made: Ground, rounds: int, seconds: float) -> tuple[Rounds, Counter[str]]:
    """Rates, and what failed how often, by way and figure. One round more comes first and warms up."""
    found: Rounds = {figure.operation: {way: [] for way in WAYS} for figure in FIGURES}
    failed: Counter[str] = Counter()
    for number in range(rounds + 1):
        for figure in random.sample(FIGURES, len(FIGURES)):
            for way in random.sample(WAYS, len(WAYS)):
                one = made.measure(way, figure.operation, seconds)
                if not one["operations"]:
                    raise LabError(f"{way.name}, {figure.title}: nothing came through in round {number}")
                if number:
                    found[figure.operation][way].append(one["operations"] / one["seconds"])
                    failed[f"{way.name}, {figure.title}"] += int(one["failures"])
    return found, +failed


def _shown(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def rates(found: Rounds) -> str:
    """A row for each figure: SNAT's median, the others' ratios to it, the noise floor."""
    lines = {
        operation: line({way.name: dict(enumerate(values)) for way, values in by_way.items()}, (SNAT.name, AGAIN.name))
        for operation, by_way in found.items()
    }
    compared = comparisons(lines.values())
    head = ("what", "snat, median", *(f"{way.name} / snat" for way in WAYS[1:]), "noise floor")
    rows: list[Row] = []
    for figure in FIGURES:
        by_way = found[figure.operation]
        base = statistics.median(by_way[SNAT]) * figure.scale
        rows.append(
            (
                figure.title,
                f"{base:.3g} {figure.unit}" if base < 1000 else f"{base:,.0f} {figure.unit}",
                *(_shown(paired_ratio(by_way[way], by_way[SNAT])) for way in WAYS[1:]),
                f"{100 * floor(lines[figure.operation], compared):.0f} %",
            )
        )
    return table(head, rows)


def bars(found: Rounds) -> str:
    """A row for each bar: met or missed where the whole interval is on one side of it."""
    titles = {figure.operation: figure.title for figure in FIGURES}
    rows: list[Row] = []
    for bar in BARS:
        by_way = found[bar.operation]
        ratio = paired_ratio(by_way[bar.way], by_way[bar.base])
        verdict = "met" if ratio.low >= bar.least else "**missed**" if ratio.high < bar.least else "unclear"
        what = f"{titles[bar.operation]}, {bar.way.name} / {bar.base.name}"
        rows.append((what, f"≥ {bar.least:g}", _shown(ratio), verdict))
    return table(("what", "bar", "measured", "verdict"), rows, words=(0, 3))


def packets(found: Rounds) -> str:
    """Nanoseconds of a packet in the taking node, and how many times plain forwarding's rate that is."""
    by_way = found[LIVE]
    rows: list[Row] = []
    for way in WAYS:
        ratio = _shown(paired_ratio(by_way[way], by_way[PLAIN])) if way is not PLAIN else "1"
        rows.append((way.name, f"{1e9 / statistics.median(by_way[way]):.0f}", ratio))
    return table(("way", "ns a packet", "rate / plain forwarding's"), rows)


class Spent(NamedTuple):
    """What a program did in one connection: how often it ran, and nanoseconds in all."""

    runs: float
    nanoseconds: float

    def __str__(self) -> str:
        return f"{self.runs:.1f} x {self.nanoseconds / self.runs:.0f}" if self.runs > 0.05 else "-"


@contextmanager
def _programs(node: Node) -> Iterator[dict[str, int]]:
    """Descriptors of a node's packet programs, by the beginning of their links' names."""
    found: dict[str, int] = {}
    with netns(node.netns):
        links = PinDirectory(default_instance()).links()
    try:
        for name, path in links.items():
            kind = "xdp" if name.startswith("xdp") else name.partition("-")[0]
            if kind not in found:
                link = bpf.obj_get(str(path))
                try:
                    found[kind] = bpf.program_by_id(bpf.link_info(link).program_id)
                finally:
                    os.close(link)
        yield found
    finally:
        for descriptor in found.values():
            os.close(descriptor)


def _spent(made: Ground, way: Way, programs: dict[str, int], seconds: float) -> dict[str, Spent]:
    """By program; meanwhile the client connects, one after another."""
    before = {name: bpf.program_info(descriptor) for name, descriptor in programs.items()}
    count = made.measure(way, CONNECT, seconds)["operations"]
    after = {name: bpf.program_info(descriptor) for name, descriptor in programs.items()}
    return {
        name: Spent(
            (after[name].run_count - before[name].run_count) / count, (after[name].run_ns - before[name].run_ns) / count
        )
        for name in programs
    }


def spent(made: Ground, seconds: float) -> dict[Way, dict[str, Spent]]:
    """By way, node and program (`node1: xdp`): runs and time in one connection, by the kernel's own count, which costs
    some ns a run. The client connects for so long by each way."""
    with run_statistics(), _programs(made.taking) as first, _programs(made.home) as second:
        both = {f"{made.taking.name}: {kind}": first[kind] for kind in KINDS}
        both |= {f"{made.home.name}: {kind}": second[kind] for kind in KINDS}
        return {way: _spent(made, way, both, seconds) for way in WAYS}


def programs(counted: dict[Way, dict[str, Spent]]) -> str:
    """A row for each way, a column for each program of each node: runs, and mean ns of one."""
    kinds = list(counted[SNAT])
    head = ("runs x ns in one connection", *(kind.replace("_", " ") for kind in kinds), "all, µs")
    rows: list[Row] = []
    for way, by_kind in counted.items():
        whole = sum(one.nanoseconds for one in by_kind.values()) / 1000
        rows.append((way.name, *(str(by_kind[kind]) for kind in kinds), f"{whole:.1f}"))
    return table(head, rows)


def tables(rounds: int, seconds: float) -> dict[str, str]:
    """Every table of the page, by the name that marks its place."""
    with ground() as made:
        check(made)
        found, failed = measured(made, rounds, seconds)
        counted = spent(made, max(0.5, seconds))
    machine = facts()
    load = " ".join(f"{value:.1f}" for value in machine.load_average)
    parts = (
        f"{machine.started[:10]}",
        f"{machine.cpus} x {machine.cpu_model}",
        machine.virtual,
        f"Linux {machine.kernel}",
    )
    text = f"{', '.join(filter(None, parts))}, commit {machine.versions.get('commit', '?')}; {rounds} rounds, "
    text += f"{seconds:g} s a figure; load average afterwards {load}. "
    text += f"Failed: {'; '.join(f'{what}: {count}' for what, count in failed.items()) or 'nothing'}."
    return {
        "machine": text,
        "bars": bars(found),
        "rates": rates(found),
        "packets": packets(found),
        "programs": programs(counted),
    }


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    made = tables(wanted.rounds, wanted.seconds)
    if wanted.write:
        PAGE.write_text(write(PAGE.read_text(), made))
    for name, text in made.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
