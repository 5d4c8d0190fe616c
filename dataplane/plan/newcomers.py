"""Plan Services of the plainest kind that are new: most of a cluster, when its whole state comes at once.

The result is that of the planner's general way, which takes three times as long because it asks for everything that a
Service may have. A Service of another kind, or one that meets another's frontend, is left to it.
"""

from collections.abc import Mapping
from itertools import product

from dataplane.model.net import Family
from dataplane.model.objects import EndpointSlice, Service, ServiceType
from dataplane.plan.claims import Claims, ServiceId, claimant
from dataplane.plan.places import Places
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry
from dataplane.policy.endpoints import Backend, BackendSets
from dataplane.policy.routes import cluster_ip_routes

# Looked up for each Service; a module attribute is faster than a member of an enum class.
_CLUSTER_IP, _EXTERNAL_NAME = FrontendKind.CLUSTER_IP, ServiceType.EXTERNAL_NAME
_IPV4, _IPV6 = Family.IPV4, Family.IPV6

_tuple = tuple.__new__
"""Makes a NamedTuple in half the time that its own constructor takes."""

_Backends = tuple[Backend, ...]
_NOBODY: tuple[_Backends, _Backends] = ((), ())


def is_plain(service: Service) -> bool:
    """True if a Service asks for one frontend, at a clusterIP."""
    return (
        len(service.ports) == 1
        and len(service.cluster_ips) == 1
        and not service.ports[0].node_port
        and not (service.external_ips or service.load_balancer_ips or service.health_check_node_port)
        and not (service.headless or service.proxied_elsewhere)
        and service.type is not _EXTERNAL_NAME
    )


class Newcomers:
    """Plans new Services within one update. slices: of each Service, a single one without a tuple. large: see
    Planner."""

    def __init__(
        self,
        plan: Plan,
        slices: Mapping[ServiceId, EndpointSlice | tuple[EndpointSlice, ...]],
        claims: Claims,
        places: Places,
        large: int,
    ) -> None:
        self._plan, self._slices, self._claims, self._places, self._large = plan, slices, claims, places, large
        self._certain = places.certain
        self._here = plan.node.name or None  # without a node name no endpoint is local
        self._detects = {family: plan.node.detector.implemented(family) for family in Family}

    def entry(self, service_id: ServiceId, service: Service) -> PlanEntry | None:
        """Claim a Service's frontend and return its entry, which is not yet in the plan. None, and nothing claimed, if
        the Service is not plain, has an entry or a health check, or wants what another Service has."""
        if not is_plain(service) or service_id in self._plan.health_checks:
            return None
        (port,), (address,) = service.ports, service.cluster_ips
        family = _IPV6 if ":" in address else _IPV4
        key = _tuple(EntryKey, (service.namespace, service.name, port.name, port.protocol, family))
        sets = self._sets(self._slices.get(service_id), key)
        if sets is None or key in self._plan.entries:
            return None
        wanted = _tuple(FrontendKey, (family, address, port.protocol, port.port))
        if not self._claims.add(claimant(service_id, service, (wanted,))):
            return None
        (cluster, local), node = sets, self._plan.node
        routes = cluster_ip_routes(
            bool(cluster), bool(local), service.internal_local, self._detects[family], node.masquerade_all
        )
        return PlanEntry(
            key,
            cluster,
            local,
            (Frontend(_CLUSTER_IP, wanted, routes),),
            service.affinity_seconds,
            service.internal_local,
            service.external_local,
            (),
            False,
            () if self._certain else self._unplaced(service_id, cluster, local),
        )

    def _sets(
        self, found: EndpointSlice | tuple[EndpointSlice, ...] | None, key: EntryKey
    ) -> tuple[_Backends, _Backends] | None:
        """Return the Cluster and the Local set where policy.endpoints takes every endpoint: from one slice, all ready,
        no two with one address, without hints and weights. Else None."""
        if found is None:
            return _NOBODY
        if isinstance(found, tuple) or found.family is not key.family or len(found.endpoints) >= self._large:
            return None
        number, endpoints = None, found.endpoints
        for port in found.ports:
            if port.name == key.port and port.protocol is key.protocol:
                number = port.port
                break
        if number is None or not endpoints:
            return _NOBODY
        first = endpoints[0].traits
        if first.zone_hints or first.node_hints:
            return None
        here, mine = self._here, set[str]()
        for endpoint in endpoints:
            traits = endpoint.traits
            if not traits.ready or traits.weight != 1:
                return None
            if traits.node == here:
                mine.add(endpoint.address)
        order = sorted([endpoint.address for endpoint in endpoints])
        if len(set(order)) < len(order):
            return None
        if not mine:
            return tuple([Backend(address, number) for address in order]), ()
        cluster = tuple([Backend(address, number, address in mine) for address in order])
        return cluster, tuple([backend for backend in cluster if backend.local])

    def _unplaced(self, service_id: ServiceId, cluster: _Backends, local: _Backends) -> _Backends:
        """See Places.unplaced."""
        found = self._slices.get(service_id)
        if not cluster or not isinstance(found, EndpointSlice):
            return ()
        return self._places.unplaced(product(found.endpoints, (cluster[0].port,)), BackendSets(cluster, local))
