"""The frontends of a Service port, before conflicts with other Services are settled."""

from collections.abc import Iterator

from dataplane.model.net import Family, contains, family_of
from dataplane.model.objects import Service, ServicePortSpec
from dataplane.plan.types import Frontend, FrontendKey, FrontendKind, SourceRanges
from dataplane.policy.endpoints import BackendSets
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Routes, cluster_ip_routes, external_routes


def service_families(service: Service) -> tuple[Family, ...]:
    """The families in which a Service has frontends: those of its clusterIPs.

    The API server always allocates a clusterIP; a hand-written manifest without any gets both families, so that its
    node ports and external addresses work.
    """
    if service.cluster_ips:
        return tuple(dict.fromkeys(map(family_of, service.cluster_ips)))
    return (Family.IPV4, Family.IPV6)


def addresses(service: Service, port: ServicePortSpec, family: Family) -> Iterator[tuple[FrontendKind, FrontendKey]]:
    """What the packets of each of this port's frontends are addressed to.

    An address named twice by one Service (as externalIP and as LB IP, say) counts as the first of clusterIP,
    externalIP, load-balancer IP.
    """
    listed = (
        (FrontendKind.CLUSTER_IP, service.cluster_ips),
        (FrontendKind.EXTERNAL_IP, service.external_ips),
        (FrontendKind.LOAD_BALANCER, service.load_balancer_ips),
    )
    seen = set()
    for kind, group in listed:
        for address in group:
            if family_of(address) is family and address not in seen:
                seen.add(address)
                yield kind, FrontendKey(family, address, port.protocol, port.port)
    if port.node_port:
        yield FrontendKind.NODE_PORT, FrontendKey(family, "", port.protocol, port.node_port)


def source_ranges(service: Service, family: Family, node: NodeConfig) -> SourceRanges | None:
    """Who may use this Service's load-balancer IPs of a family; None = everyone.

    Ranges of the other family let nobody in here: a list restricts the whole Service, not one of its families.
    """
    if service.source_ranges is None:
        return None
    cidrs = tuple(dict.fromkeys(cidr for cidr in service.source_ranges if family_of(cidr) is family))
    primary = node.primary(family)
    return SourceRanges(cidrs, own_address=bool(primary) and contains(cidrs, primary))


def port_routes(service: Service, sets: BackendSets, family: Family, node: NodeConfig) -> tuple[Routes, Routes]:
    """Routes of the clusterIP and routes of every other frontend of a Service port."""
    internal = cluster_ip_routes(
        has_cluster=bool(sets.cluster),
        has_local=bool(sets.local),
        internal_local=service.internal_local,
        detects_pods=node.detector.implemented(family),
        masquerade_all=node.masquerade_all,
    )
    external = external_routes(
        has_cluster=bool(sets.cluster), has_local=bool(sets.local), external_local=service.external_local
    )
    return internal, external


def make_frontends(
    service: Service,
    sets: BackendSets,
    family: Family,
    keys: list[tuple[FrontendKind, FrontendKey]],
    node: NodeConfig,
) -> tuple[Frontend, ...]:
    """Frontends for the addresses that this Service port may claim, with their routes."""
    internal, external = port_routes(service, sets, family, node)
    ranges = source_ranges(service, family, node) if service.source_ranges is not None else None
    return tuple(
        Frontend(
            kind,
            key,
            internal if kind is FrontendKind.CLUSTER_IP else external,
            ranges if kind is FrontendKind.LOAD_BALANCER else None,
        )
        for kind, key in keys
    )
