"""Validate EndpointSlices from the wire form; this code runs for every endpoint of the cluster.

An API server sends hundreds of thousands of endpoints at start, so this code spends about a microsecond on each:
`socket` functions instead of address objects, shared strings for names that repeat.
Rules: discovery.k8s.io/v1 (only the first address counts, nil conditions have defaults).
"""

import sys
from socket import inet_ntop, inet_pton

import msgspec

from dataplane.model import wire
from dataplane.model.net import AF_INET, AF_INET6, Family, family_of
from dataplane.model.objects import Endpoint, EndpointPort, EndpointSlice, traits
from dataplane.model.report import (
    Report,
    Shared,
    interned,
    is_port,
    port_reason,
    protocol,
    protocol_reason,
    read_address,
    special_reason,
    valid_port_name,
)
from dataplane.model.weights import Weights

_FAMILIES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_NO_LABELS = wire.Labels()
_NO_CONDITIONS = wire.Conditions()


def _usual_address(text: str, family: Family) -> str:
    """Return the canonical text of an address that needs no further checks, or ""."""
    try:
        if family is Family.IPV4:
            packed = inet_pton(AF_INET, text)
            first = packed[0]
            if 0 < first < 224 and first != 127 and (first != 169 or packed[1] != 254):
                return inet_ntop(AF_INET, packed)
        else:
            packed = inet_pton(AF_INET6, text)
            # global and unique local addresses; ::/16 and f[ef]00::/7 hold the special ones
            if 0 < packed[0] < 0xFE:
                return inet_ntop(AF_INET6, packed)
    except (OSError, ValueError):
        pass
    return ""


def _unusual_address(text: str, family: Family, field: str, report: Report) -> str:
    """Check a rare address in full: return its canonical text, or "" if no endpoint can have it (reported)."""
    address = read_address(text, field, report)
    if not address:
        return ""
    if family_of(address) is not family:
        reason = f"{address} is not an IPv{family.value} address, as addressType says; move it to a slice of its family"
    else:
        reason = special_reason(address, link_local=True)
    if reason:
        report.problem(field, reason)
    return "" if reason else address


def _names(hints: list[wire.Hint] | None) -> tuple[str, ...] | None:
    """Return the names of one kind of hint, None if there are none."""
    if not hints:
        return None
    return interned(tuple(hint.name for hint in hints if hint.name)) or None


def _endpoints(item: wire.WireSlice, family: Family, report: Report) -> tuple[Endpoint, ...]:
    result: list[Endpoint] = []
    intern = sys.intern
    weights = _weights(item, report)
    weight = 1
    for index, entry in enumerate(item.endpoints or ()):
        if entry is None:
            report.null(f"endpoints[{index}]")
            continue
        if not entry.addresses:
            report.problem(f"endpoints[{index}].addresses", "is empty; an endpoint needs one address")
            continue
        text = entry.addresses[0]
        address = _usual_address(text, family) or _unusual_address(
            text, family, f"endpoints[{index}].addresses[0]", report
        )
        if not address:
            continue
        conditions = entry.conditions or _NO_CONDITIONS
        ready = conditions.ready is not False
        serving = conditions.serving is not False
        node = intern(entry.node_name) if entry.node_name else ""
        hints = entry.hints
        if weights is not None:
            weight = weights.of(address, (entry.target_ref.name or "") if entry.target_ref else "")
        if hints is None and weight == 1:
            result.append(Endpoint(address, traits(ready, serving, conditions.terminating is True, node)))
        else:
            zones, nodes = (_names(hints.for_zones), _names(hints.for_nodes)) if hints else (None, None)
            kind = traits(ready, serving, conditions.terminating is True, node, zones, nodes, weight)
            result.append(Endpoint(address, kind))
    if weights is not None:
        weights.note_unused(report)
    return tuple(result)


def _weights(item: wire.WireSlice, report: Report) -> Weights | None:
    """Return the weights of a slice's endpoints; None: all have weight 1."""
    annotations = item.metadata.annotations if item.metadata else None
    return Weights(annotations.weights, report) if annotations is not None and annotations.weights else None


def _ports(item: wire.WireSlice, report: Report) -> tuple[EndpointPort, ...]:
    """Return the slice's ports. One without a number means "all ports", which no Service port can use, and is
    skipped."""
    result: dict[tuple[str, int], EndpointPort] = {}
    for index, entry in enumerate(item.ports or ()):
        if entry is None:
            report.null(f"ports[{index}]")
            continue
        if entry.port is None:
            continue
        name, proto = entry.name or "", protocol(entry.protocol)
        if proto is None:
            report.problem(f"ports[{index}].protocol", protocol_reason(entry.protocol))
        elif not is_port(entry.port):
            report.problem(f"ports[{index}].port", port_reason(entry.port))
        elif name and not valid_port_name(name):
            report.problem(f"ports[{index}].name", f"is {name!r}; use letters, digits and dashes only")
        elif (name, proto) in result:
            report.problem(f"ports[{index}].name", f"{name!r} names an earlier port too; give every port its own name")
        else:
            result[name, proto] = EndpointPort(sys.intern(name), proto, entry.port)
    return _shared_ports(tuple(result.values()))


_shared_ports: Shared[tuple[EndpointPort, ...]] = Shared()


def endpoint_slice(item: wire.WireSlice, report: Report) -> EndpointSlice | None:
    """Validate an EndpointSlice. None: it was skipped; `report` says why, unless it is of type FQDN."""
    family = _FAMILIES.get(item.address_type or "")
    if family is None:
        if item.address_type != "FQDN":
            found = f"is {item.address_type!r}" if item.address_type else "is missing"
            report.problem("addressType", f"{found}; write IPv4 or IPv6 (the slice is skipped)")
        return None
    labels = (item.metadata.labels if item.metadata else None) or _NO_LABELS
    return EndpointSlice(
        namespace=report.namespace,
        name=report.name,
        service=labels.service_name or "",
        family=family,
        ports=_ports(item, report),
        endpoints=_endpoints(item, family, report),
        headless=labels.headless is not None,
    )


def of_endpoints(item: wire.WireEndpoints, report: Report) -> tuple[EndpointSlice, ...]:
    """v1 Endpoints as slices, one for each subset and family (as the control plane mirrors them)."""
    labels = (item.metadata.labels if item.metadata else None) or _NO_LABELS
    meta = wire.SliceMetadata(report.name, report.namespace, labels=wire.Labels(report.name, labels.headless))
    found = []
    for index, subset in enumerate(item.subsets or ()):
        for family in Family:
            inner = Report(report.kind, report.namespace, report.name)
            listed = [
                *_listed(subset.addresses, family, ready=True),
                *_listed(subset.not_ready_addresses, family, ready=False),
            ]
            if not listed:
                continue
            made = endpoint_slice(wire.WireSlice("", meta, f"IPv{family.value}", listed, subset.ports), inner)
            for problem in inner.problems:
                report.problem(f"subsets[{index}].{problem.field}", problem.reason)
            if made is not None:
                found.append(msgspec.structs.replace(made, name=f"{report.name}-{index}-ipv{family.value}"))
    return tuple(found)


def _listed(
    addresses: list[wire.SubsetAddress] | None, family: Family, *, ready: bool
) -> list[wire.WireEndpoint | None]:
    """Return the addresses of a family; an invalid one counts as IPv4, so that it is reported."""
    conditions = wire.Conditions(ready, ready)
    wanted = [each for each in addresses or () if (":" in (each.ip or "")) == (family is Family.IPV6)]
    return [wire.WireEndpoint([each.ip or ""], conditions, each.node_name) for each in wanted]
