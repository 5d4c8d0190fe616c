"""The devices of the flowtables (`--flowtable`): the node's Ethernet devices, those that come and go included.

A flowtable sees packets only on devices that it names, and devices must exist to be named. The kernel strikes out those
that go. Ports of a bridge, bond or VRF are left out: their packets are routed as the master's, which is named. Devices
without an Ethernet header (WireGuard, IPIP) are left out too, so what comes in there takes the usual way.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from dataplane.faults import Faults, ignore
from dataplane.kernel.netlink.ethernet import ROUTE, ethernet_devices
from dataplane.kernel.netlink.netlink import Netlink, Notifications, Refused, attributes, text_of
from dataplane.kernel.netlink.nfnetlink import CREATE, Message, Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.uapi import (
    NAME,
    TABLE,
    Chain,
    Flowtable,
    FlowtableHook,
    Operation,
    Rule,
    nested,
    number,
    text,
)
from dataplane.kernel.wait import readable
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.rules.flowtable import FLOWTABLE
from dataplane.planes.nftables.rules.syntax import LAST, Syntax
from dataplane.resource import Resource

_MOST = 200
"""Devices in one message; the kernel takes 255."""

_ATTEMPTS = 5
"""Times that devices are read again because one of them went meanwhile."""

_LINKS = 0x1  # RTMGRP_LINK
_DEBOUNCE_SECONDS = 0.05
_LOOK_SECONDS = 60.0
_TRIAL = "hotplane-flowtable-trial"
_FORWARD = 2  # NF_INET_FORWARD


class Offload(Resource):
    """The flowtables of some tables, in the network namespace in which the object was made. watch: follow devices in a
    thread from `follow` on. warn, mended: called from it with a sentence if the kernel refuses a device, and when it
    takes all again."""

    def __init__(
        self,
        tables: Iterable[Syntax],
        *,
        watch: bool,
        warn: Callable[[str], None],
        mended: Callable[[str], None] = ignore,
    ) -> None:
        self._tables, self._wants_watch, self._faults = tuple(tables), watch, Faults(warn, mended)
        self._lock = threading.Lock()
        self._netfilter, self._links = Nfnetlink(), Netlink(ROUTE)
        self._watch: _Watch | None = None
        self._changes: Notifications | None = Notifications(_LINKS) if watch else None
        self.count = 0
        """Transactions so far."""

    def require(self) -> None:
        """Try all that the option needs, and leave nothing of it. Raises PlaneError where the kernel lacks it."""
        for syntax in self._tables:
            try:
                self._netfilter.transact(nf_tables.SUBSYSTEM, list(_trial(nf_tables.FAMILIES[syntax.ip])))
            except (Refused, OSError) as error:
                if isinstance(error, OSError) or error.number == errno.EPERM:
                    raise PlaneError(f"--flowtable: nf_tables cannot be asked for it: {error}; run as root") from error
                raise PlaneError(
                    f"--flowtable: the kernel of this node ({os.uname().release}) has no flowtables for family "
                    f"{syntax.ip} (nf_tables: {error}); leave the option out, or run a kernel with "
                    "CONFIG_NF_FLOW_TABLE_INET and CONFIG_NFT_FLOW_OFFLOAD (modules nf_flow_table_inet and "
                    "nft_flow_offload)"
                ) from error

    def follow(self) -> None:
        """Name the devices that there are now in every table's flowtable, and go on with it. Raises PlaneError."""
        self.refresh()
        if self._changes is not None and self._watch is None:
            self._watch = _Watch(self, self._changes, self._faults)

    def refresh(self) -> None:
        """Add devices that are missing, take out those that have become ports. Raises PlaneError."""
        with self._lock:
            for syntax in self._tables:
                self._bring(syntax)

    def _bring(self, syntax: Syntax) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                wanted = {device.name for device in ethernet_devices(self._links) if not device.master}
                held = self._held(syntax)
                messages = [
                    *_devices(Operation.NEW_FLOWTABLE, syntax, sorted(wanted - held)),
                    *_devices(Operation.DELETE_FLOWTABLE, syntax, sorted(held - wanted)),
                ]
                self._netfilter.transact(nf_tables.SUBSYSTEM, messages)
                self.count += bool(messages)
            except (Refused, OSError) as error:
                if attempt + 1 == _ATTEMPTS:
                    where = syntax.target(FLOWTABLE)
                    raise PlaneError(f"--flowtable: the devices of {where} cannot be changed: {error}") from error
            else:
                return

    def _held(self, syntax: Syntax) -> set[str]:
        """Return the names of the devices that a table's flowtable has."""
        family = nf_tables.FAMILIES[syntax.ip]
        answers = self._netfilter.dump(Operation.GET_FLOWTABLE.kind, family, text(TABLE, syntax.table))
        found: set[str] = set()
        for message in answers:
            parts = dict(attributes(message))
            if (text_of(parts[TABLE]), text_of(parts[NAME])) == (syntax.table, FLOWTABLE):
                hook = dict(attributes(parts[Flowtable.HOOK]))
                found |= {text_of(name) for _, name in attributes(hook.get(FlowtableHook.DEVICES, b""))}
        return found

    def stop(self) -> None:
        """Follow devices no longer; fine twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def close(self) -> None:
        """Stop, and close the sockets."""
        self.stop()
        if self._changes is not None:
            self._changes.close()
        self._netfilter.close()
        self._links.close()


def _devices(operation: Operation, syntax: Syntax, names: Sequence[str]) -> Iterator[Message]:
    """Messages that add devices to a flowtable or take them out."""
    flags = CREATE if operation is Operation.NEW_FLOWTABLE else 0
    for first in range(0, len(names), _MOST):
        part = (text(nf_tables.DEVICE_NAME, name) for name in names[first : first + _MOST])
        hook = nested(Flowtable.HOOK, nested(FlowtableHook.DEVICES, *part))
        where = text(TABLE, syntax.table) + text(NAME, FLOWTABLE)
        yield Message(operation.kind, flags, nf_tables.FAMILIES[syntax.ip], where + hook)


def _trial(family: int) -> Iterator[Message]:
    """Messages that make a table with a flowtable and a rule that uses it, and delete it again."""
    table, chain = text(TABLE, _TRIAL), "c"

    def message(operation: Operation, *parts: bytes) -> Message:
        return Message(operation.kind, CREATE, family, table + b"".join(parts))

    place = number(1, _FORWARD) + number(2, LAST)  # NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    hook = number(FlowtableHook.NUMBER, 0) + number(FlowtableHook.PRIORITY, 0)
    expression = text(1, "flow_offload") + nested(2, text(1, FLOWTABLE))  # NFTA_EXPR_*, NFTA_FLOW_TABLE_NAME
    yield message(Operation.NEW_TABLE)
    yield message(Operation.NEW_CHAIN, text(Chain.NAME, chain), nested(Chain.HOOK, place), text(Chain.TYPE, "filter"))
    yield message(Operation.NEW_FLOWTABLE, text(NAME, FLOWTABLE), nested(Flowtable.HOOK, hook))
    rule = nested(Rule.EXPRESSIONS, nested(nf_tables.LIST_ELEMENT, expression))
    yield message(Operation.NEW_RULE, text(Rule.CHAIN, chain), rule)
    yield Message(Operation.DELETE_TABLE.kind, 0, family, table)


class _Watch(Resource):
    """A thread that brings the flowtables up to date when devices change."""

    def __init__(self, offload: Offload, changes: Notifications, faults: Faults) -> None:
        self._offload, self._changes, self._faults = offload, changes, faults
        self._end, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True, name="flowtable")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        os.write(self._wake, b"x")
        self._thread.join()
        os.close(self._wake)
        os.close(self._end)

    def _work(self) -> None:
        while self._end not in readable([self._changes.fileno(), self._end], _LOOK_SECONDS):
            if readable([self._end], _DEBOUNCE_SECONDS):  # notifications come in bursts
                return
            self._changes.drain()
            try:
                self._offload.refresh()
            except PlaneError as error:
                self._faults.failed(FLOWTABLE, str(error))
            else:
                self._faults.worked(FLOWTABLE, "--flowtable: the flowtables have all of this node's devices again")
