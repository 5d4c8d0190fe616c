"""What the oracle says of forwarded traffic, and how explain puts it."""

import pytest
from msgspec.structs import replace

from ctl.commands.explain import Explained, explain, headline, read_flows
from ctl.output import Record
from ctl.output import Table as Columns
from ctl.picture.fill import Asked, picture
from ctl.picture.svg import drawing
from ctl.probes.forwarding import of_plan
from ctl.views import with_forwarding
from dataplane.model.forwarding import TunnelOffer
from dataplane.model.net import Protocol
from dataplane.model.objects import Endpoint, make_endpoint
from dataplane.oracle.decide import Oracle, Packet
from dataplane.oracle.keeps import Keeping, Keeps
from dataplane.plan.planner import Planner
from dataplane.policy.dispatch import SHORT_NAME, endpoint_digest
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding, LbMode
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from tests.unit.test_forwarding_plan import NODE, key, planned, pods, service, slice_of, speaker

HERE = replace(
    NODE,
    detector=LocalDetector(("10.0.0.0/8",)),
    nodeports=NodePortAddresses(addresses=("192.0.2.1",)),
)
CLIENT = "198.51.100.9 -> 192.0.2.1:30080/tcp"
NOT_SAID = "its node does not say that it opens {}"
SAME_NAME = "IPIP cannot tell it from another endpoint of its node"
KEEPING = Keeping(frozenset({Keeps.LOCAL}))
ONE, TWO, THREE = (Backend(f"10.1.{n}.{n}", 8080, n == 1) for n in (1, 2, 3))


def asked(flow: str, *objects: object, node: NodeConfig = HERE, mode: str = "ebpf") -> Explained:
    planner = planned(*objects, node=node)
    (found,) = explain(planner, read_flows([flow]), mode, KEEPING if mode == "ebpf" else Keeping())
    return found


def ways(found: Explained) -> list[str]:
    """How the packet leaves for other nodes, by each hook's last steps."""
    notes = [step.note for step in found.path if "client's address, in" in step.note]
    return list(dict.fromkeys(notes))


def test_a_forwarded_client_keeps_its_address() -> None:
    plan = planned(speaker(2), node=HERE).plan
    decision = Oracle(plan, keeping=KEEPING).decide(Packet("198.51.100.9", "192.0.2.1", 30080, Protocol.TCP))
    assert decision.backends == (ONE, TWO, THREE)
    assert decision.tunnels == {TWO: "192.0.2.2"}
    assert decision.forwarding is Forwarding.DSR
    assert [decision.masquerades(b) for b in decision.backends] == [False, False, True]
    assert decision.kept == (ONE,)
    assert not decision.masquerade


def test_all_backends_elsewhere_and_all_forwarded() -> None:
    found = asked(CLIENT, slice_of(*pods(2, 3)), speaker(2), speaker(3), node=replace(HERE, lb_mode=LbMode.TUNNEL))
    assert not found.masquerade
    assert found.forwarding == {
        "10.1.2.1:8080": "tunnel by n2 (192.0.2.2) in VXLAN",
        "10.1.3.2:8080": "tunnel by n3 (192.0.2.3) in VXLAN",
    }
    assert found.reasons[-1] == (
        "forwarding mode tunnel: 10.1.2.1:8080 by n2 (192.0.2.2) in VXLAN, 10.1.3.2:8080 by n3 (192.0.2.3) in VXLAN, "
        "where the backend sees 198.51.100.9; the answers come back through this node"
    )
    assert headline(found).startswith("DNAT to 10.1.2.1:8080, 10.1.3.2:8080, forwarded by tunnel  by shop/web:http")


def test_each_backend_s_way_is_told() -> None:
    found = asked(CLIENT, speaker(2))
    assert found.forwarding == {"10.1.2.2:8080": "dsr by n2 (192.0.2.2) in VXLAN"}
    assert found.reasons[-3:] == (
        "forwarding mode dsr: 10.1.2.2:8080 by n2 (192.0.2.2) in VXLAN, where the backend sees 198.51.100.9; their "
        "nodes answer the client themselves",
        "not masqueraded if the choice is 10.1.1.1:8080, which sees 198.51.100.9 too",
        "masqueraded as this node if the choice is 10.1.3.3:8080: the node there takes no forwarded packets",
    )


def test_in_what_the_packet_is_sent_is_told() -> None:
    """To each node in what it opens; n2 is of an earlier version."""
    old = TunnelOffer(HERE.lb_port, HERE.lb_vni)
    node = replace(HERE, lb_dispatch=Dispatch.GENEVE)
    found = asked(CLIENT, slice_of(*pods(2, 3)), speaker(2, offer=old), speaker(3), node=node)
    assert found.forwarding == {
        "10.1.2.1:8080": f"dsr by n2 (192.0.2.2) in VXLAN ({NOT_SAID.format('Geneve')})",
        "10.1.3.2:8080": "dsr by n3 (192.0.2.3) in Geneve",
    }
    assert found.reasons[-1] == (f"VXLAN instead of Geneve if the choice is 10.1.2.1:8080: {NOT_SAID.format('Geneve')}")
    assert ways(found) == [
        f"with the client's address, in VXLAN to 192.0.2.2 ({NOT_SAID.format('Geneve')})",
        "with the client's address, in Geneve to 192.0.2.3",
    ]


def alike() -> tuple[Endpoint, ...]:
    """Two endpoints of node 2 that IP in IP calls the same, and a third one that it does not."""
    at: dict[int, str] = {}
    for number in range(1 << 16):
        address = f"10.1.{number >> 8}.{number & 255}"
        other = at.setdefault(endpoint_digest(address, 8080, Protocol.TCP) & SHORT_NAME, address)
        if other != address:
            third = next(each for each in at.values() if each != other)
            return tuple(make_endpoint(each, node="n2") for each in sorted((address, other, third)))
    raise AssertionError("13 bits are enough for 65,536")


def test_endpoints_that_ipip_cannot_tell_apart_are_told() -> None:
    """By endpoint, by sentence and by step, as the node really does: see test_forwarding_formats for the packets."""
    found = asked(CLIENT, slice_of(*alike()), speaker(2), node=replace(HERE, lb_dispatch=Dispatch.IPIP))
    said = {where: way.partition(" in ")[2] for where, way in found.forwarding.items()}
    same = [where for where, what in said.items() if what == f"VXLAN ({SAME_NAME})"]
    assert len(same) == 2
    assert sorted(said.values()) == ["IPIP", *[f"VXLAN ({SAME_NAME})"] * 2]
    assert found.reasons[-2:] == (
        "what IPIP cannot carry goes in VXLAN: ICMP errors, aggregates of datagrams, extension headers",
        f"VXLAN instead of IPIP if the choice is {' or '.join(same)}: {SAME_NAME}",
    )
    assert sorted(ways(found)) == [
        "with the client's address, in IPIP to 192.0.2.2",
        f"with the client's address, in VXLAN to 192.0.2.2 ({SAME_NAME})",
    ]


def test_without_ipip_nobody_is_alike() -> None:
    """The short names are IP in IP's alone."""
    for dispatch in (Dispatch.VXLAN, Dispatch.GENEVE):
        found = asked(CLIENT, slice_of(*alike()), speaker(2), node=replace(HERE, lb_dispatch=dispatch))
        assert {way.partition(" in ")[2] for way in found.forwarding.values()} == {dispatch.title}
        assert not any("cannot" in reason for reason in found.reasons)


def test_the_picture_has_every_format_of_a_node() -> None:
    planner = planned(slice_of(*alike()), speaker(2), node=replace(HERE, lb_dispatch=Dispatch.IPIP))
    flows = read_flows([CLIENT])
    decision = Oracle(planner.plan, keeping=KEEPING).decide(flows[0].packet)
    made = picture(Asked(decision, planner.plan.node))
    assert any(step.title in ("put into IPIP or VXLAN", "put into VXLAN or IPIP") for step in made.nodes[0].steps)
    drawn = drawing(made)
    assert ">in IPIP<" in drawn
    assert ">in VXLAN<" in drawn


def test_what_is_loaded_is_told_alike() -> None:
    """`show endpoints` and `doctor`."""
    node = replace(HERE, lb_dispatch=Dispatch.IPIP)
    planner = planned(slice_of(*alike()), speaker(2), node=node)
    entry = planner.plan.entries[key()]
    records: list[Record] = [{"service": entry.key.service, "endpoint": str(backend)} for backend in entry.cluster]
    shown, _ = with_forwarding(records, Columns(("service", "endpoint")), planner.plan)
    assert sorted(str(record["forwarding"]) for record in shown) == [
        "dsr by 192.0.2.2 in IPIP",
        *["dsr by 192.0.2.2 in VXLAN"] * 2,
    ]
    assert of_plan("ebpf", planner.plan).detail.endswith(
        "--lb-dispatch ipip, VXLAN to 2 backends that IPIP cannot tell apart"
    )


def test_why_nobody_is_forwarded_to_is_told() -> None:
    found = asked(CLIENT, speaker(2, offer=None))
    assert found.forwarding == {}
    assert found.reasons[-1] == (
        "forwarding mode dsr has no effect: no node that has 10.1.2.2:8080 or 10.1.3.3:8080 speaks it"
    )
    assert headline(found).endswith("by shop/web:http, nodePort *:30080/tcp")


@pytest.mark.parametrize("source", ["10.1.1.9", "192.0.2.1"])
def test_pods_and_the_node_are_clients_as_ever(source: str) -> None:
    flow = f"{source} -> 192.0.2.1:30080/tcp"
    found, before = asked(flow, speaker(2)), asked(flow, speaker(2), node=replace(HERE, lb_mode=LbMode.SNAT))
    assert found == before
    assert found.forwarding == {}


def test_the_clusterip_and_sctp_are_as_ever() -> None:
    found = asked("198.51.100.9 -> 10.96.0.1:80/tcp", speaker(2))
    assert (found.forwarding, found.masquerade) == ({}, False)
    assert "forwarding mode" not in " ".join(found.reasons)


def test_source_ranges_and_policy_local_come_first() -> None:
    guarded = service(load_balancer_ips=("203.0.113.80",), source_ranges=("203.0.113.0/24",))
    flow = "{} -> 203.0.113.80:80/tcp"
    assert asked(flow.format("198.51.100.9"), guarded, speaker(2)).verdict == "drop"
    assert asked(flow.format("203.0.113.9"), guarded, speaker(2)).forwarding == {
        "10.1.2.2:8080": "dsr by n2 (192.0.2.2) in VXLAN"
    }
    local = asked(CLIENT, service(external_local=True), speaker(2))
    assert (local.endpoints, local.forwarding, local.masquerade) == (("10.1.1.1:8080",), {}, False)


def test_a_mode_that_cannot_do_it_says_so() -> None:
    found = asked(
        CLIENT, service(forwarding_mode="dsr"), speaker(2), node=replace(HERE, snat_only=True), mode="nftables"
    )
    assert found.masquerade
    assert found.reasons[-1] == (
        "service.hotplane.io/forwarding-mode: dsr has no effect: the nftables mode as it is here can only do SNAT "
        "(ebpf with tc or xdp does more)"
    )


def test_a_planner_in_snat_says_nothing_of_it() -> None:
    found = asked(CLIENT, speaker(2), node=replace(HERE, lb_mode=LbMode.SNAT))
    assert found.forwarding == {}
    assert "forward" not in " ".join(found.reasons)
    assert Planner(HERE).forwards
