"""Expected outcome of a flow's packets by the oracle, compared with the observed one."""

from collections.abc import Sequence
from typing import NamedTuple

from dataplane.oracle.decide import Decision, Verdict
from dataplane.plan.types import FrontendKind
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import Source
from tests.differential.generate import Flow
from tests.differential.ground import NODE_ADDRESSES, OTHER_NODE, PODS
from tests.differential.probes import Result

_HERE = {*NODE_ADDRESSES, *PODS[4], *PODS[6]}
_OWN = {*NODE_ADDRESSES, "127.0.0.1", "::1"}


class Finding(NamedTuple):
    """A disagreement."""

    flow: Flow
    wanted: str
    seen: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.flow.place} {' '.join(map(str, self.flow[1:]))}: wanted {self.wanted}; saw {self.seen}; "
            + "; ".join(self.reasons)
        )


class Judge:
    """Judges in one mode: iptables, nftables or ebpf."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def wants_answer(self, flow: Flow, decision: Decision) -> bool:
        """True if every packet of the flow must be answered."""
        return decision.verdict is Verdict.DNAT and all(self._returns(flow, decision, b) for b in decision.backends)

    def must_end(self, flow: Flow, decision: Decision) -> bool:
        """True if every packet of the flow must have an outcome, an answer or an error."""
        if decision.verdict is Verdict.DNAT:
            return self.wants_answer(flow, decision)
        return decision.verdict is not Verdict.DROP

    def may_ask(self, flow: Flow, decision: Decision) -> bool:
        """True if packets tell anything: a handshake that cannot come to its end tells nothing of where it led."""
        lost = decision.verdict is Verdict.DNAT and not self.wants_answer(flow, decision)
        return not (lost and flow.protocol == "TCP")

    def _returns(self, flow: Flow, decision: Decision, backend: Backend) -> bool:
        """Whether the backend's answer comes by the node: what it keeps unmasqueraded between two who are both outside
        goes another way (kube-proxy's does as well)."""
        return flow.place != "world" or backend.address in _HERE or decision.masquerades(backend)

    def judge(self, flow: Flow, decision: Decision, results: Sequence[Result]) -> Finding | None:
        """None where all packets did what the oracle says."""
        for result in results:
            wrong = self._wrong(flow, decision, result)
            if wrong:
                return Finding(flow, wrong, _text(result), decision.reasons)
        if decision.verdict is not Verdict.DNAT:
            return None
        met = {(seen.address, seen.port) for result in results for seen in result.servers}
        if decision.affinity_seconds and len(met) > 1:
            return Finding(flow, "one backend (affinity)", str(sorted(met)), decision.reasons)
        return None

    def missing(self, decision: Decision, results: Sequence[Result]) -> set[tuple[str, int]]:
        """Backends that no packet has met yet, of those that each packet may meet."""
        if decision.verdict is not Verdict.DNAT or decision.affinity_seconds:
            return set()
        met = {(seen.address, seen.port) for result in results for seen in result.servers}
        return {(b.address, b.port) for b in decision.backends} - met

    def _wrong(self, flow: Flow, decision: Decision, result: Result) -> str:
        """Return what was expected instead of this, or ""."""
        if decision.verdict is Verdict.DNAT:
            return self._wrong_translation(flow, decision, result)
        as_wanted = not result.servers and result.outcome in self._outcomes(flow, decision)
        return "" if as_wanted else str(decision.verdict.value)

    def _outcomes(self, flow: Flow, decision: Decision) -> set[str]:
        own = flow.destination in _OWN
        if decision.verdict is Verdict.ACCEPT:  # nobody listens there; elsewhere, nobody is there
            return {"refused"} if own else {"unreachable"}
        wanted = {"refused"} if decision.verdict is Verdict.REJECT else {"silence"}
        if flow.place == "node":
            wanted.add("forbidden")
            outside = decision.frontend is not None and decision.frontend.kind in (
                FrontendKind.EXTERNAL_IP,
                FrontendKind.LOAD_BALANCER,
            )
            if self._mode == "iptables" and outside:
                # KUBE-EXTERNAL-SERVICES and KUBE-PROXY-FIREWALL hang on INPUT and FORWARD: kube-proxy's iptables mode
                # refuses external addresses to what arrives or passes, not to the node's own packets.
                wanted |= {"refused"} if own else {"unreachable"}
        return wanted

    def _wrong_translation(self, flow: Flow, decision: Decision, result: Result) -> str:
        targets = {(b.address, b.port): b for b in decision.backends}
        wanted = f"one of {', '.join(map(str, decision.backends))}"
        if result.outcome not in ("answered", "silence", "forbidden") or not result.servers:
            return wanted
        for seen in result.servers:
            backend = targets.get((seen.address, seen.port))
            if backend is None:
                return wanted
            if not self._client_right(flow, decision, backend, seen.client):
                kept = "masqueraded" if decision.masquerades(backend) else "kept"
                return f"{wanted}, the client {kept}"
            if result.outcome != "answered" and self._returns(flow, decision, backend):
                return f"{wanted}, an answer"
        return ""

    def _client_right(self, flow: Flow, decision: Decision, backend: Backend, client: str) -> bool:
        if decision.source is Source.NODE:
            return client in _OWN
        if self._mode == "ebpf" and backend.address == decision.packet.source == client:
            return True  # who is pointed at itself when it connects talks to itself directly
        return bool(client in NODE_ADDRESSES if decision.masquerades(backend) else client == decision.packet.source)


def _text(result: Result) -> str:
    servers = ", ".join(f"{s.address} {s.port} saw {s.client}" for s in result.servers)
    return " ".join(filter(None, (result.outcome, result.detail, servers)))


def elsewhere(source: str) -> bool:
    """True if an address is that of a pod of another node."""
    return source.startswith(("10.244.2.", "fd00:244:2:")) or source in OTHER_NODE.values()
