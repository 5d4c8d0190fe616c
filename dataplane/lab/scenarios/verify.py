"""Real packets against the oracle: probe every cell, compare what came back with what had to."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dataplane.lab.scenarios.ground import Ground, Proxies
from dataplane.lab.scenarios.table import Cell
from dataplane.lab.traffic.probe import QUIET_TIMEOUT, Attempt, Outcome, Probe, ProbeResult, split_port
from dataplane.model.net import Protocol
from dataplane.oracle.decide import Decision, Oracle, Packet, Verdict
from dataplane.oracle.keeps import Keeping, Keeps, kept_backends
from dataplane.plan.types import FrontendKind
from dataplane.planes.registry import mode_of
from dataplane.policy.endpoints import Backend
from dataplane.policy.settings import Promises

FIRST_ATTEMPTS = 6
MORE_ATTEMPTS = 40
"""With two backends, a choice that is fair misses one of them in 46 attempts once in 10^13 cells."""
QUIET_ATTEMPTS = 2
FALLBACKS = ("tc_ingress:tuple_taken", "xdp:tuple_taken")
"""Ways out of the ebpf mode's programs by which a flow that they could serve gets to the slow path."""
PATIENCE = 20.0
"""Seconds, four retransmissions of a SYN among them."""


class Finding(NamedTuple):
    """A cell in which packets and oracle disagree, with what was wanted and what was seen."""

    cell: Cell
    wanted: str
    seen: str

    def __str__(self) -> str:
        return f"{self.cell}: wanted {self.wanted}, saw {self.seen}"


def source_address(lab: Ground, cell: Cell) -> str:
    """The address that a cell's client sends from (nothing binds it: the primary one of its place)."""
    return lab.place(cell.place).addresses[cell.family]


def decisions(lab: Ground, oracles: dict[str, Oracle], cells: Sequence[Cell]) -> list[Decision]:
    """Return the verdict of the deciding node's oracle for each cell."""
    return [
        oracles[cell.decides].decide(Packet(source_address(lab, cell), cell.address, cell.port, cell.protocol))
        for cell in cells
    ]


def _probe_all(
    lab: Ground, cells: Sequence[Cell], counts: Sequence[int], timeouts: Sequence[float]
) -> list[ProbeResult]:
    """Probe every cell `count` times; places work side by side."""
    requests: dict[str, list[Probe]] = {}
    for cell, count, timeout in zip(cells, counts, timeouts, strict=True):
        requests.setdefault(cell.place, []).append(Probe(cell.address, cell.port, cell.protocol, count, timeout))
    answers = {place: iter(results) for place, results in lab.probe_all(requests).items()}
    return [next(answers[cell.place]) for cell in cells]


class Judge:
    """Compares what came back with what the oracle says, by the two things that the wire adds to a verdict.

    A local sender learns of a packet that its own node refuses by EPERM from sendto(2), whether rejected or dropped.
    And an answer returns only by the way of the question: where a node that is not the client's own forwards without
    masquerade to another node, the backend answers the client directly and the client does not know it (kube-proxy
    behaves the same: pods of other nodes count as pods under policy Local, hence unmasqueraded).

    The ebpf mode differs, as it means to: a pod that is pointed at itself when it connects talks to itself directly, so
    its own address is as right there as the node's. And without parity to kube-proxy clients keep their address where
    the policy masquerades: behind packet programs towards backends on the deciding node, and pods that are balanced
    when they connect towards every backend, since the backends' answers go to pods directly anyway. Not so pods of
    other nodes, which the packet programs leave to the slow path, and those that fall back to it, of which there are at
    most as many as the programs counted (`most_fallbacks`).
    """

    def __init__(self, lab: Ground, mode: str, keeps: frozenset[Keeps] = frozenset(), most_fallbacks: int = 0) -> None:
        self._mode, self._keeps = mode, keeps
        self.fallbacks, self._most_fallbacks = 0, most_fallbacks
        self._pods = {address: pod for pod in lab.pods for address in pod.addresses.values()}
        self._nodes = {pod.name: pod.node for pod in lab.pods}
        self._own = lab.node_addresses()

    def wanted_servers(self, cell: Cell, decision: Decision) -> set[str]:
        """Names of the pods that the decision may choose and whose answers find back."""
        return {self._pods[b.address].name for b in decision.backends if self._answers_return(cell, decision, b)}

    def _answers_return(self, cell: Cell, decision: Decision, backend: Backend) -> bool:
        if decision.masquerades(backend) or self._pods[backend.address].node == cell.decides:
            return True
        if backend in decision.tunnels:  # its node answers as the frontend, or by way of the one that decided
            return True
        return self._nodes.get(cell.place, cell.decides) == cell.decides

    def wanted_outcomes(self, cell: Cell, decision: Decision) -> set[Outcome]:
        """How attempts may end."""
        if decision.verdict is Verdict.DNAT:
            lost = any(not self._answers_return(cell, decision, backend) for backend in decision.backends)
            return {Outcome.ANSWERED, Outcome.TIMEOUT} if lost else {Outcome.ANSWERED}
        if self._unguarded(cell, decision):
            return {Outcome.ERROR, Outcome.TIMEOUT, Outcome.REFUSED}
        outcomes = {
            Verdict.REJECT: {Outcome.REFUSED},
            Verdict.DROP: {Outcome.TIMEOUT},
            Verdict.ACCEPT: {Outcome.ERROR},
        }[decision.verdict]
        own_datagram = cell.place == cell.decides and cell.protocol is Protocol.UDP
        return outcomes | {Outcome.ERROR} if own_datagram else outcomes

    def _wanted_details(self, cell: Cell, decision: Decision) -> set[str]:
        """How a refusal or an error may show itself: see the class; nobody's packets are refused by the next router."""
        if decision.verdict is Verdict.ACCEPT or self._unguarded(cell, decision):
            return {"icmp", "rst", "EHOSTUNREACH", "ENETUNREACH"}
        return {"icmp", "rst", "EPERM"} if cell.place == cell.decides else {"icmp", "rst"}

    def _unguarded(self, cell: Cell, decision: Decision) -> bool:
        """kube-proxy's iptables mode refuses external addresses to packets that arrive or pass, not to the node's own:
        KUBE-EXTERNAL-SERVICES and KUBE-PROXY-FIREWALL hang on INPUT and FORWARD. The packet leaves untranslated."""
        outside = cell.kind in (FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER)
        return mode_of(self._mode).promises is Promises.IPTABLES and outside and cell.place == cell.decides

    def judge(self, cell: Cell, decision: Decision, result: ProbeResult) -> Finding | None:
        """None when the packets did what the oracle says."""
        outcomes = result.outcomes
        as_wanted = set(outcomes) <= self.wanted_outcomes(cell, decision)
        if not as_wanted or not set(result.details) <= self._wanted_details(cell, decision):
            return Finding(cell, decision.verdict.value, _sums(outcomes, result.details))
        if decision.verdict is not Verdict.DNAT:
            return None
        servers = self.wanted_servers(cell, decision)
        if set(result.servers) != servers:
            return Finding(cell, f"answers of {sorted(servers)}", _sums(result.servers, outcomes))
        answered = [a for a in result.attempts if a.outcome is Outcome.ANSWERED]
        wrong = [a for a in answered if not self._client_as_wanted(cell, decision, a)]
        if wrong:
            seen = Counter(f"{a.server} saw {split_port(a.client)[0]}" for a in wrong)
            return Finding(cell, self._wanted_clients(cell, decision), _sums(seen))
        return None

    def _client_as_wanted(self, cell: Cell, decision: Decision, attempt: Attempt) -> bool:
        """True if the backend saw the client's own address, or, masqueraded, one of the deciding node's."""
        seen, _ = split_port(attempt.client)
        backend = next(b for b in decision.backends if self._pods[b.address].name == attempt.server)
        if self._masquerades(cell, decision, backend):
            own = mode_of(self._mode).connect_time and attempt.server == cell.place and seen == decision.packet.source
            return own or seen in self._own[cell.decides]
        if seen in self._own[cell.decides] and (decision.masquerades(backend) or backend in decision.tunnels):
            # Two flows of a client by two frontends, to one backend, from one port: the slow path has the second, and
            # chooses anew.
            self.fallbacks += 1
            return self.fallbacks <= self._most_fallbacks
        return seen == decision.packet.source

    def _masquerades(self, cell: Cell, decision: Decision, backend: Backend) -> bool:
        remote_pod = self._nodes.get(cell.place, cell.decides) != cell.decides
        elsewhere = frozenset({decision.packet.source} if remote_pod else ())
        keeping = Keeping(self._keeps, elsewhere)
        kept = kept_backends(decision, keeping, self._own[cell.decides], masquerade_all=False)
        return decision.masquerades(backend) and backend not in kept

    def _wanted_clients(self, cell: Cell, decision: Decision) -> str:
        parts = [
            f"{self._pods[b.address].name} sees "
            f"{'the node' if self._masquerades(cell, decision, b) else decision.packet.source}"
            for b in decision.backends
        ]
        return ", ".join(parts)


def _sums(*counters: Counter[Outcome] | Counter[str]) -> str:
    return ", ".join(f"{name} {count}x" for counter in counters for name, count in sorted(counter.items()))


def verify(
    lab: Ground, proxy: Proxies, cells: Sequence[Cell], *, slowness: float = 1.0, patience: float = PATIENCE
) -> list[Finding]:
    """Probe every cell with real packets and return those that disagree with the oracle.

    A cell with several backends is probed again until it had a fair chance to show all of them, unless what came back
    is a finding already. slowness: what all time limits are multiplied by, for places that are slower than this
    machine. patience: seconds to wait where an answer must come; silence that is wanted is awaited for less.
    """
    judge = Judge(lab, proxy.mode, proxy.keeps)
    wanted = decisions(lab, proxy.oracles(), cells)
    counts = [FIRST_ATTEMPTS if d.verdict is Verdict.DNAT else QUIET_ATTEMPTS for d in wanted]
    timeouts = [
        slowness * (QUIET_TIMEOUT if Outcome.TIMEOUT in judge.wanted_outcomes(cell, decision) else patience)
        for cell, decision in zip(cells, wanted, strict=True)
    ]
    results = _probe_all(lab, cells, counts, timeouts)
    again = [
        number
        for number, (cell, decision, result) in enumerate(zip(cells, wanted, results, strict=True))
        if decision.verdict is Verdict.DNAT
        and set(result.outcomes) <= judge.wanted_outcomes(cell, decision)
        and set(result.servers) < judge.wanted_servers(cell, decision)
    ]
    if again:
        more = _probe_all(lab, [cells[n] for n in again], [MORE_ATTEMPTS] * len(again), [timeouts[n] for n in again])
        for number, result in zip(again, more, strict=True):
            results[number] = ProbeResult(results[number].attempts + result.attempts)
    judge = Judge(lab, proxy.mode, proxy.keeps, sum(proxy.counters().get(way, 0) for way in FALLBACKS))
    found = (judge.judge(*item) for item in zip(cells, wanted, results, strict=True))
    return [finding for finding in found if finding is not None]
