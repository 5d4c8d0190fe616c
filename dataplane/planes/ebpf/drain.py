"""Going over to another mode without breaking a connection: the programs stay for the flows that they have begun.

Packet programs translate without connection tracking, so once they were gone nobody would know their flows. A plane
that drains has no frontends: nothing new begins, and what had begun is translated as before, until its last flow has
ended or was not used for its lifetime. A directory `draining` beside the pins says so. Endpoints that go meanwhile are
marked dead by `retire`, so that UDP leaves them as it always does.
"""

import time
from socket import IPPROTO_TCP, IPPROTO_UDP, ntohs

from dataplane.model.net import Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.encode import BACKEND, SERVICE, address_bytes, address_text, entry_key
from dataplane.planes.ebpf.events import TUPLE
from dataplane.planes.ebpf.hooks import PacketHook
from dataplane.planes.ebpf.layout import constant, struct_version, unpack
from dataplane.planes.ebpf.maps import MapSet, open_any_sizes
from dataplane.planes.ebpf.pins import DRAINING, PinDirectory, default_instance
from dataplane.planes.ebpf.programs import remove_links
from dataplane.planes.ebpf.sockets import disconnect_here
from dataplane.planes.ebpf.tables import BACKEND_FLAGS_AT

_REPLY, _RST, _ESTABLISHED, _SEEN_REPLY = (
    constant(f"FLOW_{name}") for name in ("REPLY", "RST", "ESTABLISHED", "SEEN_REPLY")
)
_BOTH_FINS = constant("FLOW_FIN_FORWARD") | constant("FLOW_FIN_REPLY")
_CLOSING_SECONDS = 2
_SECOND_NS = 1_000_000_000


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

    Ports that are merely reserved (reserve.py) are replies and nothing else, of flows that the programs never had.
    """
    node, now = maps.node(), time.monotonic_ns()
    alive = {}
    for name in ("connections", "pending"):
        for key, value in maps.items(name):
            entry = unpack("translation", value)
            if entry["flags"] == _REPLY:
                continue
            seconds = _seconds(node, _lifetime(TUPLE.unpack(key)[4], entry["flags"]))
            if now - entry["last_ns"] <= seconds * _SECOND_NS:
                alive[key] = bool(entry["flags"] & _REPLY)
    flows = max(sum(alive.values()), sum(not reply for reply in alive.values()))
    sockets = 0
    for key, value in maps.items("sockets"):
        own, peer = unpack("socket_key", key), unpack("socket_peer", value)
        recent = now - peer["last_ns"] <= _seconds(node, "udp_stream_seconds") * _SECOND_NS
        sockets += bool(own["protocol"] == IPPROTO_UDP and own["reply"] and recent)
    return flows + sockets


def _seconds(node: dict[str, int | bytes | list[int]], name: str) -> int:
    value = node.get(name, _CLOSING_SECONDS)
    return value if isinstance(value, int) else 0


def _lifetime(protocol: int, flags: int) -> str:
    """The setting that says for how long after its last packet a flow goes on; as lifetime() in bpf/flow.h, but a
    connection that has ended only gets the time for its last acknowledgements (no setting)."""
    if protocol != IPPROTO_TCP:
        return "udp_stream_seconds" if flags & _SEEN_REPLY else "udp_seconds"
    if flags & _RST or flags & _BOTH_FINS == _BOTH_FINS:
        return ""
    return "tcp_established_seconds" if flags & _ESTABLISHED else "tcp_syn_seconds"


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
            disconnect_here(maps.fds["sockets"], udp)
    return count


def _endpoints(entry: PlanEntry | None) -> set[tuple[str, int]]:
    """Address and port of everything in either set."""
    return {(b.address, b.port) for b in (*entry.cluster, *entry.local)} if entry else set()


def _gone(change: EntryChange) -> set[tuple[str, int, str, int]]:
    """(service, protocol, address, port) of endpoints that an entry lost."""
    lost = _endpoints(change.old) - _endpoints(change.new)
    return {(change.key.service, int(change.key.protocol), address, port) for address, port in lost}


def after_change(change: PlanChange) -> int:
    """For whoever holds a plan in another mode here: retire what went, and end a drain that is over.

    Returns how many flows still drain.
    """
    pins = PinDirectory(default_instance())
    if not pins.draining:
        return 0
    retire(pins, change)
    return finish(pins)
