"""What a plane and conntrack hold, as records to print. Each view returns (records, the table's columns)."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from ctl import ebpf_views
from ctl.drift import ranges_text, route_text
from ctl.output import Record
from dataplane.kernel.conntrack_list import Connection, translated_connections
from dataplane.model.net import host_port
from dataplane.plan.types import FrontendKey, Row, Table
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.iptables.clients import packet_counts
from dataplane.planes.iptables.clients import remembered_clients as iptables_clients
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.nftables.clients import remembered_clients as nftables_clients
from dataplane.planes.nftables.ping import answered_pings
from dataplane.planes.nftables.ping_rules import COUNTER as PING_COUNTER

View = tuple[list[Record], tuple[str, ...]]


def _sorted(table: Table) -> list[tuple[FrontendKey, Row]]:
    return sorted(table.items(), key=lambda item: (item[1].service, item[0].family, item[0].address, item[0].port))


def _texts(pairs: tuple[tuple[str, int], ...]) -> list[str]:
    return [host_port(address, port) for address, port in pairs]


def services(plane: Plane) -> View:
    """One record a frontend."""
    records: list[Record] = [
        {
            "service": row.service,
            "frontend": str(key),
            "pods": route_text(row.routes.pod),
            "node": route_text(row.routes.node),
            "outside": route_text(row.routes.outside),
            "cluster": _texts(row.cluster),
            "local": _texts(row.local),
            "endpoints": len({*row.cluster, *row.local}),
            "affinitySeconds": row.affinity_seconds,
            "sources": ranges_text(row.source_ranges),
        }
        for key, row in _sorted(plane.read_back())
    ]
    columns = ("service", "frontend", "pods", "node", "outside", "endpoints", "affinitySeconds", "sources")
    return records, columns


def endpoints(plane: Plane) -> View:
    """One record an endpoint of a Service port: which sets it is in, which frontends lead to it."""
    found: dict[tuple[str, tuple[str, int]], tuple[set[str], list[str]]] = defaultdict(lambda: (set(), []))
    for key, row in _sorted(plane.read_back()):
        for backend in sorted({*row.cluster, *row.local}):
            sets, frontends = found[(row.service, backend)]
            sets |= {name for name, pairs in (("cluster", row.cluster), ("local", row.local)) if backend in pairs}
            frontends.append(str(key))
    records: list[Record] = [
        {"service": service, "endpoint": host_port(*backend), "sets": sorted(sets), "frontends": frontends}
        for (service, backend), (sets, frontends) in found.items()
    ]
    return records, ("service", "endpoint", "sets", "frontends")


def affinity(plane: Plane) -> View:
    """One record a remembered client. The nftables mode keeps IPv6 clients as hashes: they are there, but nameless."""
    columns = ("service", "frontend", "client", "endpoint", "secondsLeft")
    own = ebpf_views.affinity(plane) if isinstance(plane, EbpfPlane) else []
    clients = iptables_clients() if isinstance(plane, IptablesPlane) else nftables_clients()
    records: list[Record] = [
        {
            "service": client.service,
            "frontend": str(client.frontend) if client.frontend else "",
            "client": client.address,
            "endpoint": host_port(*client.backend) if client.backend else "",
            "secondsLeft": client.seconds_left,
        }
        for client in clients
    ]
    return own + records, columns


def _claimed(table: Table) -> Iterator[tuple[FrontendKey, Row, Connection]]:
    """Translated connections with the frontend they were opened to; those of other programs are left out."""
    for connection in translated_connections():
        address, port = connection.frontend
        for place in (address, ""):
            key = FrontendKey(connection.family, place, connection.protocol, port)
            row = table.get(key)
            if row is not None:
                yield key, row, connection
                break


def connections(plane: Plane) -> View:
    """One record a connection through a frontend: as conntrack holds it, in ebpf mode also as the programs do."""
    records: list[Record] = [
        {
            "service": row.service,
            "frontend": str(key),
            "client": host_port(*connection.client),
            "endpoint": host_port(*connection.backend),
            "state": connection.state,
            "secondsLeft": connection.seconds_left,
        }
        for key, row, connection in _claimed(plane.read_back())
    ]
    columns: tuple[str, ...] = ("service", "frontend", "client", "endpoint", "state", "secondsLeft")
    if isinstance(plane, EbpfPlane):
        records = [*ebpf_views.flows(plane), *({**record, "by": "slow path"} for record in records)]
        columns = ("service", "frontend", "client", "endpoint", "state", "packets", "bytes", "idleSeconds", "by")
    return sorted(records, key=lambda record: (str(record["service"]), str(record["client"]))), columns


def counters(plane: Plane) -> View:
    """One record a frontend: connections that conntrack holds now, and what the rules counted, where they count.

    In ebpf mode one record a Service port, and one for each way out of each hook.
    """
    if isinstance(plane, EbpfPlane):
        columns = (
            "service",
            "connections",
            "packets",
            "bytes",
            "replyPackets",
            "replyBytes",
            "hook",
            "reason",
            "count",
        )
        return [*ebpf_views.counters(plane), *_pings()], columns
    table = plane.read_back()
    now = Counter(key for key, _, _ in _claimed(table))
    counts = packet_counts() if isinstance(plane, IptablesPlane) else None
    records: list[Record] = []
    for key, row in _sorted(table):
        counted = counts.get(key) if counts is not None else None
        records.append(
            {
                "service": row.service,
                "frontend": str(key),
                "connections": now[key],
                "opened": counted.new if counted else None,
                "refused": counted.refused if counted else None,
            }
        )
    pings = _pings() if plane.name == "nftables" else []
    shown = ("service", "frontend", "connections", "opened", "refused")
    return [*records, *pings], (*shown, "reason", "count") if pings else shown


def _pings() -> list[Record]:
    """What answers pings, where something does: one record."""
    count = answered_pings()
    return [] if count is None else [{"service": "", "frontend": "", "reason": PING_COUNTER, "count": count}]


def drops(plane: Plane) -> View:
    """What was refused or dropped: in ebpf mode by hook and reason, in iptables mode by frontend. The nftables mode's
    rules do not count."""
    if isinstance(plane, EbpfPlane):
        return ebpf_views.drops(plane), ("hook", "reason", "count", "what")
    records: list[Record] = []
    if isinstance(plane, IptablesPlane):
        counts = packet_counts()
        records = [
            {"service": row.service, "frontend": str(key), "refused": counts[key].refused}
            for key, row in _sorted(plane.read_back())
            if key in counts and counts[key].refused
        ]
    return records, ("service", "frontend", "refused")
