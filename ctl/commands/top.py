"""`hotplane top`: a live view per Service."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ctl.output import add_output_option, print_records

if TYPE_CHECKING:
    from ctl.output import Record
    from dataplane.planes.ebpf.views import ServiceCounters

COLUMNS = ("service", "connections/s", "packets/s", "bytes/s", "replyPackets/s", "replyBytes/s", "connections")


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
    parser.add_argument("--service", metavar="NAMESPACE/NAME[:PORT]", help="only this Service")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="busiest Service ports shown (default: 20)")
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Show views until interrupted, or as many as asked. Raises HotplaneError outside ebpf mode."""
    from ctl.commands.monitor import ebpf_plane
    from dataplane.errors import HotplaneError, UsageError
    from dataplane.planes.ebpf.views import open_instance, service_counters

    if args.interval <= 0:
        raise UsageError(f"--interval {args.interval}: give a number of seconds above 0")
    plane = ebpf_plane(args, "top shows what programs count per Service")
    maps = open_instance(plane.pins.instance)
    if maps is None:
        raise HotplaneError("no ebpf plane is loaded in this network namespace: hotplane --mode ebpf apply -f ...")
    with maps:
        before, then, shown = service_counters(maps), time.monotonic(), 0
        while not args.count or shown < args.count:
            time.sleep(args.interval)
            now, counters = time.monotonic(), service_counters(maps)
            _show(rates(before, counters, now - then, args.service or "")[: args.limit], args.output)
            before, then, shown = counters, now, shown + 1
    return 0


def rates(
    before: "dict[str, ServiceCounters]", after: "dict[str, ServiceCounters]", seconds: float, service: str = ""
) -> "list[Record]":
    """One record a Service port, the busiest first: its rates between two readings and its connections so far."""
    from ctl.commands.monitor import matches

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
    if output == "table" and sys.stdout.isatty():
        print("\033[H\033[2J", end="")
    print_records(records, output, COLUMNS, empty="no Service has been used yet")
    sys.stdout.flush()
