"""What becomes of a packet in each mode, under the plan of one of them."""

from typing import NamedTuple

import msgspec

from ctl.explain_loaded import keeping_of
from ctl.explain_picture import drawn_of
from ctl.picture.names import Names
from ctl.picture.svg import drawing
from ctl.ui.view import Explanation
from dataplane.errors import UsageError
from dataplane.model.net import canonical_address
from dataplane.oracle.decide import Oracle
from dataplane.oracle.types import Decision, Packet, Verdict
from dataplane.plan.types import Plan
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, lines
from dataplane.planes.registry import modes
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.node import MOST_BACKENDS, NodeConfig
from dataplane.policy.settings import Promises, ProxySettings, node_ports


class Known(NamedTuple):
    """What is loaded on a node: its plan and mode, the options of its plane, the operator's settings; who is where."""

    plan: Plan
    mode: str
    options: PlaneOptions
    settings: ProxySettings
    names: Names


def explanations(known: Known, packet: Packet) -> list[Explanation]:
    """The packet's fate in every mode, the loaded one with its own options, the others with the defaults. O(Services)
    to find those that may claim it."""
    plan = of_packet(known.plan, packet)
    names = {address: name for name, addresses in known.names.addresses.items() for address in addresses}
    found = []
    for mode in modes():
        loaded = mode.name == known.mode
        options = known.options if loaded else PlaneOptions()
        node = plan.node if loaded else in_mode(plan.node, mode.promises, known.settings, mode.at_connect(options))
        as_planned = msgspec.structs.replace(plan, node=node)
        if mode.why_only_snat(options):
            as_planned = _with_snat(as_planned)
        elsewhere = frozenset({packet.source} if _elsewhere(known, packet.source) else ())
        keeping = keeping_of(mode, options, as_planned, elsewhere)
        decision = Oracle(as_planned, keeping=keeping, node_names=names).decide(packet)
        path = lines(mode.path(decision, At(node, options, keeping)))
        drawn = drawn_of(decision, node, known.names, keeping)
        found.append(
            Explanation(
                mode=mode.name,
                loaded=loaded,
                node=node.name,
                verdict=decision.verdict.value,
                headline=drawn.headline,
                endpoints=tuple(map(str, decision.backends)),
                seen_as=_seen_as(decision, drawn.nodes[0].address),
                reasons=(*decision.reasons, *path),
                svg=drawing(drawn._replace(reasons=())),
            )
        )
    return found


def in_mode(node: NodeConfig, promises: Promises, settings: ProxySettings, at_connect: bool) -> NodeConfig:
    """This node's settings as another mode would have them. The routes of frontends are the same in every mode, except
    that iptables mode rejects what source ranges keep out where there is no endpoint at all."""
    iptables = promises is Promises.IPTABLES
    section = settings.iptables if iptables else settings.nftables
    return msgspec.structs.replace(
        node,
        nodeports=node_ports(promises, settings, node.addresses, at_connect=at_connect),
        masquerade_all=section.everything,
        reject_unknown_ports=not iptables,
        most_backends=0 if iptables else MOST_BACKENDS,
    )


def _with_snat(plan: Plan) -> Plan:
    """A plan as a mode has it that forwards no packets with the client's address kept."""
    entries = {
        key: msgspec.structs.replace(entry, forwarding=Forwarding.SNAT, tunnels=())
        for key, entry in plan.entries.items()
    }
    return msgspec.structs.replace(plan, entries=entries)


def of_packet(plan: Plan, packet: Packet) -> Plan:
    """The part of a plan that may say something about a packet."""
    entries = {
        key: entry
        for key, entry in plan.entries.items()
        for frontend in entry.frontends
        if frontend.key.address == packet.destination or (not frontend.key.address and frontend.key.port == packet.port)
    }
    return msgspec.structs.replace(plan, entries=entries)


def _elsewhere(known: Known, source: str) -> bool:
    """True if a source is a pod of another node."""
    return known.names.node(source) not in ("", known.plan.node.name)


def _seen_as(decision: Decision, own: str) -> tuple[str, ...]:
    if decision.verdict is not Verdict.DNAT:
        return ()
    seen = (own if decision.masquerades(backend) else decision.packet.source for backend in decision.backends)
    return tuple(dict.fromkeys(seen))


def bracketed(address: str) -> str:
    """An address as the notation of flows has it. Raises UsageError for what is none."""
    try:
        canonical = canonical_address(address)
    except ValueError as error:
        raise UsageError(f"source: {error}") from error
    return f"[{canonical}]" if ":" in canonical else canonical
