"""Services and EndpointSlices back in the wire form of Kubernetes, for proxies that read manifests."""

from collections.abc import Iterable
from typing import Any

import msgspec

from dataplane.model.algorithm import ALGORITHM_ANNOTATION
from dataplane.model.forwarding import SERVICE_ANNOTATION
from dataplane.model.net import Family
from dataplane.model.objects import EndpointSlice, ModelObject, Service
from dataplane.model.weights import WEIGHTS_ANNOTATION


def manifest(objects: Iterable[ModelObject]) -> bytes:
    """A JSON List of these objects; decoding it gives equal objects again.

    Raises TypeError for a kind that labs have no use for (Node, ServiceCIDR).
    """
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": [_wire(item) for item in objects]})


def _wire(item: ModelObject) -> dict[str, Any]:
    if isinstance(item, Service):
        return _service(item)
    if isinstance(item, EndpointSlice):
        return _endpoint_slice(item)
    raise TypeError(f"{item.ref}: only Services and EndpointSlices are written back")


def _service(service: Service) -> dict[str, Any]:
    labels = {"service.kubernetes.io/service-proxy-name": "another"} if service.proxied_elsewhere else {}
    spec: dict[str, Any] = {
        "type": service.type.value,
        "clusterIP": "None" if service.headless else next(iter(service.cluster_ips), ""),
        "clusterIPs": ["None"] if service.headless else list(service.cluster_ips),
        "externalIPs": list(service.external_ips),
        "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
        "externalTrafficPolicy": "Local" if service.external_local else "Cluster",
        "ports": [
            {"name": port.name, "protocol": port.protocol.name, "port": port.port}
            | ({"nodePort": port.node_port} if port.node_port else {})
            for port in service.ports
        ],
    }
    if service.affinity_seconds:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": service.affinity_seconds}}
    if service.source_ranges is not None:
        spec["loadBalancerSourceRanges"] = list(service.source_ranges)
    if service.health_check_node_port:
        spec["healthCheckNodePort"] = service.health_check_node_port
    metadata: dict[str, Any] = {"namespace": service.namespace, "name": service.name, "labels": labels}
    asked = {SERVICE_ANNOTATION: service.forwarding_mode, ALGORITHM_ANNOTATION: service.lb_algorithm}
    metadata["annotations"] = {name: value for name, value in asked.items() if value}
    if service.created:
        metadata["creationTimestamp"] = service.created
    ingress = [{"ip": address} for address in service.load_balancer_ips]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def _endpoint_slice(item: EndpointSlice) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": item.service} if item.service else {}
    if item.headless:
        labels["service.kubernetes.io/headless"] = ""
    weights = ",".join(f"{endpoint.address}={endpoint.weight}" for endpoint in item.endpoints if endpoint.weight != 1)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": item.namespace,
            "name": item.name,
            "labels": labels,
            "annotations": {WEIGHTS_ANNOTATION: weights} if weights else {},
        },
        "addressType": "IPv4" if item.family is Family.IPV4 else "IPv6",
        "ports": [{"name": port.name, "protocol": port.protocol.name, "port": port.port} for port in item.ports],
        "endpoints": [
            {
                "addresses": [endpoint.address],
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                },
                "nodeName": endpoint.node,
                "hints": {
                    "forZones": [{"name": name} for name in endpoint.zone_hints or ()],
                    "forNodes": [{"name": name} for name in endpoint.node_hints or ()],
                },
            }
            for endpoint in item.endpoints
        ],
    }
