"""The frontends of a Service port, before conflicts with other Services are settled."""

from collections.abc import Iterable

from dataplane.model.net import Family, contains, family_of
from dataplane.model.objects import Service, ServiceType
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, SourceRanges
from dataplane.policy.endpoints import BackendSets
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import REJECT_ALL, Routes, cluster_ip_routes, external_routes

# Each Service asks for these, and a member is slower to find in its class than in a module.
_CLUSTER_IP, _EXTERNAL_IP = FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP
_LOAD_BALANCER, _NODE_PORT = FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT
_EXTERNAL_NAME = ServiceType.EXTERNAL_NAME

Way = tuple[FrontendKind, FrontendKey]
"""One way into a Service port: what it is, and what its packets are addressed to."""


def has_frontends(service: Service) -> bool:
    """Whether hotplane serves this Service at all: not headless, not ExternalName, not another proxy's."""
    return not (service.headless or service.proxied_elsewhere or service.type is _EXTERNAL_NAME)


def service_families(service: Service) -> tuple[Family, ...]:
    """The families in which a Service has frontends: those of its clusterIPs.

    The API server always allocates a clusterIP; a hand-written manifest without any gets both families, so that its
    node ports and external addresses work.
    """
    if not service.cluster_ips:
        return (Family.IPV4, Family.IPV6)
    families: list[Family] = []
    for address in service.cluster_ips:
        family = family_of(address)
        if family not in families:
            families.append(family)
    return tuple(families)


def _addresses(service: Service, external_ips: bool) -> dict[str, FrontendKind]:
    """The addresses of a Service, of both families, without node ports.

    One that is named twice (as externalIP and as LB IP, say) counts as the first of clusterIP, load-balancer IP,
    externalIP; where source ranges guard the load-balancer IPs, those go first: naming it twice must not open it.
    """
    kinds = dict.fromkeys(service.cluster_ips, _CLUSTER_IP)
    for address in service.load_balancer_ips:
        if service.source_ranges is not None:
            kinds[address] = _LOAD_BALANCER
        else:
            kinds.setdefault(address, _LOAD_BALANCER)
    for address in service.external_ips if external_ips else ():
        kinds.setdefault(address, _EXTERNAL_IP)
    return kinds


def ways_in(service: Service, external_ips: bool) -> dict[EntryKey, list[Way]]:
    """What each port of a Service wants to be reached by; empty for a Service without frontends.

    external_ips: whether externalIPs make frontends.

    Two ports of one Service that name one frontend (a node port given twice): the first port has it.
    """
    found: dict[EntryKey, list[Way]] = {}
    if not has_frontends(service):
        return found
    addresses, several_ports = _addresses(service, external_ips), len(service.ports) > 1
    taken: set[FrontendKey] = set()
    for family in service_families(service):
        for port in service.ports:
            ways = [
                (kind, FrontendKey(family, address, port.protocol, port.port))
                for address, kind in addresses.items()
                if family_of(address) is family
            ]
            if port.node_port:
                ways.append((_NODE_PORT, FrontendKey(family, "", port.protocol, port.node_port)))
            if several_ports:  # what one port alone wants is never twice the same
                ways = [way for way in ways if way[1] not in taken]
                taken.update([key for _, key in ways])
            if ways:
                found[EntryKey(service.namespace, service.name, port.name, port.protocol, family)] = ways
    return found


def source_ranges(service: Service, family: Family, node: NodeConfig) -> SourceRanges | None:
    """Who may use this Service's load-balancer IPs of a family; None = everyone.

    Ranges of the other family let nobody in here: a list restricts the whole Service, not one of its families. Where
    this node's primary address is in the ranges, so are all the Service's load-balancer IPs: a node that holds such an
    address sends from it (kube-proxy's rule).
    """
    if service.source_ranges is None:
        return None
    cidrs = [cidr for cidr in service.source_ranges if family_of(cidr) is family]
    primary = node.primary(family)
    if primary and contains(cidrs, primary):
        cidrs += [f"{address}/{family.bits}" for address in service.load_balancer_ips if family_of(address) is family]
    return SourceRanges(tuple(dict.fromkeys(cidrs)))


def _routes(kind: FrontendKind, service: Service, sets: BackendSets, family: Family, node: NodeConfig) -> Routes:
    """Routes of a frontend of a Service port. Arguments go by position: so they are found again in half the time."""
    has_cluster, has_local = bool(sets.cluster), bool(sets.local)
    if kind is not _CLUSTER_IP:
        return external_routes(has_cluster, has_local, service.external_local)
    detects_pods = node.detector.implemented(family)
    return cluster_ip_routes(has_cluster, has_local, service.internal_local, detects_pods, node.masquerade_all)


def make_frontends(
    service: Service, sets: BackendSets, family: Family, ways: Iterable[Way], node: NodeConfig
) -> tuple[Frontend, ...]:
    """Frontends for the addresses that this Service port may claim, with their routes.

    Source ranges come before the routes, so that strangers meet silence whether anybody serves or not; in the mode that
    guards only where it forwards there are none where everybody is rejected.
    """
    ranges = source_ranges(service, family, node)
    found = []
    for kind, key in ways:
        routes = _routes(kind, service, sets, family, node)
        guarded = kind is _LOAD_BALANCER and (node.guards_first or routes != REJECT_ALL)
        found.append(Frontend(kind, key, routes, ranges if guarded else None))
    return tuple(found)
