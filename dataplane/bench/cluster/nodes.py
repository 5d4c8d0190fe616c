"""Which nodes the benchmark uses, and what the cluster tells of them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dataplane.bench.cluster.kubectl import ClusterError
from dataplane.model.net import Family, family_of

_NO_PODS = ("NoSchedule", "NoExecute")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class Node(NamedTuple):
    """A node. unfit: why no pod of ours would come onto it by itself, or "". architecture: as uname(1) says it."""

    name: str
    addresses: tuple[str, ...]
    architecture: str
    kernel: str
    system: str
    runtime: str
    kubelet: str
    cpus: int
    memory_bytes: int
    unfit: str = ""

    def address(self, family: Family) -> str:
        """Its InternalIP of a family. Raises ClusterError."""
        found = [address for address in self.addresses if family_of(address) is family]
        if not found:
            raise ClusterError(f"node {self.name} has no InternalIP of IPv{family.value}; try another --family")
        return found[0]


class Pair(NamedTuple):
    """The client's node and the server's. named: those that somebody chose by name."""

    client: Node
    server: Node
    named: frozenset[str] = frozenset()

    @property
    def is_one(self) -> bool:
        """True if there is no network between the two nodes."""
        return self.client.name == self.server.name


def nodes(items: Iterable[Any]) -> list[Node]:
    """Nodes of a `kubectl get nodes -o json`, by name."""
    return sorted(map(_node, items), key=lambda node: node.name)


def _node(item: Any) -> Node:
    status, spec = item.get("status", {}), item.get("spec", {})
    info, capacity = status.get("nodeInfo", {}), status.get("capacity", {})
    architecture = info.get("architecture", "")
    return Node(
        name=item["metadata"]["name"],
        addresses=tuple(a["address"] for a in status.get("addresses", ()) if a.get("type") == "InternalIP"),
        architecture=_ARCHITECTURES.get(architecture, architecture),
        kernel=info.get("kernelVersion", ""),
        system=info.get("osImage", ""),
        runtime=info.get("containerRuntimeVersion", ""),
        kubelet=info.get("kubeletVersion", ""),
        cpus=int(quantity(capacity.get("cpu", "0"))),
        memory_bytes=int(quantity(capacity.get("memory", "0"))),
        unfit=_unfit(spec, status),
    )


def _unfit(spec: Any, status: Any) -> str:
    ready = [c for c in status.get("conditions", ()) if c.get("type") == "Ready"]
    if not ready or ready[0].get("status") != "True":
        return "is not Ready"
    if spec.get("unschedulable"):
        return "is cordoned"
    taints = [taint.get("key", "") for taint in spec.get("taints", ()) if taint.get("effect") in _NO_PODS]
    return f"has the taint {taints[0]}" if taints else ""


def quantity(text: str) -> float:
    """A Kubernetes quantity: "4", "500m", "16Gi", "16G". 0 for anything else."""
    scales = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    scales |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", 1)}
    ending = next((ending for ending in sorted(scales, key=len, reverse=True) if text.endswith(ending)), "")
    try:
        return float(text.removesuffix(ending)) * scales.get(ending, 1.0)
    except ValueError:
        return 0.0


def choose(found: Sequence[Node], client: str = "", server: str = "") -> Pair:
    """The two nodes to use; client, server: those that somebody named. Of the others the first ones that are Ready and
    schedulable; where there is only one, that one twice. Raises ClusterError."""
    by_name = {node.name: node for node in found}
    for option, name in (("--client-node", client), ("--server-node", server)):
        if name and name not in by_name:
            raise ClusterError(f"{option} {name}: there is no such node; there are {', '.join(by_name) or 'none'}")
        if name and by_name[name].unfit == "is not Ready":
            raise ClusterError(f"{option} {name}: the node is not Ready; choose another")
    fit = [node for node in found if not node.unfit and node.name not in (client, server)]
    if not fit and not (client or server):
        reasons = ", ".join(f"{node.name} {node.unfit}" for node in found) or "there are no nodes"
        raise ClusterError(f"no node takes pods: {reasons}; name one by --client-node and --server-node")
    first = by_name[client] if client else fit.pop(0) if fit else by_name[server]
    second = by_name[server] if server else fit.pop(0) if fit else first
    return Pair(first, second, frozenset(filter(None, (client, server))))
