"""hotplane on every machine of the Vagrant lab, driven by its command line; the oracle's plans are made here."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from dataplane.lab.proxy import lb_peers, node_config
from dataplane.lab.scenarios.manifests import manifest
from dataplane.lab.scenarios.table import Cell
from dataplane.lab.spec import CLUSTER_CIDR, Node
from dataplane.lab.vagrant.machines import Machines
from dataplane.model.objects import ModelObject
from dataplane.oracle.decide import Oracle
from dataplane.oracle.keeps import Keeps
from dataplane.plan.planner import Planner
from dataplane.planes.registry import MODES, mode_of
from dataplane.policy.forwarding import LbMode
from dataplane.policy.node import NodeConfig

_CONFIG = "hotplane-lab.json"
_T = TypeVar("_T")


class Variant(NamedTuple):
    """A mode and its options on the command line. keeps: see lab.ground. lb_mode: see LabProxy."""

    mode: str
    options: tuple[str, ...] = ()
    keeps: frozenset[Keeps] = frozenset()
    lb_mode: LbMode | None = None


VARIANTS: Mapping[str, Variant] = {
    "iptables": Variant("iptables"),
    "nftables": Variant("nftables"),
    "ebpf": Variant("ebpf", keeps=frozenset(Keeps)),
    "ebpf-parity": Variant("ebpf", ("--masquerade", "kube-proxy")),
    "ebpf-connect": Variant("ebpf", ("--hooks", "connect"), frozenset({Keeps.PODS})),
    "ebpf-tc": Variant("ebpf", ("--hooks", "tc"), frozenset({Keeps.LOCAL})),
    "ebpf-tc-tunnel": Variant("ebpf", ("--hooks", "tc"), frozenset({Keeps.LOCAL}), LbMode.TUNNEL),
    "ebpf-tc-dsr": Variant("ebpf", ("--hooks", "tc"), frozenset({Keeps.LOCAL}), LbMode.DSR),
    "ebpf-tunnel": Variant("ebpf", keeps=frozenset(Keeps), lb_mode=LbMode.TUNNEL),
    "ebpf-dsr": Variant("ebpf", keeps=frozenset(Keeps), lb_mode=LbMode.DSR),
    "ebpf-xdp": Variant("ebpf", ("--hooks", "tc,xdp"), frozenset({Keeps.LOCAL})),
    "ipvs": Variant("ipvs"),
}


class MachineProxies:
    """A proxy on every node, in one variant. As a context manager it leaves the nodes without rules and flows.

    peers: the nodes know each other, for Services that ask for tunnel or dsr, though the variant itself has neither.
    planners: each node's, for the oracle. said: what the command said on standard error while it loaded (such as a hook
    that this kernel refuses).
    """

    def __init__(self, machines: Machines, variant: str, *, peers: bool = False) -> None:
        self._machines = machines
        self._variant = VARIANTS[variant]
        self._lb_mode = self._variant.lb_mode or (LbMode.SNAT if peers else None)
        self.mode, self.keeps = self._variant.mode, self._variant.keeps
        self.planners = {node.name: Planner(self._node_config(node)) for node in machines.nodes}
        self._config = f"{machines.scratch}/{_CONFIG}"
        self.said: list[str] = []

    def _node_config(self, node: Node) -> NodeConfig:
        way = self._lb_mode
        peers = lb_peers(self._machines.nodes, node) if way is not None else ()
        return node_config(self._machines.spec, node, self.mode, way or LbMode.SNAT, peers)

    def _forwarding(self, node: Node) -> Iterator[str]:
        """The options that say what `_node_config` does."""
        if self._lb_mode is not None:
            yield from ("--lb-mode", self._lb_mode.value)
            for peer in lb_peers(self._machines.nodes, node):
                yield from ("--lb-peer", f"{peer.node}={peer.address}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._everywhere(self._clean)

    def load(self, objects: Iterable[ModelObject]) -> None:
        """Program every node with exactly these objects. Raises LabError when the command fails on one."""
        listed = list(objects)
        for planner in self.planners.values():
            planner.update(listed)
        text = manifest(listed)
        self.said = self._everywhere(lambda node: self._apply(node, text))

    def counters(self) -> dict[str, int]:
        """How often each way out of each hook was taken on all nodes, by `hook:reason`."""
        found: Counter[str] = Counter()
        if mode_of(self.mode).hooks:
            for records in self._everywhere(lambda node: self._hotplane(node, ["show", "decisions", "-o", "json"])[0]):
                for record in json.loads(records):
                    found[f"{record['hook']}:{record['reason']}"] += record["count"]
        return dict(found)

    def oracles(self) -> dict[str, Oracle]:
        """An oracle for each node's plan as it is now."""
        return {name: Oracle(planner.plan) for name, planner in self.planners.items()}

    def sayable(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that this mode can serve (see Mode.can_serve)."""
        can_serve = mode_of(self.mode).can_serve
        unsaid = {
            (entry.key.name, frontend.kind, frontend.key.protocol, frontend.key.family)
            for planner in self.planners.values()
            for frontend, entry in planner.plan.frontends()
            if not can_serve(frontend)
        }
        return [cell for cell in cells if (cell.service, cell.kind, cell.protocol, cell.family) not in unsaid]

    def _everywhere(self, work: Callable[[Node], _T]) -> list[_T]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(work, self._machines.nodes))

    def _hotplane(self, node: Node, argv: Sequence[str], input: bytes | None = None) -> tuple[bytes, str]:
        """Run the command on a node; its output and what it said on standard error."""
        addresses = [
            argument for ip in (*node.addresses.values(), *node.second.values()) for argument in ("--node-ip", ip)
        ]
        own = ["--config", self._config, "--node-name", node.name, *addresses, "--mode", self.mode]
        own += [*self._variant.options, *self._forwarding(node), *self._machines.options(node)]
        done = self._machines.run(node.name, [f"{self._machines.home}/hotplane", *own, *argv], input=input)
        return done.stdout, done.stderr.decode(errors="replace").strip()

    def _apply(self, node: Node, text: bytes) -> str:
        if self.mode not in MODES:
            self._ipvs(node, "load", text)
            return ""
        self._machines.run(node.name, ["tee", self._config], input=_configuration(self._machines))
        _, said = self._hotplane(node, ["apply", "-f", "-"], text)
        return f"{node.name}: {said}" if said else ""

    def _clean(self, node: Node) -> None:
        if self.mode not in MODES:
            self._ipvs(node, "clean")
        else:
            self._hotplane(node, ["cleanup"])
        self._machines.run(node.name, self._machines.python("dataplane.lab.vagrant.forget"))

    def _ipvs(self, node: Node, action: str, text: bytes | None = None) -> None:
        """The baseline is no mode of the command line; a module of its own drives it."""
        spec = ["--nodes", str(self._machines.spec.nodes), *(["--ipv6"] if self._machines.spec.ipv6 else [])]
        argv = self._machines.python("dataplane.lab.vagrant.ipvs", action, node.name, *spec)
        self._machines.run(node.name, argv, input=text)


def _configuration(machines: Machines) -> bytes:
    """A KubeProxyConfiguration that says what `node_config` does."""
    cidrs = [CLUSTER_CIDR[family] for family in machines.spec.families]
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "detectLocalMode": "ClusterCIDR",
            "clusterCIDR": ",".join(cidrs),
        }
    ).encode()
