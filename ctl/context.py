"""Context of a command: the mode and this node, from options, configuration, manifests and the kernel."""

import argparse
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ctl.config import NO_EXTERNAL_IPS, KubeProxyConfiguration, load_config
from ctl.sources.manifests import NODE_PORTS, PortRange
from dataplane.errors import UsageError
from dataplane.model.net import canonical_address
from dataplane.model.objects import ModelObject, Node, Problem
from dataplane.planes.registry import DEFAULT_MODE, mode_of, modes
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import node_config


class Context(msgspec.Struct, frozen=True):
    """mode: a name of the registry's. node: see NodeConfig. config: the file given, or all defaults."""

    mode: str
    node: NodeConfig
    config: KubeProxyConfiguration
    state_dir: Path


def add_manifest_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `-f/--filename` to a command that reads manifests; `args.filename` is a list of paths."""
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        required=required,
        default=[],
        metavar="FILE|DIR|-",
        help="manifests: Service, EndpointSlice, Node, ServiceCIDR, Pod, Namespace, NetworkPolicy; repeatable",
    )
    parser.add_argument(
        "--service-node-port-range",
        dest="node_ports",
        type=_port_range,
        default=NODE_PORTS,
        metavar="FIRST-LAST",
        help="node ports that manifests may ask for (default: 30000-32767, as kube-apiserver's)",
    )
    parser.add_argument(
        "--host-ports",
        action="store_true",
        help="publish hostPorts of this node's Pods, as the CNI plugin portmap does (default: leave them to it)",
    )
    parser.add_argument(
        "--answer-ping",
        action="store_true",
        help="nftables and ebpf modes: answer pings to addresses of Services with endpoints (default: as kube-proxy)",
    )
    parser.add_argument(
        "--flowtable",
        type=_packets,
        default=0,
        metavar="N",
        help="nftables and ebpf modes: from N packets on, connections to Services that the rules translate go past all "
        "other rules, by the kernel's flowtable (default: none do)",
    )


def answers_ping(args: argparse.Namespace, mode: str) -> bool:
    """True if `--answer-ping` is given. Raises UsageError for a mode that cannot do it."""
    asked = bool(getattr(args, "answer_ping", False))
    if asked and (why := mode_of(mode).why_no_ping):
        able = " or ".join(each.name for each in modes() if not each.why_no_ping)
        raise UsageError(f"--answer-ping: the {mode} mode {why}; use --mode {able}, or leave the option out")
    return asked


def flowtable_packets(args: argparse.Namespace, mode: str) -> int:
    """The number of packets of `--flowtable`, 0 without it. Raises UsageError for a mode that cannot do it."""
    asked = int(getattr(args, "flowtable", 0))
    if asked and (why := mode_of(mode).why_no_flowtable):
        able = " or ".join(each.name for each in modes() if not each.why_no_flowtable)
        raise UsageError(f"--flowtable: the {mode} mode {why}; use --mode {able}, or leave the option out")
    return asked


def _packets(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of packets; write one from 1 to 999999999")


def _port_range(text: str) -> PortRange:
    first, dash, last = text.partition("-")
    if dash and all(number.isascii() and number.isdecimal() and len(number) <= 5 for number in (first, last)):
        ports = PortRange(int(first), int(last))
        if 1 <= ports.first <= ports.last <= 65535:
            return ports
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is no range of ports; write FIRST-LAST, such as 30000-32767")


def build_context(args: argparse.Namespace, objects: Iterable[ModelObject] = (), *, offline: bool = False) -> Context:
    """Make the context from the global options and the Node object in the manifests.

    offline: ask the kernel for addresses only when neither options nor Node object tell any (for `explain`).
    Raises ConfigError, and UsageError for an address that is none.
    """
    from ctl.lb_options import lb_options
    from ctl.plane_options import unchecked_options

    config = KubeProxyConfiguration()
    if args.config:
        loaded = load_config(args.config)
        config = loaded.config
        for field in loaded.unknown:
            print(f"hotplane: {args.config}: {field}: is not a field of this configuration; ignored", file=sys.stderr)
    if not config.proxy_settings().external_ips:
        print(f"hotplane: {NO_EXTERNAL_IPS}", file=sys.stderr)
    mode = mode_of(args.mode or config.mode or DEFAULT_MODE)
    name = args.node_name or config.hostname_override or socket.gethostname()
    name = name.strip().lower()
    this = next((o for o in objects if isinstance(o, Node) and o.name == name), Node(name=name))
    try:
        node_ips, others = _addresses([canonical_address(ip) for ip in args.node_ip], this, offline=offline)
        node = node_config(
            mode.promises,
            config.proxy_settings(),
            node_name=name,
            zone=this.zone if args.zone is None else args.zone,
            node_ips=node_ips,
            interface_addresses=others,
            node_pod_cidrs=this.pod_cidrs,
            at_connect=unchecked_options(args).at_connect,
        )
    except ValueError as error:
        raise UsageError(f"{error}; check --node-ip and --config") from error
    options = unchecked_options(args)
    node = lb_options(args, config, mode, options).applied(node, mode, options)
    node = msgspec.structs.replace(
        node,
        host_ports=getattr(args, "host_ports", False),
        answer_ping=answers_ping(args, mode.name),
        flowtable=flowtable_packets(args, mode.name),
    )
    return Context(mode.name, node, config, Path(args.state_dir))


def _addresses(given: Sequence[str], this: Node, *, offline: bool) -> tuple[Sequence[str], Sequence[str]]:
    """Return (the node's addresses as Kubernetes knows them, all other addresses of this namespace)."""
    if given or (offline and this.addresses):
        return given or this.addresses, ()
    here = namespace_addresses()
    return [address for address in this.addresses if address in here], here


def namespace_addresses() -> list[str]:
    """Return the addresses of this network namespace; the first of each family is primary (see own_addresses)."""
    from dataplane.kernel.netlink.addresses import (
        own_addresses,  # costs 200 ms, and `explain` with --node-ip does without
    )

    return own_addresses()


def report_problems(problems: Iterable[Problem]) -> int:
    """Print one line on stderr for each problem; return their number."""
    count = 0
    for problem in problems:
        print(f"hotplane: {problem}", file=sys.stderr)
        count += 1
    return count
