"""Drains the plane when the mode changes: the programs stay until the flows that they translate have ended.

Packet programs translate without connection tracking, so without them their flows would break. A draining instance has
no frontends: it accepts no new flows and translates existing ones until the last has ended or expired. A directory
`draining` beside the pins marks it. `retire` marks endpoints that are removed meanwhile as dead, so that UDP flows
leave them.
"""

import time
from socket import IPPROTO_UDP, ntohs

from dataplane.kernel.rcu import wait_for_packets
from dataplane.model.net import Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import remove_links
from dataplane.planes.ebpf.flows.entries import (
    FIN,
    FLOW_TABLES,
    FOREIGN,
    REPLY,
    RESTING,
    RST,
    Lifetimes,
    flow_flags,
    last_ns,
)
from dataplane.planes.ebpf.flows.sockets import disconnect_here
from dataplane.planes.ebpf.maps.encode import BACKEND, SERVICE, address_bytes, address_text, entry_key, stored_service
from dataplane.planes.ebpf.maps.layout import constant, struct_version, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet, open_any_sizes
from dataplane.planes.ebpf.maps.node_settings import write_takes_over
from dataplane.planes.ebpf.maps.pins import DRAINING, PinDirectory, default_instance
from dataplane.planes.ebpf.maps.tables import BACKEND_FLAGS_AT

_CLOSING_NS = 2_000_000_000
"""Time for the last acknowledgments of a closed connection."""
_CONNECTED = constant("PEER_CONNECTED")


def _maps(pins: PinDirectory) -> MapSet | None:
    for version in pins.map_versions():
        if version.startswith(struct_version()):
            return open_any_sizes(pins.maps(version))
    return None


def resume(pins: PinDirectory) -> None:
    """End the drain of an instance that is used again."""
    if pins.path is not None and pins.draining:
        (pins.path / DRAINING).rmdir()


def drain(pins: PinDirectory) -> int:
    """Remove the frontends and start the drain, when another plane serves already. Returns the number of flows left.

    Without flows the instance is removed at once. A program that found a frontend before it went may still open a flow,
    so flows are counted when no such program runs any more.
    """
    path, maps = pins.path, _maps(pins)
    if path is None or maps is None:
        remove(pins)
        return 0
    with maps:
        (path / DRAINING).mkdir(exist_ok=True)
        write_takes_over(maps, False)  # the other plane's connections are not noted
        maps.remove("frontends", [key for key, _ in maps.items("frontends")])
    wait_for_packets()
    return finish(pins)


def _left(maps: MapSet) -> int:
    """Return the number of flows and sockets that still need the programs.

    Entries in TIME-WAIT and those of flows that connection tracking translates (FOREIGN) do not count.
    """
    lifetimes, now = Lifetimes.of(maps.node()), time.monotonic_ns()
    alive = []
    for name, protocol in FLOW_TABLES.items():
        for _, value in maps.items(name):
            flags = flow_flags(value)
            over = now - last_ns(value) > _CLOSING_NS if flags & RST or flags & FIN == FIN else False
            if not flags & (RESTING | FOREIGN) and not over and not lifetimes.over(protocol, value, now):
                alive.append(bool(flags & REPLY))
    flows = max(sum(alive), sum(not reply for reply in alive))
    return flows + _sockets(maps, now - lifetimes.ns["udp_stream_seconds"])


def _sockets(maps: MapSet, since: int) -> int:
    """Count unconnected UDP sockets that were redirected to an endpoint and used since then: without the programs they
    would see the endpoint's address as the sender."""
    peers = (unpack("peer", value) for _, value in maps.items("peers"))
    count: int = sum(
        p["protocol"] == IPPROTO_UDP and not p["flags"] & _CONNECTED and p["last_ns"] >= since for p in peers
    )
    for key, value in maps.items("sockets"):
        count += bool(unpack("socket_key", key)["reply"] and unpack("socket_peer", value)["last_ns"] >= since)
    return count


def finish(pins: PinDirectory) -> int:
    """Remove a draining instance once it has no flows. Returns the number left; 0 if the instance does not drain."""
    if not pins.draining:
        return 0
    maps = _maps(pins)
    left = 0
    if maps is not None:
        with maps:
            left = _left(maps)
    if not left:
        remove(pins)
    return left


def remove(pins: PinDirectory) -> None:
    """Detach and unpin everything of an instance; its slow path is not touched."""
    if pins.path is None:
        return
    PacketHook().detach(pins)
    remove_links(pins)
    pins.remove()


def retire(pins: PinDirectory, change: PlanChange) -> int:
    """Mark the endpoints that a change removes as dead in a draining instance; returns their number."""
    gone = {key for entry in change.entries for key in _gone(entry)}
    if not gone or not pins.draining:
        return 0
    maps = _maps(pins)
    if maps is None:
        return 0
    count = 0
    with maps:
        names = {}
        for index, (name, *_, protocol, family, _flags, _pad) in enumerate(
            SERVICE.iter_unpack(maps.memory["services"])
        ):
            if name.strip(b"\0"):
                key = entry_key(name, protocol, family)
                names[index] = (key.service, int(key.protocol))
        memory = maps.memory["backends"]
        for index, (raw, port, _, flags, _, service, _) in enumerate(BACKEND.iter_unpack(memory)):
            if flags and (*names.get(service, ("", 0)), address_text(raw), ntohs(port)) in gone:
                memory[index * BACKEND.size + BACKEND_FLAGS_AT] = 0
                count += 1
        udp = frozenset((address_bytes(a), port) for _, protocol, a, port in gone if protocol == Protocol.UDP)
        if udp:
            disconnect_here(maps.fds["peers"], maps.fds["backends"], udp)
    return count


def _endpoints(entry: PlanEntry | None) -> set[tuple[str, int]]:
    """Return address and port of all backends of an entry."""
    return {(b.address, b.port) for b in (*entry.cluster, *entry.local, *entry.lingering)} if entry else set()


def _gone(change: EntryChange) -> set[tuple[str, int, str, int]]:
    """Return (service, protocol, address, port) of the endpoints that a change removes."""
    lost = _endpoints(change.old) - _endpoints(change.new)
    return {(stored_service(change.key.service), int(change.key.protocol), address, port) for address, port in lost}


def after_change(change: PlanChange) -> int:
    """Retire removed endpoints and finish the drain if possible, after each change in another mode.

    Returns the number of flows left.
    """
    pins = PinDirectory(default_instance())
    if not pins.draining:
        return 0
    retire(pins, change)
    return finish(pins)
