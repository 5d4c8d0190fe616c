"""Journal of the changes since the plan was last saved, from which a killed daemon's plan is reconstructed.

A journal has a number. A saved plan names the journal that begins with it; a newer one begins while the next plan is
being saved, so the current plan is the saved one and every journal from that number on, in order.
"""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ctl.store.files import make_folder, opener
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, HealthCheck, OffPod, Plan, PlanEntry
from dataplane.policy.difference import LARGE, Backends, difference, realigned, spliced
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding
from dataplane.policy.node import NodeConfig

_LENGTH = 4


class _SetChange(msgspec.Struct, array_like=True):
    """Backends removed from a set and added to it."""

    removed: list[Backend]
    added: list[Backend]


class _Large(msgspec.Struct, array_like=True):
    """A changed entry with many backends: its other fields, and the differences of its backend sets."""

    rest: PlanEntry
    cluster: _SetChange
    local: _SetChange
    lingering: _SetChange
    unplaced: _SetChange
    tunnels: tuple[tuple[int, str], ...] = ()  # those that are not as they were, by their index


class _Step(msgspec.Struct, array_like=True):
    """A PlanChange, by the entries after it."""

    entries: tuple[PlanEntry, ...]
    gone: tuple[EntryKey, ...]
    node: NodeConfig | None
    service_cidrs: tuple[str, ...] | None
    checks: tuple[HealthCheck, ...]
    unchecked: tuple[tuple[str, str], ...]
    connect_off: tuple[OffPod, ...] | None = None
    large: tuple[_Large, ...] = ()
    tunnel_peers: frozenset[str] | None = None
    tunnel_formats: dict[str, Dispatch] | None = None
    tunnel_moves: dict[str, str] | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Step).decode


class Journal:
    """One journal, open for writing. Raises OSError if the file cannot be written."""

    def __init__(self, base: Path, number: int) -> None:
        self.number = number
        make_folder(base.parent)
        self._file = open(_path(base, number), "ab", buffering=0, opener=opener)  # noqa: SIM115 - until `close`

    def append(self, change: PlanChange) -> None:
        """Append one change. O(the change). Raises OSError; readers ignore a partly written change, and nothing may be
        appended after it."""
        checks = change.health_checks or {}
        large = {entry.key: entry for entry in change.entries if _is_large(entry)}
        body = _encode(
            _Step(
                tuple(entry.new for entry in change.entries if entry.new is not None and entry.key not in large),
                tuple(entry.key for entry in change.entries if entry.new is None),
                change.node,
                change.service_cidrs,
                tuple(check for check in checks.values() if check is not None),
                tuple(service for service, check in checks.items() if check is None),
                tuple(change.connect_off.values()) if change.connect_off is not None else None,
                tuple(_large(entry.old, entry.new) for entry in large.values() if entry.old and entry.new),
                change.tunnel_peers,
                change.tunnel_formats,
                change.tunnel_moves,
            )
        )
        record = len(body).to_bytes(_LENGTH, "little") + body
        if self._file.write(record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


def _is_large(change: EntryChange) -> bool:
    """True if the differences are to be written instead of the whole entry."""
    return change.old is not None and change.new is not None and len(change.new.cluster) >= LARGE


def _sets(entry: PlanEntry) -> tuple[Backends, ...]:
    return entry.cluster, entry.local, entry.lingering, entry.unplaced


def _large(old: PlanEntry, new: PlanEntry) -> _Large:
    rest = replace(new, cluster=(), local=(), lingering=(), unplaced=(), tunnels=())
    tunnels = _kept_tunnels(old, new.cluster) if new.tunnels else []
    changed = [(at, now) for at, (was, now) in enumerate(zip(tunnels, new.tunnels, strict=True)) if was != now]
    cluster, local, lingering, unplaced = (
        _SetChange(*difference(was, now)) for was, now in zip(_sets(old), _sets(new), strict=True)
    )
    return _Large(rest, cluster, local, lingering, unplaced, tuple(changed))


def _kept_tunnels(old: PlanEntry, cluster: Backends) -> list[str]:
    """Return the tunnels of an entry as aligned with its next Cluster set; "" for backends that come."""
    tunnels = old.tunnels or ("",) * len(old.cluster)
    return realigned(tunnels, old.cluster, cluster, lambda _: "")


def _restored(old: PlanEntry | None, large: _Large) -> PlanEntry:
    """Return the entry after a step. Raises ValueError if the step does not fit the entry."""
    if old is None:
        raise ValueError(f"{large.rest.key.service} changes before it is there")
    steps = (large.cluster, large.local, large.lingering, large.unplaced)
    sets = (spliced(was, step.removed, step.added) for was, step in zip(_sets(old), steps, strict=True))
    cluster, local, lingering, unplaced = sets
    tunnels = _kept_tunnels(old, cluster) if large.rest.forwarding is not Forwarding.SNAT else []
    for at, tunnel in large.tunnels:
        tunnels[at] = tunnel
    return replace(
        large.rest, cluster=cluster, local=local, lingering=lingering, unplaced=unplaced, tunnels=tuple(tunnels)
    )


def next_number(base: Path) -> int:
    """Return a number for a new journal, larger than that of any other: the time in nanoseconds, unless the clock was
    set back since one of them was begun."""
    return max(time.time_ns(), *(number + 1 for number in _numbers(base)), 1)


def _path(base: Path, number: int) -> Path:
    return base.with_name(f"{base.stem}.journal-{number}")


def _numbers(base: Path) -> Iterator[int]:
    for path in base.parent.glob(f"{base.stem}.journal-*"):
        number = path.name.rpartition("-")[2]
        if number.isascii() and number.isdecimal():
            yield int(number)


def replay(base: Path, first: int, plan: Plan) -> int:
    """Apply the journals to a saved plan; return the number of changes. A partly written last change is ignored.
    Raises OSError, msgspec.DecodeError, ValueError."""
    count = 0
    for number in sorted(number for number in _numbers(base) if number >= first):
        data = _path(base, number).read_bytes()
        at = 0
        while at + _LENGTH <= len(data):
            end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "little")
            if end > len(data):
                break
            _apply(plan, _decode(data[at + _LENGTH : end]))
            at, count = end, count + 1
    return count


def _apply(plan: Plan, step: _Step) -> None:
    for key in step.gone:
        plan.entries.pop(key, None)
    plan.entries.update((entry.key, entry) for entry in step.entries)
    for large in step.large:
        plan.entries[large.rest.key] = _restored(plan.entries.get(large.rest.key), large)
    for service in step.unchecked:
        plan.health_checks.pop(service, None)
    plan.health_checks.update(((check.namespace, check.name), check) for check in step.checks)
    plan.node = step.node or plan.node
    plan.service_cidrs = plan.service_cidrs if step.service_cidrs is None else step.service_cidrs
    if step.connect_off is not None:
        plan.connect_off = {(pod.namespace, pod.name): pod for pod in step.connect_off}
    if step.tunnel_peers is not None:
        plan.tunnel_peers = step.tunnel_peers
    if step.tunnel_formats is not None:
        plan.tunnel_formats = step.tunnel_formats
    if step.tunnel_moves is not None:
        plan.tunnel_moves = step.tunnel_moves


def drop(base: Path, before: int | None = None) -> None:
    """Remove journals: those older than a number, or all. Raises OSError."""
    for number in list(_numbers(base)):
        if before is None or number < before:
            _path(base, number).unlink(missing_ok=True)
