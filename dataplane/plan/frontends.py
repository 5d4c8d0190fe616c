"""The frontends of a Service port, before conflicts with other Services are resolved."""

from collections.abc import Iterable

from dataplane.model.net import Family, contains, family_of
from dataplane.model.objects import Service, ServiceType
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, SourceRanges
from dataplane.policy.endpoints import BackendSets
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import REJECT_ALL, Routes, cluster_ip_routes, external_routes

# Looked up for each Service; a module attribute is faster than a member of an enum class.
_CLUSTER_IP, _EXTERNAL_IP = FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP
_LOAD_BALANCER, _NODE_PORT = FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT
_EXTERNAL_NAME = ServiceType.EXTERNAL_NAME

FrontendSpec = tuple[FrontendKind, FrontendKey]
"""A frontend that a Service port asks for: its kind, and the address and port of its packets."""


def has_frontends(service: Service) -> bool:
    """True if hotplane serves this Service: not headless, not ExternalName, not another proxy's."""
    return not (service.headless or service.proxied_elsewhere or service.type is _EXTERNAL_NAME)


def why_no_frontends(service: Service) -> str:
    """Return why hotplane does not serve a Service, as a clause whose subject it is; "" if it does."""
    if service.headless:
        return "is headless: DNS answers with its pods' addresses"
    if service.type is _EXTERNAL_NAME:
        return "is of type ExternalName: DNS answers with another name"
    if service.proxied_elsewhere:
        return "is left to another proxy by its label service.kubernetes.io/service-proxy-name"
    return ""


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

    An address listed twice (such as externalIP and LB IP) counts as the first of clusterIP, load-balancer IP,
    externalIP; where source ranges guard the load-balancer IPs, those go first: listing it twice must not open it.
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


def frontend_specs(service: Service, external_ips: bool) -> dict[EntryKey, list[FrontendSpec]]:
    """Return the frontends that each port of a Service asks for; empty for a Service without frontends.

    external_ips: whether externalIPs make frontends.

    If two ports of a Service ask for one frontend (a node port given twice), the first port gets it.
    """
    found: dict[EntryKey, list[FrontendSpec]] = {}
    if not has_frontends(service):
        return found
    addresses, several_ports = _addresses(service, external_ips), len(service.ports) > 1
    taken: set[FrontendKey] = set()
    for family in service_families(service):
        for port in service.ports:
            specs = [
                (kind, FrontendKey(family, address, port.protocol, port.port))
                for address, kind in addresses.items()
                if family_of(address) is family
            ]
            if port.node_port:
                specs.append((_NODE_PORT, FrontendKey(family, "", port.protocol, port.node_port)))
            if several_ports:  # one port alone never asks for a frontend twice
                specs = [spec for spec in specs if spec[1] not in taken]
                taken.update([key for _, key in specs])
            if specs:
                found[EntryKey(service.namespace, service.name, port.name, port.protocol, family)] = specs
    return found


def source_ranges(service: Service, family: Family, node: NodeConfig) -> SourceRanges | None:
    """Return the sources that may use this Service's load-balancer IPs of a family; None = everyone.

    Ranges of the other family let no source in: a list restricts the whole Service, not one of its families. Where
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
    """Return the routes of a frontend. Positional arguments halve the time of a cache hit in `policy.routes`."""
    has_cluster, has_local = bool(sets.cluster), bool(sets.local)
    if kind is not _CLUSTER_IP:
        return external_routes(has_cluster, has_local, service.external_local)
    detects_pods = node.detector.implemented(family)
    return cluster_ip_routes(has_cluster, has_local, service.internal_local, detects_pods, node.masquerade_all)


def make_frontends(
    service: Service, sets: BackendSets, family: Family, specs: Iterable[FrontendSpec], node: NodeConfig
) -> tuple[Frontend, ...]:
    """Return the frontends of the addresses that this Service port won, with their routes.

    Source ranges apply before the routes, so that excluded sources are dropped with or without endpoints. In iptables
    mode a frontend that rejects all sources has no source ranges.
    """
    ranges = source_ranges(service, family, node)
    found = []
    for kind, key in specs:
        routes = _routes(kind, service, sets, family, node)
        guarded = kind is _LOAD_BALANCER and (node.guards_first or routes != REJECT_ALL)
        found.append(Frontend(kind, key, routes, ranges if guarded else None))
    return tuple(found)
