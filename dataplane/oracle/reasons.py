"""Explain a decision in sentences for a network engineer. Only explains, never decides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dataplane.model.net import Protocol, contains, family_of, is_loopback
from dataplane.oracle.keeps import why_kept
from dataplane.oracle.types import Decision, Packet, Verdict
from dataplane.plan.types import EntryKey, Frontend, FrontendKind, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding
from dataplane.policy.node import NodeConfig, Source
from dataplane.policy.routes import Action, Route, Scope

_LISTED = 8


class Owner(NamedTuple):
    """A Service port that has a certain clusterIP, and the port number it has there."""

    entry: EntryKey
    port: int


def reasons(
    decision: Decision,
    node: NodeConfig,
    *,
    notes: Sequence[str],
    owners: Sequence[Owner],
    health_service: str,
    node_names: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the sentences that explain a decision, in the order of its steps.

    notes: sentences on the entry's endpoints. owners: Services with the destination as clusterIP.
    health_service: the Service whose healthCheckNodePort is the destination port, or "". node_names: see Oracle.
    """
    entry, frontend = decision.entry, decision.frontend
    if entry is None or frontend is None:
        return tuple(_unclaimed(decision, node, owners, health_service))
    sentences = [_match(decision.packet, frontend, entry, node), _source(decision, node)]
    sentences += _ranges(decision, frontend)
    if not decision.refused:
        sentences += notes
    route = decision.route
    if route is not None and frontend.kind is not FrontendKind.HOST_PORT:
        sentences.append(_policy(decision, frontend, entry, route))
    if route is not None and decision.verdict is Verdict.DNAT:
        sentences += _choice(decision, entry)
        if decision.tunnels:
            sentences += _forwarded(decision, entry, node_names)
        else:
            sentences += _masquerade(decision, frontend, entry, route, node)
            sentences += _not_forwarded(decision, entry)
    return tuple(sentences)


def count(number: int, thing: str) -> str:
    """`1 backend`, `2 backends`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(things: Iterable[object]) -> str:
    """Join with commas, cut off after a few."""
    texts = [str(thing) for thing in things]
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _match(packet: Packet, frontend: Frontend, entry: PlanEntry, node: NodeConfig) -> str:
    if frontend.kind is FrontendKind.NODE_PORT:
        answers = f"and node ports answer on {_answering(packet, node)}"
        if not node.answers_node_ports(packet.destination):
            answers = (
                f"which does not answer on {packet.destination}, but is refused on every local address in this mode"
            )
        port = f"{frontend.key.protocol.text} port {packet.port}"
        return f"{port} is a node port of Service {entry.key.service}, {answers}"
    if frontend.kind is FrontendKind.HOST_PORT:
        return f"{frontend.key} is a hostPort of Pod {entry.key.namespace}/{entry.key.name}"
    return f"{frontend.key} is the {frontend.kind.value} of Service {entry.key.service}"


def _answering(packet: Packet, node: NodeConfig) -> str:
    """Describe the addresses of node ports of the packet's family."""
    if node.nodeports.any_local:
        return f"{packet.destination}, as on every local address"
    family = family_of(packet.destination)
    addresses = [address for address in node.nodeports.addresses if family_of(address) is family]
    if node.answers_node_ports(packet.destination) and packet.destination not in addresses:
        addresses.insert(0, packet.destination)  # a loopback address
    return listed(addresses) or f"no IPv{family.value} address"


def _source(decision: Decision, node: NodeConfig) -> str:
    packet, detector = decision.packet, node.detector
    if decision.source is Source.POD:
        if detector.interface:
            how = "begins with" if detector.interface_is_prefix else "is"
            device = f"its incoming device {packet.interface} {how} {detector.interface}"
            return f"source {packet.source} counts as a pod: {device}"
        cidr = next(cidr for cidr in detector.cidrs if contains((cidr,), packet.source))
        return f"source {packet.source} counts as a pod: it is in the pod range {cidr}"
    if decision.source is Source.NODE:
        what = "a loopback address" if is_loopback(packet.source) else "an address of this node"
        return f"source {packet.source} is this node itself: it is {what}"
    return f"source {packet.source} is outside: it is no address of this node, and {_no_pod(packet, node)}"


def _no_pod(packet: Packet, node: NodeConfig) -> str:
    detector, family = node.detector, family_of(packet.source)
    if detector.interface:
        device = f"the incoming device {packet.interface} is not" if packet.interface else "no incoming device is given"
        return f"{device} (pods come in by {detector.interface}{'*' if detector.interface_is_prefix else ''})"
    if not detector.implemented(family):
        return f"no pod range of IPv{family.value} is configured"
    return f"not in the pod range {listed(cidr for cidr in detector.cidrs if family_of(cidr) is family)}"


def _ranges(decision: Decision, frontend: Frontend) -> list[str]:
    ranges, source = frontend.source_ranges, decision.packet.source
    if ranges is None:
        return []
    allowed = listed(ranges.cidrs) or "nobody (no valid entry of this family)"
    if decision.refused:
        return [f"dropped: loadBalancerSourceRanges lets in {allowed}, and {source} is not among them"]
    cidr = next(cidr for cidr in ranges.cidrs if contains((cidr,), source))
    return [f"loadBalancerSourceRanges lets {source} in by {cidr}"]


def _policy_name(frontend: Frontend, entry: PlanEntry) -> tuple[str, bool]:
    if frontend.kind is FrontendKind.CLUSTER_IP:
        return "internalTrafficPolicy", entry.internal_local
    return "externalTrafficPolicy", entry.external_local


def _policy(decision: Decision, frontend: Frontend, entry: PlanEntry, route: Route) -> str:
    if route.action is Action.REJECT:
        return "rejected (port unreachable): the Service has no usable endpoint on any node"
    name, local = _policy_name(frontend, entry)
    policy = f"{name} {'Local' if local else 'Cluster'}"
    bound = route.action is Action.DROP or decision.source is Source.OUTSIDE
    if local and frontend.kind is not FrontendKind.CLUSTER_IP and not bound:
        who = "a pod" if decision.source is Source.POD else "this node itself"
        policy += f", which does not bind {who}"
    if route.action is Action.DROP:
        return f"dropped: {policy}, and the only usable endpoints are on other nodes"
    if route.scope is Scope.LOCAL:
        return f"{policy}: only backends on this node, {count(len(entry.local), 'backend')}"
    here = sum(backend.local for backend in entry.cluster)
    return f"{policy}: any usable backend, {count(len(entry.cluster), 'backend')}, {here} on this node"


def _choice(decision: Decision, entry: PlanEntry) -> list[str]:
    backends, shares = decision.backends, decision.shares
    if len(backends) == 1:
        sentences = [f"sent to {backends[0]}, the only choice"]
    elif decision.steady:
        sentences = [_steady(decision)]
    elif len(set(shares.values())) > 1:
        parts = listed(f"{backend} ({shares[backend]})" for backend in backends)
        sentences = [f"sent to one of {parts}, by the weights that their EndpointSlices give them"]
    else:
        sentences = [f"sent to one of {listed(backends)}, each with probability 1/{len(backends)}"]
    if entry.affinity_seconds:
        sentences.append(
            f"sessionAffinity ClientIP: {decision.packet.source} stays with the backend it is given until "
            f"{entry.affinity_seconds} s after its last new connection"
        )
    return sentences


def _steady(decision: Decision) -> str:
    """Explain Maglev's choice."""
    by = "client's address" if decision.affinity_seconds else "addresses, ports and protocol"
    how = f"by maglev: a hash of the {by} and a table that is the same on every node"
    if decision.chosen is not None:
        return f"sent to {decision.chosen}, {how}"
    return f"sent to one of {listed(decision.backends)}, {how} (write the source port as SRC:PORT to learn which)"


def _masquerade(decision: Decision, frontend: Frontend, entry: PlanEntry, route: Route, node: NodeConfig) -> list[str]:
    source = decision.packet.source
    if decision.kept:
        return [_kept(decision, node)]
    if route.masquerade:
        return [f"masqueraded as this node: {_masquerade_cause(decision, frontend, entry, node)}"]
    itself = [backend for backend in decision.backends if backend.address == source]
    if not itself:
        return [f"not masqueraded: the backend sees {source}"]
    hairpin = "as the reply to itself must come back through this node (hairpin)"
    if len(itself) == len(decision.backends):
        return [f"masqueraded as this node, {hairpin}"]
    return [f"masqueraded only if the choice is {_either(itself)}, {hairpin}; other backends see {source}"]


_ANSWERS = {
    Forwarding.DSR: "their nodes answer the client themselves",
    Forwarding.TUNNEL: "the answers come back through this node",
}


def node_text(address: str, node_names: Mapping[str, str]) -> str:
    """Return the name of a node with its address, or that alone."""
    name = node_names.get(address, "")
    return f"{name} ({address})" if name else address


def tunnel_text(decision: Decision, backend: Backend, node_names: Mapping[str, str]) -> str:
    """Return by which node, and how, the packet gets to a backend in `Decision.tunnels`."""
    return f"{node_text(decision.tunnels[backend], node_names)} in {decision.dispatch(backend).title}"


def why_vxlan(decision: Decision, backend: Backend) -> str:
    """Return in a clause why packets to a backend in `Decision.tunnels` go in VXLAN though the node is to send another
    format, "" where they do not."""
    if decision.dispatch(backend) is decision.wanted:
        return ""
    title = decision.wanted.title
    if decision.tunnels[backend] in decision.opened:
        return f"{title} cannot tell it from another endpoint of its node"
    return f"its node does not say that it opens {title}"


def _dispatched(decision: Decision) -> Iterable[str]:
    """Explain which packets do not go in the format that the node is to send."""
    title = decision.wanted.title
    others: dict[str, list[Backend]] = {}
    for backend in decision.tunnels:
        others.setdefault(why_vxlan(decision, backend), []).append(backend)
    if decision.wanted is Dispatch.IPIP and "" in others:
        yield f"what {title} cannot carry goes in VXLAN: ICMP errors, aggregates of datagrams, extension headers"
    for why, backends in others.items():
        if why:
            yield f"VXLAN instead of {title} if the choice is {_either(backends)}: {why}"


def _forwarded(decision: Decision, entry: PlanEntry, node_names: Mapping[str, str]) -> Iterable[str]:
    """Explain a decision with backends to whose nodes the packet is forwarded."""
    source, way = decision.packet.source, entry.forwarding
    tunnels = [f"{backend} by {tunnel_text(decision, backend, node_names)}" for backend in decision.tunnels]
    yield f"forwarding mode {way.value}: {listed(tunnels)}, where the backend sees {source}; {_ANSWERS[way]}"
    yield from _dispatched(decision)
    rest = [backend for backend in decision.backends if backend not in decision.tunnels]
    masqueraded = [backend for backend in rest if decision.masquerades(backend)]
    if kept := [backend for backend in rest if not decision.masquerades(backend)]:
        yield f"not masqueraded if the choice is {_either(kept)}, which sees {source} too"
    if remote := [backend for backend in masqueraded if not backend.local]:
        yield f"masqueraded as this node if the choice is {_either(remote)}: the node there takes no forwarded packets"
    if here := [backend for backend in masqueraded if backend.local]:
        yield f"masqueraded as this node if the choice is {_either(here)}: external traffic under policy Cluster"


def _not_forwarded(decision: Decision, entry: PlanEntry) -> Iterable[str]:
    """Explain why nobody is forwarded to though the mode would have it."""
    remote = [backend for backend in decision.backends if not backend.local]
    if decision.may_forward and remote:
        yield f"forwarding mode {entry.forwarding.value} has no effect: no node that has {_either(remote)} speaks it"


def _kept(decision: Decision, node: NodeConfig) -> str:
    source, masqueraded = decision.packet.source, [b for b in decision.backends if decision.masquerades(b)]
    why = f"{why_kept(decision)} (--masquerade client)"
    if all(node.is_local(backend.address) for backend in decision.kept):
        why = "what is delivered to a process of this node itself does not leave it"
    if not masqueraded:
        return f"not masqueraded: the backend sees {source}, as {why}"
    return f"masqueraded only if the choice is {_either(masqueraded)}; other backends see {source}, as {why}"


def _either(backends: Sequence[Backend]) -> str:
    more = f" or one of {len(backends) - _LISTED} more" if len(backends) > _LISTED else ""
    return " or ".join(str(backend) for backend in backends[:_LISTED]) + more


def _masquerade_cause(decision: Decision, frontend: Frontend, entry: PlanEntry, node: NodeConfig) -> str:
    if frontend.kind is FrontendKind.CLUSTER_IP:
        return "masqueradeAll is set" if node.masquerade_all else "the source of a clusterIP packet is not a pod"
    if frontend.kind is FrontendKind.HOST_PORT:
        return "no pod could answer a loopback address"
    if entry.external_local:
        return "this node itself is the source of external traffic"
    return "external traffic under externalTrafficPolicy Cluster"


def _unclaimed(decision: Decision, node: NodeConfig, owners: Sequence[Owner], health_service: str) -> Iterable[str]:
    packet = decision.packet
    target = f"{packet.protocol.text} port {packet.port}"
    if owners:
        ports = listed(f"{owner.entry.protocol.text} {owner.port}" for owner in owners)
        service = f"{owners[0].entry.namespace}/{owners[0].entry.name}"
        yield f"{packet.destination} is the clusterIP of Service {service}, which has no {target} (it has {ports})"
    else:
        yield f"no Service has {packet.destination} with {target}"
    if decision.verdict is Verdict.REJECT:
        yield "rejected (port unreachable): in this mode a clusterIP answers for the ports that it does not have"
    elif decision.verdict is Verdict.DROP:
        yield f"dropped: {packet.destination} is in the Service range, and no Service has it"
    else:
        yield from _left_alone(packet, node, health_service)


def _left_alone(packet: Packet, node: NodeConfig, health_service: str) -> Iterable[str]:
    if node.answers_node_ports(packet.destination):
        yield f"node ports answer on {packet.destination}, but no Service has node port {packet.port} there"
        if health_service and packet.protocol is Protocol.TCP:
            yield f"it is the healthCheckNodePort of Service {health_service}, which hotplane itself answers"
    elif node.is_local(packet.destination):
        others = "every other local address" if node.nodeports.any_local else _answering(packet, node)
        own = f"{packet.destination} is this node's own address, but node ports do not answer on it"
        yield f"{own} (they answer on {others})"
    yield "left alone: the packet goes on unchanged"
