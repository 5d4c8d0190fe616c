"""Choose the backend of a connection: random choice, weights and session affinity, as a model for simulations.

Source of the rules: Kubernetes Service API (sessionAffinityConfig.clientIP.timeoutSeconds) and kube-proxy's published
behaviour: the timeout counts from the client's last new connection.
"""

from random import Random
from typing import NamedTuple

from dataplane.oracle.types import Decision, Verdict
from dataplane.plan.types import EntryKey
from dataplane.policy.endpoints import Backend


class Sticky(NamedTuple):
    """The backend of a client, and when it last opened a connection (seconds)."""

    backend: Backend
    last: float


class AffinityTable:
    """Session affinity: the backend of each client, by Service port; all frontends of a port share it, as in
    kube-proxy.

    A client moves only if its backend leaves the set of its route, or if the timeout has passed since its last new
    connection; changes of other backends do not matter.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[EntryKey, str], Sticky] = {}

    def recall(self, decision: Decision, now: float) -> Backend | None:
        """Return the current backend of the client, or None."""
        assert decision.entry is not None
        sticky = self._clients.get((decision.entry.key, decision.packet.source))
        if sticky is None or now - sticky.last >= decision.affinity_seconds or sticky.backend not in decision.backends:
            return None
        return sticky.backend

    def remember(self, decision: Decision, backend: Backend, now: float) -> None:
        """Record that the client opened a connection to this backend."""
        assert decision.entry is not None
        self._clients[decision.entry.key, decision.packet.source] = Sticky(backend, now)


def choose(decision: Decision, rng: Random, affinity: AffinityTable, now: float) -> Backend:
    """Return the backend of a new connection: the client's own if affinity applies, else a random one, each as probable
    as its part of the list that is drawn from.

    now: seconds of any clock that does not go back. Raises ValueError for a decision that does not forward.
    """
    if decision.verdict is not Verdict.DNAT:
        raise ValueError(f"{decision.packet}: the verdict is {decision.verdict.value}, there is nothing to choose")
    if not decision.affinity_seconds:
        return decision.chosen or rng.choice(decision.drawn)
    backend = affinity.recall(decision, now) or decision.chosen or rng.choice(decision.drawn)
    affinity.remember(decision, backend, now)
    return backend
