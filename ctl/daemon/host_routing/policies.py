"""What the API server, or manifests, say about who must stay on the node's stack: NetworkPolicies and Pods."""

from collections.abc import Callable, Container

from dataplane.model.decode import DecodedObject
from dataplane.model.objects import NetworkPolicy, ObjectRef, Pod
from dataplane.planes.exclusions import Exclusions
from dataplane.policy.network_policies import IsolatedPods

_POLICY, _POD = "NetworkPolicy", "Pod"
_GRANT = "grant it (docs/deploy/pods-role.yaml)"
_NOT_FOUND = 404


class PolicyListener:
    """The inbox's listener. node: this node's name. changed: called at once when `exclusions` has changed.

    Until all policies are known everything stays on the stack. Where there is a policy, so does every address of which
    no running Pod is known.
    """

    kinds = frozenset({_POLICY, _POD})

    def __init__(self, node: str, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._isolated = IsolatedPods(node)
        self._unnamed = False
        self._missing = {
            _POLICY: "the NetworkPolicies are not known yet",
            _POD: "there are NetworkPolicies, and this node's Pods are not known yet",
        }

    def put(self, found: DecodedObject) -> None:
        """See Listener.put. A Pod without a value is not known; a policy without one selects all of its namespace."""
        if isinstance(found.value, NetworkPolicy | Pod):
            self._notify(self._isolated.put(found.value))
        elif found.ref is not None:
            self._notify(self._isolated.unreadable(found.ref) if found.problems else self._isolated.remove(found.ref))

    def remove(self, ref: ObjectRef) -> None:
        """See Listener.remove."""
        self._notify(self._isolated.remove(ref))

    def complete(self, kind: str, present: Container[tuple[str, str]]) -> None:
        """See Listener.complete."""
        changed = self._isolated.keep_only(kind, present)
        self._notify(self._missing.pop(kind, None) is not None or changed)

    def not_served(self, kind: str, status: int, why: str) -> None:
        """See Listener.not_served. A server that does not know policies has none; one that keeps them to itself may."""
        if kind == _POLICY and status == _NOT_FOUND:
            self.complete(kind, ())
            return
        there = "there are NetworkPolicies, and " if kind == _POD else ""
        what = "this node's Pods" if kind == _POD else "the NetworkPolicies"
        self._miss(kind, f"{there}{what} cannot be listed ({why}); {_GRANT}")

    def unknown(self, kind: str) -> None:
        """See Listener.unknown. Nobody can tell when such an object has gone."""
        if kind == _POLICY and not self._unnamed:
            self._unnamed = True
            self._changed()

    def exclusions(self) -> Exclusions:
        """Who must stay by what is known now."""
        if _POLICY in self._missing:
            return Exclusions(self._missing[_POLICY])
        if self._unnamed:
            return Exclusions("the API server sent a NetworkPolicy that cannot be read; mend it, then restart hotplane")
        if not self._isolated.any_policy:
            return Exclusions()
        if _POD in self._missing:
            return Exclusions(self._missing[_POD])
        selected, free = self._isolated.addresses()
        return Exclusions(None, selected, free)

    def _miss(self, kind: str, why: str) -> None:
        before, self._missing[kind] = self._missing.get(kind), why
        self._notify(before != why)

    def _notify(self, changed: bool) -> None:
        if changed:
            self._changed()
