"""The peers' cluster as their API server has it: the benchmark's Services, Nodes, and the Service that probes use.

That one is the last of all by name, so whoever works in order programs it last. Its only endpoint is one of two ports
of the server's pod, and moves between them: who answers a connection says what the kernel has.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from dataplane.bench.objects import NAMESPACE, Backend, Shape, endpoint_slice, objects, probe_ip
from dataplane.lab.spec import Node
from dataplane.model.net import Family

PROBE_SERVICE, PROBE_PORT = "zzz-last", 80
PLACES = ("a", "b")
"""Where the endpoint can be."""
LISTEN = {"a": 8900, "b": 8901}
"""Ports of the server's pod by place, TCP."""
AFFINITY_SECONDS = 10800
"""What an API server writes where a Service does not say how long clients stay with an endpoint."""

Object = dict[str, Any]


def cluster(shape: Shape, local: Backend, remote: Backend, nodes: Sequence[Node], place: str) -> Iterator[Object]:
    """Everything, as an API server hands it out, with what it would have filled in. place: of the probes' endpoint."""
    for node in nodes:
        yield _node(node)
    for item in (*_probe_service(shape.family), probe_slice(local, shape.family, place)):
        yield item
    for item in objects(shape, local, remote):
        yield filled_in(item)


def probe_slice(local: Backend, family: Family, place: str) -> Object:
    """The EndpointSlice of the probes' Service, its endpoint at one of PLACES."""
    ports = [{"name": "tcp", "protocol": "TCP", "port": LISTEN[place]}]
    return endpoint_slice(PROBE_SERVICE, "0", ports, [local], family)


def _probe_service(family: Family) -> Iterator[Object]:
    address = probe_ip(family)
    ports = [{"name": "tcp", "protocol": "TCP", "port": PROBE_PORT}]
    spec = {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports}
    metadata = {"namespace": NAMESPACE, "name": PROBE_SERVICE, "creationTimestamp": "2024-01-01T00:00:00Z"}
    yield filled_in({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


def filled_in(item: Object) -> Object:
    """An object with the fields that a real API server gives those that do not have them."""
    metadata = {"uid": f"{item['kind']}-{item['metadata']['name']}", **item["metadata"]}
    if item["kind"] != "Service":
        return {**item, "metadata": metadata}
    spec = item["spec"]
    family = "IPv6" if ":" in spec["clusterIP"] else "IPv4"
    defaults: Object = {
        "type": "ClusterIP", "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster", "selector": {"app": item["metadata"]["name"]},
    }  # fmt: skip
    if spec.get("sessionAffinity") == "ClientIP":
        defaults["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}
    if spec.get("type") == "NodePort":
        defaults["externalTrafficPolicy"] = "Cluster"
    ports = [{"targetPort": port["port"], **port} for port in spec["ports"]]
    return {**item, "metadata": metadata, "spec": {**defaults, **spec, "ports": ports}, "status": {"loadBalancer": {}}}


def _node(node: Node) -> Object:
    addresses = [{"type": "InternalIP", "address": address} for address in node.addresses.values()]
    cidrs = list(node.pod_cidrs.values())
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "uid": f"Node-{node.name}", "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def kubeconfig(url: str) -> bytes:
    """A kubeconfig of an API server that asks nobody who he is; JSON is YAML too."""
    named = {"name": "lab"}
    return msgspec.json.encode(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab", "users": [{**named, "user": {}}],
            "clusters": [{**named, "cluster": {"server": url}}],
            "contexts": [{**named, "context": {"cluster": "lab", "user": "lab"}}],
        }
    )  # fmt: skip
