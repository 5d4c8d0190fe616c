"""`hotplane lab call`: connect from one place of a lab, and see who answered and whom the servers saw."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ctl.flow_names import host_of, is_address, split_protocol
from ctl.itself import PROGRAM
from ctl.output import Table, add_output_option, print_records
from dataplane.errors import HotplaneError, UsageError

if TYPE_CHECKING:
    from ctl.ui.view import Sent
    from dataplane.lab.lab import Lab
    from dataplane.lab.traffic.probe import ProbeResult

COLUMNS = Table(("answer", "count", "share", "seenAs"), (), ("seenAs",), {"share": lambda share: f"{share:.0%}"})
SECONDS = 3.0
"""Silence for so long counts as no answer: a SYN that was lost is sent again after one second."""


class Destination(NamedTuple):
    """Where to connect to. name: as it was asked for. protocol: tcp or udp."""

    name: str
    address: str
    port: int
    protocol: str


def register(actions: Any) -> argparse.ArgumentParser:
    """Add the action's parser."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "call",
        help="connect from one place to another, and count who answered",
        description="Connect N times, each from a socket of its own, and print which pods answered, how often, and "
        "which address they saw as the client. What was refused or met silence is counted too.",
    )
    parser.add_argument("place", metavar="NODE|POD|client", help="where from")
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        help="ADDRESS:PORT, PLACE:PORT, or [NAMESPACE/]SERVICE[:PORT] by its clusterIP; /udp after each for UDP",
    )
    parser.add_argument("count", nargs="?", type=int, default=1, metavar="N", help="so many times (default: 1)")
    add_output_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Connect and count; 0 when every call was answered. Raises HotplaneError."""
    from dataplane.lab.lab import Lab, need_root
    from dataplane.lab.traffic.probe import Outcome, Probe
    from dataplane.model.net import Protocol

    if args.count < 1:
        raise UsageError(f"lab call: {args.count} times: give a number from 1")
    with Lab.open(args.name) as lab:
        lab.place(args.place)
        need_root()
        to = destination(lab, args.destination, args.state_dir)
        probe = Probe(to.address, to.port, Protocol[to.protocol.upper()], count=args.count, timeout=SECONDS)
        (result,) = lab.probe(args.place, probe)
    if args.output == "table":
        print(f"{args.place} -> {to.name} ({probe.text})" if to.name != probe.text else f"{args.place} -> {to.name}")
    print_records(
        [
            {
                "answer": each.answer,
                "outcome": each.outcome,
                "count": each.count,
                "share": round(each.share, 4),
                "seenAs": [*each.seen_as],
            }
            for each in counted(result)
        ],
        args.output,
        COLUMNS,
    )
    return int(result.count(Outcome.ANSWERED) != args.count)


def counted(result: "ProbeResult") -> "list[Sent]":
    """What came of a probe: by server, and by outcome without an answer, the most frequent first."""
    from ctl.ui.view import Sent
    from dataplane.lab.traffic.probe import Outcome, split_port

    seen: dict[tuple[Outcome, str], dict[str, int]] = {}
    for attempt in result.attempts:
        detail = f" ({attempt.detail})" if attempt.detail else ""
        answered = attempt.outcome is Outcome.ANSWERED
        name = attempt.server if answered else f"{attempt.outcome}{detail}"
        client = split_port(attempt.client)[0] if answered else ""
        clients = seen.setdefault((attempt.outcome, name), {})
        clients[client] = clients.get(client, 0) + 1
    found = []
    for (outcome, name), clients in seen.items():
        count = sum(clients.values())
        found.append(
            Sent(
                name,
                count,
                count / len(result.attempts),
                str(outcome),
                tuple(sorted(filter(None, clients))),
            )
        )
    return sorted(found, key=lambda each: -each.count)


def destination(lab: "Lab", text: str, state_dir: str) -> Destination:
    """What was asked for, with names of places and Services looked up. Raises UsageError, HotplaneError."""
    ends, protocol = split_protocol(text)
    host = host_of(ends)
    places = {place.name: place for place in lab.topology.places()}
    if protocol.lower() not in ("", "tcp", "udp"):
        raise UsageError(f"lab call {text}: calls are made by TCP and UDP; write /tcp or /udp")
    if not is_address(host) and host not in places:
        return _service(lab, text, ends, protocol.lower(), state_dir)
    port = ends.rpartition(":")[2] if host != ends else ""
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(
            f"lab call {text}: the port is missing or none: write ADDRESS:PORT, [ADDRESS]:PORT, PLACE:PORT or SERVICE, "
            "such as node1:30080"
        )
    address = next(iter(places[host].addresses.values())) if host in places else host
    return Destination(text, address, int(port), protocol.lower() or "tcp")


def _service(lab: "Lab", text: str, ends: str, protocol: str, state_dir: str) -> Destination:
    """A Service's frontend as the first node that has it says: its clusterIP, or what comes first."""
    asked, _, port = ends.partition(":")
    for node in lab.nodes:
        words = [*PROGRAM, "--state-dir", state_dir, "show", "services", "-o", "json"]
        records = json.loads(lab.run(node, words, in_cgroup=False).stdout or "[]")
        served = [(record["service"], record["frontend"]) for record in records if record["frontend"][0] != "*"]
        found = [(name, frontend) for name, frontend in _named(served, asked) if _fits(name, frontend, port, protocol)]
        if found:
            address, _, ending = min((f for _, f in found), key=lambda f: not f.endswith("/tcp")).rpartition(":")
            number, _, protocol = ending.partition("/")
            return Destination(text, address.strip("[]"), int(number), protocol)
    raise HotplaneError(
        f"lab call {text}: no node of lab {lab.spec.name} has such a Service, nor has the lab such a place; "
        "hotplane lab apply -f loads Services, hotplane lab status lists places"
    )


def _named(served: Sequence[tuple[str, str]], asked: str) -> Iterator[tuple[str, str]]:
    """The Service ports and frontends of a Service that is asked for as NAMESPACE/NAME, or by its name: the one in
    `default`, else the only one of that name. Raises UsageError where there are several."""
    services = {name.partition(":")[0] for name, _ in served}
    if "/" not in asked:
        alike = sorted(name for name in services if name.partition("/")[2] == asked)
        if f"default/{asked}" not in alike and len(alike) > 1:
            raise UsageError(f"lab call: there are Services {', '.join(alike)}: name one with its namespace")
        asked = f"default/{asked}" if f"default/{asked}" in alike else "".join(alike)
    yield from ((name, frontend) for name, frontend in served if name.partition(":")[0] == asked)


def _fits(name: str, frontend: str, port: str, protocol: str) -> bool:
    """True if a frontend has the port, by its Service port's name or by its number, and the protocol that are asked
    for, if they are."""
    ends, _, its_protocol = frontend.partition("/")
    return port in ("", name.partition(":")[2], ends.rpartition(":")[2]) and protocol in ("", its_protocol)
