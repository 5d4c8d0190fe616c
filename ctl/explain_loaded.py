"""`explain` of what is loaded in this network namespace, without manifests; Services by their names."""

import argparse
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ctl.flow_names import lab_here
from ctl.loaded import last_loaded
from ctl.service_option import require_service
from dataplane.errors import UsageError
from dataplane.lab.places import Places
from dataplane.model.net import Family, family_of, host_port
from dataplane.model.objects import ModelObject
from dataplane.oracle.decide import Decision, Oracle
from dataplane.oracle.keeps import Keeping
from dataplane.oracle.types import Packet
from dataplane.plan.types import FrontendKey, FrontendKind, Plan, PlanEntry
from dataplane.planes.decisions import matches
from dataplane.planes.mode import Mode
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig

OUTSIDE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849): an outside client that is nobody's."""


class Scene(NamedTuple):
    """What pictures need to know beside decisions: the deciding node, whose address its mode leaves alone, and the
    objects, or the lab's places, that name others."""

    node: NodeConfig
    keeping: Keeping
    objects: Sequence[ModelObject] = ()
    places: Places | None = None


@dataclass(frozen=True)
class Loaded:
    """What was loaded last here: the plan, its mode, the options of its plane, and whose address that mode leaves
    alone."""

    plan: Plan
    mode: Mode
    keeping: Keeping
    options: PlaneOptions

    @cached_property
    def _oracle(self) -> Oracle:
        return Oracle(self.plan, keeping=self.keeping)

    def decide(self, packet: Packet) -> Decision:
        """What happens to a packet."""
        return self._oracle.decide(packet)

    def path(self, decision: Decision) -> Sequence[Step]:
        """The kernel's way of the packet that was decided about."""
        return self.mode.path(decision, At(self.plan.node, self.options, self.keeping))

    def forwarded(self, packet: Packet) -> PlanEntry | None:
        """What has the node port at which a packet arrived at another node, if that node may forward it to this one."""
        if packet.destination not in self.plan.tunnel_peers:
            return None
        port = FrontendKey(family_of(packet.destination), "", packet.protocol, packet.port)
        return next((entry for frontend, entry in self.plan.frontends() if frontend.key == port), None)


def keeping_of(mode: Mode, options: PlaneOptions, plan: Plan, elsewhere: frozenset[str] = frozenset()) -> Keeping:
    """Whose address a mode with these options leaves alone. elsewhere: sources that are pods of other nodes."""
    off = {a for pod in plan.connect_off.values() if not pod.host_network for a in pod.addresses}
    return Keeping(mode.keeps(options), elsewhere, frozenset(off if mode.at_connect(options) else ()))


def loaded(args: argparse.Namespace) -> Loaded:
    """Return what was loaded last here. Raises HotplaneError if nothing was, or in another mode than was asked for."""
    saved = last_loaded(args.mode, args.state_dir)
    plan, mode = saved.plan(), mode_of(saved.mode)
    options = mode.in_effect(saved.options or PlaneOptions())
    return Loaded(plan, mode, keeping_of(mode, options, plan, pods_elsewhere(plan, lab_here())), options)


def pods_elsewhere(plan: Plan, places: Places | None) -> frozenset[str]:
    """Addresses of pods that are known to be other nodes': endpoints that may not be here, and those of the lab."""
    here: set[str] = set()
    there: set[str] = set()
    for entry in plan.entries.values():
        here.update(b.address for b in entry.unplaced)
        for backend in entry.cluster:
            (here if backend.local else there).add(backend.address)
    pods = [pod for pod in places.pods if pod.node != plan.node.name] if places is not None else []
    of_lab = {address for pod in pods for address in pod.addresses.values()}
    return frozenset((there - here - set(plan.node.addresses)) | of_lab)


def sources(node: NodeConfig, family: Family) -> Iterator[str]:
    """An address of each class of sources that this node can tell apart: a pod, the node itself, an outside client."""
    pods = next((cidr for cidr in node.detector.cidrs if family_of(cidr.partition("/")[0]) is family), "")
    if pods:
        network = ipaddress.ip_network(pods, strict=False)
        yield str(network.network_address + min(9, network.num_addresses - 1))
    if own := node.primary(family):
        yield own
    yield OUTSIDE[family]


def flows_to(plan: Plan, service: str, given: Sequence[str]) -> list[str]:
    """Flows to every frontend of a Service, from the sources given, else from one of each class. Node ports are asked
    for at the node's own address. Raises HotplaneError for a Service that the plan does not have, UsageError if the
    sources given can use none of its frontends."""
    require_service(service, {key.service for key in plan.entries})
    texts = []
    for frontend, entry in plan.frontends():
        if not matches(entry.key.service, service):
            continue
        key = frontend.key
        address = key.address or plan.node.primary(key.family)
        for source in given or sources(plan.node, key.family):
            skipped = frontend.kind is FrontendKind.NODE_PORT and not address
            if family_of(source) is key.family and not skipped:
                texts.append(f"{_bracketed(source)} -> {host_port(address, key.port)}/{key.protocol.text}")
    if not texts:
        raise UsageError(f"--service {service}: it has no frontend that these sources can use")
    return texts


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
