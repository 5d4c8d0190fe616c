"""Records to print of what a plane and conntrack hold. Each view returns (records, the table's columns), and says
which of them a narrow terminal does without."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TypeVar

from ctl.output import NotCounted, Record
from ctl.output import Table as Columns
from ctl.store.ways import Course, SavedRoutes
from dataplane.kernel.netlink.conntrack_list import Connection, translated_connections
from dataplane.kernel.netlink.conntrack_usage import table_usage
from dataplane.model.net import Protocol, host_port
from dataplane.plan.types import FrontendKey, FrontendKind, Plan, PlanEntry, Row, Table
from dataplane.planes.answers import Flow, Traffic
from dataplane.planes.base import Plane
from dataplane.policy.dispatch import formats_of
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding
from dataplane.policy.routes import Action, Route

SLOW_PATH = "slow path"
PINGS, HOST_ROUTING = "answered_ping", "host routing"
TRAFFIC = Columns(
    ("service", "connections", "packets", "bytes", "replyPackets", "replyBytes"),
    ("replyPackets", "replyBytes", "bytes"),
)
WAYS_OUT = Columns(("hook", "reason", "count"))
_BY_SLOW_PATH = Course("", "the slow path translates it")
View = tuple[list[Record], Columns]
_Value = TypeVar("_Value")


class Reading:
    """What a plane holds. Its table is read when it is asked for first, and kept. Raises PlaneError."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    @cached_property
    def table(self) -> Table:
        """See Plane.read_back."""
        return self.plane.read_back()


def _route(route: Route) -> Record:
    """What becomes of packets of one class of sources."""
    forward = route.action is Action.FORWARD
    return {
        "action": route.action.value,
        "set": route.scope.value if forward else None,
        "masquerade": forward and route.masquerade,
    }


def _way_text(value: object) -> str:
    """A `_route` as text."""
    assert isinstance(value, dict), "made by _route"
    parts = [value["action"], value["set"], "masquerade" if value["masquerade"] else None]
    return " ".join(filter(None, parts))


def _sources_text(value: object) -> str:
    """The clients that may use a frontend, as text."""
    assert value is None or isinstance(value, list), "CIDRs, or None for everyone"
    return "everyone" if value is None else ", ".join(value) or "nobody"


def _sorted(table: Table) -> list[tuple[FrontendKey, Row]]:
    return sorted(table.items(), key=lambda item: (item[1].service, item[0].family, item[0].address, item[0].port))


def _texts(pairs: tuple[tuple[str, int], ...]) -> list[str]:
    return [host_port(address, port) for address, port in dict.fromkeys(pairs)]


def services(read: Reading) -> View:
    """Return one record per frontend."""
    records: list[Record] = [
        {
            "service": row.service,
            "frontend": str(key),
            "pods": _route(row.routes.pod),
            "node": _route(row.routes.node),
            "outside": _route(row.routes.outside),
            "cluster": _texts(row.cluster),
            "local": _texts(row.local),
            "algorithm": row.algorithm.value,
            "endpoints": len({*row.cluster, *row.local}),
            "affinitySeconds": row.affinity_seconds,
            "sources": None if row.source_ranges is None else list(row.source_ranges.cidrs),
        }
        for key, row in _sorted(read.table)
    ]
    columns = ("service", "frontend", "pods", "node", "outside", "endpoints", "affinitySeconds", "sources")
    texts = {**dict.fromkeys(("pods", "node", "outside"), _way_text), "sources": _sources_text}
    return records, Columns(columns, ("affinitySeconds", "sources", "node", "pods", "outside"), ("sources",), texts)


def endpoints(read: Reading) -> View:
    """Return one record per endpoint of a Service port: its sets, the frontends that lead to it, and its weight in
    proportion to the others'."""
    found: dict[tuple[str, tuple[str, int]], tuple[dict[str, int], list[str]]] = defaultdict(lambda: ({}, []))
    for key, row in _sorted(read.table):
        places = {"cluster": Counter(row.cluster), "local": Counter(row.local)}
        for backend in sorted({*row.cluster, *row.local}):
            sets, frontends = found[(row.service, backend)]
            sets |= {name: members[backend] for name, members in places.items() if backend in members}
            frontends.append(str(key))
    records: list[Record] = [
        {
            "service": service,
            "endpoint": host_port(*backend),
            "sets": sorted(sets),
            "weight": max(sets.values()),
            "frontends": frontends,
        }
        for (service, backend), (sets, frontends) in found.items()
    ]
    return records, Columns(("service", "endpoint", "sets", "frontends"), ("sets", "frontends"), ("frontends",))


def affinity(read: Reading) -> View:
    """One record a remembered client. Some planes keep clients as hashes: they are there, but nameless."""
    columns = Columns(("service", "frontend", "client", "endpoint", "secondsLeft"), ("secondsLeft",))
    records: list[Record] = [
        {
            "service": client.service,
            "frontend": str(client.frontend) if client.frontend else "",
            "client": client.address,
            "endpoint": host_port(*client.backend) if client.backend else "",
            "secondsLeft": client.seconds_left,
        }
        for client in read.plane.remembered_clients()
    ]
    return records, columns


def claimed(table: Mapping[FrontendKey, _Value]) -> Iterator[tuple[FrontendKey, _Value, Connection]]:
    """Return the connections that conntrack translates with the frontend they were opened to, and what the table has of
    it, without those of other programs."""
    for connection in translated_connections():
        address, port = connection.frontend
        for place in (address, ""):
            key = FrontendKey(connection.family, place, connection.protocol, port)
            if key in table:
                yield key, table[key], connection
                break


def connections(read: Reading, routes: SavedRoutes | None = None) -> View:
    """One record a connection through a frontend: as conntrack holds it, and as the plane does, where it tracks any.
    routes: what the daemon says of the node's stack; then, where the plane tracks any, which way their packets go."""
    records: list[Record] = [
        {
            "service": row.service,
            "frontend": str(key),
            "client": host_port(*connection.client),
            "endpoint": host_port(*connection.backend),
            "state": connection.state,
            "secondsLeft": connection.seconds_left,
        }
        for key, row, connection in claimed(read.table)
    ]
    columns = Columns(("service", "frontend", "client", "endpoint", "state", "secondsLeft"), ("secondsLeft", "state"))
    flows = read.plane.flows()
    if flows is not None:
        mine = [{**_flow(flow), **_way_of(flow, routes)} for flow in flows if flow.service]
        others = {"by": SLOW_PATH, **({} if routes is None else {"way": _BY_SLOW_PATH.record()})}
        records = [*mine, *({**record, **others} for record in records)]
        shown: tuple[str, ...] = ("service", "frontend", "client", "endpoint", "state", "packets", "bytes")
        shown += ("idleSeconds", "by")
        less: tuple[str, ...] = ("idleSeconds", "bytes", "packets", "by", "state")
        if any("forwarded" in record for record in mine):
            shown, less = (*shown, "forwarded"), ("forwarded", *less)
        columns = Columns(shown, less)
        if routes is not None:
            columns = Columns((*shown, "way"), ("way", *less), ("way",), {"way": Course.text_of})
    return sorted(records, key=lambda record: (str(record["service"]), str(record["client"]))), columns


def _flow(flow: Flow) -> Record:
    return {
        "service": flow.service,
        "frontend": f"{host_port(*flow.destination)}/{Protocol(flow.protocol).text}",
        "client": host_port(*flow.source) if flow.source else "socket",
        "endpoint": host_port(*flow.backend),
        "state": flow.state,
        "secondsLeft": None,
        "idleSeconds": round(flow.idle_seconds, 1),
        "packets": flow.packets,
        "bytes": flow.bytes,
        "by": "packet programs" if flow.source else "connect",
        **({"forwarded": flow.forwarded} if flow.forwarded else {}),
    }


def _way_of(flow: Flow, routes: SavedRoutes | None) -> Record:
    """Return which way a flow's packets go now: as a new one's, unless what it was before keeps it on the stack."""
    if routes is None:
        return {}
    course = routes.way(flow.source[0] if flow.source else "", flow.backend[0])
    return {"way": (Course("", flow.stays) if course.out and flow.stays else course).record()}


def with_forwarding(records: list[Record], columns: Columns, plan: Plan) -> View:
    """Add to records of frontends or endpoints how traffic from outside gets to endpoints of other nodes, by the plan;
    nothing where no Service asks for more than SNAT."""
    entries: dict[str, list[PlanEntry]] = defaultdict(list)
    for entry in plan.entries.values():
        if entry.forwarding is not Forwarding.SNAT:
            entries[entry.key.service].append(entry)
    if not entries:
        return records, columns
    tunnels = {
        (name, str(backend)): text
        for name, found in entries.items()
        for entry in found
        for backend, text in _tunnels(entry, plan)
    }
    ways = {
        str(frontend.key): _way(entry)
        for found in entries.values()
        for entry in found
        for frontend in entry.frontends
        if frontend.kind is not FrontendKind.CLUSTER_IP
    }

    def forwarding(record: Record) -> str:
        if "endpoint" in record:
            return tunnels.get((str(record["service"]), str(record["endpoint"])), "")
        return ways.get(str(record["frontend"]), "")

    names, secondary = (*columns.columns, "forwarding"), ("forwarding", *columns.secondary)
    shown = Columns(names, secondary, columns.folded, columns.texts)
    return [{**record, "forwarding": forwarding(record)} for record in records], shown


def _tunnels(entry: PlanEntry, plan: Plan) -> Iterator[tuple[Backend, str]]:
    """Yield the backends of an entry that packets are forwarded to: by which node, and in what."""
    pairs = list(zip(entry.cluster, entry.tunnels, strict=True))
    formats = formats_of(pairs, plan.tunnel_formats, entry.key.protocol)
    for backend, address in pairs:
        if address:
            title = formats.get(backend, Dispatch.VXLAN).title
            yield backend, f"{entry.forwarding.value} by {address} in {title}"


def _way(entry: PlanEntry) -> str:
    remote = [t for b, t in zip(entry.cluster, entry.tunnels, strict=True) if not b.local]
    if all(remote):
        return str(entry.forwarding.value)
    return f"{entry.forwarding.value} to {sum(map(bool, remote))} of {len(remote)}, else snat"


def counters(read: Reading) -> View:
    """Where a plane counts by itself, one record a Service port; else one a frontend: connections that conntrack holds
    now, and what the rules counted, where they count."""
    traffic = read.plane.traffic()
    if traffic is not None:
        return list(_by_service(traffic)), TRAFFIC
    table = read.table
    now = Counter(key for key, _, _ in claimed(table))
    counts = read.plane.frontend_counts() or {}
    records: list[Record] = []
    for key, row in _sorted(table):
        counted = counts.get(key)
        records.append(
            {
                "service": row.service,
                "frontend": str(key),
                "connections": now[key],
                "opened": counted.new if counted else None,
                "refused": counted.refused if counted else None,
            }
        )
    return records, Columns(("service", "frontend", "connections", "opened", "refused"), ("refused", "opened"))


def decisions(read: Reading) -> View:
    """Return one record for each way out of each hook of a plane's programs, for each way of host routing, and for the
    pings that were answered."""
    traffic = read.plane.traffic()
    ways = _ways_out(traffic) if traffic is not None else ()
    return [*ways, *_host_routes(read.plane), *_pings(read.plane)], WAYS_OUT


def _by_service(traffic: Traffic) -> Iterator[Record]:
    for name, counted in sorted(traffic.services.items()):
        yield {
            "service": name,
            "connections": counted.connections,
            "packets": counted.packets,
            "bytes": counted.bytes,
            "replyPackets": counted.reply_packets,
            "replyBytes": counted.reply_bytes,
        }


def _ways_out(traffic: Traffic) -> Iterator[Record]:
    for way in traffic.hook_exits:
        yield {"hook": way.hook, "reason": way.reason, "count": way.times}


def _host_routes(plane: Plane) -> Iterator[Record]:
    """Yield the packets by the way that they went past or by the node's stack, if the plane takes any past it."""
    routes = plane.host_routes()
    for way, count in routes.packets.items() if routes is not None else ():
        yield {"hook": HOST_ROUTING, "reason": way, "count": count}


def _pings(plane: Plane) -> list[Record]:
    """Return one record of what answers pings, none if nothing does."""
    count = plane.answered_pings()
    return [] if count is None else [{"hook": "rules", "reason": PINGS, "count": count}]


def drops(read: Reading) -> View:
    """Return what was refused, dropped or not served, by reason: by frontend too, if the plane counts so. Raises
    NotCounted if it counts nothing."""
    refused = read.plane.refused()
    if refused is None:
        raise NotCounted(f"the {read.plane.name} mode's rules do not count what they refuse; explain says what and why")
    table = read.table if any(each.frontend for each in refused) else {}
    records: list[Record] = [
        {
            "service": table[each.frontend].service if each.frontend and each.frontend in table else "",
            "frontend": str(each.frontend or ""),
            "hook": each.where,
            "reason": each.reason,
            "count": each.times,
            "what": each.fate,
        }
        for each in refused
    ]
    usage = table_usage()
    if usage is not None and usage.dropped:
        records.append(
            {
                "service": "",
                "frontend": "",
                "hook": "conntrack",
                "reason": "table_full",
                "count": usage.dropped,
                "what": "dropped: connection tracking had no room for a new connection, a Service's or another",
            }
        )
    by_frontend = ("service", "frontend") if table else ()
    return records, Columns((*by_frontend, "hook", "reason", "count", "what"), ("hook",), ("what",))
