"""`hotplane monitor`: the event stream of the ebpf mode's programs."""

import argparse
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ctl.output import Table, add_output_option, print_records
from dataplane.planes.options import HOOKS

if TYPE_CHECKING:
    from ctl.output import Record
    from dataplane.errors import HotplaneError
    from dataplane.planes.decisions import Decision, DecisionStream

POLL_SECONDS = 0.5
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
    parser.add_argument("--service", metavar="NAMESPACE/NAME[:PORT]", help="only this Service")
    parser.add_argument("--protocol", choices=("tcp", "udp"), help="only this protocol")
    parser.add_argument("--hook", choices=HOOKS, action="append", default=[], help="only this hook; repeatable")
    parser.add_argument(
        "--reason", action="append", default=[], metavar="NAME", help="only this reason, of --reasons; repeatable"
    )
    parser.add_argument("--client", type=_network, metavar="ADDRESS|CIDR", help="only from these addresses")
    parser.add_argument("--port", type=int, metavar="PORT", help="only to this port of a Service")
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
    from dataplane.errors import HotplaneError, UsageError
    from dataplane.model.net import Protocol
    from dataplane.planes.decisions import Asked, matches

    plane = loaded_plane(args.mode, args.state_dir)
    protocol = Protocol[args.protocol.upper()].value if args.protocol else 0
    stream = plane.decisions(Asked(args.service or "", protocol, args.hook))
    if stream is None:
        raise tells_nothing("monitor shows what programs report", plane.name)
    with stream:
        if args.reasons:
            return _list_reasons(stream, args.output)
        if wrong := [name for name in args.reason if name not in stream.reasons()]:
            raise UsageError(f"--reason {wrong[0]}: there is no such reason; --reasons lists them")
        if args.service and not any(matches(name, args.service) for name in stream.services()):
            raise HotplaneError(f"--service {args.service}: there is no such Service here; show services lists them")
        wanted = _filter(args)
        started = time.time() - time.monotonic()
        for printed, decision in enumerate(filter(wanted, _decisions(stream, args.seconds)), start=1):
            _print(decision, started, args.output)
            if args.count and printed >= args.count:
                break
    return 0


def tells_nothing(what: str, mode: str) -> "HotplaneError":
    """The error for a mode that neither counts nor reports."""
    from dataplane.errors import HotplaneError

    return HotplaneError(
        f"{what}, and the {mode} mode has none: its rules neither report nor say which endpoint they chose; "
        "show connections lists what conntrack holds, explain says what becomes of a packet and why"
    )


def _list_reasons(stream: "DecisionStream", output: str) -> int:
    records = [
        {"reason": name, "kind": str(kind), "meaning": meaning} for name, (kind, meaning) in stream.reasons().items()
    ]
    print_records(records, output, Table(("reason", "kind", "meaning"), (), ("meaning",)))
    return 0


def _filter(args: argparse.Namespace) -> "Callable[[Decision], bool]":
    """What the options let through. A reason that is named is shown whatever its kind."""
    from dataplane.planes.decisions import Kind

    kinds = {*Kind} if args.all or args.reason else {*Kind} - {Kind.PACKET}
    if args.new:
        kinds = {Kind.NEW}
    elif args.drops:
        kinds = {Kind.REFUSED, Kind.UNSERVED}

    def wanted(decision: "Decision") -> bool:
        return (
            decision.kind in kinds
            and (not args.reason or decision.reason in args.reason)
            and (args.port is None or _port(decision.destination) == args.port)
            and (args.client is None or _inside(decision.source, args.client))
        )

    return wanted


def _port(end: str) -> int:
    return int(end.rpartition(":")[2])


def _inside(source: str, network: "ipaddress.IPv4Network | ipaddress.IPv6Network") -> bool:
    """True if a source, address and port, is in a range; a socket whose address is not known yet is in none."""
    if source.startswith("netns:"):
        return False
    return ipaddress.ip_address(source.rpartition(":")[0].strip("[]")) in network


def _decisions(stream: "DecisionStream", seconds: float) -> "Iterator[Decision]":
    deadline = time.monotonic() + seconds if seconds else None
    while deadline is None or time.monotonic() < deadline:
        yield from stream.poll(POLL_SECONDS)


def _record(decision: "Decision", when: datetime) -> "Record":
    return {
        "time": when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
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
        "device": decision.ifindex,
        "deviceName": _device(decision.ifindex),
        "bytes": decision.length,
    }


def _device(index: int) -> str:
    """The name of a device of this network namespace, "" for none and for one that is gone."""
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return ""


def _print(decision: "Decision", started: float, output: str) -> None:
    """Print one decision. started: the time of day, in seconds since 1970, at which CLOCK_MONOTONIC was 0."""
    when = datetime.fromtimestamp(started + decision.seconds).astimezone()
    if output == "json":
        import msgspec

        print(msgspec.json.encode(_record(decision, when)).decode())
    elif output == "yaml":
        from ctl.output import to_yaml

        sys.stdout.write(to_yaml([_record(decision, when)]))
    else:
        print(_line(decision, when, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    sys.stdout.flush()


def _line(decision: "Decision", when: datetime, *, coloured: bool) -> str:
    hook = f"{decision.hook}@{_device(decision.ifindex)}" if _device(decision.ifindex) else decision.hook
    to = f" -> {decision.endpoint}" if decision.endpoint else ""
    reason = decision.reason
    if coloured and decision.kind in _COLOURS:
        reason = f"\033[{_COLOURS[decision.kind]}m{reason}\033[0m"
    said = f" ({decision.meaning})" if decision.kind in ("refused", "unserved") else ""
    flow = f"{decision.protocol} {decision.source} -> {decision.destination}{to}"
    return (
        f"{when:%H:%M:%S}.{when.microsecond // 1000:03d} {hook:<18} {flow}  {decision.service or '-'}  {reason}{said}"
    )
