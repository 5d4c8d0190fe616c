"""The kernel's own way of a packet, as explain tells it in each mode: chains, maps, elements and programs in order."""

from typing import Any

import msgspec
import pytest

from ctl.explain_loaded import pods_elsewhere
from dataplane.lab.places import Places
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Protocol
from dataplane.oracle.decide import Oracle
from dataplane.oracle.flow import parse_flow
from dataplane.oracle.keeps import Keeping
from dataplane.oracle.types import Verdict
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step, lines
from dataplane.planes.registry import mode_of
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig
from tests.unit.test_explain_reasons import NODE, WEB, endpoint, slice_of

POD, OUTSIDE, OWN = "10.9.0.1", "203.0.113.9", "192.168.0.2"
CLUSTER_IP, LB_IP = "172.30.0.41", "198.51.100.9"
DIGEST = "67NZLRHBNDSAWJRO"
"""base32(sha256("shop/web:httptcp")), 16 characters, as kube-proxy's."""


def steps(
    flow: str, mode: str, *, local: bool = True, sticky: bool = True, weight: int = 1, **options: Any
) -> tuple[Step, ...]:
    """The steps of a flow to WEB with one endpoint here, of this weight, and one elsewhere."""
    service = msgspec.structs.replace(WEB, external_local=local, affinity_seconds=WEB.affinity_seconds if sticky else 0)
    planner = Planner(NODE)
    planner.update([service, slice_of(endpoint(1, "n1", weight=weight), endpoint(2))])
    found, chosen = mode_of(mode), PlaneOptions(**options)
    keeping = Keeping(found.keeps(chosen))
    decision = Oracle(planner.plan, keeping=keeping).decide(parse_flow(flow))
    return tuple(found.path(decision, At(NODE, chosen, keeping)))


def names(found: tuple[Step, ...]) -> list[str]:
    return [step.name for step in found]


def test_iptables_chains_of_a_restricted_load_balancer() -> None:
    found = steps(f"{OUTSIDE} -> {LB_IP}:80/tcp", "iptables")
    service = [f"KUBE-{kind}-{DIGEST}" for kind in ("FW", "EXT", "SVL")]
    assert names(found)[:4] == ["KUBE-SERVICES", *service]
    assert names(found)[4].startswith("KUBE-SEP-")
    assert len(found) == 5  # policy Local: not masqueraded
    assert found[0].key == f"-d {LB_IP}/32 -p tcp --dport 80"
    assert found[1].key == "-s 203.0.113.0/25"
    assert found[4].result == "DNAT 10.1.0.1:8080"
    assert {step.hook for step in found} == {"nat PREROUTING"}


def test_iptables_chains_of_the_node_itself() -> None:
    found = steps(f"{OWN} -> {OWN}:30080/tcp", "iptables", local=False)
    head = ["KUBE-SERVICES", "KUBE-NODEPORTS", f"KUBE-EXT-{DIGEST}", "KUBE-MARK-MASQ", f"KUBE-SVC-{DIGEST}"]
    assert names(found)[:5] == head
    assert [step.share for step in found[5:7]] == ["1/2", "1/2"]
    assert found[-1] == Step("nat POSTROUTING", found[0].kind, "KUBE-POSTROUTING", "--mark 0x4000", "MASQUERADE")
    assert found[0].hook == "nat OUTPUT"


def test_iptables_refusals_are_the_filter_tables() -> None:
    found = steps(f"192.0.2.7 -> {LB_IP}:80/tcp", "iptables")
    assert names(found) == ["KUBE-SERVICES", f"KUBE-FW-{DIGEST}", "KUBE-PROXY-FIREWALL"]
    assert (found[-1].hook, found[-1].result) == ("filter FORWARD", "DROP")


def test_nftables_elements_of_a_cluster_ip() -> None:
    found = steps(f"{OUTSIDE} -> {CLUSTER_IP}:80/tcp", "nftables", sticky=False)
    assert [(step.hook, step.name, step.key, step.result) for step in found] == [
        ("nat prerouting -100", "ip hotplane services", f"{CLUSTER_IP} . tcp . 80", "lb-2-offpod"),
        ("nat prerouting -100", "lb-2-offpod", "", ""),
        ("nat prerouting -100", "mark-off-pod", "", "mark-packet"),
        (
            "nat prerouting -100",
            "ip hotplane endpoints",
            f"{CLUSTER_IP} . tcp . 80 . ffff:0 to ffff:1",
            "10.1.0.1:8080",
        ),
        (
            "nat prerouting -100",
            "ip hotplane endpoints",
            f"{CLUSTER_IP} . tcp . 80 . ffff:0 to ffff:1",
            "10.1.0.2:8080",
        ),
        ("nat postrouting 100", "postrouting", "mark & 0x4000", "masquerade"),
    ]


def test_nftables_by_source_with_ranges_and_affinity() -> None:
    found = steps(f"{OUTSIDE} -> {LB_IP}:80/tcp", "nftables")
    key = f"{LB_IP} . tcp . 80"
    assert [(step.name, step.key, step.result) for step in found] == [
        ("ip hotplane services", key, "restricted"),
        ("ip hotplane ranges-25", f"{key} . 203.0.113.0", "unrestricted"),
        ("ip hotplane restricted", key, "by-source"),
        ("ip hotplane services_outside", key, "lb-1-local-10800s"),
        ("lb-1-local-10800s", "", ""),
        ("ip hotplane affinity-10800", f"{OUTSIDE} . {key}", ""),
        ("ip hotplane local_slot_endpoints", f"{key} . SLOT", "10.1.0.1:8080"),
    ]
    refused = steps(f"192.0.2.7 -> {LB_IP}:80/tcp", "nftables")
    assert [(step.name, step.result) for step in refused] == [
        ("ip hotplane services", "restricted"),
        ("restricted", "drop"),
    ]


def test_nftables_refuses_what_no_service_has_in_the_last_chain() -> None:
    (found,) = steps(f"{OWN} -> {CLUSTER_IP}:81/tcp", "nftables")
    assert (found.hook, found.name, found.key) == ("nat output 2147483647", "ip hotplane cluster_ips", CLUSTER_IP)
    assert found.result == "reject-packet"
    assert steps(f"{OWN} -> 192.0.2.1:81/tcp", "nftables") == ()


@pytest.mark.parametrize(
    ("flow", "options", "hooks"),
    [
        (f"{POD} -> {CLUSTER_IP}:80/tcp", {}, ["cgroup connect4"]),
        (f"{OWN} -> {CLUSTER_IP}:80/tcp", {}, ["cgroup connect4"]),
        (f"{POD} -> {CLUSTER_IP}:80/tcp", {"hooks": ("tc",)}, ["tc ingress of the pod's device", "tc egress of"]),
        (f"{OUTSIDE} -> {OWN}:30080/tcp", {}, ["XDP of the uplink", "tc ingress of uplink"]),
        (f"{OWN} -> {CLUSTER_IP}:80/tcp", {"hooks": ("tc",)}, ["slow path", "nat output -100"]),
        (f"{OUTSIDE} -> {CLUSTER_IP}:80/tcp", {"hooks": ("connect",)}, ["slow path", "nat prerouting -100"]),
    ],
)
def test_ebpf_hooks(flow: str, options: dict[str, Any], hooks: list[str]) -> None:
    found = steps(flow, "ebpf", local=False, sticky=False, **options)
    passed = list(dict.fromkeys(step.hook for step in found))
    assert len(passed) >= len(hooks)
    for seen, wanted in zip(passed, hooks, strict=False):
        assert seen.startswith(wanted)


def test_ebpf_says_why_a_program_passes_a_packet_on() -> None:
    found = steps(f"{POD} -> {CLUSTER_IP}:80/tcp", "ebpf", local=False)  # session affinity
    assert found[0].result == "passed on (affinity)"
    assert [step.name for step in found[1:4]] == ["tc_ingress", "frontends", "affinity"]
    refused = steps(f"192.0.2.7 -> {LB_IP}:80/tcp", "ebpf")
    assert [step.result for step in refused[:2]] == ["passed on (source_range)"] * 2
    assert refused[-1].name == "restricted"


def test_ebpf_tells_the_tunnel_to_another_node() -> None:
    """As of a forwarding mode that keeps the client's address."""
    planner = Planner(NODE)
    planner.update([WEB, slice_of(endpoint(2))])
    decision = Oracle(planner.plan).decide(parse_flow(f"{OUTSIDE} -> {LB_IP}:80/tcp"))
    backend = Backend("10.1.0.2", 8080)
    verdict = {"verdict": Verdict.DNAT, "backends": (backend,), "tunnels": {backend: "192.0.2.2"}}
    found = mode_of("ebpf").path(msgspec.structs.replace(decision, **verdict), At(NODE))
    (tunnel,) = [step for step in found if step.key == "192.0.2.2"]
    assert tunnel.note == "with the client's address, in VXLAN to 192.0.2.2"
    assert not [step for step in found if step.name == "stack"]


def test_whose_pods_are_known_of_what_is_loaded() -> None:
    """Endpoints of other nodes, and the lab's pods; not what may run here though it does not say so."""
    planner = Planner(NODE)
    planner.update([WEB, slice_of(endpoint(1, "n1"), endpoint(2), endpoint(3, ""))])
    assert pods_elsewhere(planner.plan, None) == {"10.1.0.2"}
    lab = Places(LabSpec(nodes=2, pods=1))
    node = msgspec.structs.replace(planner.plan.node, name="node1")
    of_node = Plan(node=node, entries=planner.plan.entries)
    assert pods_elsewhere(of_node, lab) == {"10.1.0.2", "10.244.2.11"}


def test_lines_for_people_are_short() -> None:
    told = list(lines(steps(f"{OUTSIDE} -> {CLUSTER_IP}:80/tcp", "iptables", local=False, sticky=False)))
    assert told[0].startswith(f"nat PREROUTING: KUBE-SERVICES -> KUBE-SVC-{DIGEST} -> KUBE-MARK-MASQ (marked to be")
    assert told[1] == "nat POSTROUTING: KUBE-POSTROUTING -> MASQUERADE"


def test_both_families_and_protocols_have_elements_of_their_own() -> None:
    node = msgspec.structs.replace(NODE, addresses=(*NODE.addresses, "fd00::2"))
    service = msgspec.structs.replace(WEB, cluster_ips=(CLUSTER_IP, "fd00:96::41"))
    planner = Planner(node)
    planner.update([service])
    decision = Oracle(planner.plan).decide(parse_flow("[fd00::9] -> [fd00:96::41]:80/tcp"))
    (found,) = mode_of("nftables").path(decision, At(node, keeping=Keeping()))
    assert (found.name, found.key) == ("ip6 hotplane services", "fd00:96::41 . tcp . 80")
    assert found.result == "reject-packet"
    assert decision.packet.protocol is Protocol.TCP
    assert isinstance(node, NodeConfig)


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ebpf"])
def test_shares_are_those_of_the_weights(mode: str) -> None:
    found = steps(f"{POD} -> {CLUSTER_IP}:80/tcp", mode, sticky=False, weight=3)
    assert [step.share for step in found if step.share] == ["3/4", "1/4"]
    told = next(text for text in lines(found) if "10.1.0.2" in text)
    assert "(3/4)" in told
    assert "(1/4)" in told
    assert "each" not in told
    if mode == "nftables":
        assert next(step.key for step in found if step.share).endswith(" . ffff:0 to ffff:3")
