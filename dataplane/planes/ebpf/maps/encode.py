"""Plan values as the bytes of `bpf/structs.h`, and back."""

import hashlib
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from socket import htons, inet_pton
from typing import NamedTuple

import msgspec

from dataplane.model.net import AF_INET, Family, Protocol, mapped
from dataplane.model.net import MAPPED as MAPPED
from dataplane.plan.types import EXTERNAL, EntryKey, Frontend, FrontendKey, FrontendKind, PlanEntry, SourceRanges
from dataplane.planes.ebpf.maps.layout import constant, fields_of, record
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.routes import Action, Route, Routes, Scope

FRONTEND_KEY = record("frontend_key", "address", "port", "protocol", "pad")
FRONTEND = record(
    "frontend",
    *("generation", "service", "cluster_base", "cluster_count", "local_base", "local_count"),
    *("affinity_seconds", "range_set", "routes", "flags", "kind", "order", "pad"),
)
BACKEND = record("backend", "address", "port", "protocol", "flags", "generation", "service", "tunnel")
SERVICE = record(
    "service",
    *("name", "cluster_base", "cluster_count", "local_base", "local_count"),
    *("affinity_seconds", "protocol", "family", "flags", "pad"),
)
RANGE_KEY = record("range_key", "prefix_length", "range_set", "address")
PREFIX_KEY = record("prefix_key", "prefix_length", "address")
_ADDRESS_SIZE = fields_of("backend")["port"]
_UNSPECIFIED = {Family.IPV4: MAPPED + b"\0" * 4, Family.IPV6: b"\0" * 16}
_IPV4_MAPPED_BITS = constant("IPV4_MAPPED_BITS")
_KINDS = {
    FrontendKind.CLUSTER_IP: constant("FRONTEND_CLUSTER_IP"),
    FrontendKind.EXTERNAL_IP: constant("FRONTEND_EXTERNAL_IP"),
    FrontendKind.LOAD_BALANCER: constant("FRONTEND_LOAD_BALANCER"),
    FrontendKind.NODE_PORT: constant("FRONTEND_NODE_PORT"),
    FrontendKind.HOST_PORT: constant("FRONTEND_HOST_PORT"),
}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
_ACTIONS = {
    Action.FORWARD: constant("ROUTE_FORWARD"),
    Action.REJECT: constant("ROUTE_REJECT"),
    Action.DROP: constant("ROUTE_DROP"),
}
_ACTION_OF = {number: action for action, number in _ACTIONS.items()}
_ROUTE_LOCAL, _ROUTE_MASQUERADE = constant("ROUTE_LOCAL"), constant("ROUTE_MASQUERADE")
_ROUTE_ACTION = constant("ROUTE_ACTION")
_PROTOCOL_OF = {protocol.value: protocol for protocol in Protocol}
_FAMILY_OF = {family.value: family for family in Family}
_RANGES, MAGLEV = constant("FRONTEND_RANGES"), constant("FRONTEND_MAGLEV")
_FRONTEND_WAYS = {
    Forwarding.SNAT: 0,
    Forwarding.TUNNEL: constant("FRONTEND_FORWARD"),
    Forwarding.DSR: constant("FRONTEND_FORWARD") | constant("FRONTEND_DSR"),
}
_SERVICE_WAYS = {
    Forwarding.SNAT: 0,
    Forwarding.TUNNEL: constant("SERVICE_FORWARD"),
    Forwarding.DSR: constant("SERVICE_FORWARD") | constant("SERVICE_DSR"),
}
_WAY_OF_FRONTEND = {flags: way for way, flags in _FRONTEND_WAYS.items()}
_WAY_OF_SERVICE = {flags: way for way, flags in _SERVICE_WAYS.items()}
PRESENT = constant("SERVICE_PRESENT")
_INTERNAL_LOCAL, _EXTERNAL_LOCAL = constant("SERVICE_INTERNAL_LOCAL"), constant("SERVICE_EXTERNAL_LOCAL")
_NAME_SIZE = constant("SERVICE_NAME_SIZE")
_DIGEST_SIZE = 16
"""Hexadecimal digits of the digest behind a shortened name: 64 bits."""


_route_bytes: dict[Routes, tuple[int, ...]] = {}
"""Routes as bytes; a handful of combinations exist."""


class Sets(msgspec.Struct, frozen=True, gc=False):
    """Where a service's two backend sets lie in `slots`."""

    cluster_base: int = 0
    cluster_count: int = 0
    local_base: int = 0
    local_count: int = 0

    def runs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Base and count of either set."""
        return (self.cluster_base, self.cluster_count), (self.local_base, self.local_count)

    def having(self, scope: Scope, run: tuple[int, int]) -> "Sets":
        """Return the sets with another run for one of them."""
        if scope is Scope.CLUSTER:
            return Sets(*run, self.local_base, self.local_count)
        return Sets(self.cluster_base, self.cluster_count, *run)


address_bytes = mapped
"""16 bytes; IPv4 is mapped."""


def address_text(raw: bytes) -> str:
    """Canonical text of 16 bytes."""
    if raw.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def frontend_key_bytes(key: FrontendKey) -> bytes:
    """The key of `frontends`; a node port has the unspecified address of its family."""
    family, address, protocol, port = key
    if family is Family.IPV4 and address:  # nearly all of a cold start's
        return MAPPED + inet_pton(AF_INET, address) + _frontend_key_end(port, protocol)
    return (address_bytes(address) if address else _UNSPECIFIED[family]) + _frontend_key_end(port, protocol)


@lru_cache(maxsize=4096)
def _frontend_key_end(port: int, protocol: int) -> bytes:
    """The key of `frontends` behind the address."""
    return FRONTEND_KEY.pack(b"", htons(port), protocol, 0)[_ADDRESS_SIZE:]


def frontend_key(raw: bytes) -> FrontendKey:
    """What `frontend_key_bytes` packed."""
    address, port, protocol, _ = FRONTEND_KEY.unpack(raw)
    family = Family.IPV4 if address.startswith(MAPPED) else Family.IPV6
    text = "" if address == _UNSPECIFIED[family] else address_text(address)
    return FrontendKey(family, text, _PROTOCOL_OF[protocol], socket.ntohs(port))


def route_byte(route: Route) -> int:
    """enum route_bits."""
    return (
        _ACTIONS[route.action]
        | (_ROUTE_LOCAL if route.scope is Scope.LOCAL else 0)
        | (_ROUTE_MASQUERADE if route.masquerade else 0)
    )


def route_of(bits: int) -> Route:
    """What `route_byte` packed."""
    scope = Scope.LOCAL if bits & _ROUTE_LOCAL else Scope.CLUSTER
    return Route(_ACTION_OF[bits & _ROUTE_ACTION], scope, bool(bits & _ROUTE_MASQUERADE))


@cache  # a handful of combinations exist
def _routes_of(pod: int, node: int, outside: int) -> Routes:
    return Routes(route_of(pod), route_of(node), route_of(outside))


def frontend_bytes(
    frontend: Frontend,
    order: int,
    generation: int,
    service: int,
    sets: Sets,
    affinity_seconds: int,
    range_set: int,
    forwarding: Forwarding = Forwarding.SNAT,
    maglev: int = 0,
) -> bytes:
    """The value of `frontends`. maglev: FRONTEND_MAGLEV where a set is a Maglev table."""
    routes = _route_bytes.get(frontend.routes)
    if routes is None:
        routes = _route_bytes[frontend.routes] = tuple(map(route_byte, frontend.routes))
    pod, node, outside = routes
    flags = maglev if frontend.source_ranges is None else maglev | _RANGES
    if forwarding is not Forwarding.SNAT and frontend.kind in EXTERNAL:
        flags |= _FRONTEND_WAYS[forwarding]
    return FRONTEND.pack(  # argument by argument: `*` would take as long as everything else
        generation,
        service,
        sets.cluster_base,
        sets.cluster_count,
        sets.local_base,
        sets.local_count,
        affinity_seconds,
        range_set,
        pod,
        node,
        outside,
        flags,
        _KINDS[frontend.kind],
        order if order < 255 else 255,
        0,
    )


def backend_records(
    wanted: Mapping[tuple[str, int], int],
    protocol: int,
    generation: int,
    service: int,
    tunnels: Mapping[tuple[str, int], int] | None = None,
) -> list[bytes]:
    """Records of `backends` for the members of one service, in their order. wanted: flags by address and port. tunnels:
    numbers in the map `tunnels` of those that packets are forwarded to."""
    records: list[bytes] = []
    if tunnels:
        return [
            address_bytes(address)
            + backend_end(port, protocol, flags, generation, service, tunnels.get((address, port), 0))
            for (address, port), flags in wanted.items()
        ]
    port, flags, rest = -1, -1, b""
    for (address, own_port), own_flags in wanted.items():
        if own_port != port or own_flags != flags:  # seldom: members mostly differ in nothing but the address
            port, flags = own_port, own_flags
            rest = backend_end(port, protocol, flags, generation, service)
        records.append(address_bytes(address) + rest)
    return records


def backend_end(port: int, protocol: int, flags: int, generation: int, service: int, tunnel: int = 0) -> bytes:
    """A record of `backends` behind the address."""
    return BACKEND.pack(b"", htons(port), protocol, flags, generation, service, tunnel)[_ADDRESS_SIZE:]


class StoredFrontend(NamedTuple):
    """A value of `frontends`, decoded. range_set: None = no restriction. forwarding: None = a mistake. maglev: a set is
    a Maglev table."""

    generation: int
    service: int
    sets: Sets
    affinity_seconds: int
    range_set: int | None
    routes: Routes
    kind: FrontendKind
    order: int
    forwarding: Forwarding | None
    maglev: bool

    def frontend(self, key: FrontendKey, cidrs: tuple[str, ...]) -> Frontend:
        """The plan's value; `cidrs` are those of its range set."""
        ranges = None if self.range_set is None else SourceRanges(cidrs)
        return Frontend(self.kind, key, self.routes, ranges)


def stored_frontend(raw: bytes) -> StoredFrontend:
    """Decode a value of `frontends`."""
    generation, service, cb, cc, lb, lc, affinity, ranges, pod, node, outside, flags, kind, order, _ = FRONTEND.unpack(
        raw
    )
    return StoredFrontend(
        generation,
        service,
        Sets(cb, cc, lb, lc),
        affinity,
        ranges if flags & _RANGES else None,
        _routes_of(pod, node, outside),
        _KIND_OF[kind],
        order,
        _WAY_OF_FRONTEND.get(flags & ~(_RANGES | MAGLEV)),
        bool(flags & MAGLEV),
    )


def stored_service(service: str) -> str:
    """`namespace/name:port` as a service record has it: what is longer than the record's field is cut, and a digest of
    the whole tells it from others that begin alike (~ is in no name of Kubernetes)."""
    if len(service) < _NAME_SIZE:
        return service
    digest = hashlib.sha256(service.encode()).hexdigest()[:_DIGEST_SIZE]
    return f"{service[: _NAME_SIZE - _DIGEST_SIZE - 2]}~{digest}"


def service_name(key: EntryKey) -> bytes:
    """The name of a service record; see `stored_service`."""
    name = key.service
    return (name if len(name) < _NAME_SIZE else stored_service(name)).encode()


def stored_key(key: EntryKey) -> EntryKey:
    """The key as which an entry is read back: itself, but for a name that had to be shortened."""
    return key if len(key.service) < _NAME_SIZE else entry_key(service_name(key), key.protocol, key.family)


def full_keys(keys: Iterable[EntryKey]) -> dict[EntryKey, EntryKey]:
    """Which of these keys the shortened ones stand for."""
    return {stored_key(key): key for key in keys if len(key.service) >= _NAME_SIZE}


def service_bytes(entry: PlanEntry, sets: Sets) -> bytes:
    """The record of `services`."""
    key = entry.key
    flags = PRESENT
    flags |= (_INTERNAL_LOCAL if entry.internal_local else 0) | (_EXTERNAL_LOCAL if entry.external_local else 0)
    if entry.forwarding is not Forwarding.SNAT:
        flags |= _SERVICE_WAYS[entry.forwarding]
    return SERVICE.pack(
        service_name(key),
        sets.cluster_base,
        sets.cluster_count,
        sets.local_base,
        sets.local_count,
        entry.affinity_seconds,
        key.protocol,
        key.family,
        flags,
        0,
    )


def forwarding_of(service_flags: int) -> Forwarding:
    """What `service_bytes` stored of an entry's `forwarding`."""
    return _WAY_OF_SERVICE.get(service_flags & _SERVICE_WAYS[Forwarding.DSR], Forwarding.SNAT)


def entry_key(name: bytes, protocol: int, family: int) -> EntryKey:
    """The plan's key of a service record, or what `stored_key` makes of it."""
    namespace, _, rest = name.rstrip(b"\0").decode(errors="replace").partition("/")
    service, _, port = rest.partition(":")
    return EntryKey(namespace, service, port, _PROTOCOL_OF[protocol], _FAMILY_OF[family])


def prefix_bytes(cidr: str) -> tuple[int, bytes]:
    """Prefix length within 128 bits and network address of a CIDR, IPv4 mapped."""
    net = ipaddress.ip_network(cidr, strict=False)
    raw = net.network_address.packed
    return (net.prefixlen + _IPV4_MAPPED_BITS, MAPPED + raw) if net.version == 4 else (net.prefixlen, raw)


def prefix_text(length: int, raw: bytes) -> str:
    """The CIDR that `prefix_bytes` packed."""
    mapped = raw.startswith(MAPPED) and length >= _IPV4_MAPPED_BITS
    return f"{address_text(raw)}/{length - _IPV4_MAPPED_BITS if mapped else length}"


def range_key_bytes(range_set: int, cidr: str) -> bytes:
    """A key of `source_ranges`."""
    length, address = prefix_bytes(cidr)
    return RANGE_KEY.pack(32 + length, socket.htonl(range_set), address)


def range_key(raw: bytes) -> tuple[int, str]:
    """Range set and CIDR of a key of `source_ranges`."""
    length, range_set, address = RANGE_KEY.unpack(raw)
    return socket.ntohl(range_set), prefix_text(length - 32, address)


def prefix_key_bytes(cidr: str) -> bytes:
    """A key of `detector`."""
    return PREFIX_KEY.pack(*prefix_bytes(cidr))
