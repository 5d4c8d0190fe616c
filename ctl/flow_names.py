"""Flows with names instead of addresses: `pod1-1 -> web:80`, `default/client -> default/web:http`, `node1 -> web`.

A source is a place of the lab, a Pod or a Node. A destination may be a Service, too, then of its clusterIP, or of the
first of its frontends that has an address; its port is a number or a name, and may be left out of a Service that has
one alone. The protocol is the Service port's, else TCP.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dataplane.errors import UsageError
from dataplane.lab.places import Places
from dataplane.lab.spec import DEFAULT_NAME, Place
from dataplane.lab.spec import Node as LabNode
from dataplane.lab.spec import Pod as LabPod
from dataplane.model.net import Family, Protocol, canonical_address, family_of, host_port
from dataplane.model.objects import ModelObject, Node, Pod, Service
from dataplane.oracle.flow import parse_flow
from dataplane.plan.frontends import why_no_frontends
from dataplane.plan.types import Frontend, FrontendKind, Plan

Addresses = Mapping[Family, str]


class Named(NamedTuple):
    """A flow as it was asked for, and as addresses. place: of the lab, where its source is one."""

    asked: str
    text: str
    place: Place | None = None


def only_addresses(text: str) -> bool:
    """True if a flow is written with addresses on both sides, or is nothing that names could make a flow of."""
    source, arrow, rest = text.partition("->")
    target = rest.strip().partition(" via ")[0].partition("/")
    # An address is followed by a port and a protocol; a name with a slash in it is NAMESPACE/NAME.
    return not arrow or not source.strip() or (is_address(host_of(source)) and is_address(host_of(target[0])))


def host_of(end: str) -> str:
    """An end of a flow without its port, and without brackets: an address or a name."""
    end = end.strip()
    if end.startswith("["):
        return end[1:].partition("]")[0]
    return end if end.count(":") > 1 else end.partition(":")[0]


def is_address(text: str) -> bool:
    """True for an address, and for what can be nothing else, mistyped as it may be."""
    try:
        canonical_address(text)
    except ValueError:
        return set(text) <= set("0123456789.:")  # a mistyped one, or nothing
    return True


def lab_here() -> Places | None:
    """The lab that names may be places of: the one whose place this is, else the one with the default name, else the
    only one; None if none is up."""
    from dataplane.kernel.namespaces import netns
    from dataplane.lab import state

    found = {}
    for name in state.up():
        if lab := state.load(name):
            found[name] = Places(lab.spec)
    for places in found.values():
        if any(netns.is_current(place.netns) for place in places.topology.places()):
            return places
    if DEFAULT_NAME in found:
        return found[DEFAULT_NAME]
    return next(iter(found.values())) if len(found) == 1 else None


def enter_node(flow: str) -> None:
    """Go to the node of the lab that decides about a flow between its places, if this is none of the lab's places: the
    node of the pod that sends, or the node that is addressed, else the first."""
    from dataplane.kernel.namespaces import netns

    lab = lab_here()
    if lab is None or any(netns.is_current(place.netns) for place in lab.topology.places()):
        return
    source, _, target = flow.partition("->")
    places = {place.name: place for place in lab.topology.places()}
    sender = places.get(source.strip())
    if sender is None:
        return
    addressed = places.get(target.strip().partition(":")[0])
    if isinstance(sender, LabPod):
        node: Place = places[sender.node]
    elif isinstance(sender, LabNode):
        node = sender
    else:
        node = addressed if isinstance(addressed, LabNode) else lab.nodes[0]
    netns.enter(node.netns)


class Names:
    """What names mean under a plan. objects: whose names are known, of Pods, Nodes and Services. places: of a lab that
    is up."""

    def __init__(self, plan: Plan, objects: Iterable[ModelObject] = (), places: Places | None = None) -> None:
        self._plan, self._places = plan, {}
        if places is not None:
            self._places = {place.name: place for place in places.topology.places()}
        self._addresses: dict[str, Addresses] = {}
        self._services: dict[str, Service] = {}
        for item in objects:
            if isinstance(item, Pod):
                self._addresses[f"{item.namespace}/{item.name}"] = _by_family(item.addresses)
            elif isinstance(item, Node):
                self._addresses[item.name] = _by_family(item.addresses)
            elif isinstance(item, Service):
                self._services[f"{item.namespace}/{item.name}"] = item
        if plan.node.name:
            self._addresses[plan.node.name] = _by_family(plan.node.addresses) or self._addresses.get(plan.node.name, {})
        self._addresses |= {place.name: place.addresses for place in self._places.values()}

    def expand(self, text: str) -> list[Named]:
        """A flow as addresses, of each family that both ends have. Raises UsageError for a name that means nothing."""
        if only_addresses(text):
            return [Named(text, text)]
        source, _, rest = text.partition("->")
        target, via, device = rest.strip().partition(" via ")
        sources = self._source(text, source.strip())
        targets = self._target(text, target.strip())
        ends = f" via {device.strip()}" if via else ""
        found = [
            f"{_bracketed(sources[family])} -> {end}{ends}" for family, end in targets.items() if family in sources
        ]
        if not found:
            raise UsageError(f"flow {text[:200]!r}: its ends have no addresses of the same IP family")
        for each in found:
            parse_flow(each)
        place = self._places.get(source.strip())
        return [Named(text, each, place) for each in found]

    def _source(self, text: str, name: str) -> Addresses:
        if is_address(host_of(name)):
            address = canonical_address(host_of(name))
            return {family_of(address): address}
        return self._known(text, name)

    def _known(self, text: str, name: str) -> Addresses:
        """The addresses of a place, a Pod or a Node."""
        found = self._addresses.get(name) or self._addresses.get(f"default/{name}")
        if found:
            return found
        hint = "no lab is known here" if not self._places else f"the lab has {', '.join(self._places)}"
        raise UsageError(
            f"flow {text[:200]!r}: {name[:80]!r} is no address, and no Pod, Node or place of a lab has this name "
            f"({hint}); Services are destinations alone"
        )

    def _target(self, text: str, target: str) -> dict[Family, str]:
        """Address, port and protocol of a destination, for each family."""
        ends, protocol = split_protocol(target)
        if is_address(host_of(ends)):
            address = canonical_address(host_of(ends))
            return {family_of(address): f"{ends}/{protocol or 'tcp'}"}
        name, _, port = ends.partition(":")
        service = self._service(name) if name not in self._places else []
        if service:
            return self._of_service(text, service, port, protocol)
        found = {
            family: f"{host_port(address, 0).rpartition(':')[0]}:{port}/{protocol or 'tcp'}"
            for family, address in self._known_target(text, name).items()
        }
        served = {family for family in found if self._has_port(family, port, protocol or "tcp")}
        return {family: end for family, end in found.items() if not served or family in served}

    def _has_port(self, family: Family, port: str, protocol: str) -> bool:
        """True if a node port or an address of a family has this port: a Service of one family is asked for in that."""
        keys = (frontend.key for frontend, _ in self._plan.frontends())
        return any(k.family is family and str(k.port) == port and k.protocol.text == protocol.lower() for k in keys)

    def _known_target(self, text: str, name: str) -> Addresses:
        try:
            return self._known(text, name)
        except UsageError as error:
            if why := self.why_no_address(name):
                raise UsageError(f"flow {text[:200]!r}: {why}") from error
            none = f"no Service {name[:80]!r} has an address (a headless or ExternalName one has none)"
            if self._services:
                none = f"there is no Service {name[:80]!r}"
            raise UsageError(f"{error}, and {none}") from error

    def why_no_address(self, name: str) -> str:
        """Return why packets cannot be sent to a Service of the objects, as a sentence; "" if there is none. name: with
        or without its namespace, and its port."""
        name = name.partition(":")[0]
        for whole, service in self._services.items():
            if name in (whole, service.name) and not self._service(whole):
                no_address = "has no address of its own; ask for a node port at a node's address"
                return f"Service {whole} {why_no_frontends(service) or no_address}"
        return ""

    def _service(self, name: str) -> list[tuple[Frontend, str]]:
        """The frontends with an address of a Service, with the names of their ports; without a namespace in the name,
        of the one in `default`, else of the only Service of that name."""
        found: dict[str, list[tuple[Frontend, str]]] = {}
        for frontend, entry in self._plan.frontends():
            whole = f"{entry.key.namespace}/{entry.key.name}"
            if frontend.kind is FrontendKind.HOST_PORT or not frontend.key.address:
                continue
            if name in (whole, entry.key.name):
                found.setdefault(whole, []).append((frontend, entry.key.port))
        if f"default/{name}" in found:
            return found[f"default/{name}"]
        if len(found) > 1:
            raise UsageError(f"there are Services {', '.join(sorted(found))}: name one with its namespace")
        return next(iter(found.values()), [])

    def _of_service(
        self, text: str, service: list[tuple[Frontend, str]], port: str, protocol: str
    ) -> dict[Family, str]:
        wanted = [
            frontend
            for frontend, name in service
            if (not port or port in (name, str(frontend.key.port)))
            and (not protocol or protocol.lower() == frontend.key.protocol.text)
        ]
        choices = sorted({f"{n + '=' if n else ''}{f.key.port}/{f.key.protocol.text}" for f, n in service})
        ends = {(frontend.key.port, frontend.key.protocol) for frontend in wanted}
        if len(ends) != 1:
            wrong = "no such port" if not ends else "more than one such port"
            raise UsageError(f"flow {text[:200]!r}: the Service has {wrong}; it has {', '.join(choices)}")
        found: dict[Family, str] = {}
        for frontend in sorted(wanted, key=lambda each: each.kind is not FrontendKind.CLUSTER_IP):
            key = frontend.key
            found.setdefault(key.family, f"{host_port(key.address, key.port)}/{key.protocol.text}")
        return found


def split_protocol(target: str) -> tuple[str, str]:
    """A destination without its protocol, which is told from the slash of NAMESPACE/NAME by its word."""
    ends, slash, protocol = target.rpartition("/")
    if slash and protocol.lower() in {each.text for each in Protocol}:
        return ends, protocol
    return target, ""


def _by_family(addresses: Iterable[str]) -> Addresses:
    """The first address of each family."""
    found: dict[Family, str] = {}
    for address in addresses:
        found.setdefault(family_of(address), address)
    return found


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
