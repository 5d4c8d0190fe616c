"""From Kubernetes objects to the plan, one change at a time: events in, PlanChange out. Pure; O(what changed)."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable

from dataplane.bulk import no_garbage_collection
from dataplane.model.net import Family
from dataplane.model.objects import (
    EndpointSlice,
    ModelObject,
    Node,
    ObjectRef,
    Problem,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
)
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.claims import Claims, ServiceId, claim_of
from dataplane.plan.frontends import addresses, make_frontends, service_families
from dataplane.plan.types import EntryKey, FrontendKey, FrontendKind, HealthCheck, Plan, PlanEntry
from dataplane.policy.endpoints import BackendSets, Candidate, backend_sets
from dataplane.policy.node import NodeConfig

_MANY = 1000
"""Services in one update from which on it is a load: nobody reads its changes in order, and much memory is taken."""

_NO_SLICES: dict[str, EndpointSlice] = {}


def has_frontends(service: Service) -> bool:
    """Whether hotplane serves this Service at all: not headless, not ExternalName, not another proxy's."""
    return not (service.headless or service.proxied_elsewhere or service.type is ServiceType.EXTERNAL_NAME)


class Planner:
    """Keeps the objects and the plan made of them.

    `plan` is always complete and consistent with the objects seen so far; `problems` holds what is wrong now
    (conflicts between Services), by the object that suffers.
    """

    def __init__(self, node: NodeConfig) -> None:
        self.plan = Plan(node=node)
        self.problems: dict[ObjectRef, tuple[Problem, ...]] = {}
        self._services: dict[ServiceId, Service] = {}
        self._slices: defaultdict[ServiceId, dict[str, EndpointSlice]] = defaultdict(dict)
        self._slice_owner: dict[tuple[str, str], ServiceId] = {}
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._entry_keys: dict[ServiceId, tuple[EntryKey, ...]] = {}
        self._claims = Claims()

    def update(self, upserts: Iterable[ModelObject] = (), deletes: Iterable[ObjectRef] = ()) -> PlanChange:
        """Take in objects that appeared, changed or went, and return what that does to the plan (already applied).

        Deletes come before upserts, so an object named in both exists afterwards. An object that is not known is
        deleted without complaint. A Node is accepted and has no effect here: what it says about this node is part
        of the NodeConfig.
        """
        dirty: set[ServiceId] = set()
        service_cidrs = self.plan.service_cidrs
        for ref in deletes:
            self._forget(ref, dirty)
        for item in upserts:
            self._remember(item, dirty)
        with no_garbage_collection(keep=True) if len(dirty) >= _MANY else contextlib.nullcontext():
            entries, health = self._replan(dirty)
        self.plan.service_cidrs = tuple(sorted({c for o in self._service_cidrs.values() for c in o.cidrs}))
        return PlanChange(
            entries=entries,
            service_cidrs=self.plan.service_cidrs if self.plan.service_cidrs != service_cidrs else None,
            health_checks=health or None,
        )

    def set_node(self, node: NodeConfig) -> PlanChange:
        """Change what is known of this node; plans every Service anew. O(size of the plan)."""
        if node == self.plan.node:
            return PlanChange()
        self.plan.node = node
        entries, health = self._replan(set(self._services))
        return PlanChange(entries=entries, node=node, health_checks=health or None)

    def service(self, namespace: str, name: str) -> Service | None:
        """The Service of that name, for views and explanations."""
        return self._services.get((namespace, name))

    def sets(self, key: EntryKey) -> BackendSets:
        """How an entry's backend sets came about (topology, terminating fallback), for explanations."""
        return backend_sets(self.candidates(key), self.plan.node)

    def candidates(self, key: EntryKey) -> list[Candidate]:
        """Every endpoint of a Service port in one family, whatever its condition, in the order of the slices' names."""
        slices = self._slices.get((key.namespace, key.name), _NO_SLICES)
        found: list[Candidate] = []
        for name in sorted(slices) if len(slices) > 1 else slices:
            piece = slices[name]
            if piece.family is not key.family:
                continue
            for port in piece.ports:
                if port.name == key.port and port.protocol is key.protocol:
                    number = port.port
                    found.extend([(endpoint, number) for endpoint in piece.endpoints])
        return found

    def _remember(self, item: ModelObject, dirty: set[ServiceId]) -> None:
        match item:
            case Service():
                service_id = (item.namespace, item.name)
                if self._services.get(service_id) != item:
                    self._services[service_id] = item
                    dirty.add(service_id)
            case EndpointSlice():
                self._remember_slice(item, dirty)
            case ServiceCIDR():
                self._service_cidrs[item.name] = item
            case Node():
                pass

    def _remember_slice(self, item: EndpointSlice, dirty: set[ServiceId]) -> None:
        owner = (item.namespace, item.service)
        if self._slices.get(owner, _NO_SLICES).get(item.name) == item:
            return
        self._forget_slice((item.namespace, item.name), dirty)
        # A slice without the service-name label, or of a headless Service, serves no frontend.
        if item.service and not item.headless:
            self._slices[owner][item.name] = item
            self._slice_owner[(item.namespace, item.name)] = owner
            dirty.add(owner)

    def _forget(self, ref: ObjectRef, dirty: set[ServiceId]) -> None:
        object_id = (ref.namespace, ref.name)
        match ref.kind:
            case "Service":
                if self._services.pop(object_id, None) is not None:
                    dirty.add(object_id)
            case "EndpointSlice":
                self._forget_slice(object_id, dirty)
            case "ServiceCIDR":
                self._service_cidrs.pop(ref.name, None)

    def _forget_slice(self, slice_id: tuple[str, str], dirty: set[ServiceId]) -> None:
        owner = self._slice_owner.pop(slice_id, None)
        if owner is not None:
            del self._slices[owner][slice_id[1]]
            if not self._slices[owner]:
                del self._slices[owner]
            dirty.add(owner)

    def _replan(
        self, dirty: set[ServiceId]
    ) -> tuple[tuple[EntryChange, ...], dict[tuple[str, str], HealthCheck | None]]:
        """Plan the given Services anew, and those that win or lose a frontend by it."""
        ports: dict[ServiceId, dict[EntryKey, list[tuple[FrontendKind, FrontendKey]]]] = {}
        affected: set[ServiceId] = set()
        for service_id in dirty:
            service = self._services.get(service_id)
            ports[service_id] = _wanted(service)
            keys = frozenset(key for wanted in ports[service_id].values() for _, key in wanted)
            affected |= self._claims.replace(service_id, claim_of(service) if service and keys else None, keys)
        for service_id in affected - dirty:
            ports[service_id] = _wanted(self._services.get(service_id))
        changes: list[EntryChange] = []
        health: dict[tuple[str, str], HealthCheck | None] = {}
        for service_id in sorted(ports) if len(ports) < _MANY else ports:
            changes.extend(self._replan_service(service_id, ports[service_id]))
            self._replan_health(service_id, health)
        return tuple(changes), health

    def _replan_service(
        self, service_id: ServiceId, ports: dict[EntryKey, list[tuple[FrontendKind, FrontendKey]]]
    ) -> list[EntryChange]:
        service = self._services.get(service_id)
        entries: dict[EntryKey, PlanEntry] = {}
        problems: list[Problem] = []
        for entry_key, wanted in ports.items():
            assert service is not None, "only an existing Service wants frontends"
            won = [(kind, key) for kind, key in wanted if self._wins(service_id, kind, key, service, problems)]
            sets = backend_sets(self.candidates(entry_key), self.plan.node)
            entries[entry_key] = PlanEntry(
                key=entry_key,
                cluster=sets.cluster,
                local=sets.local,
                frontends=make_frontends(service, sets, entry_key.family, won, self.plan.node),
                affinity_seconds=service.affinity_seconds,
                internal_local=service.internal_local,
                external_local=service.external_local,
            )
        return self._store(service_id, entries, problems)

    def _store(
        self, service_id: ServiceId, entries: dict[EntryKey, PlanEntry], problems: list[Problem]
    ) -> list[EntryChange]:
        ref = ObjectRef("Service", *service_id)
        if problems:
            self.problems[ref] = tuple(problems)
        else:
            self.problems.pop(ref, None)
        current = self.plan.entries
        changes: list[EntryChange] = []
        for key in self._entry_keys.pop(service_id, ()):
            if key not in entries:
                changes.append(EntryChange(current.pop(key), None))
        for key, entry in entries.items():
            old = current.get(key)
            if old != entry:
                changes.append(EntryChange(old, entry))
                current[key] = entry
        if entries:
            self._entry_keys[service_id] = tuple(entries)
        return changes

    def _wins(
        self, service_id: ServiceId, kind: FrontendKind, key: FrontendKey, service: Service, problems: list[Problem]
    ) -> bool:
        winner = self._claims.winner(key)
        if winner is None or winner.service == service_id:
            return True
        problems.append(
            Problem(
                service.ref,
                f"{kind.value} {key}",
                f"already taken by the older Service {winner.namespace}/{winner.name}; "
                "this frontend is left out, give one of the two another address or port",
            )
        )
        return False

    def _replan_health(self, service_id: ServiceId, health: dict[tuple[str, str], HealthCheck | None]) -> None:
        service = self._services.get(service_id)
        old = self.plan.health_checks.get(service_id)
        new = None
        if service is not None and service.health_check_node_port and service.external_local and has_frontends(service):
            new = HealthCheck(*service_id, service.health_check_node_port, self._local_ready(service))
        if new == old:
            return
        health[service_id] = new
        if new is None:
            del self.plan.health_checks[service_id]
        else:
            self.plan.health_checks[service_id] = new

    def _local_ready(self, service: Service) -> int:
        """Distinct ready endpoint addresses on this node, in the Service's first family (kube-proxy counts one)."""
        family = service_families(service)[0]
        return len(
            {
                endpoint.address
                for piece in self._slices.get((service.namespace, service.name), _NO_SLICES).values()
                if piece.family is family
                for endpoint in piece.endpoints
                if endpoint.ready and self.plan.node.name and endpoint.node == self.plan.node.name
            }
        )


def _entry_key(service: Service, port: ServicePortSpec, family: Family) -> EntryKey:
    return EntryKey(service.namespace, service.name, port.name, port.protocol, family)


def _wanted(service: Service | None) -> dict[EntryKey, list[tuple[FrontendKind, FrontendKey]]]:
    """What each port of a Service wants to be reached by; empty for a Service that is gone or has no frontends.

    Two ports of one Service that name one frontend (a node port given twice): the first port has it.
    """
    if service is None or not has_frontends(service):
        return {}
    wanted: dict[EntryKey, list[tuple[FrontendKind, FrontendKey]]] = {}
    taken: set[FrontendKey] = set()
    for family in service_families(service):
        for port in service.ports:
            keys = [way for way in addresses(service, port, family) if way[1] not in taken]
            taken.update(key for _, key in keys)
            if keys:
                wanted[_entry_key(service, port, family)] = keys
    return wanted
