"""Shares of the example Services' traffic: which ways there are, and which shares are judged to be wrong."""

from collections.abc import Mapping, Sequence

import pytest
from msgspec.structs import replace

from dataplane.lab.places import Places
from dataplane.lab.proxy import lb_peers, node_config
from dataplane.lab.scenarios import shares, table
from dataplane.lab.scenarios.shares import REQUESTS, Share
from dataplane.lab.spec import LabError, LabSpec, topology
from dataplane.lab.traffic.probe import Attempt, Outcome, Probe, ProbeResult
from dataplane.model.net import Family
from dataplane.model.objects import Service
from dataplane.oracle.decide import Oracle
from dataplane.oracle.keeps import Keeps
from dataplane.plan.planner import Planner
from dataplane.policy.forwarding import LbMode

SPEC = replace(table.SPEC, ipv6=True)
THIRDS = {"pod1-3": REQUESTS // 3, "pod2-2": REQUESTS // 3, "pod2-3": REQUESTS // 3}


class _Answers(Places):
    """A lab whose pods answer the client as often as they are told to, by any node, to each address."""

    def __init__(self, answers: Mapping[str, int], client: str = "") -> None:
        super().__init__(SPEC)
        self._answers, self._client = answers, client

    def node_addresses(self) -> dict[str, set[str]]:
        return {node.name: {*node.addresses.values(), *node.second.values()} for node in self.nodes}

    def probe_all(self, requests: Mapping[str, Sequence[Probe]]) -> dict[str, list[ProbeResult]]:
        return {place: [self._answer(probe) for probe in probes] for place, probes in requests.items()}

    def _answer(self, probe: Probe) -> ProbeResult:
        client = f"[{probe.source}]" if ":" in probe.source else self._client or probe.source
        attempts = [
            Attempt(Outcome.ANSWERED, (pod,), f"{client}:40000")
            for pod, count in self._answers.items()
            for _ in range(count)
        ]
        return ProbeResult(tuple(attempts))


class _Proxies:
    """Proxies in ebpf mode with its packet programs, whose nodes know each other."""

    mode, keeps = "ebpf", frozenset({Keeps.LOCAL})

    def __init__(self, lab: Places) -> None:
        self._planners = {
            node.name: Planner(node_config(SPEC, node, self.mode, LbMode.SNAT, lb_peers(lab.nodes, node)))
            for node in lab.nodes
        }
        for planner in self._planners.values():
            planner.update(shares.objects(lab.topology))

    def counters(self) -> dict[str, int]:
        return {}

    def oracles(self) -> dict[str, Oracle]:
        return {name: Oracle(planner.plan) for name, planner in self._planners.items()}


def _measured(lab: _Answers) -> dict[tuple[str, str, str], Share]:
    ways = shares.ways(lab.topology, shares.objects(lab.topology), {*Family})
    found = shares.measure(lab, _Proxies(lab), ways)
    return {(share.service, share.kind, share.family): share for share in found}


def test_each_service_is_asked_for_by_both_nodes_at_each_of_its_addresses() -> None:
    lab = Places(SPEC)
    services = [item for item in shares.objects(lab.topology) if isinstance(item, Service)]
    assert [service.name.removeprefix("imbalance-") for service in services] == ["local", "cluster", "tunnel", "dsr"]
    assert {service.name.removeprefix("imbalance-"): service.forwarding_mode for service in services} == {
        "local": "", "cluster": "", "tunnel": "tunnel", "dsr": "dsr"
    }  # fmt: skip
    dsr = services[-1]
    assert dsr.load_balancer_ips == ("203.0.113.14", "fd00:203:113::e")
    found = shares.ways(lab.topology, [dsr], {*Family})
    assert {(way.cell.decides, way.cell.address, way.cell.port, way.source) for way in found} == {
        (name, address, port, lab.client.via[name][family])
        for number, name in enumerate(shares.ENTRIES)
        for family, balancer in ((Family.IPV4, "203.0.113.14"), (Family.IPV6, "fd00:203:113::e"))
        for address, port in ((balancer, 80), (lab.nodes[number].addresses[family], 30014))
    }
    assert len(shares.ways(lab.topology, [dsr], {Family.IPV6})) == 4


def test_equal_shares_and_the_clients_own_address_are_right_for_tunnel_and_dsr() -> None:
    found = _measured(_Answers(THIRDS))
    for name in ("imbalance-tunnel", "imbalance-dsr"):
        for family in ("ipv4", "ipv6"):
            for kind in ("loadBalancerIP", "nodePort"):
                share = found[name, kind, family]
                assert (share.findings, share.kept, share.requests["pod2-3"]) == ([], 2 * REQUESTS, 2 * REQUESTS // 3)
    assert found["imbalance-local", "nodePort", "ipv4"].findings  # one node's pods alone
    assert found["imbalance-cluster", "nodePort", "ipv6"].findings  # pods of the other node see this one


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"pod1-3": 150, "pod2-2": 75, "pod2-3": 75}, "as shares, saw"),
        ({"pod1-3": 300}, "wanted answers of"),
        ({"pod1-3": 100, "pod2-2": 100, "pod2-1": 100}, "wanted answers of"),
    ],
    ids=["halves", "one node", "another pod"],
)
def test_other_shares_are_told(answers: dict[str, int], words: str) -> None:
    [by_node1, by_node2] = _measured(_Answers(answers))["imbalance-dsr", "nodePort", "ipv6"].findings
    assert by_node1.startswith("imbalance-dsr: nodePort TCP IPV6 from outside by node1 (client): ")
    assert "by node2" in by_node2
    assert words in by_node1


def test_a_client_that_pods_do_not_see_is_told() -> None:
    found = _measured(_Answers(THIRDS, client="172.18.0.1"))
    share = found["imbalance-tunnel", "loadBalancerIP", "ipv4"]
    assert (len(share.findings), share.kept) == (2, 0)
    assert "saw 172.18.0.1" in share.findings[0]
    assert not found["imbalance-tunnel", "loadBalancerIP", "ipv6"].findings


def test_a_lab_without_these_pods_is_told() -> None:
    with pytest.raises(LabError, match=r"no pod1-3, pod2-3: bring it up with more pods"):
        shares.objects(topology(LabSpec(nodes=2, pods=2)))
