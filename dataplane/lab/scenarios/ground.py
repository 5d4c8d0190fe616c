"""Interface of a lab that the scenario table uses; places are namespaces of one machine, or many machines."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dataplane.lab.spec import LabSpec, Node, Place, Pod, Topology
from dataplane.lab.traffic.probe import Probe, ProbeResult
from dataplane.oracle.decide import Oracle
from dataplane.oracle.keeps import Keeps


class Ground(Protocol):
    """A lab that is up."""

    @property
    def spec(self) -> LabSpec:
        """Its shape."""

    @property
    def topology(self) -> Topology:
        """Everybody in it."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, node 1 first."""

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All pods, by node."""

    def place(self, where: str) -> Place:
        """A place by its name. Raises LabSpecError when there is none."""

    def probe_all(self, requests: Mapping[str, Sequence[Probe]]) -> dict[str, list[ProbeResult]]:
        """Try probes from several places at the same time (place name -> probes); results likewise."""

    def node_addresses(self) -> dict[str, set[str]]:
        """Every address that each node has on any device: what a masqueraded packet may come from."""


class Proxies(Protocol):
    """A Service proxy on every node of a lab, all in one mode."""

    @property
    def mode(self) -> str:
        """iptables, nftables, ebpf or ipvs."""

    @property
    def keeps(self) -> frozenset[Keeps]:
        """Clients whose address is left alone where the policy masquerades."""

    def counters(self) -> dict[str, int]:
        """How often each way out of each of the ebpf mode's hooks was taken on all nodes, by `hook:reason`."""

    def oracles(self) -> dict[str, Oracle]:
        """An oracle for each node's plan as it is now."""
