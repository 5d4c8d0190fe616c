"""What a node's programs refuse, as sentences for the page: who asked for what, and why not."""

from collections import Counter
from collections.abc import Iterable

from ctl.ui.view import Event
from dataplane.planes.base import Plane
from dataplane.planes.decisions import Asked, Decision, DecisionStream, Kind

MOST = 20
"""So many refusals are told one by one at a look."""
_BAD = (Kind.REFUSED, Kind.UNSERVED)


class Refusals:
    """The refusals of one node since the last look. Enter its network namespace for every call."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._plane: Plane | None = None
        self._stream: DecisionStream | None = None

    def since(self, plane: Plane) -> list[Event] | None:
        """What was refused since the last call for this plane; None if its rules report none. Raises PlaneError."""
        if plane is not self._plane:
            self.close()
            self._plane, self._stream = plane, plane.decisions(Asked())
        if self._stream is None:
            return None
        return told(self._node, self._stream.poll(0))

    def close(self) -> None:
        """End the reports, which cost the programs time."""
        if self._stream is not None:
            self._stream.close()
        self._plane = self._stream = None


def told(node: str, decisions: Iterable[Decision]) -> list[Event]:
    """Refusals as sentences, alike ones as one. A packet that two hooks report, XDP and then tc, counts once."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for each in decisions:
        if each.kind in _BAD:
            what = (_address(each.source), f"{each.destination}/{each.protocol}", each.meaning or each.reason)
            counts.setdefault(what, Counter())[each.hook] += 1
    events = []
    for (source, destination, why), by_hook in counts.items():
        number = max(by_hook.values())
        times = f", {number} packets" if number > 1 else ""
        events.append(Event("refusal", node, f"{source} → {destination}: {why}{times}"))
    more = [Event("refusal", node, f"and {len(events) - MOST} more kinds")] if len(events) > MOST else []
    return [*events[:MOST], *more]


def _address(source: str) -> str:
    """A source without its port; a socket that has no address yet as it is."""
    return source if source.startswith("netns:") else source.rpartition(":")[0].strip("[]")
