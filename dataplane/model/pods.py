"""Validate Pods and Namespaces from the wire form, as far as a node's data plane uses them.

Sources: core/v1; the CNI plugin portmap for hostPort; the kubelet for the names of cgroups.
"""

from collections.abc import Iterator

from dataplane.model import wire
from dataplane.model.net import family_of
from dataplane.model.objects import HostPort, Namespace, Pod
from dataplane.model.report import Report, is_port, port_reason, protocol, protocol_reason, read_address

CONNECT_TIME = "service.hotplane.io/connect-time"
"""Label or annotation of a Pod or a Namespace that turns connect-time balancing on or off."""

_VALUES = {"on": True, "off": False}
_FINISHED = ("Succeeded", "Failed")
_NO_METADATA = wire.PodMetadata()


def connect_time(metadata: wire.PodMetadata, report: Report) -> tuple[bool | None, str]:
    """Return the connect-time setting of an object, None if not set, and its source: "label" or "annotation". If both
    differ, "off" wins: software that inspects packets with the Service's address may depend on it."""
    found: dict[bool, str] = {}
    annotation = metadata.annotations.connect_time if metadata.annotations else None
    label = metadata.labels.get(CONNECT_TIME) if metadata.labels else None
    for what, text in (("annotation", annotation), ("label", label)):
        if text is None:
            continue
        if isinstance(text, str) and text in _VALUES:
            found.setdefault(_VALUES[text], what)
        else:
            report.problem(f"metadata.{what}s[{CONNECT_TIME}]", f'is {text!r}; write "off" or "on" (it is ignored)')
    return next(((word, found[word]) for word in (False, True) if word in found), (None, ""))


def namespace(item: wire.WireNamespace, report: Report) -> Namespace:
    """Validate a Namespace."""
    return Namespace(report.name, *connect_time(item.metadata or _NO_METADATA, report))


def pod(item: wire.WirePod, report: Report) -> Pod:
    """Validate a Pod. A port that cannot be published is reported and left out."""
    metadata = item.metadata or _NO_METADATA
    spec, status = item.spec or wire.PodSpec(), item.status or wire.PodStatus()
    word, by = connect_time(metadata, report)
    mirror = metadata.annotations.mirror if metadata.annotations else None
    host_network = bool(spec.host_network)
    return Pod(
        namespace=report.namespace,
        name=report.name,
        uid=mirror or metadata.uid or "",
        node=spec.node_name or "",
        addresses=_addresses(status, report),
        host_network=host_network,
        host_ports=() if host_network else tuple(_host_ports(spec, report)),
        connect_time=word,
        connect_time_by=by,
        terminating=metadata.deletion_timestamp is not None,
        finished=status.phase in _FINISHED,
        created=metadata.creation_timestamp or "",
        labels=_labels(metadata, report),
    )


def _labels(metadata: wire.PodMetadata, report: Report) -> tuple[tuple[str, str], ...] | None:
    """Return the labels, null read as "" as Go's decoder does; None if one of them is no text (reported)."""
    found: dict[str, str] = {}
    given = metadata.labels or {}
    for key, value in given.items():
        if value is None or isinstance(value, str):
            found[key] = value or ""
        elif key != CONNECT_TIME:  # which is reported by `connect_time`
            report.problem(f"metadata.labels[{key}]", "must be a string; put it in quotes")
    return tuple(sorted(found.items())) if len(found) == len(given) else None


def _addresses(status: wire.PodStatus, report: Report) -> tuple[str, ...]:
    """Return a pod's addresses, at most one per family."""
    texts = [item.ip for item in status.pod_ips or () if item is not None] or [status.pod_ip]
    found: dict[int, str] = {}
    for text in texts:
        address = read_address(text, "status.podIPs", report) if text else ""
        if address:
            found.setdefault(family_of(address), address)
    return tuple(found.values())


def _containers(spec: wire.PodSpec) -> Iterator[tuple[str, wire.Container]]:
    """Yield the containers that run as long as the pod, with their field: also restartable init containers
    (sidecars)."""
    for index, container in enumerate(spec.containers or ()):
        if container is not None:
            yield f"spec.containers[{index}]", container
    for index, container in enumerate(spec.init_containers or ()):
        if container is not None and container.restart_policy == "Always":
            yield f"spec.initContainers[{index}]", container


def _host_ports(spec: wire.PodSpec, report: Report) -> Iterator[HostPort]:
    """Return the hostPorts without duplicates."""
    seen: dict[tuple[int, int, str], HostPort] = {}
    for where, container in _containers(spec):
        for index, item in enumerate(container.ports or ()):
            if item is None or not item.host_port:
                continue
            port = _host_port(item, f"{where}.ports[{index}]", report)
            if port is None:
                continue
            earlier = seen.setdefault((port.protocol, port.port, port.address), port)
            if earlier is port:
                yield port
            elif earlier != port:
                taken = f"{port.port} is published by an earlier port of this Pod; choose another number"
                report.problem(f"{where}.ports[{index}].hostPort", taken)


def _host_port(item: wire.ContainerPort, field: str, report: Report) -> HostPort | None:
    proto = protocol(item.protocol)
    if proto is None:
        report.problem(f"{field}.protocol", protocol_reason(item.protocol))
        return None
    if not is_port(item.host_port):
        report.problem(f"{field}.hostPort", port_reason(item.host_port))
        return None
    if not is_port(item.container_port):
        report.problem(f"{field}.containerPort", port_reason(item.container_port))
        return None
    address = ""
    if item.host_ip:
        address = read_address(item.host_ip, f"{field}.hostIP", report)
        if not address:
            return None
    return HostPort(proto, item.host_port, item.container_port, address)
