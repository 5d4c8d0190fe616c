"""Health of the proxy: kube-proxy's rule, and the JSON of its /healthz and /livez (as of 1.36)."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from dataplane.malformed import MALFORMED

TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
"""Taint of a node that the cluster autoscaler is about to remove; load balancers should leave it (KEP-3836)."""


SHOWN = 20
"""Number of refused Service ports that an answer names."""


class _Taint(msgspec.Struct):
    key: str = ""


class _NodeSpec(msgspec.Struct):
    taints: list[_Taint] | None = None


class _NodeMeta(msgspec.Struct):
    deletion: str | None = msgspec.field(default=None, name="deletionTimestamp")


class _NodeState(msgspec.Struct):
    metadata: _NodeMeta = msgspec.field(default_factory=_NodeMeta)
    spec: _NodeSpec = msgspec.field(default_factory=_NodeSpec)


_node_state = msgspec.json.Decoder(_NodeState)


def eligible(raw: msgspec.Raw) -> bool:
    """True if load balancers may send to a node: not while it is being deleted."""
    try:
        state = _node_state.decode(raw)
    except MALFORMED:
        return True
    return state.metadata.deletion is None and all(taint.key != TO_BE_DELETED for taint in state.spec.taints or ())


class Health:
    """Healthy: starting, or no change has waited longer than `patience` seconds to get into the kernel.

    node_eligible: see `eligible`; counts for /healthz only. refused: Service ports that the mode cannot hold, whatever
    is tried. They are told, but nobody is better off where every node calls itself unhealthy for them.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self.node_eligible = True
        self.refused: list[str] = []
        self._clock = clock
        self._waiting = 0.0
        self._updated: datetime | None = None

    def queued(self) -> None:
        """Note that a change is queued; the oldest one counts."""
        self._waiting = self._waiting or self._clock()

    def updated(self) -> None:
        """Note that the kernel holds all queued changes."""
        self._waiting = 0.0
        self._updated = datetime.now(UTC)

    @property
    def started(self) -> bool:
        """True once the kernel has held the plan."""
        return self._updated is not None

    def healthy(self) -> bool:
        """True if the proxy is healthy."""
        return not self._waiting or self._clock() - self._waiting < self.patience

    def livez(self) -> tuple[int, str]:
        """Return status and body of /livez."""
        return self._answer(self.healthy(), {})

    def healthz(self) -> tuple[int, str]:
        """Return status and body of /healthz."""
        return self._answer(self.healthy() and self.node_eligible, {"nodeEligible": self.node_eligible})

    def _answer(self, good: bool, more: dict[str, object]) -> tuple[int, str]:
        """Return status and body. Both families share a transaction, so one health; none is named before the first."""
        now, healthy = datetime.now(UTC), self.healthy()
        body: dict[str, object] = {
            "lastUpdated": _go_time(now if good else self._updated),
            "currentTime": _go_time(now),
            **more,
            "healthy": healthy,
        }
        if self.started:
            each = {"lastUpdated": _go_time(self._updated), "healthy": healthy}
            body["status"] = {"IPv4": each, "IPv6": each}
        if self.refused:
            body["refusedServicePorts"] = self.refused[:SHOWN]
        return (200 if good else 503), json.dumps(body, separators=(",", ":"))


def _go_time(when: datetime | None) -> str:
    """Format a time as Go's JSON does (RFC 3339, no zeros at the end of a fraction); Go's zero time for none."""
    if when is None:
        return "0001-01-01T00:00:00Z"
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"
