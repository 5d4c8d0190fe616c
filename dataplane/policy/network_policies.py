"""Which of this node's pods NetworkPolicies select. Pure; a change costs what its namespace has on this node.

A pod that any policy selects is isolated, whatever the policy's types and rules (networking.k8s.io/v1,
NetworkPolicySpec). What cannot be read counts as selecting.
"""

from collections.abc import Container, Iterator, Mapping
from typing import TypeVar

from dataplane.model.objects import NetworkPolicy, ObjectRef, Operator, Pod, Requirement

_Key = tuple[str, str]
_T = TypeVar("_T")


def meets(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    """True if labels meet one term of a selector. A label that is not there meets NotIn (apimachinery's labels)."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case Operator.IN:
            return value is not None and value in requirement.values
        case Operator.NOT_IN:
            return value is None or value not in requirement.values
        case Operator.EXISTS:
            return value is not None
        case Operator.DOES_NOT_EXIST:
            return value is None


def selects(policy: NetworkPolicy, labels: Mapping[str, str]) -> bool:
    """True if a policy selects a pod of its namespace with these labels."""
    return all(meets(requirement, labels) for requirement in policy.pod_selector)


class IsolatedPods:
    """Keeps which pod addresses of a node policies select. node: its name, in lower case.

    Pods in the node's own network are not selected by anybody, and have no address of their own. A Pod that terminates
    or has ended may have lost its address to another one, so nothing is known of that address any more.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._pods: dict[str, dict[str, Pod]] = {}  # by namespace and name
        self._policies: dict[str, dict[str, NetworkPolicy | None]] = {}  # None: cannot be read
        self._reasons: dict[_Key, str] = {}

    @property
    def any_policy(self) -> bool:
        """True if there is a policy, in any namespace."""
        return bool(self._policies)

    def put(self, item: Pod | NetworkPolicy) -> bool:
        """Add or replace an object; false if that changes nothing."""
        if isinstance(item, NetworkPolicy):
            return self._put_policy(item.ref, item)
        pods = self._pods.setdefault(item.namespace, {})
        before, pods[item.name] = pods.get(item.name), item
        if before == item:
            return False
        self._judge(item)
        return True

    def unreadable(self, ref: ObjectRef) -> bool:
        """Add or replace an object that cannot be read: a policy selects all of its namespace, a Pod is not known."""
        return self._put_policy(ref, None) if ref.kind == "NetworkPolicy" else self.remove(ref)

    def remove(self, ref: ObjectRef) -> bool:
        """Remove an object; false if it was not known."""
        if ref.kind == "NetworkPolicy":
            removed = _discard(self._policies, ref)
            if removed:
                self._judge_all(ref.namespace)
            return removed
        self._reasons.pop((ref.namespace, ref.name), None)
        return _discard(self._pods, ref)

    def keep_only(self, kind: str, present: Container[_Key]) -> bool:
        """Remove the objects of a kind that are not among those present; false if there are none."""
        known: Mapping[str, Mapping[str, object]] = self._policies if kind == "NetworkPolicy" else self._pods
        names = ((namespace, name) for namespace, held in known.items() for name in held)
        gone = [ObjectRef(kind, *name) for name in names if name not in present]
        for ref in gone:
            self.remove(ref)
        return bool(gone)

    def addresses(self) -> tuple[dict[str, str], frozenset[str]]:
        """Return a reason for each pod address that is selected, and the addresses of all other pods."""
        selected: dict[str, str] = {}
        free: set[str] = set()
        for pod in self._here():
            reason = self._reasons.get((pod.namespace, pod.name))
            for address in pod.addresses:
                if reason is None:
                    free.add(address)
                else:
                    selected.setdefault(address, reason)
        return selected, frozenset(free.difference(selected))

    def _here(self) -> Iterator[Pod]:
        for pods in self._pods.values():
            for pod in pods.values():
                away = pod.node.lower() != self._node or pod.host_network
                if not (away or pod.terminating or pod.finished):
                    yield pod

    def _put_policy(self, ref: ObjectRef, policy: NetworkPolicy | None) -> bool:
        held = self._policies.setdefault(ref.namespace, {})
        if ref.name in held and held[ref.name] == policy:
            return False
        held[ref.name] = policy
        self._judge_all(ref.namespace)
        return True

    def _judge_all(self, namespace: str) -> None:
        for pod in self._pods.get(namespace, {}).values():
            self._judge(pod)

    def _judge(self, pod: Pod) -> None:
        reason = self._reason(pod)
        if reason is None:
            self._reasons.pop((pod.namespace, pod.name), None)
        else:
            self._reasons[(pod.namespace, pod.name)] = reason

    def _reason(self, pod: Pod) -> str | None:
        """Why a pod is isolated; of several policies the first by name is named."""
        policies = self._policies.get(pod.namespace, {})
        labels = dict(pod.labels) if pod.labels is not None else None
        for name in sorted(policies):
            policy = policies[name]
            if policy is None:
                return f"NetworkPolicy {pod.namespace}/{name} cannot be read, and may select it"
            if labels is None:
                return f"the labels of Pod {pod.namespace}/{pod.name} cannot be read, and a NetworkPolicy may select it"
            if selects(policy, labels):
                return f"NetworkPolicy {pod.namespace}/{name} selects Pod {pod.namespace}/{pod.name}"
        return None


def _discard(known: dict[str, dict[str, _T]], ref: ObjectRef) -> bool:
    """Remove an object that is held by namespace and name; true if it was there."""
    held = known.get(ref.namespace, {})
    if ref.name not in held:
        return False
    del held[ref.name]
    if not held:
        del known[ref.namespace]
    return True
