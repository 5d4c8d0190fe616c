"""What the ebpf plane answers about its traffic, from maps that are open."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from dataplane.model.net import Protocol, host_port
from dataplane.plan.types import EntryKey, Table
from dataplane.planes.answers import HookExit, Refused, Traffic, Usage
from dataplane.planes.clients import Client
from dataplane.planes.decisions import Asked, Decision, DecisionStream, Kind, matches
from dataplane.planes.ebpf.flows.collect import Collector, refused
from dataplane.planes.ebpf.host_routing.table import HostRouting, counts, permitted
from dataplane.planes.ebpf.maps.layout import reason_meanings
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.views import records as views
from dataplane.planes.ebpf.views.events import ALL_HOOKS, Event, EventStream
from dataplane.planes.host_routes import HostRoutes, Way

REFUSED = frozenset({"no_endpoint", "policy_drop", "source_range"})
"""Passed on to be refused by the slow path."""
DROPPED = frozenset(
    {
        *("rewrite_failed", "drop_range", "no_way_out", "drop_policy", "header_chain", "port_taken"),
        *(f"tunnel_{what}" for what in ("sender", "format", "source", "frontend", "endpoint", "option", "lost")),
    }
)
"""The same as bpf/capture.h, drops(), and bpf/forward.c, tell_unsent()."""
UNSERVED = frozenset({"snat_exhausted"})
"""Passed on since something ran out; so are all reasons that end in `_full`, which name a map."""
NEW = frozenset({"connected", "datagram", "new_flow", "moved", "begun"})


def _fate(reason: str) -> str:
    """What became of the packets that were counted with a reason, "" for those that were served as they should be."""
    if reason in DROPPED:
        return "dropped"
    if reason in REFUSED:
        return "left to the slow path to refuse"
    return "left to the slow path to serve" if reason.endswith("_full") or reason in UNSERVED else ""


def kind_of(reason: str) -> Kind:
    """What a decision for a reason is to a person."""
    if reason in NEW:
        return Kind.NEW
    if reason in DROPPED | REFUSED:
        return Kind.REFUSED
    return Kind.UNSERVED if _fate(reason) else Kind.PACKET


def traffic(maps: MapSet) -> Traffic:
    """What the programs counted."""
    ways = [
        HookExit(hook, reason, count, _fate(reason))
        for hook, reasons in views.counters(maps).items()
        for reason, count in reasons.items()
    ]
    return Traffic(views.service_counters(maps), ways)


def refused_by_programs(traffic: Traffic) -> list[Refused]:
    """The ways out of programs that were none for packets that are served."""
    return [Refused(way.hook, way.reason, way.times, way.fate) for way in traffic.hook_exits if way.fate]


def clients(maps: MapSet, table: Table) -> Iterator[Client]:
    """Remembered clients that have not expired. table: what the plane reads back."""
    seconds = {row.service: row.affinity_seconds for row in table.values()}
    for sticky in views.affinity(maps):
        left = seconds.get(sticky.service, 0) - sticky.idle_seconds
        if left > 0:
            yield Client(sticky.service, None, sticky.client, sticky.backend, round(left))


def usage(maps: MapSet, left_out: dict[str, int], collector: Collector | None) -> Usage:
    """What the maps take, and the collector's last round, where there is one."""
    return Usage(views.memory(maps), left_out, collector.rounds if collector is not None else (), refused(maps))


def host_routes(routing: HostRouting) -> HostRoutes:
    """What the one who keeps host routing knows of it."""
    devices = [Way(name, reason or "") for name, reason in routing.devices()]
    return HostRoutes(
        devices, [Way(address, reason or "") for address, reason in routing.addresses()], routing.counts()
    )


def permitted_routes(maps: MapSet) -> HostRoutes:
    """What the maps say of it: which addresses may go past the stack, and the packets."""
    return HostRoutes((), [Way(address) for address in sorted(permitted(maps))], counts(maps))


class EbpfDecisions(DecisionStream):
    """What the programs report. Takes the maps over."""

    def __init__(self, maps: MapSet, asked: Asked) -> None:
        self._maps, self._service = maps, asked.service
        keys = views.service_keys(maps)
        self._names = {index: key.service for index, key in keys.items()}
        self._between_nodes = bool(maps.node()["tunnel_port"])
        chosen = [index for index, key in keys.items() if asked.service and _asked_for(key, asked)]
        hooks = [name for hook in asked.hooks for name in ALL_HOOKS[hook]]
        self._stream = EventStream(maps, asked.protocol, chosen[0] if len(chosen) == 1 else None, hooks)

    def services(self) -> Collection[str]:
        """See DecisionStream.services."""
        return self._names.values()

    def reasons(self) -> Mapping[str, tuple[Kind, str]]:
        """See DecisionStream.reasons."""
        return {name: (kind_of(name), meaning) for name, meaning in reason_meanings().items()}

    def poll(self, seconds: float) -> Sequence[Decision]:
        """See DecisionStream.poll."""
        return list(self._decisions(self._stream.poll(seconds)))

    def fileno(self) -> int:
        """See DecisionStream.fileno."""
        return self._stream.fileno()

    def translation(
        self, protocol: int, source: tuple[str, int], destination: tuple[str, int]
    ) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """See DecisionStream.translation."""
        return views.translation(self._maps, protocol, source, destination)

    def _decisions(self, events: Sequence[Event]) -> Iterator[Decision]:
        for event in events:
            if event.service is not None and event.service not in self._names:
                self._names = views.service_names(self._maps)
            name = self._names.get(event.service, "") if event.service is not None else ""
            if not self._service or matches(name, self._service):
                yield _decision(event, name)._replace(forwarded=self._forwarded(event))

    def _forwarded(self, event: Event) -> str:
        if not self._between_nodes or event.service is None or not event.ifindex:
            return ""
        return views.sent_by(self._maps, event.protocol, event.source, event.destination)

    def close(self) -> None:
        """Stop watching."""
        self._stream.close()
        self._maps.close()


def _asked_for(key: EntryKey, asked: Asked) -> bool:
    """True if decisions about a Service port are to be reported. The programs take one index as a filter."""
    return (
        matches(key.service, asked.service) and asked.protocol in (0, key.protocol) and asked.family in (0, key.family)
    )


def _decision(event: Event, service: str) -> Decision:
    known = {protocol.value: protocol.text for protocol in Protocol}
    source, port = event.source
    return Decision(
        round(event.ns / 1e9, 6),
        event.hook,
        event.reason,
        known.get(event.protocol, str(event.protocol)),
        source if source.startswith("netns:") else host_port(source, port),
        host_port(*event.destination),
        service,
        host_port(*event.backend) if event.backend else "",
        event.ifindex,
        event.length,
        kind_of(event.reason),
        reason_meanings().get(event.reason, ""),
    )
