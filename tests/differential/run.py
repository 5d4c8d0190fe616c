"""Hold the packets of one mode against the oracle, cluster after cluster.

python -m tests.differential.run --mode nftables --seed 1 --clusters 1000     # a soak; --first N begins at cluster N
"""

import argparse
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.model.decode import decode_object
from dataplane.model.net import Protocol
from dataplane.oracle.decide import Decision, Oracle, Packet
from dataplane.oracle.keeps import Keeping, Keeps
from dataplane.plan.change import diff
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan
from dataplane.planes.base import Plane
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from tests.differential.generate import Cluster, Flow, Generator
from tests.differential.ground import Ground, ground
from tests.differential.judge import Finding, Judge, elsewhere
from tests.differential.probes import Prober, Result

HOOKS: dict[str, tuple[str, ...]] = {
    "ebpf": ("connect", "tc"),
    "ebpf-tc": ("tc",),
    "ebpf-xdp": ("connect", "tc", "xdp"),
    "ebpf-parity": ("connect", "tc", "xdp"),
}
PARITY = "ebpf-parity"
MODES = ("iptables", "nftables", *HOOKS)
_FIRST, _TOP_UPS = 4, (24, 60, 120)
"""Packets of a flow, and more for those that have not met all their backends. Of six, a fair choice misses one in 208
packets once in 10^16."""


class Differential:
    """One mode on one node, kept up over many clusters."""

    def __init__(self, where: Ground, prober: Prober, mode: str) -> None:
        self.mode = mode
        self._ground, self._prober = where, prober
        kind = mode_of("ebpf" if mode in HOOKS else mode)
        self._kind, self._judge = kind.promises, Judge(kind.name)
        self._plane, self._plan = self._start()
        self.packets = 0
        self.verdicts: Counter[str] = Counter()
        self.misheld: list[str] = []

    def _start(self) -> tuple[Plane, Plan]:
        generator = Generator(0, 0)
        plan = Planner(generator.cluster().node(self._kind)).plan
        with netns(self._ground.spaces["node"]):
            plane = self._make_plane()
            plane.load(plan)
        return plane, plan

    def _make_plane(self) -> Plane:
        if self.mode not in HOOKS:
            return mode_of(self.mode).make()
        instance = f"hp-{self._ground.spaces['node']}"
        options = PlaneOptions(
            HOOKS[self.mode],
            str(self._ground.group),
            kube_proxy_masquerade=self.mode == PARITY,
            instance=instance,
        )
        return mode_of("ebpf").make(Making(options))

    def _keeping(self) -> Keeping:
        hooks = HOOKS.get(self.mode, ()) if self.mode != PARITY else ()
        keeps = {Keeps.PODS: "connect", Keeps.LOCAL: "tc"}
        return Keeping(frozenset(kept for kept, hook in keeps.items() if hook in hooks))

    def restart(self) -> None:
        """Begin anew, with nothing left of earlier clusters."""
        self.cleanup()
        self._plane, self._plan = self._start()

    def cleanup(self) -> None:
        """Remove the plane's every trace."""
        with netns(self._ground.spaces["node"]):
            self._plane.cleanup()
            forget_all()

    @staticmethod
    def loaded(plan: Plan) -> Plan:
        """Return the plan that the plane loads: all of it. A changed one must be detected."""
        return plan

    def _load(self, cluster: Cluster) -> Plan:
        values = [decode_object(msgspec.json.encode(item)).value for item in cluster.objects]
        planner = Planner(cluster.node(self._kind), vouched=False)
        planner.update([value for value in values if value is not None])
        plan = planner.plan
        change = diff(self._plan, self.loaded(plan))
        with netns(self._ground.spaces["node"]):
            self._plane.apply(change)
            clean_stale_udp(change, plan.node)
            forget_all()
            held = self._plane.read_back()
        self._plan = self.loaded(plan)
        wanted = rows(self._plan)
        differ = [key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key)]
        self.misheld = [f"{key}: held {held.get(key)}, wanted {wanted.get(key)}" for key in differ]
        return plan

    def check(self, cluster: Cluster) -> list[Finding]:
        """Load a cluster and try its flows; what disagrees, also after a second look."""
        plan = self._load(cluster)
        wanted = [(flow, self._decide(plan, flow)) for flow in cluster.flows]
        asked = [pair for pair in wanted if self._judge.may_ask(*pair)]
        results = self._try(asked, _FIRST)
        for count in _TOP_UPS:
            short = [n for n, pair in enumerate(asked) if self._judge.missing(pair[1], results[n])]
            short = [n for n in short if self._judge.judge(*asked[n], results[n]) is None]
            if not short:
                break
            for number, more in zip(short, self._try([asked[n] for n in short], count), strict=True):
                results[number] += more
        found = []
        for (flow, decision), packets in zip(asked, results, strict=True):
            self.verdicts[decision.verdict.value] += 1
            finding = self._judge.judge(flow, decision, packets)
            if finding is None and (missing := self._judge.missing(decision, packets)):
                finding = Finding(flow, f"each of {decision.backends}", f"never {sorted(missing)}", decision.reasons)
            if finding is not None:
                found.append(finding)
        return found

    def evidence(self, findings: Sequence[Finding]) -> list[str]:
        """What the node remembers of the clients that got something else, right after that."""
        sources = {finding.flow.source for finding in findings}
        with netns(self._ground.spaces["node"]):
            flows = [flow for flow in self._plane.flows() or () if flow.source and flow.source[0] in sources]
            clients = [client for client in self._plane.remembered_clients() if client.address in sources]
            return [*map(str, clients), *map(str, flows), str(self._plane.traffic())]

    def _decide(self, plan: Plan, flow: Flow) -> Decision:
        device = {"node": "", "world": "eth0"}.get(flow.place, flow.place)
        packet = Packet(flow.source, flow.destination, flow.port, Protocol[flow.protocol], device)
        keeping = self._keeping()._replace(elsewhere=frozenset({flow.source} if elsewhere(flow.source) else ()))
        return Oracle(plan, keeping=keeping).decide(packet)

    def _try(self, asked: Sequence[tuple[Flow, Decision]], count: int) -> list[list[Result]]:
        probes = [(flow, self._judge.must_end(flow, decision)) for flow, decision in asked for _ in range(count)]
        self.packets += len(probes)
        results = self._prober.run(probes)
        return [results[first : first + count] for first in range(0, len(results), count)]


def smaller(cluster: Cluster) -> Iterator[Cluster]:
    """Clusters that lack one thing of this one: a flow, an object, an endpoint, a port, a field."""
    if len(cluster.flows) > 1:
        for flow in cluster.flows:
            yield cluster._replace(flows=(flow,))
    for number, item in enumerate(cluster.objects):
        rest = (*cluster.objects[:number], *cluster.objects[number + 1 :])
        yield cluster._replace(objects=rest)
        for fewer in _without_one(item):
            yield cluster._replace(objects=(*rest[:number], fewer, *rest[number:]))


def _without_one(item: Any) -> Iterator[Any]:
    for path in (("endpoints",), ("ports",), ("spec", "ports"), ("spec", "externalIPs"), ("spec",)):
        holder = item
        for step in path[:-1]:
            holder = holder.get(step, {})
        held = holder.get(path[-1])
        for key in list(held) if isinstance(held, dict) else range(len(held or ())):
            fewer = json.loads(json.dumps(item))
            inner = fewer
            for step in path:
                inner = inner[step]
            del inner[key]
            yield fewer


def shrink(differential: Differential, cluster: Cluster, seconds: float = 20.0) -> Cluster:
    """A smaller cluster that disagrees too, on a node that knew nothing before; the same one where that does not."""
    end = time.monotonic() + seconds
    found = True
    while found and time.monotonic() < end:
        found = False
        for candidate in smaller(cluster):
            if time.monotonic() > end:
                break
            if differential.check(candidate):
                cluster, found = candidate, True
                break
    return cluster


@contextmanager
def differential(mode: str) -> Iterator[Differential]:
    """The network with a plane of this mode; both go away again."""
    with ground() as where:
        prober = Prober(where)
        made = Differential(where, prober, mode)
        try:
            yield made
        finally:
            made.cleanup()
            prober.close()


def examine(made: Differential, seed: int, number: int) -> list[str]:
    """Check one cluster; what is wrong, in lines, with how to see it again. A finding is looked at twice, the second
    time on a node that knew nothing before."""
    cluster = Generator(seed, number, by_device=made.mode not in HOOKS).cluster()
    first = made.check(cluster)
    misheld = [f"cluster {cluster.name} in {made.mode} mode, read back: {text}" for text in made.misheld]
    if not first:
        return misheld
    evidence = made.evidence(first)
    made.restart()
    again = made.check(cluster)
    lines = [*misheld, f"cluster {cluster.name} in {made.mode} mode ({'also' if again else 'not'} on a fresh node):"]
    lines += [f"  {finding}" for finding in again or first]
    if not again:
        lines += [f"    {text}" for text in evidence]
    if again:
        small = shrink(made, cluster)
        lines.append(f"  smaller: {json.dumps([small.objects, small.flows])} zone {small.zone!r} {small.settings}")
        made.restart()
    return lines


def soak(mode: str, seed: int, first: int, count: int) -> int:
    """Many clusters; prints what disagrees and a sum. Returns how many clusters disagreed."""
    wrong = 0
    with differential(mode) as made:
        started = time.monotonic()
        for number in range(first, first + count):
            lines = examine(made, seed, number)
            wrong += bool(lines)
            print("\n".join(lines), end="\n" if lines else "", flush=True)
        took = time.monotonic() - started
        verdicts = ", ".join(f"{name} {n}" for name, n in sorted(made.verdicts.items()))
        print(
            f"{mode}: seed {seed}, clusters {first} to {first + count - 1}: {wrong} disagree; {made.packets} packets "
            f"and connections of {made.verdicts.total()} flows ({verdicts}) in {took:.0f} s, "
            f"{count / took:.1f} clusters/s",
            flush=True,
        )
    return wrong


def main() -> int:
    """The soak's command line."""
    parser = argparse.ArgumentParser(description="Random clusters: real packets of a mode against the oracle.")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--clusters", type=int, default=1000)
    args = parser.parse_args()
    gc.freeze()
    wrong = [soak(mode, args.seed, args.first, args.clusters) for mode in args.mode or MODES]
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
