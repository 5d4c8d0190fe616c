"""The way of a packet through kube-proxy's chains, in their order; rules as `iptables-save` prints what they match.

Source: rules.service and rules.skeleton.
"""

from collections.abc import Iterator

from dataplane.model.net import contains
from dataplane.oracle.types import Decision, Verdict
from dataplane.plan.types import Frontend, FrontendKind, PlanEntry
from dataplane.planes.iptables.rules import names
from dataplane.planes.path import At, Kind, Step
from dataplane.policy.node import Source
from dataplane.policy.routes import Action, Route, Scope

_BESIDE = (FrontendKind.CLUSTER_IP, FrontendKind.HOST_PORT)
"""Frontends that go to a Service's own chain without KUBE-EXT."""


def path(decision: Decision, at: At) -> tuple[Step, ...]:
    """The steps of a packet; none if no rule of the mode's own concerns it."""
    if decision.frontend is None or decision.entry is None:
        return ()
    return tuple(_Walk(decision, decision.frontend, decision.entry, at).steps())


class _Walk:
    """One packet's way."""

    def __init__(self, decision: Decision, frontend: Frontend, entry: PlanEntry, at: At) -> None:
        self._decision, self._frontend, self._entry, self._at = decision, frontend, entry, at
        self._sent_here = decision.source is Source.NODE
        self._hook = "nat OUTPUT" if self._sent_here else "nat PREROUTING"
        self._chains = names.service_chains(decision.service, entry.key.protocol)

    def steps(self) -> Iterator[Step]:
        """All of them."""
        decision, route = self._decision, self._decision.route
        if decision.refused:
            yield from self._services()
            yield self._chain(self._chains.source_ranges, result="on, untranslated", note="no range holds the source")
            yield from self._refused(names.PROXY_FIREWALL, "DROP")
        elif route is not None and route.action is Action.FORWARD:
            yield from self._forward(route)
        else:
            chain = names.SERVICES if self._frontend.kind in _BESIDE else names.EXTERNAL_SERVICES
            yield from self._refused(chain, "REJECT" if decision.verdict is Verdict.REJECT else "DROP")

    def _chain(self, name: str, key: str = "", result: str = "", share: str = "", note: str = "") -> Step:
        return Step(self._hook, Kind.CHAIN, name, key, result, share, note)

    def _match(self) -> str:
        packet, key = self._decision.packet, self._frontend.key
        to = f"-d {key.address}/{key.family.bits} " if key.address else ""
        return f"{to}-p {packet.protocol.text} --dport {packet.port}"

    def _services(self) -> Iterator[Step]:
        """From the built-in chain to the first chain of the Service."""
        yield self._chain(names.SERVICES, self._match() if self._frontend.key.address else "--dst-type LOCAL")
        if self._frontend.kind is FrontendKind.NODE_PORT:
            yield self._chain(names.NODEPORTS, self._match())

    def _forward(self, route: Route) -> Iterator[Step]:
        frontend, chains, source = self._frontend, self._chains, self._decision.packet.source
        yield from self._services()
        if frontend.source_ranges is not None:
            cidr = next(c for c in frontend.source_ranges.cidrs if contains((c,), source))
            yield self._chain(chains.source_ranges, f"-s {cidr}")
        mark = self._chain(names.MARK_MASQ, note="marked to be masqueraded")
        if frontend.kind not in _BESIDE:
            yield self._chain(chains.external)
            if route.masquerade:
                yield mark
        yield self._chain(chains.local if route.scope is Scope.LOCAL else chains.cluster)
        if frontend.kind in _BESIDE and route.masquerade:
            yield mark
        yield from self._endpoints()
        if any(map(self._decision.masquerades, self._decision.backends)):
            if not route.masquerade:
                yield self._chain(names.MARK_MASQ, f"-s {source}/{frontend.key.family.bits}", note="if it meets itself")
            bit = f"--mark {self._at.node.masquerade_mark:#x}"
            some = "" if self._decision.masquerade else "if it meets itself"
            yield Step("nat POSTROUTING", Kind.CHAIN, names.POSTROUTING, bit, "MASQUERADE", note=some)

    def _endpoints(self) -> Iterator[Step]:
        """The chains of endpoints, one of which is chosen."""
        shares = self._decision.shares
        for backend in sorted(self._decision.backends, key=str):
            chain = names.endpoint_chain(self._decision.service, self._entry.key.protocol, str(backend))
            yield self._chain(chain, result=f"DNAT {backend}", share=shares.get(backend, ""))

    def _refused(self, chain: str, target: str) -> Iterator[Step]:
        """The filter table's rule. KUBE-EXTERNAL-SERVICES hangs on INPUT and FORWARD alone."""
        if self._sent_here and chain == names.EXTERNAL_SERVICES:
            return
        here = self._at.node.is_local(self._decision.packet.destination)
        hook = "OUTPUT" if self._sent_here else "INPUT" if here else "FORWARD"
        yield Step(f"filter {hook}", Kind.CHAIN, chain, self._match(), target)
