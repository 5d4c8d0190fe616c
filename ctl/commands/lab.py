"""`hotplane lab`: a small cluster of network namespaces to try Service data planes in."""

import argparse
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ctl.lab import apply, call, ui
from ctl.output import Table, add_output_option, print_records
from dataplane.errors import UsageError
from dataplane.lab.spec import DEFAULT_NAME, LabError, LabSpec, PodLink, Routing
from dataplane.model.forwarding import MODES as FORWARDING_MODES

ECHO_PORT = 8080
COLUMNS = Table(("lab", "place", "state", "addresses", "netns", "pids"), ("pids", "netns"), ("addresses", "pids"))


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "lab",
        help="a small cluster of network namespaces: up, apply, call, ui, status, exec, down",
        description="Nodes, pods behind each, an outside client and an underlay, as network namespaces.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    _register_up(actions)
    down = actions.add_parser("down", help="take a lab down; fine when there is none")
    _add_name(down)
    status = actions.add_parser("status", help="the labs that are up, their places, addresses and processes")
    status.add_argument("--name", help="only this lab (default: all)")
    add_output_option(status, of_many=True)
    execute = actions.add_parser(
        "exec",
        help="run a command in a node, a pod or the client",
        description="Run a command in a place. It finds the lab's places (node1, pod1-2, client) and the Services that "
        "are loaded (web, web.default, web.default.svc.cluster.local) in /etc/hosts.",
    )
    _add_name(execute)
    execute.add_argument("place", metavar="NODE|POD|client", help="node1, pod1-2, client, or net for the underlay")
    execute.add_argument("argv", metavar="-- CMD", nargs=argparse.REMAINDER, help="the command and its arguments")

    for more in (apply, call, ui):
        _add_name(more.register(actions))


def _register_up(actions: Any) -> None:
    up = actions.add_parser("up", help="build a lab; one of the same name, or what a crash left of it, is replaced")
    _add_name(up)
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="number of nodes (default: 3)")
    up.add_argument(
        "--pods", type=_pods, default=2, metavar="N[,N...]", help="pods on each node, or one number a node (default: 2)"
    )
    up.add_argument("--routing", choices=[*Routing], default="direct", help="between nodes (default: direct)")
    up.add_argument("--pod-link", choices=[*PodLink], default="veth", help="pod to node (default: veth)")
    up.add_argument("--ipv6", action="store_true", help="IPv6 as well as IPv4")
    up.add_argument(
        "--echo-port",
        type=int,
        default=ECHO_PORT,
        metavar="PORT",
        help=f"an echo server on this port of each pod, TCP and UDP; 0 for none (default: {ECHO_PORT})",
    )
    up.add_argument(
        "--lb-mode",
        choices=FORWARDING_MODES,
        help="how apply --mode ebpf has external traffic go to other nodes; they know each other (default: snat)",
    )
    add_output_option(up, of_many=True)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=DEFAULT_NAME, help=f"the lab's name (default: {DEFAULT_NAME})")


def _pods(text: str) -> int | tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    return counts if len(counts) > 1 else counts[0]


def run(args: argparse.Namespace) -> int:
    """Do one action. Raises HotplaneError (LabSpecError for a wrong request)."""
    match args.action:
        case "up":
            return _up(args)
        case "down":
            return _down(args.name, args.state_dir)
        case "status":
            return _status(args)
        case "apply":
            return apply.run(args)
        case "call":
            return call.run(args)
        case "ui":
            return ui.run(args)
        case _:
            return _exec(args.name, args.place, args.argv, Path(args.state_dir))


def _up(args: argparse.Namespace) -> int:
    from ctl.store.stale import lab_cookies, sweep_lab
    from dataplane.lab.lab import Lab

    if not 0 <= args.echo_port <= 65535:
        raise UsageError(f"--echo-port {args.echo_port} is not a port number: use 1 to 65535, or 0 for no echo servers")
    spec = LabSpec(args.name, args.nodes, args.pods, Routing(args.routing), PodLink(args.pod_link), args.ipv6)
    spec = replace(spec, lb_mode=args.lb_mode or "")
    before = lab_cookies(args.name)
    lab = Lab.up(spec)
    sweep_lab(before, Path(args.state_dir))
    if args.echo_port:
        lab.start_echo(lab.pods, [args.echo_port])
    _print_labs([args.name], args.output)
    return 0


def _down(name: str, state_dir: str) -> int:
    from ctl.store.stale import lab_cookies, sweep_lab
    from dataplane.lab.lab import Lab

    cookies = lab_cookies(name)
    Lab.remove(name)
    sweep_lab(cookies, Path(state_dir))
    return 0


def _status(args: argparse.Namespace) -> int:
    from dataplane.lab.lab import Lab

    if args.name:
        Lab.open(args.name)
    _print_labs([args.name] if args.name else Lab.names(), args.output)
    return 0


def _print_labs(names: list[str], output: str) -> None:
    from dataplane.lab import state
    from dataplane.planes.mode import print_warning

    records: list[dict[str, object]] = []
    for name in names:
        try:
            found = state.load(name)
        except LabError as error:  # others may be as they should
            print_warning(str(error))
            records.append({"lab": name, "place": "", "state": "unfinished"})
            continue
        if found is not None and found.ready:
            records += _places(found.spec)
        elif found is not None:
            records.append({"lab": name, "place": "", "state": "unfinished"})
    print_records(records, output, COLUMNS, empty="no lab is up")
    for name in dict.fromkeys(str(record["lab"]) for record in records if record["state"] != "up"):
        print_warning(
            f"lab {name} is not whole: hotplane lab up --name {name} builds it again, "
            f"hotplane lab down --name {name} removes what is left of it"
        )


def _places(spec: LabSpec) -> list[dict[str, object]]:
    """Of a lab that somebody may take down at this moment."""
    from dataplane.kernel.namespaces import netns
    from dataplane.lab.lab import Lab

    lab = Lab(spec)
    processes = lab.processes()
    return [
        {
            "lab": spec.name,
            "place": place.name,
            "state": "up" if netns.exists(place.netns) else "missing",
            "addresses": list(place.addresses.values()),
            "netns": place.netns,
            "cgroup": str(lab.cgroup(place)),
            "pids": processes.get(place.name, []),
        }
        for place in lab.topology.places()
    ]


def _exec(name: str, place: str, argv: list[str], state_dir: Path) -> int:
    from ctl.lab.hosts import hosts
    from dataplane.lab.lab import Lab, need_root

    command = argv[1:] if argv[:1] == ["--"] else argv
    if not command:
        raise UsageError("lab exec: the command is missing: hotplane lab exec node1 -- ip address")
    try:
        lab = Lab.open(name)
        lab.place(place)
        need_root()
        lab.execute(place, command, hosts(lab, state_dir))
    except OSError as error:
        raise LabError(f"{place}: {command[0]} cannot be run: {error.strerror}") from error
    raise LabError(f"{place}: {command[0]} was not run")
