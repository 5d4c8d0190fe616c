"""The example Services, each proved with real traffic: named scenarios that the demo shows and the tests run.

Manifests: vagrant/scenarios/services.yaml. Three nodes with three pods each; which pods carry which label is below.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import dataplane
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Topology
from dataplane.lab.traffic.probe import QUIET_TIMEOUT, Outcome, Probe, ProbeResult
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointSlice, ModelObject
from dataplane.oracle.keeps import Keeps
from dataplane.planes.registry import mode_of

SPEC = LabSpec(nodes=3, pods=3)
MANIFEST = Path(dataplane.__file__).parent.parent / "vagrant" / "scenarios" / "services.yaml"
ECHO = ("pod1-1", "pod2-1", "pod3-1")
TEST = ("pod1-2", "pod2-2")
IMBALANCE = ("pod1-3", "pod2-2", "pod2-3")
DEBUG = "pod3-3"
"""A pod that is no endpoint of anything."""

FAIR_ATTEMPTS = 600
CHI_SQUARE_2 = 28.0
"""Chi-square with two degrees of freedom exceeds this once in a million fair runs."""


class Result(NamedTuple):
    """Result of a scenario: passed or not, and what was seen. able: the mode can do what is to be proved; where it
    cannot, it passed by what it does instead."""

    passed: bool
    seen: str
    able: bool = True

    @property
    def word(self) -> str:
        """The result in a word."""
        return ("ok" if self.able else "cannot") if self.passed else "FAILED"


class Scenario(NamedTuple):
    """A named scenario: what it proves, and how."""

    name: str
    proves: str
    run: Callable[["Showcase"], Result]


class Showcase:
    """The example Services on a lab: who stands behind them, and the traffic that proves them."""

    def __init__(self, lab: Lab, proxy: LabProxy) -> None:
        self.lab = lab
        self.proxy = proxy
        self.own = lab.node_addresses()

    def probe(
        self, place: str, address: str, port: int, count: int = 1, **options: str | float | Protocol
    ) -> ProbeResult:
        """`count` connections from a place."""
        return self.lab.probe(place, Probe(address, port, count=count, **options))[0]  # type: ignore[arg-type]

    def address(self, place: str) -> str:
        """IPv4 address of a place."""
        return self.lab.place(place).addresses[Family.IPV4]

    def masqueraded(self, node: str, result: ProbeResult, own: Collection[str] = ()) -> bool:
        """True if pods see the outside client as this node, which decided; where clients of local pods keep their
        address, pods of this node see the client itself instead. own: the client's addresses, if it used others than
        its first."""
        addresses = own or {self.address("client")}
        local = {pod.name for pod in self.lab.pods if pod.node == node}
        for attempt in result.attempts:
            seen = attempt.client.rpartition(":")[0]
            kept = Keeps.LOCAL in self.proxy.keeps and attempt.server in local
            if seen not in (addresses if kept else self.own[node]):
                return False
        return True


def objects(topology: Topology, families: tuple[Family, ...] = (Family.IPV4,)) -> list[ModelObject]:
    """The example Services with their EndpointSlices, as a cluster would hold them."""
    workloads = {"echo": pods(topology, *ECHO), "test": pods(topology, *TEST), "imbalance": pods(topology, *IMBALANCE)}
    decoded = cluster_objects(MANIFEST.read_bytes(), workloads, families, MANIFEST.name)
    if decoded.problems:
        raise ValueError(f"{MANIFEST.name}: {decoded.problems[0]}")
    return decoded.objects


def _shares(servers: Counter[str], names: Iterable[str]) -> str:
    total = max(1, sum(servers.values()))
    return " ".join(f"{name} {100 * servers[name] / total:.0f}%" for name in names)


def _clients(result: ProbeResult) -> str:
    return "pods see " + ", ".join(sorted(result.clients)) if result.clients else "no answer"


def _normal(case: Showcase) -> Result:
    result = case.probe(DEBUG, "10.43.91.128", 6711, FAIR_ATTEMPTS)
    expected = FAIR_ATTEMPTS / len(ECHO)
    chi_square = sum((result.servers[name] - expected) ** 2 / expected for name in ECHO)
    passed = set(result.clients) == {case.address(DEBUG)} and chi_square < CHI_SQUARE_2
    return Result(passed, f"{_shares(result.servers, ECHO)}, {_clients(result)}")


def _from_node(case: Showcase) -> Result:
    result = case.probe("node1", "10.43.91.128", 6711, 30)
    return Result(set(result.servers) == set(ECHO) and set(result.clients) <= case.own["node1"], _clients(result))


def _udp(case: Showcase) -> Result:
    result = case.probe(DEBUG, "10.43.91.129", 5300, 60, protocol=Protocol.UDP)
    return Result(set(result.servers) == set(ECHO), _shares(result.servers, ECHO))


def _session(case: Showcase) -> Result:
    by_client = {place: case.probe(place, "10.43.16.138", 6711, 30) for place in (DEBUG, "pod1-3", "pod2-3")}
    passed = all(r.count(Outcome.ANSWERED) == 30 and len(r.servers) == 1 for r in by_client.values())
    return Result(passed, ", ".join(f"{place} -> {'/'.join(r.servers)}" for place, r in by_client.items()))


def _external_ip(case: Showcase) -> Result:
    result = case.probe("client", "172.0.11.33", 8711, 60)
    return Result(set(result.servers) == set(ECHO) and case.masqueraded("node1", result), _clients(result))


def _no_endpoints(case: Showcase) -> Result:
    results = [case.probe(place, "10.43.136.207", 8711, 3) for place in (DEBUG, "node1", "client")]
    passed = all(result.count(Outcome.REFUSED) == 3 for result in results)
    return Result(passed, "refused" if passed else ", ".join(str(dict(r.outcomes)) for r in results))


def _headless(case: Showcase) -> Result:
    frontends = [
        key
        for proxy in case.proxy.nodes.values()
        for key, entry in proxy.planner.plan.entries.items()
        if key.name == "echo-headless" and entry.frontends
    ]
    direct = [case.probe(DEBUG, case.address(name), 8080) for name in ECHO]
    passed = not frontends and all(result.count(Outcome.ANSWERED) == 1 for result in direct)
    return Result(passed, f"{len(frontends)} frontends; its pods answer at their own addresses")


def _node_port_cluster(case: Showcase) -> Result:
    result = case.probe("client", case.address("node3"), 31529, 60)
    return Result(set(result.servers) == set(ECHO) and case.masqueraded("node3", result), _clients(result))


def _node_port_local(case: Showcase) -> Result:
    result = case.probe("client", case.address("node1"), 30000, 20)
    passed = set(result.servers) == {"pod1-2"} and set(result.clients) == {case.address("client")}
    return Result(passed, f"only {'/'.join(result.servers)}, {_clients(result)}")


def _node_port_local_without(case: Showcase) -> Result:
    outside = case.probe("client", case.address("node3"), 30000, 3, timeout=QUIET_TIMEOUT)
    inside = case.probe("node3", case.address("node3"), 30000, 20)
    passed = outside.count(Outcome.TIMEOUT) == 3 and set(inside.servers) == set(TEST)
    return Result(passed, f"outside: {'/'.join(outside.outcomes)}; from the node: {'/'.join(sorted(inside.servers))}")


_NO_MARK = """table ip without-snat {
  chain c {
    type filter hook postrouting priority 98; meta mark set 0
  }
}
"""
"""Takes the masquerade mark off just before source NAT (priority 99 and 100) would act on it."""


def _why_snat(case: Showcase) -> Result:
    def connect(**options: float) -> ProbeResult:
        # Node 3 has no pod of this Service: every connection leaves it again.
        return case.probe("client", case.address("node3"), 30011, 6, **options)

    with_snat = connect()
    case.proxy.nodes["node3"].stand_aside(True)
    case.lab.run("node3", ["nft", "-f", "-"], input=_NO_MARK)
    try:
        without = connect(timeout=QUIET_TIMEOUT)
    finally:
        case.lab.run("node3", ["nft", "delete table ip without-snat"])
        case.proxy.nodes["node3"].stand_aside(False)
    passed = with_snat.count(Outcome.ANSWERED) == 6 and without.count(Outcome.ANSWERED) == 0
    where = " (on the slow path: SNAT in the programs has no switch)" if case.proxy.nodes["node3"].plane.slow else ""
    return Result(
        passed,
        f"with SNAT {with_snat.count(Outcome.ANSWERED)}/6 answered, without{where} {without.count(Outcome.ANSWERED)}/6",
    )


def _imbalance(case: Showcase, address: str) -> Counter[str]:
    """Traffic of an outer balancer that gives node 1 and node 2 one half each."""
    via = case.lab.client.via
    probes = [Probe(address, 80, count=300, source=via[node][Family.IPV4]) for node in ("node1", "node2")]
    results = case.lab.probe("client", *probes)
    return sum((result.servers for result in results), Counter())


def _imbalance_local(case: Showcase) -> Result:
    servers = _imbalance(case, "203.0.113.10")
    halves = servers["pod1-3"] == 300 and servers["pod2-2"] + servers["pod2-3"] == 300
    passed = halves and 100 < servers["pod2-2"] < 200
    weights = [
        str(proxy.planner.plan.health_checks[("default", "imbalance-local")].local_endpoints)
        for proxy in case.proxy.nodes.values()
    ]
    return Result(passed, f"{_shares(servers, IMBALANCE)}; health-check weights {'/'.join(weights)}")


def _imbalance_cluster(case: Showcase) -> Result:
    servers = _imbalance(case, "203.0.113.11")
    chi_square = sum((servers[name] - 200) ** 2 / 200 for name in IMBALANCE)
    return Result(sum(servers.values()) == 600 and chi_square < CHI_SQUARE_2, _shares(servers, IMBALANCE))


def _imbalance_forwarded(case: Showcase, name: str, address: str) -> Result:
    """The same traffic and policy, with the client's address kept on the way to another node."""
    via, client = case.lab.client.via, case.lab.client
    probes = {node: Probe(address, 80, count=300, source=via[node][Family.IPV4]) for node in ("node1", "node2")}
    results = dict(zip(probes, case.lab.probe("client", *probes.values()), strict=True))
    servers = sum((result.servers for result in results.values()), Counter())
    chi_square = sum((servers[pod] - 200) ** 2 / 200 for pod in IMBALANCE)
    thirds = sum(servers.values()) == 600 and chi_square < CHI_SQUARE_2
    plans = [case.proxy.nodes[node].planner.plan for node in probes]
    able = all(any(e.tunnels) for plan in plans for key, e in plan.entries.items() if key.name == name)
    own = {address[Family.IPV4] for address in client.via.values()}
    hidden = all(case.masqueraded(node, result, own) for node, result in results.items())
    local = {pod.name: pod.node for pod in case.lab.pods}
    seen = {
        attempt.client.rpartition(":")[0]
        for node, result in results.items()
        for attempt in result.attempts
        # With parity to kube-proxy, clients of the deciding node's own pods are masqueraded all the same.
        if Keeps.LOCAL in case.proxy.keeps or local[attempt.server] != node
    }
    whom = "every pod sees the client" if seen <= own else f"pods see {', '.join(sorted(seen - own))}, too"
    return Result(thirds and (seen <= own if able else hidden), f"{_shares(servers, IMBALANCE)}; {whom}", able)


def _imbalance_tunnel(case: Showcase) -> Result:
    return _imbalance_forwarded(case, "imbalance-tunnel", "203.0.113.13")


def _imbalance_dsr(case: Showcase) -> Result:
    return _imbalance_forwarded(case, "imbalance-dsr", "203.0.113.14")


def _source_ranges(case: Showcase) -> Result:
    via = case.lab.client.via["node1"][Family.IPV4]
    allowed = case.probe("client", "203.0.113.12", 80, 10, source=via)
    others = case.probe("client", "203.0.113.12", 80, 3, timeout=QUIET_TIMEOUT)
    passed = allowed.count(Outcome.ANSWERED) == 10 and others.count(Outcome.TIMEOUT) == 3
    return Result(passed, f"{via}: {'/'.join(allowed.outcomes)}; others: {'/'.join(others.outcomes)}")


def _hairpin(case: Showcase) -> Result:
    result = case.probe("pod1-1", "10.43.91.128", 6711, 60)
    itself = {a.client.rpartition(":")[0] for a in result.attempts if a.server == "pod1-1"}
    others = {a.client.rpartition(":")[0] for a in result.attempts if a.server != "pod1-1"}
    # Pointed at itself when it connects, a pod talks to itself directly: no masquerade is needed, none is made.
    directly = mode_of(case.proxy.mode).connect_time and itself == {case.address("pod1-1")}
    passed = bool(itself) and (itself <= case.own["node1"] or directly) and others == {case.address("pod1-1")}
    return Result(passed, f"itself sees {'/'.join(sorted(itself))}, others see {'/'.join(sorted(others))}")


def _udp_scale_to_zero(case: Showcase) -> Result:
    """One client socket, kept all the while: its conntrack entry is what must not survive."""
    name, port = "echo-udp", 45300

    def ask() -> ProbeResult:
        probe = Probe("10.43.91.129", 5300, Protocol.UDP, source_port=port)
        return case.lab.probe(DEBUG, probe)[0]

    whole = [o for o in objects(case.lab.topology) if isinstance(o, EndpointSlice) and o.service == name]
    before = ask()
    case.proxy.update([EndpointSlice(o.namespace, o.name, o.service, o.family, o.ports) for o in whole])
    during = ask()
    case.proxy.update(whole)
    after = ask()
    outcomes = [result.attempts[0].outcome for result in (before, during, after)]
    passed = outcomes == [Outcome.ANSWERED, Outcome.REFUSED, Outcome.ANSWERED]
    return Result(passed, " -> ".join(outcomes))


SCENARIOS = (
    Scenario("normal", "a pod reaches each of 3 pods a third of the time and keeps its address", _normal),
    Scenario("from the node", "the node's own traffic to a clusterIP comes from the node", _from_node),
    Scenario("udp", "UDP is balanced the same", _udp),
    Scenario("session affinity", "ClientIP: each client stays with one pod", _session),
    Scenario(
        "external IP", "an outside client reaches all pods, masqueraded (ebpf: where they are remote)", _external_ip
    ),
    Scenario("no endpoints", "refused at once, not left to time out", _no_endpoints),
    Scenario("headless", "no frontend at all", _headless),
    Scenario("NodePort, Cluster", "any node serves all pods, masqueraded the same", _node_port_cluster),
    Scenario("NodePort, Local", "only the node's own pod, client address kept", _node_port_local),
    Scenario("NodePort, Local, no pod", "dropped from outside, served to the node itself", _node_port_local_without),
    Scenario("why SNAT", "without SNAT the answer bypasses the node and is lost", _why_snat),
    Scenario("imbalance, Local", "1 pod on one node, 2 on another: 50/25/25", _imbalance_local),
    Scenario("imbalance, Cluster", "the same pods under policy Cluster: thirds", _imbalance_cluster),
    Scenario("imbalance, tunnel", "Cluster, thirds, and every pod sees the client (ebpf)", _imbalance_tunnel),
    Scenario("imbalance, dsr", "the same, and pods' nodes answer the client themselves (ebpf)", _imbalance_dsr),
    Scenario("source ranges", "a listed source passes, others meet silence", _source_ranges),
    Scenario("hairpin", "a pod reaches itself; masqueraded where it must be, and only then", _hairpin),
    Scenario("udp to zero and back", "a kept UDP socket follows its Service", _udp_scale_to_zero),
)


def run_all(lab: Lab, proxy: LabProxy) -> list[tuple[Scenario, Result]]:
    """Load the example Services and run every scenario. The echo servers must listen on the pods' port 8080."""
    proxy.update(objects(lab.topology))
    case = Showcase(lab, proxy)
    return [(scenario, scenario.run(case)) for scenario in SCENARIOS]
