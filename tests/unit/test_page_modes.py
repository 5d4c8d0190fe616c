"""What the page says of a packet in each mode, under the plan of the one that is loaded."""

from pathlib import Path

import msgspec
import pytest

from ctl.picture.names import names_in
from ctl.ui.changes import told
from ctl.ui.listing import services_of
from ctl.ui.modes import Known, explanations
from ctl.ui.view import Explanation
from dataplane.model.decode import decode
from dataplane.oracle.flow import parse_flow
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.planner import Planner
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import MODES, mode_of
from dataplane.policy.forwarding import LbMode, TunnelPeer
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import ProxySettings, node_config

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "cluster.yaml"
SETTINGS = ProxySettings(cluster_cidrs=("10.244.0.0/16",))
CLIENT = "198.51.100.2"


def node_of(mode: str) -> NodeConfig:
    return node_config(mode_of(mode).promises, SETTINGS, node_name="node1", node_ips=["172.18.0.1", "172.18.1.1"])


def known(mode: str, node: NodeConfig | None = None) -> Known:
    objects = decode(CLUSTER.read_bytes(), "test").objects
    planner = Planner(node or node_of(mode), vouched=False)
    planner.update(objects)
    return Known(planner.plan, mode, PlaneOptions(), SETTINGS, names_in(objects))


def by_mode(of: Known, flow: str) -> dict[str, Explanation]:
    found = {each.mode: each for each in explanations(of, parse_flow(flow))}
    assert [*found] == [*MODES]
    assert [each.mode for each in found.values() if each.loaded] == [of.mode]
    return found


@pytest.mark.parametrize("loaded", MODES)
@pytest.mark.parametrize(
    "flow",
    [
        f"{CLIENT} -> 172.18.0.1:30080/tcp",
        f"{CLIENT} -> 172.18.0.1:30081/tcp",
        f"{CLIENT} -> 172.18.1.1:30080/tcp",
        f"{CLIENT} -> 172.18.0.1:30083/tcp",
        f"{CLIENT} -> 203.0.113.10:80/tcp",
        "10.244.1.11 -> 10.96.0.80:80/tcp",
        "10.244.1.11 -> 10.96.0.80:81/tcp",
        "172.18.0.1 -> 10.96.0.80:80/tcp",
        f"{CLIENT} -> 127.0.0.1:30080/tcp",
    ],
)
def test_whatever_is_loaded_each_mode_is_as_if_it_were(loaded: str, flow: str) -> None:
    """What the page works out for a mode is what that mode's own plan says."""
    found = by_mode(known(loaded), flow)
    for mode in MODES:
        own = by_mode(known(mode), flow)[mode]
        assert msgspec.structs.replace(found[mode], loaded=True) == own


def test_other_modes_cannot_forward_with_the_clients_address() -> None:
    node = msgspec.structs.replace(node_of("ebpf"), lb_mode=LbMode.DSR, lb_peers=(TunnelPeer("node2", "172.18.0.2"),))
    found = by_mode(known("ebpf", node), f"{CLIENT} -> 172.18.0.1:30080/tcp")
    assert found["ebpf"].seen_as == (CLIENT,)
    assert "put into VXLAN" in found["ebpf"].svg
    assert any("by node2 (172.18.0.2)" in reason for reason in found["ebpf"].reasons)
    for mode in ("iptables", "nftables"):
        assert found[mode].seen_as == ("172.18.0.1",)
        assert "VXLAN" not in found[mode].svg


def test_services_are_found_by_parts_of_their_names() -> None:
    plan = known("nftables").plan
    found = services_of(plan, "WEB", [("node1", "172.18.0.1"), ("node2", "172.18.0.2")])
    assert [each.name for each in found.services] == ["default/web-local:http", "default/web:http"]
    assert found.total == 2
    destinations = {(each.kind, each.destination, each.node) for each in found.services[1].frontends}
    assert ("nodePort", "172.18.0.2:30080/tcp", "node2") in destinations
    assert ("clusterIP", "[fd00:10:96::80]:80/tcp", "") in destinations
    assert not [each for each in destinations if each[0] == "nodePort" and "[" in each[1]]


def test_changes_are_sentences_and_not_too_many() -> None:
    plan = known("nftables").plan
    old = next(entry for key, entry in plan.entries.items() if key.service == "default/web:http")
    new = msgspec.structs.replace(old, cluster=old.cluster[1:], local=old.local[1:])
    texts = [
        told("node1", PlanChange((EntryChange(*sides),)))[0].text
        for sides in ((None, old), (old, None), (old, new), (new, old))
    ]
    assert texts == [
        "default/web:http: added, 3 endpoints",
        "default/web:http: removed",
        "default/web:http: 10.244.1.11:8080 went",
        "default/web:http: 10.244.1.11:8080 came",
    ]
    keys = [old.key._replace(name=f"web-{number}") for number in range(50)]
    many = [EntryChange(None, msgspec.structs.replace(old, key=key)) for key in keys]
    events = told("node1", PlanChange(tuple(many)))
    assert len(events) == 21
    assert events[-1].text == "and 30 more changes"
