"""The planner: events in, changes out, conflicts settled, nothing more than what changed."""

import pytest
from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectRef,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.change import apply_change, diff
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.plan.types import EntryKey, FrontendKey, FrontendKind, Plan, SourceRanges
from dataplane.policy.node import LocalDetector, NodeConfig
from dataplane.policy.routes import REJECT_ALL

NODE = NodeConfig(
    name="here", addresses=("172.18.0.2", "fd00::2"), detector=LocalDetector(cidrs=("10.244.0.0/16", "fd00:10::/64"))
)
HTTP = ServicePortSpec("http", Protocol.TCP, 80)


def service(name: str = "web", ip: str = "10.96.0.1", **fields: object) -> Service:
    return replace(Service("default", name, cluster_ips=(ip,), ports=(HTTP,)), **fields)


def endpoint_slice(*addresses: str, name: str = "web-1", owner: str = "web", **fields: object) -> EndpointSlice:
    made = EndpointSlice(
        "default",
        name,
        owner,
        Family.IPV4,
        (EndpointPort("http", Protocol.TCP, 8080),),
        tuple(make_endpoint(address, node="here") for address in addresses),
    )
    return replace(made, **fields)


def key(name: str = "web", port: str = "http") -> EntryKey:
    return EntryKey("default", name, port, Protocol.TCP, Family.IPV4)


def test_service_and_slice_make_one_entry() -> None:
    planner = Planner(NODE)
    change = planner.update([service(), endpoint_slice("10.244.0.5", "10.244.0.6")])
    assert [c.key for c in change.entries] == [key()]
    entry = planner.plan.entries[key()]
    assert [str(b) for b in entry.cluster] == ["10.244.0.5:8080", "10.244.0.6:8080"]
    assert entry.cluster == entry.local
    assert [(f.kind, str(f.key)) for f in entry.frontends] == [(FrontendKind.CLUSTER_IP, "10.96.0.1:80/tcp")]


def test_order_of_arrival_does_not_matter() -> None:
    first, second = Planner(NODE), Planner(NODE)
    first.update([service()])
    first.update([endpoint_slice("10.244.0.5")])
    second.update([endpoint_slice("10.244.0.5")])
    assert second.plan.entries == {}
    second.update([service()])
    assert first.plan == second.plan


def test_no_op_cancels() -> None:
    planner = Planner(NODE)
    planner.update([service(), endpoint_slice("10.244.0.5")])
    assert not planner.update([service(), endpoint_slice("10.244.0.5")])
    # A change to the object that says nothing about this plan is no change either.
    renamed = endpoint_slice("10.244.0.5", name="web-2")
    assert not planner.update([renamed], [endpoint_slice().ref])


def test_change_touches_only_its_own_service() -> None:
    planner = Planner(NODE)
    planner.update([service(), service("other", "10.96.0.2"), endpoint_slice("10.244.0.5")])
    change = planner.update([endpoint_slice("10.244.0.5", "10.244.0.6")])
    assert [c.key for c in change.entries] == [key()]


def test_everything_deleted_leaves_nothing() -> None:
    planner = Planner(NODE)
    objects: list[Service | EndpointSlice | ServiceCIDR] = [
        service(),
        endpoint_slice("10.244.0.5"),
        ServiceCIDR("kubernetes", ("10.96.0.0/12",)),
    ]
    planner.update(objects)
    planner.update(deletes=[o.ref for o in objects])
    assert planner.plan == Plan(node=NODE)


def test_unknown_deletes_are_harmless() -> None:
    assert not Planner(NODE).update(deletes=[ObjectRef("Service", "a", "b"), ObjectRef("EndpointSlice", "a", "b")])


def test_what_makes_no_frontends() -> None:
    for silent in (
        service(headless=True),
        service(proxied_elsewhere=True),
        service(type=ServiceType.EXTERNAL_NAME),
        service(ports=()),
    ):
        planner = Planner(NODE)
        assert not planner.update([silent, endpoint_slice("10.244.0.5")])


def test_headless_slices_and_slices_without_owner_serve_nobody() -> None:
    planner = Planner(NODE)
    planner.update([service(), endpoint_slice("10.244.0.5", headless=True), endpoint_slice("10.244.0.6", owner="")])
    assert planner.plan.entries[key()].cluster == ()
    assert planner.plan.entries[key()].frontends[0].routes == REJECT_ALL


def test_slice_that_changes_its_owner_moves() -> None:
    planner = Planner(NODE)
    planner.update([service(), service("other", "10.96.0.2"), endpoint_slice("10.244.0.5")])
    change = planner.update([endpoint_slice("10.244.0.5", owner="other")])
    assert {c.key.name for c in change.entries} == {"web", "other"}
    assert planner.plan.entries[key("other")].cluster
    assert not planner.plan.entries[key("web")].cluster


def test_ports_are_matched_by_name_and_protocol_and_may_differ_by_slice() -> None:
    planner = Planner(NODE)
    udp = EndpointPort("http", Protocol.UDP, 53)
    second = endpoint_slice("10.244.0.6", name="web-2", ports=(EndpointPort("http", Protocol.TCP, 9090), udp))
    planner.update([service(), endpoint_slice("10.244.0.5"), second])
    assert [str(b) for b in planner.plan.entries[key()].cluster] == ["10.244.0.5:8080", "10.244.0.6:9090"]


def test_older_service_wins_and_the_loser_gets_the_frontend_when_it_goes() -> None:
    planner = Planner(NODE)
    old = service("old", "10.96.0.1", created="2020-01-01T00:00:00Z", external_ips=("192.0.2.9",))
    new = service("new", "10.96.0.2", created="2021-01-01T00:00:00Z", external_ips=("192.0.2.9",))
    planner.update([new])
    contested = FrontendKey(Family.IPV4, "192.0.2.9", Protocol.TCP, 80)
    assert rows(planner.plan)[contested].service == "default/new:http"
    change = planner.update([old])
    assert {c.key.name for c in change.entries} == {"old", "new"}
    assert rows(planner.plan)[contested].service == "default/old:http"
    (problem,) = planner.problems[new.ref]
    assert "default/old" in problem.reason
    assert "192.0.2.9:80/tcp" in problem.field
    # The loser keeps what is its own.
    assert [f.key.address for f in planner.plan.entries[key("new")].frontends] == ["10.96.0.2"]
    planner.update(deletes=[old.ref])
    assert rows(planner.plan)[contested].service == "default/new:http"
    assert planner.problems == {}


def test_a_conflict_by_name_when_ages_are_equal_or_unknown() -> None:
    planner = Planner(NODE)
    planner.update([service("b", "10.96.0.1"), service("a", "10.96.0.1")])
    assert {r.service for r in rows(planner.plan).values()} == {"default/a:http"}
    planner.update([service("c", "10.96.0.1", created="2024-01-01T00:00:00Z")])
    assert {r.service for r in rows(planner.plan).values()} == {"default/c:http"}


def test_a_node_port_given_to_two_ports_of_one_service_belongs_to_the_first() -> None:
    planner = Planner(NODE)
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 30080), ServicePortSpec("admin", Protocol.TCP, 81, 30080))
    planner.update([service(type=ServiceType.NODE_PORT, ports=ports)])
    assert [f.key.port for f in planner.plan.entries[key()].frontends] == [80, 30080]
    assert [f.key.port for f in planner.plan.entries[key(port="admin")].frontends] == [81]


def test_every_kind_of_frontend_and_one_address_named_twice() -> None:
    planner = Planner(NODE)
    planner.update(
        [
            service(
                type=ServiceType.LOAD_BALANCER,
                external_ips=("192.0.2.1",),
                load_balancer_ips=("192.0.2.1", "192.0.2.2"),
                ports=(ServicePortSpec("http", Protocol.TCP, 80, 30080),),
                source_ranges=("198.51.100.0/24", "2001:db8::/32", "172.18.0.0/16"),
            ),
            endpoint_slice("10.244.0.5"),
        ]
    )
    frontends = planner.plan.entries[key()].frontends
    assert [(f.kind.value, f.key.address, f.key.port) for f in frontends] == [
        ("clusterIP", "10.96.0.1", 80),
        ("loadBalancerIP", "192.0.2.1", 80),
        ("loadBalancerIP", "192.0.2.2", 80),
        ("nodePort", "", 30080),
    ]
    # this node is in the ranges, so each of the Service's LB IPs may be the source, too
    ranges = SourceRanges(("198.51.100.0/24", "172.18.0.0/16", "192.0.2.1/32", "192.0.2.2/32"))
    assert [f.source_ranges for f in frontends] == [
        None,
        ranges,
        ranges,
        None,
    ]


@pytest.mark.parametrize("ranges", [None, ("198.51.100.0/24",)])
def test_a_cluster_ip_that_is_a_load_balancer_ip_too_is_guarded(ranges: tuple[str, ...] | None) -> None:
    planner = Planner(NODE)
    planner.update([service(load_balancer_ips=("10.96.0.1",), source_ranges=ranges), endpoint_slice("10.244.0.5")])
    [frontend] = planner.plan.entries[key()].frontends
    assert frontend.kind is (FrontendKind.LOAD_BALANCER if ranges else FrontendKind.CLUSTER_IP)
    assert (frontend.source_ranges is None) == (ranges is None)


def test_without_the_gate_external_ips_make_no_frontends() -> None:
    planner = Planner(replace(NODE, external_ips=False))
    twice = service(external_ips=("192.0.2.1", "192.0.2.2"), load_balancer_ips=("192.0.2.2",))
    planner.update([twice, endpoint_slice("10.244.0.5")])

    def ways() -> list[tuple[str, str]]:
        return [(f.kind.value, f.key.address) for f in planner.plan.entries[key()].frontends]

    closed = [("clusterIP", "10.96.0.1"), ("loadBalancerIP", "192.0.2.2")]
    assert ways() == closed
    planner.set_node(replace(planner.plan.node, external_ips=True))
    assert ways() == [*closed, ("externalIP", "192.0.2.1")]
    # what nobody claims by its externalIP, another Service may have
    other = service("other", "10.96.0.2", load_balancer_ips=("192.0.2.1",))
    planner.update([other])
    assert planner.problems
    planner.set_node(replace(planner.plan.node, external_ips=False))
    assert ways() == closed
    assert not planner.problems
    assert len(planner.plan.entries[key("other")].frontends) == 2


def test_source_ranges_of_the_other_family_let_nobody_in() -> None:
    planner = Planner(NODE)
    planner.update([service(load_balancer_ips=("192.0.2.2",), source_ranges=("2001:db8::/32",))])
    assert planner.plan.entries[key()].frontends[1].source_ranges == SourceRanges(())


def test_dual_stack_makes_an_entry_for_each_family() -> None:
    planner = Planner(NODE)
    six = endpoint_slice("fd00:10::5", name="web-6", family=Family.IPV6)
    planner.update([service(cluster_ips=("10.96.0.1", "fd00:96::1")), endpoint_slice("10.244.0.5"), six])
    by_family = {k.family: [b.address for b in e.cluster] for k, e in planner.plan.entries.items()}
    assert by_family == {Family.IPV4: ["10.244.0.5"], Family.IPV6: ["fd00:10::5"]}


def test_single_stack_service_ignores_addresses_of_the_other_family() -> None:
    planner = Planner(NODE)
    planner.update([service(external_ips=("2001:db8::9",))])
    assert {k.family for k in planner.plan.entries} == {Family.IPV4}


def test_health_check_counts_local_ready_endpoints() -> None:
    planner = Planner(NODE)
    lb = service(type=ServiceType.LOAD_BALANCER, external_local=True, health_check_node_port=32000)
    elsewhere = make_endpoint("10.244.1.9", node="there")
    going = make_endpoint("10.244.0.9", ready=False, serving=True, terminating=True, node="here")
    piece = endpoint_slice("10.244.0.5", "10.244.0.6")
    change = planner.update([lb, replace(piece, endpoints=(*piece.endpoints, elsewhere, going))])
    check = planner.plan.health_checks[("default", "web")]
    assert (check.port, check.local_endpoints) == (32000, 2)
    assert change.health_checks == {("default", "web"): check}
    change = planner.update([replace(lb, external_local=False)])
    assert change.health_checks == {("default", "web"): None}
    assert planner.plan.health_checks == {}


@pytest.mark.parametrize(
    ("ports", "weight"),
    [
        ((), 0),
        ((EndpointPort("other", Protocol.TCP, 8080),), 0),
        ((EndpointPort("http", Protocol.UDP, 8080),), 0),
        ((EndpointPort("other", Protocol.TCP, 1), EndpointPort("http", Protocol.TCP, 8080)), 1),
    ],
)
def test_what_no_port_leads_to_has_no_health_check_weight(ports: tuple[EndpointPort, ...], weight: int) -> None:
    planner = Planner(NODE)
    lb = service(type=ServiceType.LOAD_BALANCER, external_local=True, health_check_node_port=32000)
    planner.update([lb, endpoint_slice("10.244.0.5", ports=ports)])
    assert planner.plan.health_checks[("default", "web")].local_endpoints == weight
    assert bool(planner.plan.entries[key()].local) == bool(weight)


def test_node_change_plans_everything_anew() -> None:
    planner = Planner(NODE)
    planner.update([service(internal_local=True), endpoint_slice("10.244.0.5"), Node("here", zone="a")])
    change = planner.set_node(replace(NODE, name="there"))
    assert change.node is not None
    assert [c.key for c in change.entries] == [key()]
    assert planner.plan.entries[key()].local == ()
    assert not planner.set_node(planner.plan.node)


def test_diff_and_apply_are_inverse() -> None:
    one, two = Planner(NODE), Planner(replace(NODE, masquerade_all=True))
    one.update([service(), service("gone", "10.96.0.7"), endpoint_slice("10.244.0.5")])
    two.update([service(), service("new", "10.96.0.8"), ServiceCIDR("k", ("10.96.0.0/12",))])
    lb = service("lb", "10.96.0.9", external_local=True, health_check_node_port=32000)
    two.update([lb])
    change = diff(one.plan, two.plan)
    assert change
    apply_change(one.plan, change)
    assert one.plan == two.plan
    assert not diff(one.plan, two.plan)


@pytest.mark.parametrize("how", [{"external_ips": ("10.96.0.10",)}, {"load_balancer_ips": ("10.96.0.10",)}])
def test_a_cluster_ip_beats_older_claims_from_outside(how: dict[str, tuple[str, ...]]) -> None:
    planner = Planner(NODE)
    thief = service("thief", "10.96.0.1", created="2020-01-01T00:00:00Z", **how)
    dns = service("dns", "10.96.0.10", created="2026-01-01T00:00:00Z")
    planner.update([thief, dns])
    assert {f.key.address for f in planner.plan.entries[key("dns")].frontends} == {"10.96.0.10"}
    assert {f.key.address for f in planner.plan.entries[key("thief")].frontends} == {"10.96.0.1"}
    (problem,) = planner.problems[thief.ref]
    assert "is a clusterIP of Service default/dns" in problem.reason
    planner.update(deletes=[dns.ref])
    assert len(planner.plan.entries[key("thief")].frontends) == 2
    planner.update([dns])  # made anew
    assert {f.key.address for f in planner.plan.entries[key("dns")].frontends} == {"10.96.0.10"}


def test_who_goes_or_takes_over_in_one_update_is_planned_as_it_is_in_the_end() -> None:
    planner = Planner(NODE)
    old, young = (service(name, "10.96.0.1", created=f"202{n}-01-01T00:00:00Z") for n, name in enumerate("zy"))
    planner.update([old, young])
    heir = service("a", "10.96.0.1", created="2025-01-01T00:00:00Z")
    change = planner.update([heir], [old.ref, young.ref])
    assert {c.key.name: bool(c.new) for c in change.entries} == {"a": True, "y": False, "z": False}
    assert {f.key.address for f in planner.plan.entries[key("a")].frontends} == {"10.96.0.1"}
    assert not planner.problems
    apart = [replace(heir, cluster_ips=("10.96.0.2",)), service("b", "10.96.0.1", created="2026-01-01T00:00:00Z")]
    planner.update(apart)
    swapped = [replace(each, cluster_ips=other.cluster_ips) for each, other in zip(apart, apart[::-1], strict=True)]
    change = planner.update(swapped)
    assert [c.key.name for c in change.entries] == ["a", "b"]
    assert not planner.problems
    fresh = Planner(NODE)
    fresh.update(swapped)
    assert fresh.plan == planner.plan


def test_a_cluster_ip_that_is_the_service_s_own_lb_ip_too_stays_its_own() -> None:
    planner = Planner(NODE)
    thief = service("thief", "10.96.0.1", created="2020-01-01T00:00:00Z", external_ips=("10.96.0.10",))
    own = service(
        "own", "10.96.0.10", created="2026-01-01T00:00:00Z", load_balancer_ips=("10.96.0.10",), source_ranges=()
    )
    planner.update([thief, own])
    assert [f.kind for f in planner.plan.entries[key("own")].frontends] == [FrontendKind.LOAD_BALANCER]
