"""`hotplane trace`: one real connection through the kernel, hook by hook."""

import argparse
import socket
from typing import Any

from ctl.output import add_output_option, notify
from dataplane.errors import HotplaneError, UsageError
from dataplane.oracle.flow import FORM

WAIT_SECONDS, SEND_SECONDS = 10.0, 1.0
"""How long a connection is waited for, and an answer to what is sent."""


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "trace",
        help="follow one real connection through the kernel, hook by hook",
        description="Follow the next connection of a flow through connect time, XDP, tc, nftables, iptables and "
        "connection tracking of this node, until it is answered or refused, and print one timeline: each hook, what it "
        "decided and why, addresses before and after, microseconds. Packets of other flows are not traced, and the "
        "table that marks this one's goes with the command, however it ends. With --send the command makes the "
        "connection itself: TCP is opened and closed, of UDP one datagram is sent, which the endpoint gets. Exit "
        "status 1: no packet of the flow was seen.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "flow",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="FLOW",
        help=f"{FORM}; names may stand for addresses, as in 'pod1-1 -> web:80'",
    )
    which.add_argument("--flow", dest="flow", metavar="FLOW", help="the same")
    parser.add_argument("--send", action="store_true", help="send it, instead of waiting for somebody who does")
    add_sender_options(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=None,
        metavar="S",
        help=f"wait so long for a connection ({WAIT_SECONDS:.0f} s), with --send for its answer ({SEND_SECONDS:.0f} s)",
    )
    add_output_option(parser)


def add_sender_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a packet is sent from."""
    parser.add_argument(
        "--from-netns", metavar="NAME|PATH", help="send from this network namespace (default: who has the source)"
    )
    parser.add_argument(
        "--from-pid", type=int, metavar="PID", help="send from the network namespace and control group of this process"
    )


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 86400:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds above 0, up to 86400")
    return found


def check_device(name: str) -> None:
    """Raises UsageError for an incoming device that this network namespace does not have; "" is none."""
    try:
        if name:
            socket.if_nametoindex(name)
    except OSError as error:
        raise UsageError(f"via {name[:80]}: there is no such device here; ip link lists them") from error


def run(args: argparse.Namespace) -> int:
    """Follow it; 1 if no packet of it was seen. Raises HotplaneError."""
    from ctl.explain_loaded import loaded
    from ctl.flow_names import Names, enter_node, lab_here, only_addresses
    from ctl.loaded import loaded_plane
    from ctl.trace.follow import check_rights, follow
    from ctl.trace.origin import cookie_of, origin_of
    from ctl.trace.seen import Target
    from ctl.trace.show import show
    from dataplane.oracle.flow import parse_flow

    if (args.from_netns or args.from_pid) and not args.send:
        raise UsageError("trace: --from-netns and --from-pid say where to send from: add --send")
    if only_addresses(args.flow):
        parse_flow(args.flow)  # before anything else is complained of
    check_rights()
    enter_node(args.flow)
    held = loaded(args)
    named = Names(held.plan, places=lab_here()).expand(args.flow)[0]
    packet = parse_flow(named.text)
    check_device(packet.interface)
    decision = held.decide(packet)
    asked, entry = named.asked if named.asked != named.text else "", held.forwarded(packet)
    target = Target(asked, named.text, held.mode, decision, held.path(decision), entry)
    origin = origin_of(packet, args.from_netns, args.from_pid) if args.send else None
    if origin is None and args.output == "table":
        notify(f"waiting for a packet of {named.text} (--send sends one)")
    plane = loaded_plane(held.mode.name, args.state_dir)
    timeout = args.timeout or (SEND_SECONDS if args.send else WAIT_SECONDS)
    trace = follow(target, plane, timeout, origin, cookie=0 if args.send else cookie_of(packet))
    if not args.send and trace.outcome.verdict == "nothing":
        raise HotplaneError(f"{trace.outcome.text} within the time that it was waited for; --send sends one")
    show(trace, args.output)
    return int(trace.outcome.verdict == "nothing")
