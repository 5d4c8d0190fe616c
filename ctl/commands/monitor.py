"""`hotplane monitor`: the event stream of the ebpf mode's programs."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ctl.output import add_output_option
from dataplane.planes.options import HOOKS

if TYPE_CHECKING:
    from ctl.output import Record
    from dataplane.errors import HotplaneError
    from dataplane.planes.decisions import Decision, DecisionStream

POLL_SECONDS = 0.5


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "monitor",
        help="event stream: who asked for what, which endpoint, or why not",
        description="Every decision of the ebpf mode's programs in this network namespace as it is made, also about "
        "packets that XDP swallows: the hook, the 5-tuple, the Service, the endpoint, the reason. -o json prints one "
        "object a line. At connect time a client has no address yet: its network namespace stands for it.",
    )
    parser.add_argument("--service", metavar="NAMESPACE/NAME[:PORT]", help="only this Service")
    parser.add_argument("--protocol", choices=("tcp", "udp"), help="only this protocol")
    parser.add_argument("--hook", choices=HOOKS, action="append", default=[], help="only this hook; repeatable")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N events (default: never)")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="end after S seconds (default: never)")
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print decisions until interrupted, or as many or as long as asked. Raises HotplaneError in modes that tell of
    none."""
    from ctl.loaded import loaded_plane
    from dataplane.errors import HotplaneError
    from dataplane.model.net import Protocol
    from dataplane.planes.decisions import Asked, matches

    plane = loaded_plane(args.mode, args.state_dir)
    protocol = Protocol[args.protocol.upper()].value if args.protocol else 0
    stream = plane.decisions(Asked(args.service or "", protocol, args.hook))
    if stream is None:
        raise tells_nothing("monitor shows what programs report", plane.name)
    with stream:
        if args.service and not any(matches(name, args.service) for name in stream.services()):
            raise HotplaneError(f"--service {args.service}: there is no such Service here; show services lists them")
        for printed, record in enumerate(_records(stream, args.seconds), start=1):
            _print(record, args.output)
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


def _records(stream: "DecisionStream", seconds: float) -> "Iterator[Record]":
    deadline = time.monotonic() + seconds if seconds else None
    while deadline is None or time.monotonic() < deadline:
        yield from map(_record, stream.poll(POLL_SECONDS))


def _record(decision: "Decision") -> "Record":
    return {
        "seconds": decision.seconds,
        "hook": decision.hook,
        "reason": decision.reason,
        "protocol": decision.protocol,
        "source": decision.source,
        "destination": decision.destination,
        "service": decision.service,
        "endpoint": decision.endpoint,
        "device": decision.ifindex,
        "bytes": decision.length,
    }


def _print(record: "Record", output: str) -> None:
    if output == "json":
        import msgspec

        print(msgspec.json.encode(record).decode())
    elif output == "yaml":
        from ctl.output import to_yaml

        sys.stdout.write(to_yaml([record]))
    else:
        where = f" -> {record['endpoint']}" if record["endpoint"] else ""
        print(
            f"{record['seconds']:.3f} {record['hook']:<11} {record['protocol']} {record['source']} -> "
            f"{record['destination']}{where}  {record['service'] or '-'}  {record['reason']}"
        )
    sys.stdout.flush()
