"""What the maps of a running node hold, for people: counters, affinity, flows. Reads only, from any process."""

import re
import socket
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from dataplane.plan.types import EntryKey
from dataplane.planes.answers import Flow, ServiceCounters
from dataplane.planes.ebpf.flows.entries import (
    FLOW_TABLES,
    FORWARDED,
    REPLY,
    flow_flags,
    flow_key,
    own_tuple,
    state,
)
from dataplane.planes.ebpf.maps.encode import SERVICE, address_bytes, address_text, entry_key
from dataplane.planes.ebpf.maps.layout import constant, hook_names, reason_names, struct_version, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet, open_any_sizes
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.ebpf.views.events import TUPLE
from dataplane.policy.forwarding import Dispatch

_MEMORY = re.compile(r"^memlock:\s*(\d+)", re.MULTILINE)
_PRESENT, _BACK = constant("SERVICE_PRESENT"), constant("FLOW_BACK")
_STAYS = {
    constant("FLOW_BY_STACK"): "the stack has had packets of it, and has it until its end",
    constant("FLOW_SNAT"): "it is masqueraded",
    constant("FLOW_FOREIGN"): "the slow path masquerades it",
    constant("FLOW_FORWARDED"): "it goes to the endpoint's node",
    constant("FLOW_TUNNELED"): "it comes from a node that forwards it",
}
"""Why a flow does not go past the stack whatever new ones do, by its flags (bpf/host.c, translated())."""


class Sticky(NamedTuple):
    """An affinity entry. client: its address."""

    client: str
    service: str
    backend: tuple[str, int] | None
    idle_seconds: float


def open_instance(instance: str) -> MapSet | None:
    """The maps of a node that runs, or None. Close them after use."""
    pins = PinDirectory(instance)
    for version in pins.map_versions():
        if version.startswith(struct_version()):
            maps = open_any_sizes(pins.maps(version))
            if maps is not None:
                return maps
    return None


def service_keys(maps: MapSet) -> dict[int, EntryKey]:
    """Every Service port, of one family and protocol each, by its index."""
    found = {}
    memory = maps.memory["services"]
    for index, (name, *_, protocol, family, flags, _pad) in enumerate(SERVICE.iter_unpack(memory)):
        if flags & _PRESENT:
            found[index] = entry_key(name, protocol, family)
    return found


def service_names(maps: MapSet) -> dict[int, str]:
    """Name of every Service port (namespace/name:port) by its index."""
    return {index: key.service for index, key in service_keys(maps).items()}


def counters(maps: MapSet) -> dict[str, dict[str, int]]:
    """Hook -> reason -> how often, of what was counted at all."""
    found: dict[str, dict[str, int]] = {}
    for hook_number, hook in enumerate(hook_names()):
        for number, reason in enumerate(reason_names()):
            values = maps.per_cpu("counters", hook_number * constant("REASON_COUNT") + number)
            total = sum(int.from_bytes(value, "little") for value in values)
            if total:
                found.setdefault(hook, {})[reason] = total
    return found


def service_counters(maps: MapSet) -> dict[str, ServiceCounters]:
    """Counters of every Service port that has any, by name."""
    found: dict[str, ServiceCounters] = {}
    for index, name in service_names(maps).items():
        cpus = [unpack("service_counters", raw) for raw in maps.per_cpu("service_counters", index)]
        sums = [sum(cpu[field] for cpu in cpus) for field in ServiceCounters._fields]
        before = found.get(name, ServiceCounters(0, 0, 0, 0, 0))  # its other protocol or family
        if any(sums):
            found[name] = ServiceCounters(*map(sum, zip(before, sums, strict=True)))
    return found


def _idle(last_ns: int) -> float:
    return (time.monotonic_ns() - last_ns) / 1e9


def _backend(maps: MapSet, index: int, generation: int) -> tuple[str, int] | None:
    """Address and port of a backend, if it is still there."""
    raw = maps.get("backends", index.to_bytes(4, "little"))
    fields = unpack("backend", raw) if raw else {}
    if not fields or fields["generation"] != generation or not fields["flags"]:
        return None
    return address_text(fields["address"]), socket.ntohs(fields["port"])


def affinity(maps: MapSet) -> Iterator[Sticky]:
    """Every affinity entry, expired ones included until they are replaced."""
    names = service_names(maps)
    for key, value in maps.items("affinity"):
        who, entry = unpack("affinity_key", key), unpack("affinity", value)
        backend = _backend(maps, entry["backend"], entry["backend_generation"])
        yield Sticky(address_text(who["client"]), names.get(who["service"], ""), backend, _idle(entry["last_ns"]))


def _sent_to(maps: MapSet, entry: dict[str, Any]) -> tuple[str, int]:
    """Where a client's packets go: what the entry translates to, or the endpoint that they are forwarded for."""
    found = None
    if entry["flags"] & FORWARDED and not entry["flags"] & REPLY:  # it has the frontend, as the packet stays as it is
        found = _backend(maps, entry["backend"], entry["backend_generation"])
    return found or (address_text(entry["destination"]), socket.ntohs(entry["destination_port"]))


def flows(maps: MapSet) -> Iterator[Flow]:
    """Tracked flows (the client's direction) and sockets that were balanced at connect time."""
    names, tunnels = service_names(maps), cache(partial(_tunnel, maps))
    for table in FLOW_TABLES:
        for _, value in maps.items(table):
            source, destination, source_port, destination_port, protocol, *_ = TUPLE.unpack(own_tuple(value))
            entry = unpack("translation", value)
            if entry["flags"] & REPLY:
                continue
            yield Flow(
                state(protocol, flow_flags(value)),
                protocol,
                (address_text(source), socket.ntohs(source_port)),
                (address_text(destination), socket.ntohs(destination_port)),
                _sent_to(maps, entry),
                names.get(entry["service"], ""),
                _idle(entry["last_ns"]),
                entry["packets"],
                entry["bytes"],
                next((why for flag, why in _STAYS.items() if flow_flags(value) & flag), ""),
                tunnels(entry["tunnel"]) if entry["flags"] & (FORWARDED | _BACK) else "",
            )
    yield from _sockets(maps, names)


def sent_by(maps: MapSet, protocol: int, source: tuple[str, int], destination: tuple[str, int]) -> str:
    """The node that packets between these ends are sent to, and in what; "" where their flow is none that goes between
    nodes, or is not there any more. An answer has the entry of its direction."""
    entry = _entry(maps, protocol, source, destination)
    flags = entry["flags"] if entry else 0
    forwarded = flags & (FORWARDED | REPLY) == FORWARDED
    return _tunnel(maps, entry["tunnel"]) if entry and (forwarded or flags & (_BACK | REPLY) == _BACK | REPLY) else ""


def _tunnel(maps: MapSet, number: int) -> str:
    raw = maps.get("tunnels", number.to_bytes(4, "little"))
    if not raw or not any(raw):
        return ""
    fields = unpack("tunnel", raw)
    titles = {constant(f"FORMAT_{dispatch.name}"): dispatch.title for dispatch in Dispatch}
    return f"{address_text(fields['address'])} in {titles.get(fields['format'], 'an unknown format')}"


def _entry(maps: MapSet, protocol: int, source: tuple[str, int], destination: tuple[str, int]) -> dict[str, Any] | None:
    """The entry of a packet's flow."""
    table = next((name for name, number in FLOW_TABLES.items() if number == protocol), None)
    if table is None:
        return None
    ends = (address_bytes(source[0]), address_bytes(destination[0]), socket.htons(source[1]))
    own = TUPLE.pack(*ends, socket.htons(destination[1]), protocol, 0, 0, 0)
    value = maps.get(table, flow_key(own))
    return unpack("translation", value) if value is not None and own_tuple(value) == own else None


def translation(
    maps: MapSet, protocol: int, source: tuple[str, int], destination: tuple[str, int]
) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """The ends that the programs give packets between these ends, None without such a flow; of packets that are
    forwarded, those that they get at the endpoint's node. One look-up, two where they are forwarded."""
    entry = _entry(maps, protocol, source, destination)
    if entry is None:
        return None
    return (address_text(entry["source"]), socket.ntohs(entry["source_port"])), _sent_to(maps, entry)


def _sockets(maps: MapSet, names: dict[int, str]) -> Iterator[Flow]:
    for _, value in maps.items("peers"):
        peer = unpack("peer", value)
        if any(peer["backend"]):
            ends = (peer["frontend"], peer["frontend_port"]), (peer["backend"], peer["backend_port"])
            yield _socket(peer["protocol"], *ends, names.get(peer["service"], ""), peer["last_ns"])
    for key, value in maps.items("sockets"):
        own, more = unpack("socket_key", key), unpack("socket_peer", value)
        ends = (more["address"], more["port"]), (own["address"], own["port"])
        if own["reply"] and ends[0] != ends[1]:
            yield _socket(own["protocol"], *ends, names.get(more["service"], ""), more["last_ns"])


def _socket(protocol: int, frontend: tuple[bytes, int], backend: tuple[bytes, int], service: str, last_ns: int) -> Flow:
    """What a socket was pointed at; ports in network order."""
    asked, real = ((address_text(address), socket.ntohs(port)) for address, port in (frontend, backend))
    return Flow("connected", protocol, None, asked, real, service, _idle(last_ns), 0, 0)


def memory(maps: MapSet) -> dict[str, int]:
    """Bytes of kernel memory that each map takes."""
    found = {}
    for name, fd in maps.fds.items():
        match = _MEMORY.search(Path(f"/proc/self/fdinfo/{fd}").read_text())
        found[name] = int(match[1]) if match else 0
    return found
