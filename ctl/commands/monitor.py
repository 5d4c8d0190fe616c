"""`hotplane monitor`: the event stream of the ebpf mode's programs."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ctl.output import add_output_option

if TYPE_CHECKING:
    from ctl.output import Record
    from dataplane.planes.ebpf.events import Event
    from dataplane.planes.ebpf.maps import MapSet

POLL_SECONDS = 0.5
ALL_HOOKS = {
    "connect": ("connect", "sendmsg", "recvmsg", "getpeername"),
    "tc": ("tc_ingress", "tc_egress"),
    "xdp": ("xdp",),
}


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
    parser.add_argument("--hook", choices=ALL_HOOKS, action="append", default=[], help="only this hook; repeatable")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N events (default: never)")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="end after S seconds (default: never)")
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print events until interrupted, or as many or as long as asked. Raises HotplaneError outside ebpf mode."""
    from dataplane.errors import HotplaneError
    from dataplane.planes.ebpf.views import open_instance

    plane = ebpf_plane(args, "monitor shows what programs report")
    maps = open_instance(plane.pins.instance)
    if maps is None:
        raise HotplaneError("no ebpf plane is loaded in this network namespace: hotplane --mode ebpf apply -f ...")
    with maps:
        _check_service(maps, args.service)
        for printed, record in enumerate(_records(maps, args), start=1):
            _print(record, args.output)
            if args.count and printed >= args.count:
                break
    return 0


def ebpf_plane(args: argparse.Namespace, what: str) -> Any:
    """The loaded ebpf plane. Raises HotplaneError where another mode is loaded, which counts and reports nothing."""
    from ctl.loaded import loaded_plane
    from dataplane.errors import HotplaneError

    plane = loaded_plane(args.mode, args.state_dir)
    if plane.name != "ebpf":
        raise HotplaneError(
            f"{what}, and the {plane.name} mode has none: its rules neither report nor say which endpoint they chose; "
            "show connections lists what conntrack holds, explain says what becomes of a packet and why"
        )
    return plane


def _check_service(maps: "MapSet", service: str | None) -> None:
    from dataplane.errors import HotplaneError
    from dataplane.planes.ebpf.views import service_names

    if service and not any(matches(name, service) for name in service_names(maps).values()):
        raise HotplaneError(f"--service {service}: there is no such Service here; show services lists them")


def matches(name: str, asked: str) -> bool:
    """Whether a Service port (namespace/name:port) is one of the Service, or the Service port, that was asked for."""
    return asked in (name, name.partition(":")[0])


def _records(maps: "MapSet", args: argparse.Namespace) -> "Iterator[Record]":
    from dataplane.model.net import Protocol
    from dataplane.planes.ebpf.events import EventStream
    from dataplane.planes.ebpf.views import service_names

    names = service_names(maps)
    chosen = [index for index, name in names.items() if args.service and matches(name, args.service)]
    hooks = [name for hook in args.hook for name in ALL_HOOKS[hook]]
    protocol = Protocol[args.protocol.upper()].value if args.protocol else 0
    deadline = time.monotonic() + args.seconds if args.seconds else None
    with EventStream(maps, protocol, chosen[0] if len(chosen) == 1 else None, hooks) as stream:
        while deadline is None or time.monotonic() < deadline:
            for event in stream.poll(POLL_SECONDS):
                if event.service is not None and event.service not in names:
                    names = service_names(maps)
                name = names.get(event.service, "") if event.service is not None else ""
                if not args.service or matches(name, args.service):
                    yield _record(event, name)


def _record(event: "Event", service: str) -> "Record":
    from dataplane.model.net import Protocol, host_port

    known = {protocol.value: protocol.text for protocol in Protocol}
    source, port = event.source
    return {
        "seconds": round(event.ns / 1e9, 6),
        "hook": event.hook,
        "reason": event.reason,
        "protocol": known.get(event.protocol, str(event.protocol)),
        "source": source if source.startswith("netns:") else host_port(source, port),
        "destination": host_port(*event.destination),
        "service": service,
        "endpoint": host_port(*event.backend) if event.backend else "",
        "device": event.ifindex,
        "bytes": event.length,
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
