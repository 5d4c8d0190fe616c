"""The reasons that explain gives: each fact that decided is told, in order, with its figures."""

import msgspec
import pytest

from ctl.commands.explain import explain, headline, read_flows
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.planner import Planner
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

NODE = NodeConfig(
    name="n1",
    zone="za",
    addresses=("192.168.0.2", "192.168.1.2"),
    detector=LocalDetector(("10.0.0.0/8",)),
    nodeports=NodePortAddresses(addresses=("192.168.0.2",)),
)
WEB = Service(
    "shop",
    "web",
    ServiceType.LOAD_BALANCER,
    cluster_ips=("172.30.0.41",),
    load_balancer_ips=("198.51.100.9",),
    ports=(ServicePortSpec("http", Protocol.TCP, 80, 30080),),
    source_ranges=("203.0.113.0/25",),
    external_local=True,
    affinity_seconds=10800,
    health_check_node_port=31000,
)


def endpoint(number: int, node: str = "n2", **fields: object) -> Endpoint:
    return make_endpoint(f"10.1.0.{number}", **{"node": node, **fields})  # type: ignore[arg-type]


def slice_of(*endpoints: Endpoint) -> EndpointSlice:
    return EndpointSlice("shop", "web-1", "web", Family.IPV4, (EndpointPort("http", Protocol.TCP, 8080),), endpoints)


def reasons(flow: str, *objects: ModelObject, node: NodeConfig = NODE, mode: str = "nftables") -> tuple[str, ...]:
    planner = Planner(node)
    planner.update([WEB, *objects])
    (found,) = explain(planner, read_flows([flow]), mode)
    return found.reasons


def test_a_pod_and_a_clusterip() -> None:
    assert reasons("10.9.0.1 -> 172.30.0.41:80/tcp", slice_of(endpoint(1, "n1"), endpoint(2))) == (
        "172.30.0.41:80/tcp is the clusterIP of Service shop/web:http",
        "source 10.9.0.1 counts as a pod: it is in the pod range 10.0.0.0/8",
        "the EndpointSlices list 2 endpoints: 2 ready",
        "internalTrafficPolicy Cluster: any usable backend, 2 backends, 1 on this node",
        "sent to one of 10.1.0.1:8080, 10.1.0.2:8080, each with probability 1/2",
        "sessionAffinity ClientIP: 10.9.0.1 stays with the backend it is given until 10800 s after its last new "
        "connection",
        "not masqueraded: the backend sees 10.9.0.1",
    )


def test_source_ranges_are_told() -> None:
    found = reasons("203.0.113.9 -> 198.51.100.9:80/tcp", slice_of(endpoint(1, "n1"), endpoint(2)))
    assert found[1:3] == (
        "source 203.0.113.9 is outside: it is no address of this node, and not in the pod range 10.0.0.0/8",
        "loadBalancerSourceRanges lets 203.0.113.9 in by 203.0.113.0/25",
    )
    assert "externalTrafficPolicy Local: only backends on this node, 1 backend" in found
    refused = reasons("203.0.113.200 -> 198.51.100.9:80/tcp", slice_of(endpoint(1, "n1")))
    assert (
        refused[-1] == "dropped: loadBalancerSourceRanges lets in 203.0.113.0/25, and 203.0.113.200 is not among them"
    )
    assert reasons("203.0.113.200 -> 198.51.100.9:80/tcp")[-1] == refused[-1], "whether anybody answers or not"
    nobody = reasons("203.0.113.9 -> 198.51.100.9:80/tcp")
    assert nobody[-3:] == (
        "loadBalancerSourceRanges lets 203.0.113.9 in by 203.0.113.0/25",
        "no EndpointSlice has an endpoint for this port in this IP family",
        "rejected (port unreachable): the Service has no usable endpoint on any node",
    )
    iptables = msgspec.structs.replace(NODE, reject_unknown_ports=False)
    nobody = reasons("203.0.113.200 -> 198.51.100.9:80/tcp", node=iptables)
    assert nobody[-2:] == (
        "no EndpointSlice has an endpoint for this port in this IP family",
        "rejected (port unreachable): the Service has no usable endpoint on any node",
    )


def test_policy_local_by_source() -> None:
    objects = slice_of(endpoint(2))
    dropped = reasons("203.0.113.9 -> 192.168.0.2:30080/tcp", objects)
    assert dropped[0] == (
        "tcp port 30080 is a node port of Service shop/web:http, and node ports answer on 192.168.0.2"
    )
    assert dropped[-1] == "dropped: externalTrafficPolicy Local, and the only usable endpoints are on other nodes"
    pod = reasons("10.9.0.1 -> 192.168.0.2:30080/tcp", objects)
    assert (
        "externalTrafficPolicy Local, which does not bind a pod: any usable backend, 1 backend, 0 on this node" in pod
    )
    assert "sent to 10.1.0.2:8080, the only choice" in pod
    node = reasons("192.168.1.2 -> 192.168.0.2:30080/tcp", objects)
    assert node[1] == "source 192.168.1.2 is this node itself: it is an address of this node"
    assert node[-1] == "masqueraded as this node: this node itself is the source of external traffic"


@pytest.mark.parametrize(
    ("endpoints", "told"),
    [
        (
            [endpoint(n, zone_hints=("za",) if n < 3 else ("zb",)) for n in range(1, 7)],
            ["the EndpointSlices list 6 endpoints: 6 ready", "hints forZones narrow 6 ready to 2 for zone za"],
        ),
        (
            [endpoint(n, node_hints=("n1",) if n < 2 else ("n2",), zone_hints=("za",)) for n in range(1, 4)],
            ["the EndpointSlices list 3 endpoints: 3 ready", "hints forNodes narrow 3 ready to 1 for node n1"],
        ),
        (
            [endpoint(1, zone_hints=("zb",)), endpoint(2, zone_hints=("zc",))],
            ["the EndpointSlices list 2 endpoints: 2 ready", "hints forZones are ignored: none names zone za"],
        ),
        (
            [endpoint(1, zone_hints=("za",)), endpoint(2)],
            [
                "the EndpointSlices list 2 endpoints: 2 ready",
                "hints forZones are ignored: not every ready endpoint carries them",
            ],
        ),
        (
            [endpoint(1), endpoint(1), endpoint(2, ready=False, serving=False)],
            ["the EndpointSlices list 3 endpoints (2 distinct): 2 ready, 1 not usable"],
        ),
        (
            [endpoint(1, ready=False, terminating=True), endpoint(2, ready=False, serving=False)],
            [
                "the EndpointSlices list 2 endpoints: 0 ready, 1 terminating but serving, 1 not usable",
                "none is ready, so those that still serve while terminating are used: 1",
            ],
        ),
        (
            [endpoint(1, "n1", ready=False, terminating=True), endpoint(2)],
            [
                "the EndpointSlices list 2 endpoints: 1 ready, 1 terminating but serving",
                "none on this node is ready; 1 there still serving while terminating",
            ],
        ),
    ],
)
def test_how_endpoints_were_chosen(endpoints: list[Endpoint], told: list[str]) -> None:
    found = reasons("10.9.0.1 -> 172.30.0.41:80/tcp", slice_of(*endpoints))
    assert list(found[2 : 2 + len(told)]) == told
    assert found[2 + len(told)].startswith("internalTrafficPolicy Cluster")


def test_hints_without_a_known_zone() -> None:
    node = msgspec.structs.replace(NODE, zone="")
    found = reasons("10.9.0.1 -> 172.30.0.41:80/tcp", slice_of(endpoint(1, zone_hints=("za",))), node=node)
    assert found[3] == "hints forZones are ignored: this node's zone is not known"


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        (
            "10.9.0.1 -> 172.30.0.41:81/tcp",
            (
                "172.30.0.41 is the clusterIP of Service shop/web, which has no tcp port 81 (it has tcp 80)",
                "rejected (port unreachable): in this mode a clusterIP answers for the ports that it does not have",
            ),
        ),
        (
            "10.9.0.1 -> 172.30.0.99:80/udp",
            (
                "no Service has 172.30.0.99 with udp port 80",
                "dropped: 172.30.0.99 is in the Service range, and no Service has it",
            ),
        ),
        (
            "10.9.0.1 -> 192.168.1.2:30080/tcp",
            (
                "no Service has 192.168.1.2 with tcp port 30080",
                "192.168.1.2 is this node's own address, but node ports do not answer on it "
                "(they answer on 192.168.0.2)",
                "left alone: the packet goes on unchanged",
            ),
        ),
        (
            "10.9.0.1 -> 192.168.0.2:31000/tcp",
            (
                "no Service has 192.168.0.2 with tcp port 31000",
                "node ports answer on 192.168.0.2, but no Service has node port 31000 there",
                "it is the healthCheckNodePort of Service shop/web, which hotplane itself answers",
                "left alone: the packet goes on unchanged",
            ),
        ),
        (
            "10.9.0.1 -> 10.1.0.1:8080/tcp",
            ("no Service has 10.1.0.1 with tcp port 8080", "left alone: the packet goes on unchanged"),
        ),
    ],
)
def test_packets_that_no_frontend_claims(flow: str, told: tuple[str, ...]) -> None:
    assert reasons(flow, slice_of(endpoint(1)), ServiceCIDR("kubernetes", ("172.30.0.0/16",))) == told


def test_hairpin_is_told() -> None:
    alone = reasons("10.1.0.1 -> 172.30.0.41:80/tcp", slice_of(endpoint(1)))
    assert alone[-1] == "masqueraded as this node, as the reply to itself must come back through this node (hairpin)"
    among = reasons("10.1.0.1 -> 172.30.0.41:80/tcp", slice_of(endpoint(1), endpoint(2)))
    assert among[-1] == (
        "masqueraded only if the choice is 10.1.0.1:8080, as the reply to itself must come back through this node "
        "(hairpin); other backends see 10.1.0.1"
    )


def test_many_backends_are_cut_short() -> None:
    found = reasons("10.9.0.1 -> 172.30.0.41:80/tcp", slice_of(*(endpoint(n) for n in range(1, 31))))
    assert any("and 22 more, each with probability 1/30" in reason for reason in found)


def test_who_lost_the_frontend_is_told() -> None:
    loser = Service("a", "late", cluster_ips=("172.30.0.41",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    older = msgspec.structs.replace(WEB, created="2026-01-01T00:00:00Z")
    found = reasons("10.9.0.1 -> 172.30.0.41:80/tcp", older, loser)
    assert found[-1] == "Service a/late wants 172.30.0.41:80/tcp too, but the older Service has it"


def test_headlines() -> None:
    planner = Planner(NODE)
    planner.update([WEB, slice_of(endpoint(1), endpoint(2))])
    flows = ["192.168.1.2 -> 172.30.0.41:80/tcp", "203.0.113.9 -> 192.168.0.2:30080/tcp", "10.9.0.1 -> 10.1.0.1:1/udp"]
    assert [headline(flow) for flow in explain(planner, read_flows(flows), "nftables")] == [
        "DNAT to 10.1.0.1:8080, 10.1.0.2:8080, masqueraded  by shop/web:http, clusterIP 172.30.0.41:80/tcp",
        "DROP  by shop/web:http",
        "ACCEPT",
    ]
