"""What `explain` adds on host routing: whether a flow's packets may go past the node's stack, by the manifests."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ctl.store.ways import load
from dataplane.model.objects import ModelObject, NetworkPolicy, ObjectRef, Pod
from dataplane.oracle.decide import Decision, Verdict
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import OFF, ON
from dataplane.planes.path import Kind, Step
from dataplane.policy.network_policies import IsolatedPods


class Way(NamedTuple):
    """Which way packets of a flow go. past: the node's stack. text: a sentence."""

    past: bool
    text: str

    @property
    def step(self) -> Step:
        """The same as a step of the kernel's path."""
        return Step("routing", Kind.ROUTING, "host routing" if self.past else "stack", note=self.text)


Ways = Callable[[Decision], Sequence[Way]]

_SENT = (Verdict.DNAT, Verdict.ACCEPT)
_UNLESS = "unless a device or another program's netfilter rules keep them there (doctor tells)"


class RouteNotes:
    """Knows the Pods and NetworkPolicies of manifests. node: this node's name. choice: of `--host-routing`.
    unreadable: objects with faults that are not among the objects."""

    def __init__(
        self, node: str, choice: str, objects: Iterable[ModelObject], unreadable: Iterable[ObjectRef] = ()
    ) -> None:
        self._choice = choice
        isolated = IsolatedPods(node)
        for item in objects:
            if isinstance(item, Pod | NetworkPolicy):
                isolated.put(item)
        for ref in unreadable:
            if ref.kind == "NetworkPolicy":
                isolated.unreadable(ref)
        selected, free = isolated.addresses()
        self._here = free.union(selected)
        counts = isolated.any_policy and choice != ON
        self._exclusions = Exclusions(None, selected, free) if counts else Exclusions()

    def ways(self, decision: Decision) -> list[Way]:
        """Return each way that the packets of a flow may take; none if neither end is known as a pod of this node by
        its Pod."""
        if decision.verdict not in _SENT:
            return []
        source = decision.packet.source
        found = (self._note(source, target) for target in _targets(decision))
        return list(dict.fromkeys(filter(None, found)))

    def _note(self, source: str, target: str) -> Way | None:
        ends = [address for address in (target, source) if address in self._here]
        if not ends:
            return None
        if self._choice == OFF:
            return Way(False, "--host-routing is off: its packets go by the node's stack")
        for address in ends:
            reason = self._exclusions.reason(address)
            if reason:
                return Way(False, f"its packets to {target} go by the node's stack: {reason}")
        way = "straight to the pod" if target in self._here else "by the uplink"
        return Way(True, f"its packets to {target} go past the node's stack, {way}, {_UNLESS}")


def _targets(decision: Decision) -> list[str]:
    """The addresses to which the packets of a flow may go."""
    return [backend.address for backend in decision.backends] or [decision.packet.destination]


def ways_now(args: argparse.Namespace) -> Ways:
    """Return what says which way packets go now, by the daemon that runs here; nothing where none does. Raises
    StateError."""
    found = load(Path(args.state_dir))

    def ways_of(decision: Decision) -> list[Way]:
        if found is None or decision.verdict not in _SENT:
            return []
        ways = ((target, found.way(decision.packet.source, target)) for target in _targets(decision))
        return list(dict.fromkeys(Way(bool(way.out), f"its packets to {to} go {way}") for to, way in ways))

    return ways_of
