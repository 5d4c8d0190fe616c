"""Conflicts: two Services that claim one (address, port, protocol)."""

from collections.abc import Sequence
from typing import NamedTuple

from dataplane.model.objects import Service
from dataplane.plan.types import FrontendKey

ServiceId = tuple[str, str]
"""Namespace and name."""

_NO_TIME = "9999"  # sorts behind every RFC 3339 time: an object without a creation time is not older than any


class Claim(NamedTuple):
    """A Service's claim to a frontend; the smallest claim wins: older creationTimestamp, then namespace/name."""

    created: str
    service: ServiceId


_Held = tuple[tuple[Claim, ...], Sequence[FrontendKey]]
"""What one Service claims: its claim, alone in a tuple, and the frontends."""

_NOTHING: _Held = ((), ())


def claim_of(service_id: ServiceId, service: Service) -> Claim:
    """The claim that a Service makes to each of its frontends."""
    return Claim(service.created or _NO_TIME, service_id)


class Claims:
    """Who claims which frontend. Each operation is O(frontends of the Service that changes)."""

    def __init__(self) -> None:
        self._claims: dict[FrontendKey, tuple[Claim, ...]] = {}
        self._of: dict[ServiceId, _Held] = {}

    def winner(self, key: FrontendKey) -> Claim | None:
        """The claim that gets the frontend."""
        claims = self._claims.get(key)
        return claims[0] if claims else None

    def replace(self, service: ServiceId, claim: Claim | None, keys: Sequence[FrontendKey]) -> set[ServiceId]:
        """Set what a Service claims (claim None: nothing). Returns the *other* Services that won or lost by it."""
        held = self._of.get(service, _NOTHING)
        new: _Held = ((claim,), keys) if claim is not None and keys else _NOTHING
        affected: set[ServiceId] = set()
        if new == held:
            return affected
        for key in held[1]:
            self._withdraw(service, key, affected)
        for key in new[1]:
            claims = self._claims.setdefault(key, new[0])
            if claims is not new[0]:
                affected.update(other.service for other in claims)
                self._claims[key] = tuple(sorted((*claims, *new[0])))
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
