"""Fields that an API server and its controllers would add to hand-written Services, for a lab that has neither.

A clusterIP and node ports where the manifest names none, and the EndpointSlices of the pods that a selector finds.
The result goes through the same decoding as objects from a real cluster.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dataplane.lab.spec import LabError, Pod, Topology
from dataplane.model.decode import Decoded, decode
from dataplane.model.net import Family
from dataplane.model.yamlload import documents as yaml_documents

SERVICE_NETWORK = {Family.IPV4: "10.96.0.0/12", Family.IPV6: "fd00:10:96::/112"}
"""The lab's service CIDRs; a manifest may name a clusterIP outside of them."""

FIRST_NODE_PORT = 30100
ECHO_PORT = 8080


class Backing(msgspec.Struct, frozen=True):
    """A pod behind a label: which pod, and whether it is still ready."""

    pod: Pod
    ready: bool = True
    serving: bool = True
    terminating: bool = False


Workloads = Mapping[str, Iterable[Backing]]
"""Value of the label `app` -> the pods that carry it."""


def pods(topology: Topology, *names: str) -> list[Backing]:
    """Ready pods of the lab by name. Raises KeyError for a name that the lab does not have."""
    known = {pod.name: pod for node in topology.nodes for pod in node.pods}
    return [Backing(known[name]) for name in names]


class Allocator:
    """Hands out clusterIPs and node ports in order, never one that a manifest names itself."""

    def __init__(self, services: Iterable[dict[str, Any]]) -> None:
        self._taken: set[str | int] = set()
        for service in services:
            spec = service.get("spec", {})
            self._taken |= {spec.get("clusterIP", ""), *spec.get("clusterIPs", ())}
            self._taken |= {port.get("nodePort", 0) for port in spec.get("ports", ())}
        self._hosts = {family: ipaddress.ip_network(cidr).hosts() for family, cidr in SERVICE_NETWORK.items()}

    def cluster_ip(self, family: Family) -> str:
        """The next free clusterIP."""
        address = next(str(host) for host in self._hosts[family] if str(host) not in self._taken)
        self._taken.add(address)
        return address

    def node_port(self) -> int:
        """The next free node port."""
        port = next(port for port in range(FIRST_NODE_PORT, 32768) if port not in self._taken)
        self._taken.add(port)
        return port


def _admit(service: dict[str, Any], allocator: Allocator, families: tuple[Family, ...]) -> None:
    """Fill in what the API server would: namespace, clusterIPs, node ports."""
    service.setdefault("metadata", {}).setdefault("namespace", "default")
    spec = service.setdefault("spec", {})
    kind = spec.setdefault("type", "ClusterIP")
    if spec.get("clusterIP") != "None" and kind != "ExternalName" and "clusterIPs" not in spec:
        first = spec.get("clusterIP") or allocator.cluster_ip(Family.IPV4)
        spec["clusterIP"] = first
        # The lab gives every Service both families where it has them, as ipFamilyPolicy PreferDualStack would.
        other = [allocator.cluster_ip(family) for family in families if family is Family.IPV6]
        spec["clusterIPs"] = [first, *other]
    if kind in ("NodePort", "LoadBalancer"):
        for port in spec.get("ports", ()):
            if not port.get("nodePort"):
                port["nodePort"] = allocator.node_port()


def _endpoint_slice(service: dict[str, Any], backing: list[Backing], family: Family) -> dict[str, Any]:
    metadata, spec = service["metadata"], service["spec"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-{family.name.lower()}",
            "namespace": metadata["namespace"],
            "labels": {"kubernetes.io/service-name": metadata["name"]}
            | ({"service.kubernetes.io/headless": ""} if spec.get("clusterIP") == "None" else {}),
        },
        "addressType": "IPv4" if family is Family.IPV4 else "IPv6",
        "endpoints": [
            {
                "addresses": [item.pod.addresses[family]],
                "conditions": {"ready": item.ready, "serving": item.serving, "terminating": item.terminating},
                "nodeName": item.pod.node,
            }
            for item in backing
        ],
        "ports": [
            {
                "name": port.get("name", ""),
                "protocol": port.get("protocol", "TCP"),
                "port": port.get("targetPort", port["port"]),
            }
            for port in spec.get("ports", ())
        ],
    }


def _read(manifest: bytes, source: str) -> list[dict[str, Any]]:
    """The documents of a manifest. Raises LabError naming the one that cannot be read."""
    found = []
    for document in yaml_documents(manifest):
        if document.error or not isinstance(document.value, dict):
            raise LabError(f"{source}: line {document.line}: {document.error or 'not an object'}")
        found.append(document.value)
    return found


def cluster_objects(manifest: bytes, workloads: Workloads, families: tuple[Family, ...], source: str) -> Decoded:
    """Decode a manifest of Services together with what a cluster would add to them.

    in: YAML or JSON documents; the pods behind each value of the label `app`; the lab's families; a name for messages.
    out: Services with clusterIPs and node ports, and an EndpointSlice for each Service with a selector and family.
    Raises LabError when the manifest itself cannot be read.
    """
    documents = _read(manifest, source)
    services = [document for document in documents if document.get("kind") == "Service"]
    allocator = Allocator(services)
    slices = []
    for service in services:
        _admit(service, allocator, families)
        backing = list(workloads.get(service["spec"].get("selector", {}).get("app", ""), ()))
        slices += [_endpoint_slice(service, backing, family) for family in families]
    whole = {"apiVersion": "v1", "kind": "List", "items": [*documents, *slices]}
    return decode(msgspec.json.encode(whole), source)
