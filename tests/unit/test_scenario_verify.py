"""What the scenario table asks of its cells: often enough to see each endpoint, and no further where it finds fault."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from dataplane.lab.proxy import node_config
from dataplane.lab.scenarios import table, verify
from dataplane.lab.spec import topology
from dataplane.lab.traffic.probe import Attempt, Outcome, Probe, ProbeResult
from dataplane.oracle.decide import Oracle
from dataplane.plan.planner import Planner

TOPOLOGY = topology(table.SPEC)
[HERE] = [s for s in table.services(TOPOLOGY, ipv6=False) if s.service.name == "here-external-cluster-internal-cluster"]
CELL = next(cell for cell in table.cells([HERE], TOPOLOGY) if cell.place == "pod1-3")


class Told:
    """A lab whose attempts all end as they are told to. counts: attempts of each request."""

    def __init__(self, *attempts: Attempt) -> None:
        self._attempts = attempts
        self.spec, self.topology, self.nodes = table.SPEC, TOPOLOGY, TOPOLOGY.nodes
        self.pods = tuple(pod for node in TOPOLOGY.nodes for pod in node.pods)
        self.counts: list[int] = []

    def place(self, where: str) -> Any:
        return next(place for place in TOPOLOGY.places() if place.name == where)

    def node_addresses(self) -> dict[str, set[str]]:
        return {node.name: set(node.addresses.values()) for node in self.nodes}

    def probe_all(self, requests: Mapping[str, Sequence[Probe]]) -> dict[str, list[ProbeResult]]:
        [(place, [probe])] = requests.items()
        self.counts.append(probe.count)
        return {place: [ProbeResult(tuple(self._attempts[n % len(self._attempts)] for n in range(probe.count)))]}


def findings(lab: Told) -> list[verify.Finding]:
    planner = Planner(node_config(table.SPEC, TOPOLOGY.nodes[0], "nftables"))
    planner.update(table.objects([HERE]))
    oracles = {"node1": Oracle(planner.plan)}
    proxy: Any = SimpleNamespace(mode="nftables", keeps=frozenset(), oracles=lambda: oracles, counters=dict)
    return verify.verify(lab, proxy, [CELL])


def answer(server: str) -> Attempt:
    return Attempt(Outcome.ANSWERED, (server,), f"{TOPOLOGY.nodes[0].pods[2].addresses[CELL.family]}:40000")


def test_a_cell_that_shows_only_one_of_two_endpoints_is_asked_again() -> None:
    lab = Told(answer("pod1-1"))
    assert [finding.cell for finding in findings(lab)] == [CELL]
    assert lab.counts == [verify.FIRST_ATTEMPTS, verify.MORE_ATTEMPTS]


def test_a_cell_that_shows_both_is_not() -> None:
    lab = Told(answer("pod1-1"), answer("pod1-2"))
    assert findings(lab) == []
    assert lab.counts == [verify.FIRST_ATTEMPTS]


def test_nor_is_one_whose_packets_are_lost() -> None:
    lab = Told(answer("pod1-1"), Attempt(Outcome.TIMEOUT))
    assert [finding.cell for finding in findings(lab)] == [CELL]
    assert lab.counts == [verify.FIRST_ATTEMPTS]
