"""Plan what this node's Pods ask for: hostPorts, and connect-time balancing turned off.

hostPorts work as in the CNI plugin portmap. Its chain comes after kube-proxy's in the nat table, so a Service with the
same address and port wins over a Pod; of two Pods the older one wins.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dataplane.model.net import Family, family_of, host_port, is_loopback
from dataplane.model.objects import HostPort, Namespace, ObjectRef, Pod, Problem
from dataplane.plan.change import EntryChange
from dataplane.plan.claims import NO_TIME, Claims
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, OffPod, Plan, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import host_port_routes

_LOOPBACK = "127.0.0.1"
_EVERYBODY = {"0.0.0.0": Family.IPV4, "::": Family.IPV6}

_Problems = dict[ObjectRef, tuple[Problem, ...]]


class _Wanted(NamedTuple):
    """One hostPort in one family: the key of its entry, its frontends, its backend."""

    key: EntryKey
    frontends: tuple[FrontendKey, ...]
    backend: Backend


class PodPlanner:
    """Plans the Pods' part. The Planner owns the plan, the Services' claims and the problems.

    A node has a few hundred Pods at most, so all of them are planned again when one changes.
    """

    def __init__(self, plan: Plan, claims: Claims, problems: _Problems) -> None:
        self._plan, self._claims, self._problems = plan, claims, problems
        self._pods: dict[tuple[str, str], Pod] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._entries: dict[EntryKey, PlanEntry] = {}
        self._ports: set[tuple[int, int]] = set()  # protocol and number of every published port
        self._names: set[EntryKey] = set()
        self._reported: set[ObjectRef] = set()
        self._changed = False

    def remember(self, item: Pod | Namespace) -> None:
        """Add or replace a Pod or Namespace; takes effect at the next `after` and `connect_off`."""
        if isinstance(item, Namespace):
            changed = self._namespaces.get(item.name) != item
            self._namespaces[item.name] = item
        else:
            changed = self._pods.get((item.namespace, item.name)) != item
            self._pods[(item.namespace, item.name)] = item
        self._changed |= changed

    def forget(self, ref: ObjectRef) -> None:
        """Remove a Pod or Namespace; no error if it is unknown."""
        if ref.kind == "Namespace":
            self._changed |= self._namespaces.pop(ref.name, None) is not None
        else:
            self._changed |= self._pods.pop((ref.namespace, ref.name), None) is not None

    def connect_off(self) -> dict[tuple[str, str], OffPod] | None:
        """Return the Pods with connect-time balancing off, also set in the plan; None if unchanged."""
        if not self._changed:
            return None
        self._changed = False
        off = {name: found for name, pod in self._here() if (found := self._off(pod)) is not None}
        if off == self._plan.connect_off:
            return None
        self._plan.connect_off = off
        return off

    def _here(self) -> Iterator[tuple[tuple[str, str], Pod]]:
        """Return the Pods of this node that have not terminated."""
        here = self._plan.node.name
        return (
            (name, pod)
            for name, pod in self._pods.items()
            if pod.node and pod.node.lower() == here and not pod.finished
        )

    def _off(self, pod: Pod) -> OffPod | None:
        """The setting of the Pod overrides that of its Namespace."""
        namespace = self._namespaces.get(pod.namespace)
        word, why = pod.connect_time, f"{pod.connect_time_by} of the Pod"
        if word is None and namespace is not None:
            word, why = namespace.connect_time, f"{namespace.connect_time_by} of Namespace {namespace.name}"
        if word is not False:
            return None
        return OffPod(pod.namespace, pod.name, pod.uid, pod.addresses, pod.host_network, why)

    def after(self, changes: tuple[EntryChange, ...], *, node_changed: bool = False) -> tuple[EntryChange, ...]:
        """Return the changes of Services' entries, already in the plan, plus the changes of Pods' entries that follow
        from them, from changed Pods or from new node settings."""
        if not (self._changed or (node_changed and self._pods) or self._touched(changes)):
            return changes
        entries, problems = self._plan_all()
        found = {change.key: change for change in changes}
        current = self._plan.entries
        for key in [key for key in self._entries if key not in entries]:
            if current.get(key) is self._entries[key]:  # else a Service has taken its place
                _note(found, EntryChange(current.pop(key), None))
        for key, entry in entries.items():
            old = current.get(key)
            if old != entry:
                _note(found, EntryChange(old, entry))
                current[key] = entry
        self._entries = {key: current[key] for key in entries}
        self._report(problems)
        return tuple(found.values())

    def _touched(self, changes: Iterable[EntryChange]) -> bool:
        """True if changed Services have a port or name that a Pod uses."""
        if not self._ports:
            return False
        return any(
            change.key in self._names
            or any(
                (frontend.key.protocol, frontend.key.port) in self._ports
                for entry in (change.old, change.new)
                if entry is not None
                for frontend in entry.frontends
            )
            for change in changes
        )

    def _plan_all(self) -> tuple[dict[EntryKey, PlanEntry], list[Problem]]:
        """Plan every hostPort that is not taken, oldest Pods first."""
        self._ports, self._names = set(), set()
        taken: dict[FrontendKey, Pod] = {}
        entries: dict[EntryKey, PlanEntry] = {}
        problems: list[Problem] = []
        if not self._plan.node.host_ports:
            return entries, problems
        live = [pod for _, pod in self._here() if pod.host_ports and not pod.terminating]
        for pod in sorted(live, key=lambda pod: (pod.created or NO_TIME, pod.namespace, pod.name)):
            for wanted in _wanted(pod, self._plan.node, problems):
                self._names.add(wanted.key)
                self._ports.update((key.protocol, key.port) for key in wanted.frontends)
                if self._is_services(wanted.key):
                    reason = f"is named as a port of Service {pod.namespace}/{pod.name} is, and left out; rename one"
                    problems.append(Problem(pod.ref, f"hostPort {wanted.key.port}", reason))
                    continue
                won = tuple(key for key in wanted.frontends if self._wins(pod, key, taken, problems))
                if won:
                    entries[wanted.key] = _entry(wanted, won)
        return entries, problems

    def _is_services(self, key: EntryKey) -> bool:
        held = self._plan.entries.get(key)
        return held is not None and held is not self._entries.get(key)

    def _wins(self, pod: Pod, key: FrontendKey, taken: dict[FrontendKey, Pod], problems: list[Problem]) -> bool:
        """True if a Pod gets a frontend; otherwise the holder is reported."""
        claim = self._claims.winner(key)
        if claim is None and self._plan.node.answers_node_ports(key.address):
            claim = self._claims.winner(key._replace(address=""))
        holder = taken.setdefault(key, pod)
        if claim is not None:
            who = f"Service {'/'.join(claim.service)}, and Services go before Pods"
        elif holder is not pod:
            who = f"the older Pod {holder.namespace}/{holder.name}"
        else:
            return True
        problems.append(
            Problem(pod.ref, f"hostPort {key}", f"already taken by {who}; it is left out, give one another port")
        )
        return False

    def _report(self, problems: Iterable[Problem]) -> None:
        for ref in self._reported:
            self._problems.pop(ref, None)
        self._reported = {problem.ref for problem in problems}
        for problem in problems:
            self._problems[problem.ref] = (*self._problems.get(problem.ref, ()), problem)


def _note(found: dict[EntryKey, EntryChange], change: EntryChange) -> None:
    """Add a change, merged with an earlier one of the same entry."""
    earlier = found.pop(change.key, None)
    whole = EntryChange(earlier.old, change.new) if earlier is not None else change
    if whole.old != whole.new:
        found[change.key] = whole


def _wanted(pod: Pod, node: NodeConfig, problems: list[Problem]) -> Iterator[_Wanted]:
    for address in pod.addresses:
        family = family_of(address)
        for port in pod.host_ports:
            places = _places(port, family, node)
            if places:
                text = host_port(port.address, port.port) if port.address else str(port.port)
                yield _Wanted(
                    EntryKey(pod.namespace, pod.name, text, port.protocol, family),
                    tuple(FrontendKey(family, place, port.protocol, port.port) for place in places),
                    Backend(address, port.container_port, local=True),
                )
            elif port.address and port.address not in _EVERYBODY and family_of(port.address) is family:
                why = "this mode serves no loopback address" if is_loopback(port.address) else "no address of this node"
                reason = f"hostIP {port.address} is left out: {why}; name another address, or none"
                problems.append(Problem(pod.ref, f"hostPort {port.port}", reason))


def _places(port: HostPort, family: Family, node: NodeConfig) -> list[str]:
    """Return the addresses of a family for a hostPort: hostIP, or all of the node's own. Loopback only if the mode
    serves node ports there, and never ::1."""
    loopback = [_LOOPBACK] if node.nodeports.loopback and family is Family.IPV4 else []
    own = [address for address in node.addresses if family_of(address) is family and not is_loopback(address)]
    if port.address in ("", *_EVERYBODY):
        return [*own, *loopback] if _EVERYBODY.get(port.address, family) is family else []
    return [port.address] if port.address in (*own, *loopback) else []


def _entry(wanted: _Wanted, won: tuple[FrontendKey, ...]) -> PlanEntry:
    frontends = (Frontend(FrontendKind.HOST_PORT, key, host_port_routes(is_loopback(key.address))) for key in won)
    return PlanEntry(wanted.key, cluster=(wanted.backend,), frontends=tuple(frontends))
