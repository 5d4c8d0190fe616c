"""Versions of an API: what the server has in one version it gives out in the other ones that it serves."""

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
_HOSTNAME, _ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def as_version(item: Object, api_version: str) -> Object:
    """The object as `api_version` writes it; itself where it is of that version already.

    discovery.k8s.io/v1beta1 (Kubernetes before 1.21) has node and zone of an endpoint in `topology`. The versions of
    networking.k8s.io differ in nothing that a ServiceCIDR has.
    """
    if item.get("apiVersion") == api_version:
        return item
    found = {**item, "apiVersion": api_version}
    if api_version == "discovery.k8s.io/v1beta1":
        found["endpoints"] = [_with_topology(endpoint) for endpoint in item.get("endpoints") or ()]
    return found


def _with_topology(endpoint: Mapping[str, Any]) -> Object:
    found = {name: value for name, value in endpoint.items() if name != "zone"}
    places = {_HOSTNAME: endpoint.get("nodeName"), _ZONE: endpoint.get("zone")}
    topology = {name: value for name, value in places.items() if value}
    return {**found, "topology": topology} if topology else found
