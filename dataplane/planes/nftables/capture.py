"""Captures the packets that hotplane's tables refuse: by `log` rules in chains that are empty while nobody does.

Each chain that refuses jumps to one of its own first (see rules.refusals). A capture puts a rule there that hands the
packet to a group of nfnetlink_log, and takes it out at its end. What a capture that was killed left there hands packets
to a group that nobody listens to, until the next capture, or the end of the table.
"""

from collections.abc import Sequence

from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.wait import readable
from dataplane.model.net import Family
from dataplane.planes.base import PlaneError
from dataplane.planes.captures import Captured, CaptureStream
from dataplane.planes.logged import GROUP, captured, open_log
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.refused import WHERE
from dataplane.planes.nftables.rules.refusals import REFUSALS, begin_capture, end_capture
from dataplane.planes.nftables.rules.syntax import Syntax, syntax_for

_FATES = {refusal.reason: refusal.fate for refusal in REFUSALS}


def _capturing(store: ElementStore, syntax: Sequence[Syntax]) -> list[Syntax]:
    """Those of the tables that are there and can capture. Raises PlaneError if there are none."""
    chains = [refusal.capture_chain for refusal in REFUSALS]
    found = [each for each in syntax if store.has_table(each.own) and store.chains(each.own).keys() >= {*chains}]
    if not found:
        raise PlaneError(
            "no rules of this version are loaded in this network namespace, so nothing can be captured: "
            "hotplane apply -f ..., or restart the daemon"
        )
    return found


class Capture(CaptureStream):
    """A capture in this network namespace. snap: bytes of a packet that are kept. Raises PlaneError if it cannot be
    begun, or another one goes on."""

    def __init__(self, snap: int, table: str = "hotplane") -> None:
        syntax = [syntax_for(family, table) for family in Family]
        self._nft, self._store = Nft(), ElementStore(Layouts(syntax))
        self._tables = _capturing(self._store, syntax)
        self._log = open_log(snap)
        try:
            self._nft.run("".join(begin_capture(each, GROUP, snap) for each in self._tables))
        except BaseException:  # it may be there already when the user interrupts
            self.close()
            raise

    @property
    def lost(self) -> int:
        """See CaptureStream.lost."""
        return self._log.lost

    def poll(self, seconds: float) -> Sequence[Captured]:
        """See CaptureStream.poll."""
        readable([self._log.fileno()], seconds)
        return list(captured(self._log.take(), WHERE, _FATES))

    def close(self) -> None:
        """Take the rules out, where their table still is, while no other capture can begin, whose rules they would be.
        Raises PlaneError."""
        try:
            mine = [each for each in self._tables if self._store.has_table(each.own)]
            self._nft.run("".join(end_capture(each) for each in mine))
        finally:
            self._log.close()
