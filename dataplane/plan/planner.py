"""Keep the plan up to date with Kubernetes objects: events in, PlanChange out. Pure; O(what changed)."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from operator import attrgetter

from msgspec.structs import replace

from dataplane.garbage import no_garbage_collection
from dataplane.model.algorithm import ALGORITHM_FIELD
from dataplane.model.net import Protocol
from dataplane.model.objects import (
    EndpointSlice,
    ModelObject,
    Namespace,
    Node,
    ObjectRef,
    Pod,
    Problem,
    Service,
    ServiceCIDR,
)
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.claims import Claim, Claims, ServiceId, claimant
from dataplane.plan.frontends import FrontendSpec, frontend_specs, has_frontends, make_frontends, service_families
from dataplane.plan.newcomers import Newcomers
from dataplane.plan.places import Places
from dataplane.plan.pods import PodPlanner
from dataplane.plan.tunnels import Tunnels
from dataplane.plan.types import EntryKey, FrontendKey, FrontendKind, HealthCheck, Plan, PlanEntry
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.difference import LARGE, Backends
from dataplane.policy.endpoints import Backend, BackendSets, Candidate, backend_sets, lingering, nodes_of
from dataplane.policy.forwarding import Dispatch, Forwarding, LbMode, forwarding_of
from dataplane.policy.merged import MergedEndpoints
from dataplane.policy.node import NodeConfig

_MANY = 1000
"""Updates of this many objects are loads: their changes are not sorted, and garbage collection is paused."""

_MANY_ENDPOINTS = 3000
"""Looking at each of this many endpoints takes more than a few milliseconds."""

NO_MAGLEV = "is maglev, which this mode cannot do; endpoints are chosen at random (use --mode ebpf)"
"""What is reported of Services that ask for it elsewhere; they are served all the same."""

_Dirty = dict[ServiceId, None]
"""Services to plan again, a dict for its order: they are visited in order of arrival, as they lie in memory."""

_name = attrgetter("name")
_CLUSTER_IP = FrontendKind.CLUSTER_IP


def _bulk(count: int) -> contextlib.AbstractContextManager[None]:
    """Return the context to process `count` objects in: garbage collection is paused for many."""
    return no_garbage_collection(keep=True) if count >= _MANY else contextlib.nullcontext()


def _port_of(key: EntryKey, endpoint_slice: EndpointSlice) -> int | None:
    """Return the port number of a Service port in a slice, or None if the slice does not have the port."""
    for port in endpoint_slice.ports:
        if port.name == key.port and port.protocol is key.protocol:
            return port.port
    return None


def _sharing(new: EndpointSlice, old: EndpointSlice) -> EndpointSlice:
    """Return the new slice with the old one's Endpoint objects where they are equal, which saves memory and makes
    comparing them fast."""
    before = {endpoint.address: endpoint for endpoint in old.endpoints}
    pairs = [(before.get(endpoint.address), endpoint) for endpoint in new.endpoints]
    return replace(new, endpoints=tuple([known if known == endpoint else endpoint for known, endpoint in pairs]))


def _change(changes: dict[EntryKey, EntryChange], key: EntryKey, old: PlanEntry | None, new: PlanEntry | None) -> None:
    """Record the change of an entry, merged with an earlier change of the same entry."""
    earlier = changes.get(key)
    changes[key] = EntryChange(earlier.old if earlier is not None else old, new)


def _too_many(ref: ObjectRef, key: EntryKey, most: int) -> Problem:
    return Problem(
        ref,
        f"endpoints of port {key.port or 'without a name'}/{key.protocol.text} (IPv{key.family.value})",
        f"are more than the {most} that a node can balance over in this mode; each node uses so many, chosen at "
        "random; split the Service to use all from every node",
    )


def _taken(loser: ObjectRef, kind: FrontendKind, key: FrontendKey, winner: Claim) -> Problem:
    equal = winner.external or kind is FrontendKind.CLUSTER_IP
    taken = "already taken by the older Service" if equal else "is a clusterIP of Service"
    return Problem(
        loser,
        f"{kind.value} {key}",
        f"{taken} {'/'.join(winner.service)}; this frontend is left out, give one of the two another address or port",
    )


class Planner:
    """Holds the Kubernetes objects and the plan made from them.

    `plan` is always complete and consistent with the objects seen so far; `problems` holds what is wrong now
    (conflicts between Services), by the object that loses. `places` knows where endpoints run, `tunnels` which nodes
    take forwarded packets.

    large: Services with at least this many endpoints keep them merged (see policy.merged). vouched: the objects come
    from an API server; False for manifests, whose nodeName may be mistyped.
    """

    def __init__(self, node: NodeConfig, large: int = LARGE, *, vouched: bool = True) -> None:
        self.plan = Plan(node=node)
        self.places = Places(node.name, vouched=vouched)
        self.tunnels = Tunnels(node)
        self._large = large
        self._certain = False
        self.problems: dict[ObjectRef, tuple[Problem, ...]] = {}
        self._services: dict[ServiceId, Service] = {}
        self._slices: dict[ServiceId, EndpointSlice | tuple[EndpointSlice, ...]] = {}  # several: sorted by name
        self._slice_owner: dict[str, dict[str, ServiceId]] = {}  # by namespace and name
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._entry_keys: dict[ServiceId, EntryKey | list[EntryKey]] = {}
        self._claims = Claims()
        self._pods = PodPlanner(self.plan, self._claims, self.problems)
        self._merged: dict[ServiceId, dict[EntryKey, MergedEndpoints]] = {}  # of Services with many endpoints

    def update(self, upserts: Iterable[ModelObject] = (), deletes: Iterable[ObjectRef] = ()) -> PlanChange:
        """Process added, changed and deleted objects; return the change of the plan, already applied to `plan`.

        Deletes are processed before upserts, so an object in both exists afterwards. Deleting an unknown object has no
        effect. Of this node's Node only the name matters here; everything else is in the NodeConfig.
        """
        objects = list(upserts)
        service_cidrs, places = self.plan.service_cidrs, self.places.knowledge
        with _bulk(len(objects)):
            dirty: _Dirty = {}
            for ref in deletes:
                self._forget(ref, dirty)
            others, first = self._first_seen(objects, dirty) if len(objects) >= _MANY else (objects, [])
            for item in others:
                self._remember(item, dirty)
            self.places.count_many([item.endpoints for item in first])  # after the Nodes, which make it shorter
            if self.places.knowledge != places:
                dirty = dirty | dict.fromkeys(self._services)
            entries, health = self._replan(dirty)
            entries = self._pods.after(entries)
            self.plan.service_cidrs = tuple(sorted({c for o in self._service_cidrs.values() for c in o.cidrs}))
        return PlanChange(
            entries=entries,
            service_cidrs=self.plan.service_cidrs if self.plan.service_cidrs != service_cidrs else None,
            health_checks=health or None,
            connect_off=self._pods.connect_off(),
            tunnel_peers=self._tunnel_peers(),
            tunnel_formats=self._tunnel_formats(),
            tunnel_moves=self._tunnel_moves(),
        )

    @property
    def forwards(self) -> bool:
        """True if this node's setting or any Service asks for more than SNAT, and this mode can do it."""
        node = self.plan.node
        return not node.snat_only and (node.lb_mode is not LbMode.SNAT or self.tunnels.asked)

    def _tunnel_peers(self) -> frozenset[str] | None:
        """Take over from whom forwarded packets are accepted; return it if it has changed."""
        before, now = self.plan.tunnel_peers, self.tunnels.addresses
        if now is before:  # which comparing them would take a while to find out, with many nodes
            return None
        self.plan.tunnel_peers = now
        return now if now != before else None

    def _tunnel_formats(self) -> dict[str, Dispatch] | None:
        """Take over how packets to other nodes are wrapped; return it if it has changed."""
        before, now = self.plan.tunnel_formats, self.tunnels.formats
        if now is before:
            return None
        self.plan.tunnel_formats = now
        return now if now != before else None

    def _tunnel_moves(self) -> dict[str, str] | None:
        """Take over which addresses other nodes have instead of others; return them if they have changed."""
        before, self.plan.tunnel_moves = self.plan.tunnel_moves, self.tunnels.moved
        return self.plan.tunnel_moves if self.plan.tunnel_moves != before else None

    def takes_long(self, upserts: Sequence[ModelObject], deletes: Sequence[ObjectRef]) -> bool:
        """True if an update with these may take more than a few milliseconds: it has very many objects or endpoints, or
        may make the planner look at all endpoints of a large Service."""
        if len(upserts) + len(deletes) >= _MANY:
            return True
        about: dict[ServiceId, int] = {}
        for item in upserts:
            if isinstance(item, EndpointSlice):
                owner = (item.namespace, item.service)
                about[owner] = about.get(owner, 0) + len(item.endpoints)
            elif isinstance(item, Service):
                about.setdefault((item.namespace, item.name), 0)
        for ref in deletes:
            slice_owner = self._owner(ref.namespace, ref.name) if ref.kind == "EndpointSlice" else None
            if slice_owner is not None:
                about[slice_owner] = about.get(slice_owner, 0) + _MANY
        return sum(about.values()) >= _MANY_ENDPOINTS or any(self._looks_at_all(*each) for each in about.items())

    def _looks_at_all(self, service_id: ServiceId, changed: int) -> bool:
        """True if changing this many endpoints may make the planner look at all endpoints of a very large Service."""
        slices = self._slices_of(service_id)
        if sum([len(endpoint_slice.endpoints) for endpoint_slice in slices]) < _MANY_ENDPOINTS:
            return False
        merged = self._merged.get(service_id)
        return not merged or any(each.margin() <= changed for each in merged.values())

    def set_node(self, node: NodeConfig) -> PlanChange:
        """Replace the node's settings and plan every Service again. O(size of the plan)."""
        if node == self.plan.node:
            return PlanChange()
        before = self.plan.node
        if (node.name, node.zone, node.most_backends) != (before.name, before.zone, before.most_backends):
            self._merged.clear()
        if node.name != self.places.here:
            slices = (endpoint_slice for owner in self._slices for endpoint_slice in self._slices_of(owner))
            self.places.rename(node.name, (endpoint_slice.endpoints for endpoint_slice in slices))
        self.tunnels.use(node)
        self.plan.node = node
        with _bulk(len(self._services)):
            entries, health = self._replan(dict.fromkeys(self._services))
        entries = self._pods.after(entries, node_changed=True)
        return PlanChange(
            entries=entries,
            node=node,
            health_checks=health or None,
            connect_off=self._pods.connect_off(),
            tunnel_peers=self._tunnel_peers(),
            tunnel_formats=self._tunnel_formats(),
            tunnel_moves=self._tunnel_moves(),
        )

    def service(self, namespace: str, name: str) -> Service | None:
        """Return the Service of that name, for views and explanations."""
        return self._services.get((namespace, name))

    def with_external_ip(self, address: str) -> list[Service]:
        """Return the Services with this externalIP, even if it makes no frontends. O(Services); for explanations."""
        return [item for item in self._services.values() if address in item.external_ips and has_frontends(item)]

    def sets(self, key: EntryKey) -> BackendSets:
        """Return the backend sets of an entry with how they were chosen (topology, terminating), for explanations."""
        return backend_sets(self.candidates(key), self.plan.node)

    def candidates(self, key: EntryKey) -> list[Candidate]:
        """Return every endpoint of a Service port in one family, in any condition, ordered by slice name."""
        found: list[Candidate] = []
        for endpoint_slice in self._slices_of((key.namespace, key.name)):
            if endpoint_slice.family is key.family:
                port = _port_of(key, endpoint_slice)
                if port is not None:
                    found += product(endpoint_slice.endpoints, (port,))
        return found

    def _first_seen(
        self, objects: Iterable[ModelObject], dirty: _Dirty
    ) -> tuple[list[ModelObject], list[EndpointSlice]]:
        """Store the new Services and the first slices of Services among many objects; return the others, to be taken in
        after them, and these slices, to be counted. All that is said of one object keeps its order."""
        services, slices, owners = self._services, self._slices, self._slice_owner
        others: list[ModelObject] = []
        first: list[EndpointSlice] = []
        waiting: set[tuple[str, str]] = set()  # slices among the others
        nobodys: dict[str, ServiceId] = {}
        for item in objects:
            if isinstance(item, EndpointSlice):
                namespace, name = item.namespace, item.name
                owner, known = (namespace, item.service), owners.get(namespace, nobodys)
                is_new = name not in known and not (waiting and (namespace, name) in waiting)
                if is_new and item.service and not item.headless and owner not in slices:
                    if known is nobodys:
                        known = owners[namespace] = {}
                    known[name] = owner
                    slices[owner], dirty[owner] = item, None
                    first.append(item)
                    continue
                waiting.add((namespace, name))
            elif isinstance(item, Service):
                service_id = (item.namespace, item.name)
                if service_id not in services:
                    services[service_id], dirty[service_id] = item, None
                    continue
            others.append(item)
        if self._merged:
            for item in first:
                self._merge((item.namespace, item.service), None, item)
        return others, first

    def _remember(self, item: ModelObject, dirty: _Dirty) -> None:
        match item:
            case Service():
                service_id = (item.namespace, item.name)
                if self._services.get(service_id) != item:
                    self._services[service_id] = item
                    dirty[service_id] = None
            case EndpointSlice():
                self._remember_slice(item, dirty)
            case ServiceCIDR():
                self._service_cidrs[item.name] = item
            case Pod() | Namespace():
                self._pods.remember(item)
            case Node():
                self.places.add_node(item.name)
                dirty.update(dict.fromkeys(self.tunnels.add_node(item)))

    def _remember_slice(self, item: EndpointSlice, dirty: _Dirty) -> None:
        owner, slice_id = (item.namespace, item.service), (item.namespace, item.name)
        others = self._slices_of(owner)
        if item in others:
            return
        before = self._owner(*slice_id)
        # A slice without the service-name label, or of a headless Service, serves no frontend.
        serves = bool(item.service) and not item.headless
        if before is not None and (before != owner or not serves):
            self._forget_slice(slice_id, dirty)
            before = None
        if not serves:
            return
        old = next((each for each in others if each.name == item.name), None) if before is not None else None
        self.places.count(item.endpoints)
        if old is not None:
            self.places.count(old.endpoints, -1)
            item = _sharing(item, old)
            self._set_slices(owner, tuple([item if each is old else each for each in others]))
        else:
            self._set_slices(owner, tuple(sorted((*others, item), key=_name)) if others else (item,))
        self._slice_owner.setdefault(item.namespace, {})[item.name] = owner
        self._merge(owner, old, item)
        dirty[owner] = None

    def _owner(self, namespace: str, name: str) -> ServiceId | None:
        """Return the Service that a slice of that name belongs to."""
        return self._slice_owner.get(namespace, {}).get(name)

    def _slices_of(self, owner: ServiceId) -> tuple[EndpointSlice, ...]:
        """Return the slices of a Service, sorted by name."""
        found = self._slices.get(owner, ())
        return found if isinstance(found, tuple) else (found,)

    def _set_slices(self, owner: ServiceId, slices: tuple[EndpointSlice, ...]) -> None:
        """Store the slices of a Service; a single one without a tuple, which saves memory, as most have one."""
        self._slices[owner] = slices if len(slices) > 1 else slices[0]

    def _merge(self, owner: ServiceId, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        """Pass a changed slice to the merged endpoints of a large Service."""
        for key, merged in self._merged.get(owner, {}).items():
            merged.replace(
                old if old is not None and old.family is key.family else None,
                new if new is not None and new.family is key.family else None,
            )

    def _forget(self, ref: ObjectRef, dirty: _Dirty) -> None:
        object_id = (ref.namespace, ref.name)
        match ref.kind:
            case "Service":
                if self._services.pop(object_id, None) is not None:
                    dirty[object_id] = None
            case "EndpointSlice":
                self._forget_slice(object_id, dirty)
            case "ServiceCIDR":
                self._service_cidrs.pop(ref.name, None)
            case "Pod" | "Namespace":
                self._pods.forget(ref)
            case "Node":
                self.places.remove_node(ref.name)
                dirty.update(dict.fromkeys(self.tunnels.remove_node(ref.name)))

    def _forget_slice(self, slice_id: tuple[str, str], dirty: _Dirty) -> None:
        owner = self._owner(*slice_id)
        if owner is not None:
            del self._slice_owner[slice_id[0]][slice_id[1]]
            if not self._slice_owner[slice_id[0]]:
                del self._slice_owner[slice_id[0]]
            slices = self._slices_of(owner)
            del self._slices[owner]
            rest = tuple([each for each in slices if each.name != slice_id[1]])
            if rest:
                self._set_slices(owner, rest)
            gone = next((each for each in slices if each.name == slice_id[1]), None)
            if gone is not None:
                self.places.count(gone.endpoints, -1)
            self._merge(owner, gone, None)
            dirty[owner] = None

    def _replan(self, dirty: _Dirty) -> tuple[tuple[EntryChange, ...], dict[ServiceId, HealthCheck | None]]:
        """Plan the given Services again, and those that win or lose a frontend because of it."""
        self._certain = self.places.certain
        affected: set[ServiceId] = set()
        changes: dict[EntryKey, EntryChange] = {}
        health: dict[ServiceId, HealthCheck | None] = {}
        many = len(dirty) >= _MANY
        newcomers = Newcomers(self.plan, self._slices, self._claims, self.places, self._large) if many else None
        # Claims and entries are made one Service at a time, to keep temporary memory small during a load. A Service
        # that wins or loses a frontend because of a later one is planned again.
        for service_id in dirty if many else sorted(dirty):
            service = self._services.get(service_id)
            if newcomers is not None and service is not None:
                entry = newcomers.entry(service_id, service)
                if entry is not None:
                    key = entry.key
                    self.plan.entries[key], self._entry_keys[service_id] = entry, key
                    changes[key] = EntryChange(None, entry)
                    if self.problems:
                        self._report(ObjectRef("Service", *service_id), ())
                    continue
            ports = frontend_specs(service, self.plan.node.external_ips) if service is not None else {}
            keys = tuple([key for specs in ports.values() for _, key in specs])
            claims = claimant(service_id, service, keys) if service is not None else None
            affected |= self._claims.replace(service_id, claims)
            self._replan_service(service_id, ports, changes)
            self._replan_health(service_id, health)
        if not affected:
            return tuple(changes.values()), health
        for service_id in affected:
            service = self._services.get(service_id)
            if service is not None:
                self._replan_service(service_id, frontend_specs(service, self.plan.node.external_ips), changes)
        made = [change for change in changes.values() if change.old != change.new]
        return tuple(sorted(made, key=lambda change: change.key[:2])), health

    def _replan_service(
        self, service_id: ServiceId, ports: dict[EntryKey, list[FrontendSpec]], changes: dict[EntryKey, EntryChange]
    ) -> None:
        current = self.plan.entries
        before = self._entry_keys.pop(service_id, [])
        for key in before if isinstance(before, list) else (before,):
            if key not in ports:
                _change(changes, key, current.pop(key), None)
                self.tunnels.forget(key)
                self._merged.get(service_id, {}).pop(key, None)
        if service_id in self._merged and not self._merged[service_id]:
            del self._merged[service_id]
        problems: list[Problem] = []
        for key, wanted in ports.items():
            entry, old = self._entry(key, self._services[service_id], wanted, problems), current.get(key)
            if old != entry:
                _change(changes, key, old, entry)
                current[key] = entry
        if ports:
            self._entry_keys[service_id] = list(ports) if len(ports) > 1 else next(iter(ports))
        if problems or self.problems:
            self._report(ObjectRef("Service", *service_id), tuple(problems))

    def _entry(self, key: EntryKey, service: Service, wanted: list[FrontendSpec], problems: list[Problem]) -> PlanEntry:
        won = self._won(service, wanted, problems)
        forwarding = self._forwarding(key, service, won)
        sets, lingers, candidates = self._sets(key)
        merged = self._merged.get((key.namespace, key.name), {}).get(key)
        limited = merged is not None and merged.limited
        if limited:
            problems.append(_too_many(service.ref, key, self.plan.node.most_backends))
        return PlanEntry(
            key=key,
            cluster=sets.cluster,
            local=sets.local,
            frontends=make_frontends(service, sets, key.family, won, self.plan.node),
            affinity_seconds=service.affinity_seconds,
            internal_local=service.internal_local,
            external_local=service.external_local,
            lingering=lingers,
            limited=limited,
            unplaced=() if self._certain else self._unplaced(candidates, sets, merged),
            forwarding=forwarding,
            tunnels=self._tunnelled(key, candidates, sets, merged) if forwarding is not Forwarding.SNAT else (),
            weighted=sets.weighted,
            algorithm=self._algorithm(service, won, problems),
        )

    def _forwarding(self, key: EntryKey, service: Service, won: list[FrontendSpec]) -> Forwarding:
        """Return the way of an entry's external traffic to other nodes, which there is none of under policy Local."""
        node = self.plan.node
        way = Forwarding.SNAT
        if not (node.snat_only or service.external_local) and any(kind is not _CLUSTER_IP for kind, _ in won):
            way = forwarding_of(service.forwarding_mode, node.lb_mode, key.protocol)
        if way is Forwarding.SNAT:
            self.tunnels.forget(key)
        return way

    def _tunnelled(
        self, key: EntryKey, candidates: Sequence[Candidate], sets: BackendSets, merged: MergedEndpoints | None
    ) -> tuple[str, ...]:
        """See PlanEntry.tunnels. O(what changed) for a large Service."""
        ways = self.tunnels.ways(key.family)
        if merged is not None:
            self.tunnels.note(key, merged.nodes)
            return merged.tunnels(ways, self.tunnels.changes)
        nodes = nodes_of(candidates, self.plan.node)
        self.tunnels.note(key, nodes.values())
        return tuple(["" if b.local else ways.get(nodes[b.address, b.port], "") for b in sets.cluster])

    def _algorithm(self, service: Service, won: list[FrontendSpec], problems: list[Problem]) -> Algorithm:
        """Return how clients from outside get their backend. Where they cannot come, and in modes that cannot do more,
        the choice is random."""
        node = self.plan.node
        if node.lb_algorithm is Algorithm.RANDOM and not service.lb_algorithm:
            return Algorithm.RANDOM
        wanted = Algorithm(service.lb_algorithm) if service.lb_algorithm else node.lb_algorithm
        if wanted is Algorithm.RANDOM or all(kind is FrontendKind.CLUSTER_IP for kind, _ in won):
            return Algorithm.RANDOM
        if node.maglev_table_size:
            return wanted
        unable = Problem(service.ref, ALGORITHM_FIELD, NO_MAGLEV)
        if unable not in problems:
            problems.append(unable)
        return Algorithm.RANDOM

    def _sets(self, key: EntryKey) -> tuple[BackendSets, tuple[Backend, ...], Sequence[Candidate]]:
        """Return the backend sets of a Service port, its lingering endpoints, and the candidates for both. A large one
        has no candidates, and is O(what changed)."""
        service_id, udp = (key.namespace, key.name), key.protocol is Protocol.UDP
        merged = self._merged.get(service_id, {}).get(key)
        slices = self._slices_of(service_id)
        if merged is None and sum([len(endpoint_slice.endpoints) for endpoint_slice in slices]) >= self._large:
            node = self.plan.node
            merged = MergedEndpoints(
                partial(_port_of, key),
                (endpoint_slice for endpoint_slice in slices if endpoint_slice.family is key.family),
                node.name,
                node.zone,
                node.most_backends,
            )
            self._merged.setdefault(service_id, {})[key] = merged
        if merged is not None:
            return *merged.sets(lingering=udp), ()
        candidates = self.candidates(key)
        sets = backend_sets(candidates, self.plan.node)
        return sets, lingering(candidates, sets, self.plan.node) if udp and candidates else (), candidates

    def _unplaced(self, candidates: Sequence[Candidate], sets: BackendSets, merged: MergedEndpoints | None) -> Backends:
        """See Places.unplaced. O(what changed) for a large Service."""
        if merged is None:
            return self.places.unplaced(candidates, sets)
        return merged.doubted(self.places.doubtful, self.places.knowledge)

    def _report(self, ref: ObjectRef, problems: tuple[Problem, ...]) -> None:
        if problems:
            self.problems[ref] = problems
        else:
            self.problems.pop(ref, None)

    def _won(self, service: Service, wanted: list[FrontendSpec], problems: list[Problem]) -> list[FrontendSpec]:
        """Return the frontends that this Service gets: those that no older Service claims."""
        won = []
        for spec in wanted:
            kind, key = spec
            winner = self._claims.winner(key)
            if winner is None or winner.service == (service.namespace, service.name):
                won.append(spec)
            else:
                problems.append(_taken(service.ref, kind, key, winner))
        return won

    def _replan_health(self, service_id: ServiceId, health: dict[ServiceId, HealthCheck | None]) -> None:
        service = self._services.get(service_id)
        old = self.plan.health_checks.get(service_id)
        new = None
        if service is not None and service.health_check_node_port and service.external_local and has_frontends(service):
            new = HealthCheck(*service_id, service.health_check_node_port, *self._local_ready(service))
        if new == old:
            return
        health[service_id] = new
        if new is None:
            del self.plan.health_checks[service_id]
        else:
            self.plan.health_checks[service_id] = new

    def _local_ready(self, service: Service) -> tuple[int, int]:
        """Count distinct ready endpoint addresses on this node, in the Service's first family (as kube-proxy does), and
        their weights.

        Only slices that have a port of the Service count: no frontend forwards to the others.
        """
        family = service_families(service)[0]
        ports = {(port.name, port.protocol) for port in service.ports}
        found = {
            endpoint.address: endpoint.traits.weight
            for endpoint_slice in self._slices_of((service.namespace, service.name))
            if endpoint_slice.family is family
            and any((port.name, port.protocol) in ports for port in endpoint_slice.ports)
            for endpoint in endpoint_slice.endpoints
            if endpoint.traits.ready and self.plan.node.name and endpoint.traits.node == self.plan.node.name
        }
        return len(found), sum(found.values())
