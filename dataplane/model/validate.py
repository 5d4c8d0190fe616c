"""Convert the wire form to the model's values: fill in defaults, make addresses canonical, report faults.

Rule for faults: a value that can be left out without changing what the rest means (one port, one externalIP, one
endpoint) is left out; a value that decides what the object means (its name, its type) makes the object be skipped;
and if leaving a value out would open access (a source range), no source is allowed. Each case reports a Problem.

Sources: Kubernetes API validation of core/v1 and discovery.k8s.io/v1; kube-proxy 1.36 for what is read and ignored
(the annotation service.beta.kubernetes.io/load-balancer-source-ranges is not read by it, so neither here).
"""

import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

from dataplane.model import wire
from dataplane.model.algorithm import ALGORITHM_FIELD, ALGORITHMS
from dataplane.model.forwarding import MODES, NODE_ANNOTATION, SERVICE_ANNOTATION, TunnelOffer, parse_offer
from dataplane.model.net import family_of
from dataplane.model.objects import Node, Service, ServiceCIDR, ServicePortSpec, ServiceType
from dataplane.model.report import (
    Report,
    Shared,
    is_port,
    port_reason,
    protocol,
    protocol_reason,
    read_address,
    read_cidr,
    special_reason,
    valid_port_name,
)

DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400
MAX_NAME = 63
"""Characters of a namespace's, Service's or Service port's name (RFC 1123 labels, core/v1 validation)."""

_TYPES = {None: ServiceType.CLUSTER_IP, "": ServiceType.CLUSTER_IP} | {kind.value: kind for kind in ServiceType}
_NODE_PORT_TYPES = (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER)
_NO_SERVICE_METADATA = wire.ServiceMetadata()
_FORWARDING_FIELD = f"metadata.annotations[{SERVICE_ANNOTATION}]"
_NO_NODE_METADATA = wire.NodeMetadata()
_NO_LABELS = wire.Labels()
_NO_SERVICE_SPEC = wire.ServiceSpec()


def _addresses(texts: Sequence[str | None], field: str, report: Report, *, link_local: bool = False) -> tuple[str, ...]:
    """Return canonical, distinct addresses in the given order; those that cannot be frontends are reported."""
    found: dict[str, None] = {}
    for index, text in enumerate(texts):
        if text is None:
            report.null(f"{field}[{index}]")
            continue
        found.update(dict.fromkeys(_single_address(text, f"{field}[{index}]", report, link_local=link_local)))
    return tuple(found)


def _cidrs(texts: Sequence[str | None], field: str, report: Report) -> tuple[tuple[str, ...], bool]:
    """Return canonical, distinct CIDRs, and True if all entries are valid; the others are reported."""
    found: dict[str, None] = {}
    sound = True
    for index, text in enumerate(texts):
        if text is None:
            report.null(f"{field}[{index}]")
            sound = False
            continue
        cidr = read_cidr(text, f"{field}[{index}]", report)
        if cidr:
            found[cidr] = None
        else:
            sound = False
    return tuple(found), sound


def _cluster_ips(spec: wire.ServiceSpec, report: Report) -> tuple[tuple[str, ...], bool]:
    """Return the clusterIPs, at most one per family, and True if the Service is headless. clusterIPs takes
    precedence."""
    if spec.cluster_ips:
        texts, field = spec.cluster_ips, "spec.clusterIPs"
        if spec.cluster_ip and texts[0] is not None and spec.cluster_ip != texts[0]:
            report.problem("spec.clusterIP", "differs from spec.clusterIPs[0], which is used; make them the same")
    elif spec.cluster_ip:
        texts, field = [spec.cluster_ip], "spec.clusterIP"
    else:
        return (), False
    if "None" in texts:
        return (), True
    given = [None if text is None else text or None for text in texts]
    if field == "spec.clusterIP":
        addresses = _single_address(spec.cluster_ip or "", field, report)
    else:
        addresses = _addresses(given, field, report)
    chosen = {family_of(address): address for address in reversed(addresses)}
    if len(chosen) < len(addresses):
        report.problem(field, "holds several addresses of one family; the first of each is used, remove the others")
    return tuple(address for address in addresses if chosen[family_of(address)] == address), False


def _single_address(text: str, field: str, report: Report, *, link_local: bool = False) -> tuple[str, ...]:
    """Return the address in a tuple, empty if it cannot be a frontend (reported)."""
    address = read_address(text, field, report)
    reason = special_reason(address, link_local=link_local) if address else ""
    if reason:
        report.problem(field, reason)
    return (address,) if address and not reason else ()


def _node_port(
    number: int, field: str, kind: ServiceType, taken: set[tuple[int, int]], proto: int, report: Report
) -> int:
    """Return the node port, or 0 if it is invalid (reported)."""
    if not is_port(number):
        report.problem(field, port_reason(number))
        return 0
    if kind not in _NODE_PORT_TYPES:
        report.problem(field, f"is not used by type {kind.value}; remove it or set spec.type to NodePort")
        return 0
    if (proto, number) in taken:
        report.problem(field, f"{number} is used by an earlier port of this Service; choose another number")
        return 0
    taken.add((proto, number))
    return number


def _ports(spec: wire.ServiceSpec, kind: ServiceType, report: Report) -> tuple[ServicePortSpec, ...]:
    """Return the ports, without those whose name, protocol or number is invalid or duplicate (reported)."""
    result: list[ServicePortSpec] = []
    names: set[str] = set()
    numbers: set[tuple[int, int]] = set()
    node_ports: set[tuple[int, int]] = set()
    for index, item in enumerate(spec.ports or ()):
        if item is None:
            report.null(f"spec.ports[{index}]")
            continue
        port = _port(item, names, numbers)
        if isinstance(port, _Fault):
            report.problem(f"spec.ports[{index}].{port.field}", port.reason)
            continue
        names.add(port.name)
        numbers.add((port.protocol, port.port))
        if item.node_port:
            field = f"spec.ports[{index}].nodePort"
            node_port = _node_port(item.node_port, field, kind, node_ports, port.protocol, report)
            port = ServicePortSpec(port.name, port.protocol, port.port, node_port)
        result.append(port)
    return _shared_ports(tuple(result))


_shared_ports: Shared[tuple[ServicePortSpec, ...]] = Shared()


class _Fault(NamedTuple):
    """The fault of a Service port."""

    field: str
    reason: str


def _port(item: wire.ServicePort, names: set[str], numbers: set[tuple[int, int]]) -> ServicePortSpec | _Fault:
    """Return the port without its node port, or its first fault; names and numbers are those of earlier ports."""
    name, number, proto = item.name or "", item.port, protocol(item.protocol)
    if len(name) > MAX_NAME:
        return _Fault("name", f"has {len(name)} characters; a name has at most {MAX_NAME}")
    if name and not valid_port_name(name):
        return _Fault("name", f"is {name!r}; use letters, digits and dashes only")
    if name in names:
        return _Fault("name", f"{name!r} names an earlier port too; give every port a name of its own")
    if proto is None:
        return _Fault("protocol", protocol_reason(item.protocol))
    if not is_port(number):
        return _Fault("port", port_reason(number))
    if (proto, number) in numbers:
        return _Fault("port", f"{number}/{proto.name} is an earlier port too; remove one of them")
    return ServicePortSpec(name, proto, number)


def _load_balancer_ips(status: wire.ServiceStatus | None, report: Report) -> tuple[str, ...]:
    """Return the ingress addresses that this node serves: no host names, and no addresses of ipMode Proxy."""
    ingress = status.load_balancer.ingress if status and status.load_balancer else None
    if not ingress:
        return ()
    result: dict[str, None] = {}
    for index, item in enumerate(ingress):
        field = f"status.loadBalancer.ingress[{index}]"
        if item is None:
            report.null(field)
        elif item.ip and item.ip_mode != "Proxy":
            result.update(dict.fromkeys(_single_address(item.ip, f"{field}.ip", report)))
    return tuple(result)


def _affinity(spec: wire.ServiceSpec, report: Report) -> int:
    """Return the seconds of ClientIP affinity, 0 for none."""
    if spec.session_affinity in (None, "", "None"):
        return 0
    if spec.session_affinity != "ClientIP":
        report.problem("spec.sessionAffinity", f"is {spec.session_affinity!r}; write ClientIP or None (None is used)")
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    if not 1 <= seconds <= MAX_AFFINITY_SECONDS:
        reason = f"is {seconds}; write 1 to {MAX_AFFINITY_SECONDS} (the default, {DEFAULT_AFFINITY_SECONDS}, is used)"
        report.problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason)
        return DEFAULT_AFFINITY_SECONDS
    return seconds


def _is_local(policy: str | None, field: str, report: Report) -> bool:
    """True if a traffic policy is Local; unknown ones count as Cluster, the default."""
    if policy not in (None, "", "Cluster", "Local"):
        report.problem(field, f"is {policy!r}; write Cluster or Local (Cluster is used)")
    return policy == "Local"


def _source_ranges(spec: wire.ServiceSpec, report: Report) -> tuple[str, ...] | None:
    """Return the allowed sources; None allows all, the empty tuple none (an entry was malformed)."""
    if not spec.load_balancer_source_ranges:
        return None
    ranges, sound = _cidrs(spec.load_balancer_source_ranges, "spec.loadBalancerSourceRanges", report)
    return ranges if sound else ()


def _health_check_port(spec: wire.ServiceSpec, report: Report) -> int:
    number = spec.health_check_node_port
    if not number:
        return 0
    if not is_port(number):
        report.problem("spec.healthCheckNodePort", port_reason(number))
        return 0
    return number


def _choice(value: str | None, field: str, choices: Collection[str], option: str, report: Report) -> str:
    """An annotation with one of a few values; "" if it is not there, or has another."""
    if not value:
        return ""
    if value not in choices:
        report.problem(field, f"is {value[:80]!r}; write one of {', '.join(choices)} (the node's {option} is used)")
        return ""
    return sys.intern(value)


_shared_times: Shared[str] = Shared()
"""Services come in droves, at one time."""


def service(item: wire.WireService, report: Report) -> Service | None:
    """Validate a Service. None: it was skipped, and `report` says why."""
    metadata = item.metadata or _NO_SERVICE_METADATA
    asked = metadata.annotations
    labels = metadata.labels or _NO_LABELS
    spec = item.spec or _NO_SERVICE_SPEC
    for field, text in (("metadata.name", report.name), ("metadata.namespace", report.namespace)):
        if len(text) > MAX_NAME:
            report.problem(
                field, f"has {len(text)} characters, at most {MAX_NAME} are allowed (the Service is skipped)"
            )
            return None
    kind = _TYPES.get(spec.type)
    if kind is None:
        known = ", ".join(known.value for known in ServiceType)
        report.problem("spec.type", f"is {spec.type!r}; write one of {known} (the Service is skipped)")
        return None
    external_name = kind is ServiceType.EXTERNAL_NAME
    cluster_ips, headless = ((), False) if external_name else _cluster_ips(spec, report)
    external_ips = (
        _addresses(spec.external_ips, "spec.externalIPs", report, link_local=True) if spec.external_ips else ()
    )
    balancer_ips = _load_balancer_ips(item.status, report) if item.status else ()
    # kube-proxy applies the ranges to every load-balancer address, for any type of Service
    has_ranges = kind is ServiceType.LOAD_BALANCER or balancer_ips
    external_local = _is_local(spec.external_traffic_policy, "spec.externalTrafficPolicy", report)
    result = Service(
        namespace=report.namespace,
        name=report.name,
        type=kind,
        cluster_ips=cluster_ips,
        external_ips=external_ips,
        load_balancer_ips=balancer_ips,
        ports=_ports(spec, kind, report),
        source_ranges=_source_ranges(spec, report) if has_ranges else None,
        internal_local=_is_local(spec.internal_traffic_policy, "spec.internalTrafficPolicy", report),
        external_local=external_local and (kind in _NODE_PORT_TYPES or bool(external_ips)),
        affinity_seconds=_affinity(spec, report),
        health_check_node_port=(
            _health_check_port(spec, report) if external_local and kind is ServiceType.LOAD_BALANCER else 0
        ),
        created=_shared_times(metadata.creation_timestamp or ""),
        proxied_elsewhere=labels.proxy_name is not None,
        headless=headless or labels.headless is not None,
        forwarding_mode=_choice(asked.forwarding_mode, _FORWARDING_FIELD, MODES, "--lb-mode", report) if asked else "",
        lb_algorithm=_choice(asked.lb_algorithm, ALGORITHM_FIELD, ALGORITHMS, "--lb-algorithm", report)
        if asked
        else "",
    )
    if not (external_name or result.headless or result.proxied_elsewhere):
        _note_unreachable(result, spec, report)
    return result


def _note_unreachable(result: Service, spec: wire.ServiceSpec, report: Report) -> None:
    """Report a Service that is unreachable; a hand-written manifest has no clusterIP until a cluster allocates one."""
    if not spec.ports:
        report.problem("spec.ports", "is empty, so nothing can reach this Service; give it at least one port")
    elif not result.cluster_ips and not spec.cluster_ip and not spec.cluster_ips:
        report.note(
            "spec.clusterIP",
            "is not set, so this Service answers on no cluster address; a cluster fills it in (use the output of "
            "`kubectl get services -o yaml`), or write one yourself",
        )


def node(item: wire.WireNode, report: Report) -> Node:
    """Validate a Node: InternalIPs go before ExternalIPs, host names are not addresses."""
    metadata = item.metadata or _NO_NODE_METADATA
    found: dict[str, dict[str, None]] = {"InternalIP": {}, "ExternalIP": {}}
    for index, entry in enumerate((item.status.addresses if item.status else None) or ()):
        field = f"status.addresses[{index}]"
        if entry is None:
            report.null(field)
        elif entry.type in found:
            address = read_address(entry.address or "", f"{field}.address", report)
            if address:
                found[entry.type][address] = None
    spec = item.spec or wire.NodeSpec()
    ranges: list[str | None] = list(spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else []))
    pod_cidrs, _ = _cidrs(ranges, "spec.podCIDRs" if spec.pod_cidrs else "spec.podCIDR", report)
    return Node(
        name=report.name,
        zone=(metadata.labels.zone or "") if metadata.labels else "",
        addresses=tuple(found["InternalIP"] | found["ExternalIP"]),
        pod_cidrs=pod_cidrs,
        forwarding=_offer(metadata, report),
        announced=(metadata.annotations.forwarding or "") if metadata.annotations else "",
    )


def _offer(metadata: wire.NodeMetadata, report: Report) -> TunnelOffer | None:
    """Return what a Node says that it speaks; None if that is nothing known."""
    text = metadata.annotations.forwarding if metadata.annotations else None
    if not text:
        return None
    try:
        return parse_offer(text)
    except ValueError as error:
        report.problem(f"metadata.annotations[{NODE_ANNOTATION}]", str(error))
        return None


def service_cidr(item: wire.WireServiceCIDR, report: Report) -> ServiceCIDR | None:
    """Validate a ServiceCIDR. None: no range of it is valid."""
    cidrs, _ = _cidrs((item.spec.cidrs if item.spec else None) or (), "spec.cidrs", report)
    if not cidrs:
        report.problem("spec.cidrs", "holds no valid range; write one CIDR, or one of each family")
        return None
    return ServiceCIDR(report.name, cidrs)
