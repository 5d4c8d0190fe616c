"""Where the time of one connection and of one packet goes: the tables of docs/cost-model.md.

    python -m tests.perf.cost_model [--services 10000] [--rounds 9] [--seconds 0.2] [--write]

Runs a lab of its own, as root; takes about two minutes. Prints the tables, or with --write puts them into the page.
"""

import argparse
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from scapy.layers.inet import IP, TCP

from dataplane.bench.load.instructions import leave
from dataplane.bench.load.native import load_tool
from dataplane.bench.machine.facts import facts
from dataplane.bench.objects import SERVER_PORT
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig, lab_name
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, ProgramInfo, ProgramType
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.spec import LabError, Node
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.measure import flow, tc_mean, xdp_mean
from tests.perf.page import Row, table, write
from tests.perf.run_statistics import run_statistics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cost-model.md"
MODES = ("direct", "conntrack", "iptables", "nftables", "ebpf-connect", "ebpf-tc", "ebpf-xdp")
_EMPTY_NAT = """table inet cost {
    chain a { type nat hook prerouting priority -100; }
    chain b { type nat hook output priority -100; }
    chain c { type nat hook postrouting priority 100; }
}"""
_BULK = 10**9
_ALONE = "10.96.255.254"
"""A clusterIP that no Service has."""

_SLICE_SECONDS, _SLICES, _QUIET = 0.02, 200, 0.1
"""What is measured in processor time: so long at once, so often, and which part of that counts as undisturbed."""


class Step(NamedTuple):
    """One way to make a connection. mode: whose node; pod: to the pod's own address instead of a clusterIP; rules: what
    nft loads into the node meanwhile, a table `inet cost`."""

    title: str
    mode: str
    pod: bool = False
    rules: str = ""


def _untracked(node: Node) -> str:
    """Rules that keep conntrack off the packets between the node's two pods."""
    server, client = (pod.addresses[Family.IPV4] for pod in node.pods)
    return f"""table inet cost {{
    chain c {{
        type filter hook prerouting priority -300;
        ip saddr {client} ip daddr {server} notrack
        ip saddr {server} ip daddr {client} notrack
    }}
}}"""


@contextmanager
def _loaded(rig: Rig, node: Node, rules: str) -> Iterator[None]:
    if not rules:
        yield
        return
    rig.lab.run(node, ["nft", "-f", "-"], input=rules)
    try:
        yield
    finally:
        rig.lab.run(node, ["nft", f"delete {' '.join(rules.split()[:3])}"])


def _rates(keys: Sequence[str], rounds: int, measure: Callable[[str], float]) -> dict[str, list[float]]:
    """Nanoseconds for each key and round; the first round warms up. Every round takes all of them, in another order."""
    found: dict[str, list[float]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key in random.sample(keys, len(keys)):
            value = measure(key)
            if number:
                found[key].append(value)
    return found


def _difference(found: dict[str, list[float]], key: str, base: str) -> str:
    """Median over rounds of the difference in the same round."""
    return f"{statistics.median(a - b for a, b in zip(found[key], found[base], strict=True)):+.0f}"


def _steps(rig: Rig) -> list[Step]:
    node = rig.nodes["ebpf-connect"]
    return [
        Step("direct, no hook in the node", "direct"),
        Step("direct, connections tracked", "conntrack"),
        Step("direct, tracked, three empty nat chains", "conntrack", rules=_EMPTY_NAT),
        Step("pod's address past nftables mode", "nftables", pod=True),
        Step("clusterIP, nftables mode", "nftables"),
        Step("pod's address past ebpf mode (connect)", "ebpf-connect", pod=True),
        Step("clusterIP, ebpf mode (connect)", "ebpf-connect"),
        Step("clusterIP, ebpf mode (connect), flow not tracked", "ebpf-connect", rules=_untracked(node)),
        Step("clusterIP, ebpf mode (tc)", "ebpf-tc"),
        Step("clusterIP, iptables mode, last Service", "iptables"),
    ]


def _connect(rig: Rig, step: Step, services: int, seconds: float) -> float:
    scenario = SCENARIOS["pod" if step.pod else "connect"]
    target = rig.target(step.mode, scenario, services, Position.LAST)
    with _loaded(rig, rig.nodes[step.mode], step.rules):
        figures = rig.traffic(step.mode, "connect", target, seconds, outside=False)
    if figures["failures"]:
        raise LabError(f"{step.title or step.mode}: {figures['failures']:.0f} connections failed")
    nanoseconds: float = 1e9 * figures["seconds"] / figures["operations"]
    return nanoseconds


def connections(rig: Rig, services: int, rounds: int, seconds: float) -> list[Row]:
    """A TCP connection of a pod to a pod of the same node: set up, used for nothing, reset."""
    steps = {step.title: step for step in _steps(rig)}
    found = _rates(list(steps), rounds, lambda title: _connect(rig, steps[title], services, seconds))
    base = next(iter(steps))
    return [
        (title, f"{statistics.median(found[title]):.0f}", _difference(found, title, base), f"{ratio:.2f}")
        for title in steps
        for ratio in [statistics.median(x / y for x, y in zip(found[base], found[title], strict=True))]
    ]


def _only_translated(node: Node) -> str:
    """Rules that do what a Service at _ALONE takes, and nothing that a set of Services needs."""
    server = node.pods[0].addresses[Family.IPV4]
    return f"""table ip cost {{
    chain a {{ type nat hook prerouting priority -100; ip daddr {_ALONE} tcp dport 80 dnat to {server}:{SERVER_PORT}; }}
    chain b {{ type nat hook output priority -100; }}
    chain c {{ type nat hook postrouting priority 100; }}
}}"""


def _processor_seconds(process: int) -> float:
    """Time on processors of a process's threads; what its packets take on the way is in it."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def own_part(rig: Rig, services: int) -> list[Row]:
    """Processor time of the client in a connection, its packets' included: much steadier than a rate on a machine that
    others use, too. Of many short runs in turns, the least disturbed tenth."""
    connect, alone = SCENARIOS["connect"], _only_translated(rig.nodes["direct"])
    steps = {
        "direct, connections tracked": Step("", "conntrack"),
        "one rule that translates, and no other": Step("", "direct", rules=alone),
        "clusterIP, nftables mode": Step("", "nftables"),
    }

    def measure(title: str) -> float:
        step = steps[title]
        target = (_ALONE, 80) if step.rules else rig.target(step.mode, connect, services, Position.LAST)
        [client], _ = rig.ends(step.mode, connect)
        with _loaded(rig, rig.nodes[step.mode], step.rules):
            before = _processor_seconds(client)
            figures = rig.traffic(step.mode, "connect", target, _SLICE_SECONDS, outside=False)
            spent = _processor_seconds(client) - before
        nanoseconds: float = 1e9 * spent / max(1, figures["operations"])
        return nanoseconds

    found = _rates(list(steps), _SLICES, measure)
    quiet = {title: sorted(values)[int(_QUIET * len(values))] for title, values in found.items()}
    base = quiet[next(iter(steps))]
    return [(title, f"{ns:.0f}", f"{ns - base:+.0f}", f"{base / ns:.3f}") for title, ns in quiet.items()]


def rules(rig: Rig, counts: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """What each further Service costs the iptables mode's new connections: its last Service among ever more."""
    rows: list[Row] = []
    for services in counts:
        rig.load("iptables", services)

        def measure(mode: str, services: int = services) -> float:
            return _connect(rig, Step("", mode), services, seconds)

        found = _rates(("iptables", "direct"), rounds, measure)
        median = statistics.median(found["iptables"])
        rows.append((f"{services}", f"{median:.0f}", _difference(found, "iptables", "direct")))
    return rows


@contextmanager
def _counted(node: Node, name: str) -> Iterator[Callable[[], ProgramInfo]]:
    """Has the kernel count runs and time of every program meanwhile; gives what reads those of a node's program, by the
    beginning of its link's pin."""
    with netns(node.netns):
        links = PinDirectory(default_instance()).links()
    link = bpf.obj_get(str(next(path for pin, path in links.items() if pin.startswith(name))))
    program = bpf.program_by_id(bpf.link_info(link).program_id)
    try:
        with run_statistics():
            yield lambda: bpf.program_info(program)
    finally:
        os.close(program)
        os.close(link)


def programs_at_connect(rig: Rig, services: int, seconds: float) -> list[Row]:
    """The kernel's own count of runs and time of the connect-time program, in real connects."""
    rows: list[Row] = []
    with _counted(rig.nodes["ebpf-connect"], "connect4") as info:
        for title, pod in (("a clusterIP", False), ("an address that is no Service's", True)):
            start = info()
            _connect(rig, Step("", "ebpf-connect", pod=pod), services, seconds)
            end = info()
            rows.append((title, f"{(end.run_ns - start.run_ns) / (end.run_count - start.run_count):.0f}"))
    return rows


def programs_in_bulk(rig: Rig, services: int, rounds: int) -> list[Row]:
    """The same of the tc programs, while a pod sends a gigabyte at a time to a clusterIP. For each: runs and time in a
    gigabyte, and the part of a processor that is at the rate of the run."""
    target = rig.target("ebpf-tc", SCENARIOS["TCP_STREAM"], services, Position.LAST)
    rows: list[Row] = []
    for name in ("tc_ingress", "tc_egress"):
        found: list[tuple[float, ...]] = []
        with _counted(rig.nodes["ebpf-tc"], name) as info:
            for _ in range(rounds):
                start = info()
                figures = rig.bulk("ebpf-tc", 1, target, _BULK)
                end = info()
                count, ns, size = end.run_count - start.run_count, end.run_ns - start.run_ns, figures["operations"]
                found.append((count / size, ns / count, ns / size / 1e6, 100 * ns / figures["seconds"] / 1e9))
        runs, each, spent, part = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append((name.replace("_", " "), f"{runs:.0f}", f"{each:.0f}", f"{spent:.1f}", f"{part:.1f}"))
    return rows


def forwarded(rig: Rig, services: int, rounds: int, seconds: float) -> list[Row]:
    """A packet from outside to a backend on another node, through a node, as the kernel's own packets."""
    scenario = SCENARIOS["north-remote-pps"]

    def measure(mode: str) -> float:
        figures = rig.live(mode, rig.target(mode, scenario, services, Position.LAST), seconds)
        nanoseconds: float = 1e9 * figures["seconds"] / figures["operations"]
        return nanoseconds

    found = _rates(MODES, rounds, measure)
    return [
        (mode, f"{statistics.median(found[mode]):.0f}", _difference(found, mode, "direct"), f"{ratio:.2f}")
        for mode in MODES
        for ratio in [statistics.median(x / y for x, y in zip(found["direct"], found[mode], strict=True))]
    ]


def programs_on_packets() -> list[Row]:
    """Test runs of the packet programs."""
    rows: list[Row] = []
    with b.bench() as node:
        node.links.neighbour("up0", b.NODE2, node.up_mac)
        header = IP(src=b.CLIENT, dst=b.REMOTE, ttl=255)
        frame = node.frame(header / TCP(sport=1000, dport=80, flags="A"))
        other = node.frame(header / TCP(sport=1001, dport=80, flags="A"))
        nothing = bpf.program_load(leave(b.XDP_PASS), ProgramType.XDP, AttachType.XDP, "nothing")
        xdp = node.programs["xdp_uplink"].fd

        def add(title: str, means: list[int]) -> None:
            rows.append((title, f"{min(means)}", f"{statistics.median(means):.0f}"))

        add("XDP, a program that returns at once", xdp_mean(node, frame, nothing))
        os.close(nothing)
        for kind, title in (("remote", "client to remote backend"), ("reply", "its answer")):
            flow(node, b.CLIENT, b.REMOTE, kind)
            add(f"XDP, established, {title}, DNAT and SNAT", xdp_mean(node, frame, xdp))
            add(f"tc, the same, {title}", tc_mean(node, frame))
        add("XDP, no flow and no Service", xdp_mean(node, other, xdp))
        add("tc, no flow and no Service", tc_mean(node, other))
        flow(node, b.CLIENT, b.REMOTE, "local")
        add("tc, established, local backend, DNAT only", tc_mean(node, frame))
        add("tc egress, nothing to translate back", tc_mean(node, other, egress=True))
    return rows


def tables(services: int, rounds: int, seconds: float) -> dict[str, str]:
    """Every table of the page, by the name that marks its place."""
    made = {"programs": table(("one packet", "least ns", "median ns"), programs_on_packets())}
    wanted = msgspec.structs.replace(settings("quick", Overrides(services=(services,))), modes=MODES)
    with Rig(lab_name(), wanted, load_tool()) as rig:
        for mode in MODES[2:]:
            rig.restart_agent(mode)
            rig.load(mode, services)
        made["connections"] = table(
            ("one connection", "ns", "more than direct", "rate / direct"), connections(rig, services, rounds, seconds)
        )
        made["own"] = table(
            ("one connection", "ns of the client's processor", "more than tracked", "tracked / this"),
            own_part(rig, services),
        )
        made["connect"] = table(("connect4 towards", "ns"), programs_at_connect(rig, services, seconds))
        made["bulk"] = table(
            ("program", "runs a gigabyte", "ns a run", "ms a gigabyte", "% of a processor"),
            programs_in_bulk(rig, services, rounds),
        )
        made["packets"] = table(
            ("one packet forwarded", "ns", "more than direct", "rate / direct"),
            forwarded(rig, services, rounds, seconds / 2),
        )
        counts = [count for count in (1, 100, 1000) if count < services]
        made["rules"] = table(("Services", "ns", "more than direct"), rules(rig, counts, rounds, seconds))
    machine = facts()
    load = " ".join(f"{value:.1f}" for value in machine.load_average)
    made["machine"] = f"{machine.cpus} processors, {machine.cpu_model}, Linux {machine.kernel}; "
    made["machine"] += f"{services} Services, {rounds} rounds; load average afterwards {load}."
    return made


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    made = tables(wanted.services, wanted.rounds, wanted.seconds)
    if wanted.write:
        PAGE.write_text(write(PAGE.read_text(), made))
        return
    for name, text in made.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
