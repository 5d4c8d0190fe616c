"""`hotplane lab apply`: program the nodes of a lab from the same manifests."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctl.context import add_manifest_option
from ctl.itself import PROGRAM
from ctl.output import Table, add_output_option, print_records
from ctl.progress import stage
from dataplane.errors import HotplaneError, UsageError
from dataplane.model.forwarding import MODES as FORWARDING_MODES

if TYPE_CHECKING:
    from dataplane.lab.lab import Lab
    from dataplane.lab.spec import Node

COLUMNS = Table(
    ("node", "mode", "frontends", "endpoints", "added", "changed", "removed", "problems", "milliseconds"),
    ("milliseconds", "problems"),
)
SECONDS = 300.0
"""A node's apply may take so long."""


class Done(NamedTuple):
    """A node's apply: its record, None if nothing was loaded, and what it said on standard error."""

    node: str
    record: dict[str, Any] | None
    said: str


def register(actions: Any) -> argparse.ArgumentParser:
    """Add the action's parser."""
    from dataplane.planes.registry import MODES

    parser: argparse.ArgumentParser = actions.add_parser(
        "apply",
        help="program the nodes from manifests",
        description="Run apply on each node of the lab with that node's name, addresses and control group, and with "
        "the lab's pod range. Slices name the lab's own pods as endpoints.",
    )
    add_manifest_option(parser)
    parser.add_argument("--mode", choices=MODES, help=f"{' | '.join(MODES)} (default: nftables)")
    parser.add_argument(
        "--lb-mode",
        choices=FORWARDING_MODES,
        help="ebpf mode: how external traffic gets to endpoints of other nodes, which know each other (default: as lab "
        "up was told, or snat)",
    )
    parser.add_argument("--node", action="append", default=[], metavar="NODE", help="only this node; repeatable")
    add_output_option(parser, of_many=True)
    return parser


def run(args: argparse.Namespace) -> int:
    """Apply on every node; 1 when one of them refused something. Raises HotplaneError."""
    from dataplane.lab.lab import Lab, need_root

    lab = Lab.open(args.name)
    nodes = [node for node in lab.nodes if not args.node or node.name in args.node]
    if unknown := {*args.node} - {node.name for node in lab.nodes}:
        have = ", ".join(node.name for node in lab.nodes)
        raise UsageError(f"--node {sorted(unknown)[0]}: lab {args.name} has no such node; it has {have}")
    need_root()
    with tempfile.TemporaryDirectory(prefix="hotplane-lab-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(_config(lab))
        done = [_apply(lab, node, config, args) for node in nodes]
    for line in told(done):
        print(line, file=sys.stderr)
    records = [each.record for each in done if each.record is not None]
    print_records(records, args.output, COLUMNS, empty="nothing was applied")
    return int(any(each.record is None or each.record["problems"] for each in done))


def told(done: Sequence[Done]) -> Iterator[str]:
    """Yield what the nodes said, in the order in which it was said; what several said alike, once, with their names."""
    lines = {each.node: each.said.splitlines() for each in done}
    for line in dict.fromkeys(line for said in lines.values() for line in said):
        yield f"{', '.join(node for node, said in lines.items() if line in said)}: {line}"


def _config(lab: "Lab") -> str:
    """A configuration that knows the lab's pods."""
    from dataplane.lab.spec import CLUSTER_CIDR

    cidrs = ",".join(CLUSTER_CIDR[family] for family in lab.spec.families)
    return json.dumps(
        {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "clusterCIDR": cidrs}
    )


def forwarding(lab: "Lab", node: "Node", args: argparse.Namespace) -> Iterator[str]:
    """The options that say how external traffic gets to the lab's other nodes. What the lab was brought up with holds
    where the mode has it, what this command is given is the node's to judge."""
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import DEFAULT_MODE, mode_of

    able = not mode_of(args.mode or DEFAULT_MODE).why_only_snat(PlaneOptions())
    asked = args.lb_mode or (lab.spec.lb_mode if able else "")
    if not asked:
        return
    yield from ("--lb-mode", asked)
    for other in lab.nodes if able else ():
        if other.name != node.name:
            yield from ("--lb-peer", f"{other.name}={','.join(other.addresses.values())}")


def command(node: "Node", args: argparse.Namespace, cgroup: Path) -> Sequence[str]:
    """The global options of a hotplane that works on this node of a lab."""
    own = [*node.addresses.values(), *node.second.values()]
    options = [word for address in own for word in ("--node-ip", address)]
    group = ["--cgroup", str(cgroup)] if args.mode == "ebpf" else []
    mode = ["--mode", args.mode] if args.mode else []
    return [
        *(*PROGRAM, "--state-dir", args.state_dir, "--node-name", node.name),
        *(*options, *mode, *group),
    ]


def _apply(lab: "Lab", node: "Node", config: Path, args: argparse.Namespace) -> Done:
    files = [word for name in args.filename for word in ("-f", str(Path(name).absolute()) if name != "-" else name)]
    if "-" in args.filename:
        raise UsageError("-f -: every node reads the manifests; name a file or a directory")
    own = [*command(node, args, lab.cgroup(node)), *forwarding(lab, node, args)]
    words = [*own, "--config", str(config), "apply", *files, "-o", "json"]
    with stage(f"applying on {node.name}"):
        done = lab.run(node, words, check=False, timeout=SECONDS, in_cgroup=False)
    if done.returncode not in (0, 1):
        raise HotplaneError(f"{node.name}: {done.stderr.strip()}")
    records = json.loads(done.stdout) if done.stdout.strip() else [None]
    return Done(node.name, records[0], done.stderr)
