"""Clients that the ebpf mode does not masquerade although the policy does, a deliberate difference to kube-proxy.

Source: bpf/track.h (flow_flags, open_flow) and bpf/connect.c (describe_caller); the lab's scenario table compares it
with packets. `--masquerade kube-proxy` turns all of it off.
"""

import enum
from collections.abc import Collection
from typing import NamedTuple

from dataplane.model.net import Protocol, is_loopback
from dataplane.oracle.types import Decision, Verdict
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import Source


class Keeps(enum.Enum):
    """Kinds of clients that the ebpf mode does not masquerade although the policy does.

    LOCAL: those whose backend runs on the deciding node, unless they are pods of another (packet programs). PODS: pods
    of the deciding node (connect-time balancing).
    """

    LOCAL = "local"
    PODS = "pods"


class Keeping(NamedTuple):
    """Clients that keep their address on a node. elsewhere: addresses of known pods of other nodes. off: of pods with
    connect-time balancing off."""

    keeps: frozenset[Keeps] = frozenset()
    elsewhere: frozenset[str] = frozenset()
    off: frozenset[str] = frozenset()


NOTHING = Keeping()


def kept_backends(
    decision: Decision, keeping: Keeping, own: Collection[str], *, masquerade_all: bool
) -> tuple[Backend, ...]:
    """Return the backends for which the client keeps its address although policy or hairpin would masquerade it. own:
    addresses of the deciding node."""
    if decision.verdict is not Verdict.DNAT or not keeping.keeps or not _seen_by_programs(decision, keeping):
        return ()
    would = [backend for backend in decision.backends if decision.masquerades(backend)]
    if _at_connect_time(decision, keeping, own, masquerade_all=masquerade_all):
        return tuple(would)
    if Keeps.LOCAL not in keeping.keeps:
        return ()
    return tuple(backend for backend in would if backend.local and backend.address != decision.packet.source)


def _seen_by_programs(decision: Decision, keeping: Keeping) -> bool:
    """True if the packet programs balance such a packet; otherwise the slow path does, and masquerades by the policy.

    The node's own processes are balanced by them, too, but get the address that routing chooses, as by masquerading.
    """
    packet = decision.packet
    if packet.protocol not in (Protocol.TCP, Protocol.UDP) or is_loopback(packet.destination):
        return False
    return decision.source is not Source.NODE and not (
        decision.source is Source.POD and packet.source in keeping.elsewhere
    )


def _at_connect_time(decision: Decision, keeping: Keeping, own: Collection[str], *, masquerade_all: bool) -> bool:
    """True if the client is pointed at its backend before there is a packet: a pod, whose address is not known then,
    so not where source ranges or session affinity want it; nor where masqueradeAll asks for the node's; nor at an
    address of the node itself, where somebody may listen (node ports are nobody else's)."""
    frontend = decision.frontend
    if frontend is None or decision.packet.source in keeping.off or frontend.key.address in own:
        return False
    needs_address = frontend.source_ranges is not None or decision.affinity_seconds > 0
    return Keeps.PODS in keeping.keeps and decision.source is Source.POD and not (masquerade_all or needs_address)


def pointed_at_connect(decision: Decision, keeping: Keeping, own: Collection[str], *, masquerade_all: bool) -> bool:
    """True if a pod of this node is pointed at its backend when it connects, so that no packet of it has the frontend's
    address. own: addresses of the deciding node."""
    if decision.verdict is not Verdict.DNAT or not _seen_by_programs(decision, keeping):
        return False
    return _at_connect_time(decision, keeping, own, masquerade_all=masquerade_all)


def why_kept(decision: Decision) -> str:
    """Return the reason, as a clause."""
    if any(not backend.local or backend.address == decision.packet.source for backend in decision.kept):
        return "a pod is pointed at its backend when it connects"
    return "this mode masquerades only towards backends on other nodes"
