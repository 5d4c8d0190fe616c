"""What a mode's programs tell of a connection: decisions at connect time, at XDP and at tc."""

from collections.abc import Iterator

from ctl.trace.seen import Layer, Seen, Target, rank
from dataplane.kernel.devices import device_name
from dataplane.kernel.nft.trace import Ends
from dataplane.planes.base import Plane
from dataplane.planes.decisions import Asked, Decision, DecisionStream
from dataplane.resource import Resource

_AT_CONNECT = "netns:"
"""Begins a source that is a network namespace: at connect time a socket has no address yet."""


_BEGUN = "begun"
"""The reason of a packet whose flow XDP has begun, and which it left to tc."""


class ProgramSource(Resource):
    """Watches a Service port's decisions while it is open. plane: of the mode that is loaded. cookie: of the network
    namespace that sends, 0 = not known. why: why there is nothing to watch, "" if there is."""

    def __init__(self, target: Target, plane: Plane, cookie: int = 0) -> None:
        self._target, self._cookie, self.why = target, cookie, ""
        self._stream: DecisionStream | None = None
        self._answers_from: tuple[str, int] | None = None
        self._answers_to: tuple[str, int] | None = None
        self._answered = self._translated = False
        self._client: tuple[str, int] | None = None
        self._given: dict[Ends, Ends] = {}
        if target.entry is None:
            self.why = "no Service has this destination, so no program's decision about it is told"
            return
        key = target.entry.key
        asked = Asked(plane.stored_name(key.service), key.protocol.value, (), key.family.value)
        stream = plane.decisions(asked)
        if stream is None:
            return
        if asked.service not in stream.services():
            stream.close()
            self.why = f"the programs' maps do not have {key.service}: the slow path serves it alone"
            return
        self._stream = stream

    def fileno(self) -> int:
        """For poll and the like; -1 if nothing is watched or it cannot be waited for."""
        return self._stream.fileno() if self._stream is not None else -1

    def take(self) -> Iterator[Seen]:
        """What was told since the last call."""
        if self._stream is None:
            return
        for decision in self._stream.poll(0.0):
            seen = self._seen(decision)
            if seen is not None:
                yield seen

    def _seen(self, decision: Decision) -> Seen | None:
        """A decision about the flow; None for one about another."""
        destination = _end(decision.destination)
        if decision.source.startswith(_AT_CONNECT):
            mine = not self._cookie or decision.source == f"{_AT_CONNECT}{self._cookie}"
            return self._at_connect(decision) if mine and destination == self._target.frontend else None
        source = _end(decision.source)
        if source[0] == self._target.decision.packet.source and destination == self._target.frontend:
            return self._request(decision, Ends(source, destination))
        if source == self._answers_from and destination == self._answers_to:
            return self._answer(decision, Ends(source, destination))
        if source == self._target.frontend and destination == self._client:  # translated at the endpoint's node
            return self._answer(decision, Ends(source, destination))
        return None

    def _at_connect(self, decision: Decision) -> Seen:
        frontend, who = _end(decision.destination), (self._target.decision.packet.source, 0)
        after = Ends(who, _end(decision.endpoint)) if decision.endpoint else None
        return self._told(decision, Ends(who, frontend), after)

    def _request(self, decision: Decision, before: Ends) -> Seen:
        after, later = None, self._answered or self._translated
        if decision.endpoint and self._stream is not None:
            found = self._stream.translation(self._target.decision.packet.protocol, *before)
            if decision.reason == _BEGUN and (not found or Ends(*found) != before):  # tc will translate it
                return self._told(decision, before, None)._replace(client=before.source[1], later=later)
            # A flow that is over is in no table any more; what it had is known from its earlier packets.
            after = Ends(*found) if found else self._given.get(before, Ends(before.source, _end(decision.endpoint)))
            self._given[before] = after
            self._answers_from, self._answers_to = after.destination, after.source
            self._client, self._translated = before.source, True
        return self._told(decision, before, after)._replace(client=before.source[1], later=later)

    def _answer(self, decision: Decision, before: Ends) -> Seen:
        client = self._client
        after = Ends(self._target.frontend, client) if client else None
        seen = self._told(decision, before, after)._replace(answer=True, client=client[1] if client else 0)
        later, self._answered = self._answered, True
        return seen._replace(later=later)

    def _told(self, decision: Decision, before: Ends, after: Ends | None) -> Seen:
        return Seen(
            decision.seconds,
            Layer.EBPF,
            decision.hook,
            decision.reason,
            exact=True,
            device=device_name(decision.ifindex),
            reason=decision.meaning,
            before=before,
            after=after,
            rank=rank(decision.hook),
            refused=decision.meaning.endswith("dropped here"),
        )

    def close(self) -> None:
        """Watch no more; may be called twice."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
