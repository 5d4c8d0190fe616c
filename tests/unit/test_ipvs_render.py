"""The ipvs baseline's rendering: servers, addresses and rules from a plan; and a plan that it has no words for."""

from dataplane.lab.proxy import node_config
from dataplane.lab.scenarios import table
from dataplane.lab.spec import LabSpec, topology
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.planner import Planner
from dataplane.plan.types import FrontendKind, Plan
from dataplane.planes.ipvs.render import can_render, render

SPEC = LabSpec(nodes=2, pods=3, ipv6=True)


def _plan(
    endpoints: tuple[Endpoint, ...],
    *,
    internal_local: bool = False,
    external_local: bool = False,
    affinity_seconds: int = 0,
) -> Plan:
    planner = Planner(node_config(SPEC, topology(SPEC).nodes[0], "ipvs"))
    service = Service(
        "a",
        "b",
        ServiceType.NODE_PORT,
        ("10.96.0.9",),
        ports=(ServicePortSpec("", Protocol.TCP, 80, 30080),),
        internal_local=internal_local,
        external_local=external_local,
        affinity_seconds=affinity_seconds,
    )
    ports = (EndpointPort("", Protocol.TCP, 8080),)
    planner.update([service, EndpointSlice("a", "b-1", "b", Family.IPV4, ports, endpoints)])
    return planner.plan


HERE, ELSEWHERE = make_endpoint("10.244.1.11", node="node1"), make_endpoint("10.244.2.11", node="node2")


def test_a_service_becomes_virtual_servers() -> None:
    found = render(_plan((HERE, ELSEWHERE), affinity_seconds=60))
    lines = found.servers.splitlines()
    assert lines == [
        "-A -t 10.96.0.9:80 -s rr -p 60",
        "-a -t 10.96.0.9:80 -r 10.244.1.11:8080 -m -w 1",
        "-a -t 10.96.0.9:80 -r 10.244.2.11:8080 -m -w 1",
        "-A -t 172.18.0.1:30080 -s rr -p 60",
        "-a -t 172.18.0.1:30080 -r 10.244.1.11:8080 -m -w 1",
        "-a -t 172.18.0.1:30080 -r 10.244.2.11:8080 -m -w 1",
    ]
    assert found.addresses == ("10.96.0.9",)


def test_rules_masquerade_whom_the_plan_does() -> None:
    rules = render(_plan((HERE, ELSEWHERE))).rules
    sets = {line.split()[1]: line for line in rules.splitlines() if line.strip().startswith("set ")}
    assert "172.18.0.1 . tcp . 30080" in sets["pod-ipv4"]
    assert "10.96.0.9" not in sets["pod-ipv4"]
    assert all("10.96.0.9 . tcp . 80" in sets[f"{source}-ipv4"] for source in ("node", "outside"))
    assert "10.244.1.11 . 10.244.1.11" in sets["itself-ipv4"]
    assert "10.244.2.11" not in sets["itself-ipv4"]


def test_the_mark_ends_where_it_has_served() -> None:
    """A VXLAN packet inherits it from what it carries; masqueraded as well, it would never arrive."""
    plan = _plan((HERE, ELSEWHERE))
    mark = f"{plan.node.masquerade_mark:#x}"
    lines = [line.strip() for line in render(plan).rules.splitlines() if f"{mark} masquerade" in line]
    assert lines == [f"meta mark & {mark} == {mark} meta mark set meta mark ^ {mark} masquerade fully-random"]


def test_no_endpoints_leave_a_server_that_refuses() -> None:
    assert render(_plan(())).servers == "-A -t 10.96.0.9:80 -s rr\n-A -t 172.18.0.1:30080 -s rr\n"


def test_what_one_virtual_server_cannot_be_is_known() -> None:
    def said(plan: Plan) -> dict[FrontendKind, bool]:
        return {frontend.kind: can_render(frontend) for frontend, _ in plan.frontends()}

    both = {FrontendKind.CLUSTER_IP: True, FrontendKind.NODE_PORT: True}
    assert said(_plan((HERE, ELSEWHERE))) == said(_plan(())) == both
    assert said(_plan((HERE, ELSEWHERE), external_local=True)) == {**both, FrontendKind.NODE_PORT: False}
    assert said(_plan((HERE,), internal_local=True)) == both
    assert said(_plan((ELSEWHERE,), internal_local=True)) == {**both, FrontendKind.CLUSTER_IP: False}  # dropped


def test_the_whole_table_is_rendered_in_both_families() -> None:
    planner = Planner(node_config(SPEC, topology(SPEC).nodes[0], "ipvs"))
    planner.update(table.objects(table.services(topology(SPEC), ipv6=True)))
    found = render(planner.plan)
    assert "-A -u [fd00:10:96::1:1]:80 -s rr" in found.servers
    assert "fd00:172:18::1" not in found.addresses
    assert len(found.addresses) == len(set(found.addresses)) == 24 * 3 * 2
    assert found.servers.count("-A ") == sum(1 for _ in planner.plan.frontends())
