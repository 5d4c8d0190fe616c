"""Going over to another mode without breaking a connection: the programs stay for the flows that they have begun.

Packet programs translate without connection tracking, so once they were gone nobody would know their flows. A plane
that drains has no frontends: nothing new begins, and what had begun is translated as before, until its last flow has
ended or was not used for its lifetime. A directory `draining` beside the pins says so. Endpoints that go meanwhile are
marked dead by `retire`, so that UDP leaves them as it always does.
"""

import time
from socket import IPPROTO_UDP, ntohs

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
    facts,
    last_ns,
)
from dataplane.planes.ebpf.flows.sockets import disconnect_here
from dataplane.planes.ebpf.maps.encode import BACKEND, SERVICE, address_bytes, address_text, entry_key, stored_service
from dataplane.planes.ebpf.maps.layout import constant, struct_version, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet, open_any_sizes
from dataplane.planes.ebpf.maps.pins import DRAINING, PinDirectory, default_instance
from dataplane.planes.ebpf.maps.tables import BACKEND_FLAGS_AT

_CLOSING_NS = 2_000_000_000
"""What a connection that has ended gets for its last acknowledgments."""
_CONNECTED = constant("PEER_CONNECTED")


def _maps(pins: PinDirectory) -> MapSet | None:
    for version in pins.map_versions():
        if version.startswith(struct_version()):
            return open_any_sizes(pins.maps(version))
    return None


def resume(pins: PinDirectory) -> None:
    """The instance is to be used again."""
    if pins.path is not None and pins.draining:
        (pins.path / DRAINING).rmdir()


def drain(pins: PinDirectory) -> int:
    """Take the frontends away; call it when another plane answers already. Returns how many flows go on.

    With none the instance is removed at once.
    """
    path, maps = pins.path, _maps(pins)
    if path is None or maps is None:
        remove(pins)
        return 0
    with maps:
        (path / DRAINING).mkdir(exist_ok=True)
        maps.remove("frontends", [key for key, _ in maps.items("frontends")])
    return finish(pins)


def _left(maps: MapSet) -> int:
    """Flows and sockets that would miss the programs.

    Ports that only rest, or that flows have which the programs never had (reserve.py), are nobody's.
    """
    lifetimes, now = Lifetimes.of(maps.node()), time.monotonic_ns()
    alive = {}
    for name in FLOW_TABLES:
        for key, value in maps.items(name):
            flags = facts(value)
            over = now - last_ns(value) > _CLOSING_NS if flags & RST or flags & FIN == FIN else False
            if not flags & (RESTING | FOREIGN) and not over and not lifetimes.over(key, value, now):
                alive[key] = bool(flags & REPLY)
    flows = max(sum(alive.values()), sum(not reply for reply in alive.values()))
    return flows + _sockets(maps, now - lifetimes.ns["udp_stream_seconds"])


def _sockets(maps: MapSet, since: int) -> int:
    """Unconnected UDP sockets that were pointed at an endpoint and used since then: they would be shown a stranger's
    address."""
    peers = (unpack("peer", value) for _, value in maps.items("peers"))
    count: int = sum(
        p["protocol"] == IPPROTO_UDP and not p["flags"] & _CONNECTED and p["last_ns"] >= since for p in peers
    )
    for key, value in maps.items("sockets"):
        count += bool(unpack("socket_key", key)["reply"] and unpack("socket_peer", value)["last_ns"] >= since)
    return count


def finish(pins: PinDirectory) -> int:
    """Remove an instance that drains once none of its flows goes on. Returns how many still do; 0 when none drains."""
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
    """Take everything of an instance off and unpin it; its slow path is not touched."""
    if pins.path is None:
        return
    PacketHook().detach(pins)
    remove_links(pins)
    pins.remove()


def retire(pins: PinDirectory, change: PlanChange) -> int:
    """Mark the endpoints that a change took from their Services dead in an instance that drains; returns how many."""
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
            disconnect_here(maps.fds["peers"], udp)
    return count


def _endpoints(entry: PlanEntry | None) -> set[tuple[str, int]]:
    """Address and port of everything that serves."""
    return {(b.address, b.port) for b in (*entry.cluster, *entry.local, *entry.lingering)} if entry else set()


def _gone(change: EntryChange) -> set[tuple[str, int, str, int]]:
    """(service, protocol, address, port) of endpoints that an entry lost."""
    lost = _endpoints(change.old) - _endpoints(change.new)
    return {(stored_service(change.key.service), int(change.key.protocol), address, port) for address, port in lost}


def after_change(change: PlanChange) -> int:
    """For whoever holds a plan in another mode here: retire what went, and end a drain that is over.

    Returns how many flows still drain.
    """
    pins = PinDirectory(default_instance())
    if not pins.draining:
        return 0
    retire(pins, change)
    return finish(pins)
