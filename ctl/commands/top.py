"""`hotplane top`: a live view per Service."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ctl.output import Table, add_output_option, clear_screen, print_reading, print_records
from ctl.service_option import add_service_option, require_service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctl.output import Record
    from dataplane.planes.answers import ServiceCounters
    from dataplane.planes.base import Plane

COLUMNS = ("service", "connections/s", "packets/s", "bytes/s", "replyPackets/s", "replyBytes/s", "connections")
TABLE = Table(COLUMNS, ("replyBytes/s", "replyPackets/s", "connections", "bytes/s"))


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "top",
        help="live view per Service: connections, packets, bytes per second",
        description="New connections, packets and bytes a second of each Service port, as the ebpf mode's programs "
        "count them. Sockets that are balanced at connect time count as connections only: no program sees their "
        "packets afterwards.",
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between views (default: 1)")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N views (default: never)")
    add_service_option(parser)
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="busiest Service ports shown (default: 20)")
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Show views until interrupted, or as many as asked. Raises HotplaneError outside ebpf mode."""
    from ctl.loaded import loaded_plane
    from dataplane.errors import UsageError

    if args.interval <= 0:
        raise UsageError(f"--interval {args.interval}: give a number of seconds above 0")
    plane = loaded_plane(args.mode, args.state_dir)
    if args.service:
        require_service(args.service, {row.service for row in plane.read_back().values()})
    before, then, shown = _counted(plane, args), time.monotonic(), 0
    while not args.count or shown < args.count:
        time.sleep(args.interval)
        now, counters = time.monotonic(), _counted(plane, args)
        _show(rates(before, counters, now - then, args.service or "")[: args.limit], args.output)
        before, then, shown = counters, now, shown + 1
    return 0


def _counted(plane: "Plane", args: argparse.Namespace) -> "Mapping[str, ServiceCounters]":
    """Counters by Service port. Raises HotplaneError where nothing counts."""
    from ctl.commands.monitor import tells_nothing
    from dataplane.errors import HotplaneError

    traffic = plane.traffic()
    if traffic is None:
        raise tells_nothing("top shows what programs count per Service", plane.name, args)
    if not traffic.loaded:
        mode = plane.name
        raise HotplaneError(f"no {mode} plane is loaded in this network namespace: hotplane --mode {mode} apply -f ...")
    return traffic.services


def rates(
    before: "Mapping[str, ServiceCounters]", after: "Mapping[str, ServiceCounters]", seconds: float, service: str = ""
) -> "list[Record]":
    """One record a Service port, the busiest first: its rates between two readings and its connections so far."""
    from dataplane.planes.decisions import matches

    records: list[dict[str, Any]] = []
    for name, counters in after.items():
        if service and not matches(name, service):
            continue
        old = before.get(name)
        # A Service that was deleted and made again counts from zero.
        start = old if old and all(a <= b for a, b in zip(old, counters, strict=True)) else (0,) * len(counters)
        per_second = [round((b - a) / seconds, 1) for a, b in zip(start, counters, strict=True)]
        records.append(
            {"service": name}
            | dict(zip(COLUMNS[1:-1], per_second, strict=True))
            | {"connections": counters.connections}
        )
    records.sort(key=lambda r: (-r["connections/s"], -r["packets/s"], -r["replyPackets/s"], r["service"]))
    return list(records)


def _show(records: "list[Record]", output: str) -> None:
    if output in ("json", "yaml"):
        print_reading("top", records, output)
        return
    if output in ("table", "wide"):
        clear_screen()
    print_records(records, output, TABLE, empty="no Service has been used yet")
    sys.stdout.flush()
