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
        found = [(target, self._way(source, target)) for target in _targets(decision)]
        if self._choice == OFF and any(way for _, way in found):
            return [Way(False, "--host-routing is off: its packets go by the node's stack")]
        return _merged(found)

    def _way(self, source: str, target: str) -> tuple[bool, str] | None:
        """Return whether packets go past the stack, and the end of the sentence that says so. None: not known."""
        ends = [address for address in (target, source) if address in self._here]
        if not ends:
            return None
        for address in ends:
            reason = self._exclusions.reason(address)
            if reason:
                return False, f"by the node's stack: {reason}"
        way = "straight to the pod" if target in self._here else "by the uplink"
        return True, f"past the node's stack, {way}, {_UNLESS}"


def _merged(ways: Iterable[tuple[str, tuple[bool, str] | None]]) -> list[Way]:
    """Return one Way for all targets that packets take the same way to, in the order of the first of them."""
    targets: dict[tuple[bool, str], dict[str, None]] = {}
    for target, way in ways:
        if way is not None:
            targets.setdefault(way, {})[target] = None
    return [Way(past, f"its packets to {', '.join(to)} go {end}") for (past, end), to in targets.items()]


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
        return _merged((target, (bool(way.out), str(way))) for target, way in ways)

    return ways_of
