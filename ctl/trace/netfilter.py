"""What netfilter tells of a connection: nftables' trace, that of legacy iptables where it has rules, and conntrack."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ctl.trace.seen import Layer, Seen, Target, rank
from dataplane.errors import HotplaneError
from dataplane.kernel.devices import device_name
from dataplane.kernel.netlink.conntrack import ConntrackError
from dataplane.kernel.netlink.conntrack_flow import ConntrackLookup, Tracked
from dataplane.kernel.netlink.legacy_trace import LegacyTrace, TracedRule
from dataplane.kernel.netlink.netlink import Refused
from dataplane.kernel.nft.trace import (
    POINTS,
    Ends,
    Traced,
    TraceMessages,
    TraceTable,
    Wanted,
    ends_of,
    rule_numbers,
)
from dataplane.kernel.xtables import XtablesError, builtin_chains
from dataplane.model.net import Family
from dataplane.planes.path import Kind, Step
from dataplane.resource import Resource

_MOST_TARGETS = 256
"""Of more endpoints than that, the first ones are looked for in the stack."""
_ICMP = (1, 58)
_BUILTIN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
"""Of legacy tables' chains at their hooks (enum nf_ip_hook_priorities); of nat, where sources are translated, 100."""
_RST = 0x04


class _Packet(NamedTuple):
    """A marked packet on its way: its ends as they were seen last, whether it goes back to the client, the client's
    port, and the rank of the point that it passed last."""

    ends: Ends
    answer: bool
    client: int
    rank: int


class NetfilterSource(Resource):
    """Watches while it is open, in this thread's network namespace. limits: what this kernel does not tell, one
    sentence each. Raises HotplaneError if not even connection tracking can be asked."""

    def __init__(self, target: Target) -> None:
        self._target, self._resources = target, contextlib.ExitStack()
        self.limits: list[str] = []
        packet = target.decision.packet
        targets = target.targets(_MOST_TARGETS)
        self._wanted = Wanted(target.family, packet.protocol, packet.source, targets)
        self._packets: dict[int, _Packet] = {}
        self._rules: dict[tuple[str, str, str], dict[int, int]] = {}
        self._notes = _notes(target.path)
        self._hook = "prerouting"
        self._clients: dict[int, tuple[str, int]] = {}
        self._tracked: dict[int, Tracked] = {}
        self._answers: set[int] = set()
        with contextlib.ExitStack() as undo:
            self._log = self._open_log(undo)
            self._conntrack = undo.enter_context(ConntrackLookup())
            self._messages: TraceMessages | None = None
            self._table = ""
            self._open_trace(undo)
            self._resources = undo.pop_all()

    def _open_trace(self, undo: contextlib.ExitStack) -> None:
        """nftables' trace: without it what programs, conntrack and the sender tell is left."""
        try:
            messages = undo.enter_context(TraceMessages())
            self._table = undo.enter_context(TraceTable(self._wanted)).name
            self._messages = messages
        except (HotplaneError, OSError) as error:
            self.limits.append(f"what chains do is not told: {error}")

    def _open_log(self, undo: contextlib.ExitStack) -> LegacyTrace | None:
        """The trace of legacy iptables, if its tables have rules here."""
        try:
            if not any(c.rules for c in builtin_chains() if c.family is self._target.family):
                return None
            return undo.enter_context(LegacyTrace(self._target.family))
        except (Refused, OSError, XtablesError) as error:
            self.limits.append(
                f"rules of legacy iptables are not told one by one ({error}); their translations are seen nevertheless"
            )
            return None

    @property
    def files(self) -> list[int]:
        """What can be read when there is something new."""
        return [each.fileno() for each in (self._messages, self._log) if each is not None]

    def take(self) -> Iterator[Seen]:
        """What was told since the last call."""
        for message in self._messages.take() if self._messages is not None else ():
            yield from self._of_nftables(message)
        if self._log is not None:
            for logged in self._log.take():
                seen = self._of_iptables(logged)
                if seen is not None:
                    yield seen
        yield from self._of_conntrack()

    def _of_nftables(self, message: Traced) -> Iterator[Seen]:
        if message.table == self._table:
            yield from self._at_point(message)
            return
        packet = self._known(message)
        if packet is None or (not message.rule and message.verdict != "drop"):
            return  # a chain that had nothing to say
        if message.ends is not None and message.ends != packet.ends:
            packet = self._packets[message.packet] = packet._replace(ends=message.ends)
        rule = self._rule(message) if message.rule else "policy"
        yield Seen(
            message.seconds,
            Layer.NFTABLES,
            f"{message.family} {message.table} {message.chain}",
            f"{rule}: {message.verdict}",
            reason=self._notes.get(message.chain, ""),
            before=packet.ends,
            answer=packet.answer,
            rank=packet.rank,
            refused=message.verdict == "drop",
            client=packet.client,
        )

    def _known(self, message: Traced) -> _Packet | None:
        """The packet of a message. What is sent to this node itself comes in again, with another number."""
        found = self._packets.get(message.packet)
        if found is None and message.ends is not None:
            found = next((p for p in self._packets.values() if p.ends == message.ends), None)
            if found is not None:
                self._packets[message.packet] = found
        return found

    def _rule(self, message: Traced) -> str:
        place = (message.family, message.table, message.chain)
        if message.rule not in self._rules.get(place, {}):
            self._rules[place] = rule_numbers(*place)
        number = self._rules[place].get(message.rule)
        return f"rule {number}" if number else "a rule that is gone"

    def _at_point(self, message: Traced) -> Iterator[Seen]:
        """A packet at one of the trace's own chains, each of which tells twice: of its rule, and of its policy."""
        point, ends = POINTS[message.chain], message.ends
        if ends is None:
            return
        first = message.chain in ("request-in", "request-out", "answer-in", "answer-out")
        if first and not message.rule:  # its policy alone: the packet was marked by an earlier chain, or at it
            return
        known = self._begin(message, ends) if first else self._known(message)
        if known is None:
            return
        here = rank(point.hook, point.priority)
        before, self._packets[message.packet] = known.ends, known._replace(ends=ends, rank=here)
        changed = before != ends
        if message.chain.startswith("translated") and not changed:
            return
        device = message.devices[0] if point.hook in ("prerouting", "input") else message.devices[1]
        what = point.what
        if first and message.protocol in _ICMP:
            what += ": an ICMP error"
        elif message.flags & _RST:
            what += ": a reset"
        yield Seen(
            message.seconds,
            Layer.STACK,
            point.hook,
            "is translated" if message.chain.startswith("translated") else what,
            device=device_name(device),
            before=before,
            after=ends if changed else None,
            answer=known.answer,
            rank=here,
            client=known.client,
            later=known.answer and known.client in self._answers and message.chain == "answer-in",
        )

    def _begin(self, message: Traced, ends: Ends) -> _Packet:
        """A packet that was marked just now."""
        answer = message.chain.startswith("answer")
        if not answer:
            client = ends.source[1]
            self._clients.setdefault(client, ends.destination)
        else:
            ports = [port for port in self._clients if self._answers_to(port, ends)]
            client = ports[0] if ports else next(iter(self._clients), 0)
        point = POINTS[message.chain]
        return _Packet(ends, answer, client, rank(point.hook, point.priority))

    def _answers_to(self, port: int, ends: Ends) -> bool:
        """True if a packet back to the client goes to this port of its, or to what stands for it."""
        entry = self._tracked.get(port)
        return ends.destination[1] in ((port, entry.seen[1]) if entry else (port,))

    def _of_iptables(self, logged: TracedRule) -> Seen | None:
        """A rule that a marked packet met. Its own ends tell whose it is."""
        if logged.kind != "rule" or not logged.payload:
            return None
        network = 40 if self._target.family is Family.IPV6 else (logged.payload[0] & 15) * 4
        ends, _ = ends_of(logged.payload, logged.payload[network:])
        packet = next((p for p in self._packets.values() if p.ends == ends), None)
        client = self._target.decision.packet.source
        answer = packet.answer if packet is not None else ends.source[0] != client
        device = device_name(logged.devices[0] or logged.devices[1])
        if logged.chain in _BUILTIN:  # from where the chains behind it are jumped to
            self._hook = logged.chain.lower()
        priority = _PRIORITIES.get(logged.table, 0)
        translates_source = logged.table == "nat" and self._hook in ("postrouting", "input")
        return Seen(
            logged.seconds,
            Layer.IPTABLES,
            f"{logged.table} {logged.chain}",
            f"rule {logged.rule}",
            device=device,
            reason=self._notes.get(logged.chain, ""),
            before=ends,
            answer=answer,
            rank=rank(self._hook, -priority if translates_source else priority),
            client=packet.client if packet is not None else 0,
        )

    def _of_conntrack(self) -> Iterator[Seen]:
        """What became of the entry of each connection that was seen."""
        for port, destination in self._clients.items():
            client = (self._target.decision.packet.source, port)
            try:
                entry = self._conntrack.find(self._target.decision.packet.protocol, client, destination)
            except ConntrackError as error:
                self.limits.append(str(error))
                self._clients = {}
                return
            before = self._tracked.get(port)
            if entry is None or entry == before:
                continue
            self._tracked[port] = entry
            yield _of_entry(entry, before)

    def expect(self, port: int) -> None:
        """Ask connection tracking about this port of the client's, too: a sender's, which nothing else may tell."""
        self._clients.setdefault(port, self._target.frontend)

    def close(self) -> None:
        """Watch no more, and remove the table; may be called twice."""
        self._resources.close()


def _notes(path: Sequence[Step]) -> dict[str, str]:
    """What is said of each chain, by its name; of a base chain, the elements that are looked up from it."""
    found: dict[str, str] = {}
    for step in path:
        looked_up = step.kind is not Kind.CHAIN
        words = [step.note or step.key or step.result]
        name = step.name
        if looked_up:
            parts = step.hook.split()
            name = parts[1] if len(parts) > 1 and step.kind in (Kind.MAP, Kind.SET) else ""
            words = [f"{step.name.rpartition(' ')[2]} {{ {step.key} }}{f' -> {step.result}' if step.result else ''}"]
        if name and name not in found and words[0]:
            found[name] = words[0]
    return found


def _of_entry(entry: Tracked, before: Tracked | None) -> Seen:
    words = [entry.state or ("answered" if entry.answered else "not answered")]
    if entry.assured:
        words.append("assured")
    what = "new entry" if before is None else "entry"
    return Seen(
        time.monotonic(),
        Layer.CONNTRACK,
        "conntrack",
        f"{what}: {', '.join(words)}",
        before=Ends(entry.client, entry.frontend),
        after=Ends(entry.seen, entry.backend),
        answer=before is not None and entry.answered,
        rank=rank("conntrack"),
        client=entry.client[1],
        later=before is not None and before.answered,
    )
