"""The frontends of a Service port, before conflicts with other Services are settled."""

from collections.abc import Iterable

from dataplane.model.net import Family, contains, family_of
from dataplane.model.objects import Service, ServiceType
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, SourceRanges
from dataplane.policy.endpoints import BackendSets
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Routes, cluster_ip_routes, external_routes

_BY_ADDRESS = (FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER)
_CLUSTER_IP, _LOAD_BALANCER, _NODE_PORT = FrontendKind.CLUSTER_IP, FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT

Way = tuple[FrontendKind, FrontendKey]
"""One way into a Service port: what it is, and what its packets are addressed to."""


def has_frontends(service: Service) -> bool:
    """Whether hotplane serves this Service at all: not headless, not ExternalName, not another proxy's."""
    return not (service.headless or service.proxied_elsewhere or service.type is ServiceType.EXTERNAL_NAME)


def service_families(service: Service) -> tuple[Family, ...]:
    """The families in which a Service has frontends: those of its clusterIPs.

    The API server always allocates a clusterIP; a hand-written manifest without any gets both families, so that its
    node ports and external addresses work.
    """
    if service.cluster_ips:
        return tuple(dict.fromkeys(map(family_of, service.cluster_ips)))
    return (Family.IPV4, Family.IPV6)


def _addresses(service: Service, family: Family) -> dict[str, FrontendKind]:
    """The addresses of a Service in a family, without node ports.

    One that is named twice (as externalIP and as LB IP, say) counts as the first of clusterIP, externalIP,
    load-balancer IP.
    """
    groups = (service.cluster_ips, service.external_ips, service.load_balancer_ips)
    kinds: dict[str, FrontendKind] = {}
    for kind, group in zip(_BY_ADDRESS, groups, strict=True):
        for address in group:
            if address not in kinds and family_of(address) is family:
                kinds[address] = kind
    return kinds


def ways_in(service: Service) -> dict[EntryKey, list[Way]]:
    """What each port of a Service wants to be reached by; empty for a Service without frontends.

    Two ports of one Service that name one frontend (a node port given twice): the first port has it.
    """
    found: dict[EntryKey, list[Way]] = {}
    if not has_frontends(service):
        return found
    taken: set[FrontendKey] = set()
    for family in service_families(service):
        addresses = _addresses(service, family)
        for port in service.ports:
            ways = [
                (kind, FrontendKey(family, address, port.protocol, port.port)) for address, kind in addresses.items()
            ]
            if port.node_port:
                ways.append((_NODE_PORT, FrontendKey(family, "", port.protocol, port.node_port)))
            if taken:
                ways = [way for way in ways if way[1] not in taken]
            if ways:
                taken.update([key for _, key in ways])
                found[EntryKey(service.namespace, service.name, port.name, port.protocol, family)] = ways
    return found


def source_ranges(service: Service, family: Family, node: NodeConfig) -> SourceRanges | None:
    """Who may use this Service's load-balancer IPs of a family; None = everyone.

    Ranges of the other family let nobody in here: a list restricts the whole Service, not one of its families.
    """
    if service.source_ranges is None:
        return None
    cidrs = tuple(dict.fromkeys(cidr for cidr in service.source_ranges if family_of(cidr) is family))
    primary = node.primary(family)
    return SourceRanges(cidrs, own_address=bool(primary) and contains(cidrs, primary))


def _routes(kind: FrontendKind, service: Service, sets: BackendSets, family: Family, node: NodeConfig) -> Routes:
    """Routes of a frontend of a Service port."""
    if kind is not _CLUSTER_IP:
        return external_routes(
            has_cluster=bool(sets.cluster), has_local=bool(sets.local), external_local=service.external_local
        )
    return cluster_ip_routes(
        has_cluster=bool(sets.cluster),
        has_local=bool(sets.local),
        internal_local=service.internal_local,
        detects_pods=node.detector.implemented(family),
        masquerade_all=node.masquerade_all,
    )


def make_frontends(
    service: Service, sets: BackendSets, family: Family, ways: Iterable[Way], node: NodeConfig
) -> tuple[Frontend, ...]:
    """Frontends for the addresses that this Service port may claim, with their routes."""
    ranges = source_ranges(service, family, node) if service.source_ranges is not None else None
    return tuple(
        [
            Frontend(
                kind,
                key,
                _routes(kind, service, sets, family, node),
                ranges if ranges is not None and kind is _LOAD_BALANCER else None,
            )
            for kind, key in ways
        ]
    )
