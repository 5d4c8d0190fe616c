"""Follows one connection: arms what tells of it, has it sent if that is asked for, listens, and puts it together."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

from ctl.trace.netfilter import NetfilterSource
from ctl.trace.programs import ProgramSource
from ctl.trace.seen import Layer, Seen, Target
from ctl.trace.send import Origin, Sender, Sent
from ctl.trace.timeline import Trace, finish
from dataplane.errors import HotplaneError, PlaneError
from dataplane.kernel.nft.trace import Ends
from dataplane.kernel.wait import readable
from dataplane.planes.base import Plane

SLICE_SECONDS = 0.01
QUIET_SECONDS = 0.15
"""After the sender has ended, or an answer has been seen, so long without news ends the trace."""
SLACK_SECONDS = 2.0
"""A sender that waited for its answer in vain has so long to say so."""


def follow(target: Target, plane: Plane, timeout: float, origin: Origin | None = None, *, cookie: int = 0) -> Trace:
    """Follow the next connection of the target's. origin: from where it is sent, None: wait for somebody else's, who
    is in the network namespace with this cookie, 0 = not known. timeout: seconds to wait for it, or for the answer to
    what is sent. Ctrl-C ends it with what was seen. Raises HotplaneError where nothing tells of packets."""
    with ExitStack() as resources:
        packet = target.decision.packet
        sender = resources.enter_context(Sender(packet, origin, timeout)) if origin is not None else None
        netfilter = resources.enter_context(NetfilterSource(target))
        limits = netfilter.limits
        try:
            programs = ProgramSource(target, plane, sender.cookie if sender is not None else cookie)
        except PlaneError as error:
            programs = None
            limits.append(str(error))
        if programs is not None:
            resources.enter_context(programs)
            if programs.why:
                limits.append(programs.why)
        watch = _Watch(netfilter, programs, sender)
        with contextlib.suppress(KeyboardInterrupt):
            watch.run(timeout)
        sent = watch.sent
        seen = ([_start(target, sent)] if sent is not None else []) + watch.seen
    return finish(target, seen, limits, sent)


def _start(target: Target, sent: Sent) -> Seen:
    packet = target.decision.packet
    what = "connects" if packet.protocol.text == "tcp" else "sends a datagram"
    ends = Ends((packet.source, sent.port), target.frontend)
    return Seen(sent.began, Layer.SENDER, "socket", what, exact=True, before=ends, client=sent.port)


class _Watch:
    """The loop. seen: what was told so far. sent: what became of what was sent, None as long as it is not known."""

    def __init__(self, netfilter: NetfilterSource, programs: ProgramSource | None, sender: Sender | None) -> None:
        self._netfilter, self._programs, self._sender = netfilter, programs, sender
        self.seen: list[Seen] = []
        self.sent: Sent | None = None

    def run(self, timeout: float) -> None:
        """Listen until the connection is over, or `timeout` seconds are."""
        if self._sender is not None:
            self._sender.begin()
        deadline = time.monotonic() + timeout + (SLACK_SECONDS if self._sender is not None else 0)
        news = time.monotonic()
        while (now := time.monotonic()) < deadline:
            files = self._netfilter.files
            waits = self._sender is not None and self.sent is None
            if waits and self._sender is not None:
                files.append(self._sender.fileno())
            if self._programs is not None and (fd := self._programs.fileno()) >= 0:
                files.append(fd)
            ready = readable(files, min(SLICE_SECONDS, deadline - now))
            found = list(self._told())
            if waits and self._sender is not None and self._sender.fileno() in ready:
                self.sent = self._sender.result()
                self._netfilter.expect(self.sent.port)
                self.seen += self._told()  # while it is open
                self._sender.let_go()
                news = time.monotonic()
            if found:
                self.seen += found
                news = time.monotonic()
            if self._over() and time.monotonic() - news > QUIET_SECONDS:
                return

    def _told(self) -> Iterator[Seen]:
        yield from self._netfilter.take()
        if self._programs is not None:
            yield from self._programs.take()

    def _over(self) -> bool:
        """True if nothing new is to be expected."""
        if self._sender is not None:
            return self.sent is not None
        return any(step.answer for step in self.seen) or any(step.refused for step in self.seen)


def check_rights() -> None:
    """Raise HotplaneError unless this process may trace."""
    if os.geteuid():
        raise HotplaneError(
            "packets are traced by netlink and by the programs' maps, which takes root: run this as root"
        )
