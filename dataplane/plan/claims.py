"""Conflicts: two Services that claim one (address, port, protocol). Pods come after all of them (see plan.pods)."""

from collections.abc import Sequence
from typing import NamedTuple

from dataplane.model.objects import Service
from dataplane.plan.types import FrontendKey

ServiceId = tuple[str, str]
"""Namespace and name."""

NO_TIME = "9999"
"""Sorts behind every RFC 3339 time: an object without a creation time is not older than any."""


class Claim(NamedTuple):
    """A Service's claim to a frontend; the smallest claim wins: that of a clusterIP before any other (the control plane
    gave it out, whereas anybody may write an externalIP), then older creationTimestamp, then namespace/name."""

    external: bool
    created: str
    service: ServiceId


class Claimant(NamedTuple):
    """What a Service claims frontends with: at its clusterIPs, and elsewhere. Each claim is alone in a tuple, which all
    its frontends share."""

    cluster_ips: tuple[str, ...]
    inside: tuple[Claim, ...]
    outside: tuple[Claim, ...]

    def claim(self, key: FrontendKey) -> tuple[Claim, ...]:
        """The claim to one frontend."""
        return self.inside if key.address in self.cluster_ips else self.outside


_Held = tuple[Claimant, Sequence[FrontendKey]]
"""What one Service claims, and by what."""

_NOTHING: _Held = (Claimant((), (), ()), ())


def claimant(service_id: ServiceId, service: Service) -> Claimant:
    """What a Service claims its frontends with."""
    created = service.created or NO_TIME
    return Claimant(service.cluster_ips, (Claim(False, created, service_id),), (Claim(True, created, service_id),))


class Claims:
    """Who claims which frontend. Each operation is O(frontends of the Service that changes)."""

    def __init__(self) -> None:
        self._claims: dict[FrontendKey, tuple[Claim, ...]] = {}
        self._of: dict[ServiceId, _Held] = {}

    def winner(self, key: FrontendKey) -> Claim | None:
        """The claim that gets the frontend."""
        claims = self._claims.get(key)
        return claims[0] if claims else None

    def replace(self, service: ServiceId, claims: Claimant | None, keys: Sequence[FrontendKey]) -> set[ServiceId]:
        """Set what a Service claims (claims None: nothing). Returns the *other* Services that won or lost by it."""
        held = self._of.get(service, _NOTHING)
        new: _Held = (claims, keys) if claims is not None and keys else _NOTHING
        affected: set[ServiceId] = set()
        if new == held:
            return affected
        for key in held[1]:
            self._withdraw(service, key, affected)
        for key in new[1]:
            own = new[0].claim(key)
            others = self._claims.setdefault(key, own)
            if others is not own:
                affected.update(other.service for other in others)
                self._claims[key] = tuple(sorted((*others, *own)))
        if new is _NOTHING:
            self._of.pop(service, None)
        else:
            self._of[service] = new
        return affected

    def _withdraw(self, service: ServiceId, key: FrontendKey, affected: set[ServiceId]) -> None:
        rest = tuple(claim for claim in self._claims.pop(key) if claim.service != service)
        if rest:
            self._claims[key] = rest
            affected.update(other.service for other in rest)
