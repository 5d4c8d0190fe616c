"""Waiting for pods: until they are ready, or for why they are not, as `kubectl describe` tells it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, KubectlError
from dataplane.model.net import Family, family_of

_PAUSE_SECONDS = 0.5
_HOPELESS = (
    "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CrashLoopBackOff",
    "CreateContainerError", "RunContainerError",
)  # fmt: skip
"""Reasons of a container to wait that waiting does not help."""


class PodState(NamedTuple):
    """What a Pod's status says. waits_for: why it is not ready, "" where nothing is told. hopeless: it will not be."""

    name: str
    addresses: tuple[str, ...]
    ready: bool
    waits_for: str = ""
    hopeless: bool = False

    def address(self, family: Family) -> str:
        """Its address of a family. Raises ClusterError."""
        found = [address for address in self.addresses if family_of(address) is family]
        if not found:
            raise ClusterError(f"pod {self.name} has no address of IPv{family.value}; try another --family")
        return found[0]


def state(item: Any) -> PodState:
    """Of a Pod as the API server sends it."""
    status, name = item.get("status", {}), item["metadata"]["name"]
    conditions = {c.get("type"): c for c in status.get("conditions", ())}
    addresses = tuple(entry["ip"] for entry in status.get("podIPs", ()) if entry.get("ip"))
    ready = conditions.get("Ready", {}).get("status") == "True" and bool(addresses)
    if ready:
        return PodState(name, addresses, True)
    if status.get("phase") == "Failed":
        told = _ended(status) or ": ".join(filter(None, (status.get("reason"), status.get("message"))))
        return PodState(name, addresses, False, told or "it has ended", True)
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if reason and reason != "ContainerCreating":
            told = ": ".join(filter(None, (reason, waiting.get("message", ""))))
            return PodState(name, addresses, False, told, reason in _HOPELESS)
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        told = ": ".join(filter(None, (scheduled.get("reason"), scheduled.get("message"))))
        return PodState(name, addresses, False, told)
    return PodState(name, addresses, False)


def _ended(status: Any) -> str:
    """Why its container has ended."""
    for container in status.get("containerStatuses", ()):
        over = container.get("state", {}).get("terminated", {})
        if over:
            details = (over.get("reason", ""), over.get("message", ""))
            return ": ".join(filter(None, details)) + f" (exit status {over.get('exitCode', '?')})"
    return ""


def wait(kubectl: Kubectl, names: Sequence[str], seconds: float, say: Callable[[str], None]) -> dict[str, PodState]:
    """The pods once all are ready. Raises ClusterError when one cannot be, or is not within `seconds`."""
    end, told = time.monotonic() + seconds, ""
    while True:
        items = kubectl.items("pods", "pods")
        found = {each.name: each for each in map(state, items) if each.name in names}
        missing = [name for name in names if name not in found or not found[name].ready]
        if not missing:
            return found
        late = time.monotonic() > end
        first = next((found[n] for n in missing if n in found and found[n].hopeless), found.get(missing[0]))
        if late or (first and first.hopeless):
            raise ClusterError(_complaint(kubectl, first or PodState(missing[0], (), False), seconds, late))
        if first and first.waits_for and first.waits_for != told:
            told = first.waits_for
            say(f"pod {first.name} waits: {told}")
        time.sleep(_PAUSE_SECONDS)


def _complaint(kubectl: Kubectl, pod: PodState, seconds: float, late: bool) -> str:
    """Which pod does not come up and why; its last Warning Event says more than its status."""
    reasons = [pod.waits_for, *_warnings(kubectl, pod.name)]
    reasons = [text for text in dict.fromkeys(reasons) if text]
    when = f"is not ready after {seconds:.0f} s (--timeout)" if late and not pod.hopeless else "cannot start"
    return f"pod {pod.name} {when}: {'; '.join(reasons) or 'nothing is told of why; is its kubelet alive?'}"


def _warnings(kubectl: Kubectl, name: str) -> list[str]:
    """What the pod's Warning Events say, the latest two; nothing where they may not be read."""
    try:
        items = kubectl.items("events", "events", "--field-selector", f"involvedObject.name={name},type=Warning")
    except KubectlError:
        return []  # the status has been told; Events are more of it
    items.sort(key=lambda item: item.get("lastTimestamp") or item.get("eventTime") or "")
    return [f"{item.get('reason', '')}: {item.get('message', '')}" for item in items[-2:]]
