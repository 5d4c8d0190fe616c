"""`hotplane monitor`: the event stream of the ebpf mode's programs."""

import argparse
import ipaddress
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ctl.output import NotCounted, Table, add_output_option, print_line, print_not_counted, print_records, time_text
from ctl.progress import waiting
from ctl.service_option import add_service_option, require_service
from dataplane.kernel.devices import device_name
from dataplane.planes.options import HOOKS

if TYPE_CHECKING:
    from ctl.output import Record
    from dataplane.planes.base import Plane
    from dataplane.planes.decisions import Decision, DecisionStream

POLL_SECONDS = 0.5
SNAPLEN, MOST_SNAPLEN = 256, 65535
_COLOURS = {"new": "32", "refused": "31", "unserved": "33"}
"""ANSI colours of decisions by their kind."""


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "monitor",
        help="event stream: who asked for what, which endpoint, or why not",
        description="Decisions of the ebpf mode's programs in this network namespace as they are made, also about "
        "packets that XDP swallows: new flows and what was refused; with --all each packet. -o json prints one object "
        "a line. At connect time a client has no address yet: its network namespace stands for it.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every packet that a program decides about")
    which.add_argument("--new", action="store_true", help="only new flows")
    which.add_argument("--drops", action="store_true", help="only what was refused, dropped, or not served")
    add_service_option(parser)
    parser.add_argument("--protocol", choices=("tcp", "udp"), help="only this protocol")
    parser.add_argument("--hook", choices=HOOKS, action="append", default=[], help="only this hook; repeatable")
    parser.add_argument(
        "--reason", action="append", default=[], metavar="NAME", help="only this reason, of --reasons; repeatable"
    )
    parser.add_argument("--client", type=_network, metavar="ADDRESS|CIDR", help="only from these addresses")
    parser.add_argument("--port", type=int, metavar="PORT", help="only to this port of a Service")
    parser.add_argument(
        "--pcap",
        metavar="FILE",
        help="write the packets that are refused to this file (pcapng, the reason as comment; - for standard output); "
        "in every mode",
    )
    parser.add_argument(
        "--snaplen", type=int, default=SNAPLEN, metavar="BYTES", help=f"of a packet, with --pcap (default: {SNAPLEN})"
    )
    parser.add_argument("--reasons", action="store_true", help="list the reasons and what they mean, and end")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N events (default: never)")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="end after S seconds (default: never)")
    add_output_option(parser)


def _network(text: str) -> "ipaddress.IPv4Network | ipaddress.IPv6Network":
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no address and no range of addresses") from error


def run(args: argparse.Namespace) -> int:
    """Print decisions until interrupted, or as many or as long as asked. Raises HotplaneError in modes that tell of
    none."""
    from ctl.loaded import loaded_plane
    from dataplane.errors import UsageError
    from dataplane.model.net import Protocol
    from dataplane.planes.decisions import Asked

    plane = loaded_plane(args.mode, args.state_dir)
    if args.pcap is not None:
        return _capture(args, plane)
    protocol = Protocol[args.protocol.upper()].value if args.protocol else 0
    stream = plane.decisions(Asked(args.service or "", protocol, args.hook))
    if stream is None:
        raise tells_nothing("monitor shows what programs report", plane.name, args)
    with stream:
        if args.reasons:
            return _list_reasons(stream, args.output)
        if wrong := [name for name in args.reason if name not in stream.reasons()]:
            raise UsageError(f"--reason {wrong[0]}: there is no such reason; --reasons lists them")
        if args.service:
            require_service(args.service, stream.services())
        wanted = _filter(args)
        waiting("waiting for what programs decide")
        started = time.time() - time.monotonic()
        for printed, decision in enumerate(filter(wanted, _decisions(stream, args.seconds)), start=1):
            _print(decision, started, args.output)
            if args.count and printed >= args.count:
                break
    return 0


def _capture(args: argparse.Namespace, plane: "Plane") -> int:
    """Write refused packets to a file."""
    from ctl.capture import capture
    from dataplane.errors import UsageError

    if args.new or args.all:
        raise UsageError("--pcap: writes what is refused; leave --new and --all out")
    if not 0 < args.snaplen <= MOST_SNAPLEN:
        raise UsageError(f"--snaplen {args.snaplen}: give a number of bytes from 1 to {MOST_SNAPLEN}")
    if args.service:
        require_service(args.service, {row.service for row in plane.read_back().values()})
    started = time.time() - time.monotonic()
    try:
        return capture(args, plane, _filter(args), lambda decision: _print(decision, started, args.output))
    except NotCounted as error:
        if args.output in ("json", "yaml"):
            print_not_counted(error, args.output)
        raise


def tells_nothing(what: str, mode: str, args: argparse.Namespace) -> NotCounted:
    """The error for a mode that neither counts nor reports; a script is told by an object, too."""
    from ctl.loaded import why_default

    error = NotCounted(
        f"{why_default(args.mode, args.state_dir)}{what}, and the {mode} mode has none: its rules neither report nor "
        "say which endpoint they chose; show connections lists what conntrack holds, show drops what was refused, "
        "explain says what becomes of a packet and why"
    )
    if args.output in ("json", "yaml"):
        print_not_counted(error, args.output)
    return error


def _list_reasons(stream: "DecisionStream", output: str) -> int:
    records = [
        {"reason": name, "kind": str(kind), "meaning": meaning} for name, (kind, meaning) in stream.reasons().items()
    ]
    print_records(records, output, Table(("reason", "kind", "meaning"), (), ("meaning",)))
    return 0


def _filter(args: argparse.Namespace) -> "Callable[[Decision], bool]":
    """What the options let through. A reason that is named is shown whatever its kind."""
    from dataplane.planes.decisions import Kind, matches

    kinds = {*Kind} if args.all or args.reason else {*Kind} - {Kind.PACKET}
    if args.new:
        kinds = {Kind.NEW}
    elif args.drops:
        kinds = {Kind.REFUSED, Kind.UNSERVED}

    def wanted(decision: "Decision") -> bool:
        return (
            decision.kind in kinds
            and (not args.reason or decision.reason in args.reason)
            and (not args.service or matches(decision.service, args.service))
            and (not args.protocol or decision.protocol == args.protocol)
            and (args.port is None or _port(decision.destination) == args.port)
            and (args.client is None or _inside(decision.source, args.client))
        )

    return wanted


def _port(end: str) -> int:
    return int(end.rpartition(":")[2] or 0)


def _inside(source: str, network: "ipaddress.IPv4Network | ipaddress.IPv6Network") -> bool:
    """True if a source, address and port, is in a range; a socket whose address is not known yet is in none."""
    if not source or source.startswith("netns:"):
        return False
    return ipaddress.ip_address(source.rpartition(":")[0].strip("[]")) in network


def _decisions(stream: "DecisionStream", seconds: float) -> "Iterator[Decision]":
    deadline = time.monotonic() + seconds if seconds else None
    while deadline is None or time.monotonic() < deadline:
        yield from stream.poll(POLL_SECONDS)


def _record(decision: "Decision", when: datetime) -> "Record":
    return {
        "time": time_text(when),
        "seconds": decision.seconds,
        "kind": str(decision.kind),
        "hook": decision.hook,
        "reason": decision.reason,
        "meaning": decision.meaning,
        "protocol": decision.protocol,
        "source": decision.source,
        "destination": decision.destination,
        "service": decision.service,
        "endpoint": decision.endpoint,
        "forwarded": decision.forwarded,
        "device": decision.ifindex,
        "deviceName": device_name(decision.ifindex),
        "bytes": decision.length,
    }


def _print(decision: "Decision", started: float, output: str) -> None:
    """Print one decision. started: the time of day, in seconds since 1970, at which CLOCK_MONOTONIC was 0."""
    when = datetime.fromtimestamp(started + decision.seconds).astimezone()
    if output in ("json", "yaml"):
        print_line(_record(decision, when), output)
    else:
        print(_line(decision, when, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    sys.stdout.flush()


def _line(decision: "Decision", when: datetime, *, coloured: bool) -> str:
    device = device_name(decision.ifindex)
    hook = f"{decision.hook}@{device}" if device else decision.hook
    to = f" -> {decision.endpoint}" if decision.endpoint else ""
    to += f" by {decision.forwarded}" if decision.forwarded else ""
    reason = decision.reason
    if coloured and decision.kind in _COLOURS:
        reason = f"\033[{_COLOURS[decision.kind]}m{reason}\033[0m"
    said = f" ({decision.meaning})" if decision.kind in ("refused", "unserved") else ""
    flow = f"{decision.protocol} {decision.source} -> {decision.destination}{to}"
    return (
        f"{when:%H:%M:%S}.{when.microsecond // 1000:03d} {hook:<18} {flow}  {decision.service or '-'}  {reason}{said}"
    )
