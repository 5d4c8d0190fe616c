"""Objects as an API server writes them, managedFields included, because real ones have them too."""

from collections.abc import Sequence
from typing import Any

Object = dict[str, Any]
_MANAGED = [
    {
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:ports": {".": {}}, "f:type": {}, "f:selector": {}}},
    }
]  # fmt: skip


def service(
    name: str, ip: str, *, namespace: str = "default", protocol: str = "TCP", port: int = 80, **spec: Any
) -> Object:
    """A Service; `spec` adds to or replaces its fields."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": _MANAGED,
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": name}, "ports": [{"port": port, "protocol": protocol, "targetPort": 8080}], **spec,
        },
        "status": {"loadBalancer": {}},
    }  # fmt: skip


def endpoint(
    address: str, node: str = "node1", *, ready: bool = True, terminating: bool = False, serving: bool | None = None
) -> Object:
    """An endpoint of a slice."""
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": ready if serving is None else serving, "terminating": terminating},
        "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": "default", "name": f"pod-{address}"},
    }


def endpoint_slice(
    service_name: str, endpoints: Sequence[Object | str], *, namespace: str = "default", protocol: str = "TCP",
    port: int = 8080, suffix: str = "abcde", triggered: str = "",
) -> Object:  # fmt: skip
    """A slice of a Service; an endpoint given as an address is ready on node1."""
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": triggered} if triggered else {}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-{suffix}", "namespace": namespace, "annotations": annotations,
            "labels": {"kubernetes.io/service-name": service_name}, "managedFields": _MANAGED,
        },
        "addressType": "IPv4",
        "endpoints": [endpoint(item) if isinstance(item, str) else item for item in endpoints],
        "ports": [{"name": "", "protocol": protocol, "port": port}],
    }  # fmt: skip


def node(name: str, *addresses: str, zone: str = "", taints: Sequence[str] = ()) -> Object:
    """A Node."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


def pod(
    name: str, node_name: str, *addresses: str, namespace: str = "default", uid: str = "", ports: Sequence[Object] = (),
    labels: Object | None = None, annotations: Object | None = None, host_network: bool = False, **metadata: Any,
) -> Object:  # fmt: skip
    """A running Pod; `ports` are its container's."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "uid": uid or f"uid-{namespace}-{name}", "labels": labels or {},
            "annotations": annotations or {}, "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": _MANAGED,
            **metadata,
        },
        "spec": {
            "nodeName": node_name, "hostNetwork": host_network,
            "containers": [{"name": "main", "image": "echo", "ports": list(ports)}],
        },
        "status": {
            "phase": "Running", "podIP": addresses[0] if addresses else "",
            "podIPs": [{"ip": address} for address in addresses],
        },
    }  # fmt: skip


def namespace(name: str, **labels: str) -> Object:
    """A Namespace; labels with other characters than letters go by a dict: `**{"a/b": "c"}`."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def network_policy(name: str, *, namespace: str = "default", **selector: Any) -> Object:
    """A NetworkPolicy that allows nothing in; `selector`: of its podSelector (matchLabels, matchExpressions)."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "managedFields": _MANAGED},
        "spec": {"podSelector": selector, "policyTypes": ["Ingress"]},
    }
