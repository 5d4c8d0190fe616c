"""What hotplane's tables have refused, by reason."""

from collections import Counter

from dataplane.model.net import Family
from dataplane.planes.answers import Refused
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.refusals import REFUSALS
from dataplane.planes.nftables.rules.syntax import syntax_for

WHERE = "nftables"


def refused_packets(table: str = "hotplane") -> list[Refused]:
    """Return the packets refused since the tables of this network namespace were made, both families together; only
    reasons that there were. Raises PlaneError."""
    syntax = [syntax_for(family, table) for family in Family]
    store = ElementStore(Layouts(syntax))
    packets: Counter[str] = Counter()
    for each in syntax:
        packets.update(store.counters(each.own) if store.has_table(each.own) else {})
    return [
        Refused(WHERE, refusal.reason, packets[refusal.reason], refusal.fate)
        for refusal in REFUSALS
        if packets[refusal.reason]
    ]
