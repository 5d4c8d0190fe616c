"""What the ebpf mode's maps hold, as records to print; the other modes' views are in ctl/views.py."""

from collections.abc import Iterator

from ctl.output import Record
from dataplane.model.net import Protocol, host_port
from dataplane.planes.ebpf import views
from dataplane.planes.ebpf.maps import MapSet
from dataplane.planes.ebpf.plane import EbpfPlane

REFUSED = frozenset({"no_endpoint", "policy_drop", "source_range"})
"""Passed on to be refused by the slow path."""
DROPPED = frozenset({"rewrite_failed", "drop_range", "no_way_out", "drop_policy"})
UNSERVED = frozenset({"snat_exhausted"})
"""Passed on since something ran out; so are all reasons that end in `_full`, which name a map."""


def _fate(reason: str) -> str:
    """What became of the packets that were counted with a reason, "" for those that were served as they should be."""
    if reason in DROPPED:
        return "dropped"
    if reason in REFUSED:
        return "left to the slow path to refuse"
    return "left to the slow path to serve" if reason.endswith("_full") or reason in UNSERVED else ""


def _open(plane: EbpfPlane) -> MapSet | None:
    return views.open_instance(plane.pins.instance)


def affinity(plane: EbpfPlane) -> list[Record]:
    """Remembered clients that have not expired."""
    maps = _open(plane)
    if maps is None:
        return []
    with maps:
        seconds = {row.service: row.affinity_seconds for row in plane.read_back().values()}
        return [
            {
                "service": sticky.service,
                "frontend": "",
                "client": sticky.client,
                "endpoint": host_port(*sticky.backend) if sticky.backend else "",
                "secondsLeft": round(left),
            }
            for sticky in views.affinity(maps)
            if (left := seconds.get(sticky.service, 0) - sticky.idle_seconds) > 0
        ]


def flows(plane: EbpfPlane) -> Iterator[Record]:
    """Flows that the packet programs translate, and sockets that connect-time balancing has pointed at an endpoint."""
    maps = _open(plane)
    if maps is None:
        return
    with maps:
        for flow in views.flows(maps):
            if flow.service:
                yield {
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
                }


def counters(plane: EbpfPlane) -> list[Record]:
    """One record a Service port that was used, then one for each way out of each hook that was taken."""
    maps = _open(plane)
    if maps is None:
        return []
    with maps:
        by_service: list[Record] = [
            {
                "service": name,
                "connections": c.connections,
                "packets": c.packets,
                "bytes": c.bytes,
                "replyPackets": c.reply_packets,
                "replyBytes": c.reply_bytes,
            }
            for name, c in sorted(views.service_counters(maps).items())
        ]
        return by_service + list(_ways_out(maps))


def _ways_out(maps: MapSet) -> Iterator[Record]:
    for hook, reasons in views.counters(maps).items():
        for reason, count in reasons.items():
            yield {"service": "", "hook": hook, "reason": reason, "count": count}


def drops(plane: EbpfPlane) -> list[Record]:
    """What was dropped, and what was passed to the slow path to be refused there."""
    maps = _open(plane)
    if maps is None:
        return []
    with maps:
        return [{**record, "what": what} for record in _ways_out(maps) if (what := _fate(str(record["reason"])))]
