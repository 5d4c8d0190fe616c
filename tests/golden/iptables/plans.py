"""Services and plans for the tests of the iptables plane."""

from dataplane.model.net import Family, Protocol, family_of
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

NODE = NodeConfig(
    name="here",
    addresses=("192.168.0.2", "2001:db8::2"),
    detector=LocalDetector(cidrs=("10.42.0.0/16", "fd00:10:42::/48")),
    nodeports=NodePortAddresses(any_local=True, loopback=True),
    reject_unknown_ports=False,
)


def slice_of(
    service: str,
    *addresses: str,
    port: int = 8080,
    local: tuple[str, ...] = (),
    namespace: str = "default",
    port_name: str = "",
    protocol: Protocol = Protocol.TCP,
    family: Family | None = None,
) -> EndpointSlice:
    """One slice of a Service; addresses in `local` are on this node."""
    family = family or family_of(addresses[0])
    return EndpointSlice(
        namespace,
        f"{service}-{family.value}-{port_name}",
        service,
        family,
        (EndpointPort(port_name, protocol, port),),
        tuple(make_endpoint(address, node="here" if address in local else "there") for address in addresses),
    )


def tcp(port: int, node_port: int = 0, name: str = "") -> ServicePortSpec:
    return ServicePortSpec(name, Protocol.TCP, port, node_port)


def plan_of(*objects: ModelObject, node: NodeConfig = NODE) -> Plan:
    planner = Planner(node)
    planner.update(objects)
    assert not planner.problems
    return planner.plan


def every_kind() -> list[ModelObject]:
    """One Service of each kind that has rules of its own, in both families."""
    return [*_inside(), *_outside()]


def _inside() -> list[ModelObject]:
    """Those without an external address."""
    return [
        Service("default", "plain", cluster_ips=("10.96.0.1", "fd00:96::1"), ports=(tcp(80),)),
        slice_of("plain", "10.42.0.9", "10.42.0.10", "10.42.1.11"),
        slice_of("plain", "fd00:10:42::9", "fd00:10:42::10"),
        Service("default", "sticky", cluster_ips=("10.96.0.2", "fd00:96::2"), ports=(tcp(80),), affinity_seconds=60),
        slice_of("sticky", "10.42.0.9", "10.42.0.10"),
        slice_of("sticky", "fd00:10:42::9", "fd00:10:42::10"),
        Service(
            "default",
            "dns",
            cluster_ips=("10.96.0.10", "fd00:96::a"),
            ports=(ServicePortSpec("dns", Protocol.UDP, 53), ServicePortSpec("sctp", Protocol.SCTP, 9000, 30900)),
        ),
        slice_of("dns", "10.42.0.5", port=1053, port_name="dns", protocol=Protocol.UDP),
        slice_of("dns", "fd00:10:42::5", port=1053, port_name="dns", protocol=Protocol.UDP),
        slice_of("dns", "10.42.0.6", port=9001, port_name="sctp", protocol=Protocol.SCTP),
        slice_of("dns", "fd00:10:42::6", port=9001, port_name="sctp", protocol=Protocol.SCTP),
    ]


def _outside() -> list[ModelObject]:
    """Those with external addresses."""
    balanced = ServiceType.LOAD_BALANCER
    return [
        Service(
            "default",
            "open",
            balanced,
            cluster_ips=("10.96.0.3", "fd00:96::3"),
            external_ips=("203.0.113.3", "2001:db8:1::3"),
            load_balancer_ips=("198.51.100.3", "2001:db8:2::3"),
            ports=(tcp(443, 30443, "https"),),
        ),
        slice_of("open", "10.42.0.9", "10.42.1.9", port_name="https"),
        slice_of("open", "fd00:10:42::9", "fd00:10:42::19", port_name="https"),
        Service(
            "default",
            "guarded",
            balanced,
            cluster_ips=("10.96.0.4", "fd00:96::4"),
            load_balancer_ips=("198.51.100.4", "198.51.100.14", "2001:db8:2::4"),
            ports=(tcp(443, 30444),),
            source_ranges=("192.168.0.0/16", "203.0.113.0/24", "2001:db8:3::/48"),
        ),
        slice_of("guarded", "10.42.0.9"),
        slice_of("guarded", "fd00:10:42::9"),
        Service(
            "default",
            "at-home",
            balanced,
            cluster_ips=("10.96.0.5", "fd00:96::5"),
            load_balancer_ips=("198.51.100.5", "2001:db8:2::5"),
            ports=(tcp(443, 30445),),
            external_local=True,
            health_check_node_port=31999,
        ),
        slice_of("at-home", "10.42.0.9", "10.42.1.9", local=("10.42.0.9",)),
        slice_of("at-home", "fd00:10:42::9", "fd00:10:42:1::9", local=("fd00:10:42::9",)),
        Service(
            "default",
            "away",
            cluster_ips=("10.96.0.6", "fd00:96::6"),
            external_ips=("203.0.113.6", "2001:db8:1::6"),
            ports=(tcp(443, 30446),),
            external_local=True,
            internal_local=True,
        ),
        slice_of("away", "10.42.1.9"),
        slice_of("away", "fd00:10:42:1::9"),
        Service(
            "default",
            "nobody",
            cluster_ips=("10.96.0.7", "fd00:96::7"),
            external_ips=("203.0.113.7", "2001:db8:1::7"),
            ports=(tcp(443, 30447),),
        ),
    ]
