"""Chains that refuse packets, one for each reason, each with a counter; and what the reasons mean to people.

The counters are objects of the table, not of the rules: they go on when rules are written anew, at a reload or by a
later process, and end with the table. Only a packet that is refused passes them. The nat chains see the first packet of
a connection alone, so each try of a client counts once.

Each of the chains jumps to another one, which is empty while nobody captures refused packets.
"""

from typing import NamedTuple

from dataplane.planes.answers import FATES
from dataplane.planes.nftables.rules.syntax import Syntax


class Refusal(NamedTuple):
    """A reason to refuse a packet. reason: its name, which is the counter's; the ebpf mode's programs have the same
    names for the same reasons (bpf/consts.h). rules: what its chain does with the packet. fate: what becomes of the
    packet, and why, in words."""

    reason: str
    rules: tuple[str, ...]
    fate: str

    @property
    def chain(self) -> str:
        """Name of the chain."""
        return f"{self.reason.replace('_', '-')}-packet"

    @property
    def capture_chain(self) -> str:
        """Name of the chain that a capture puts its rule into."""
        return f"capture-{self.reason.replace('_', '-')}"


REJECT_CHAIN = "reject-packet"
_REJECT = f"goto {REJECT_CHAIN}"

NO_ENDPOINT = Refusal("no_endpoint", (_REJECT,), FATES["no_endpoint"])
POLICY_DROP = Refusal("policy_drop", ("drop",), FATES["policy_drop"])
SOURCE_RANGE = Refusal("source_range", ("drop",), FATES["source_range"])
UNKNOWN_PORT = Refusal("unknown_port", (_REJECT,), "rejected: the clusterIP has no such port")
UNALLOCATED = Refusal("unallocated", ("drop",), "dropped: no Service has this address of a ServiceCIDR")
IN_CHANGE = Refusal("in_change", ("drop",), "dropped: its Service changed while the packet was on its way")
STRAY = Refusal(
    "stray",
    ("reject with tcp reset", "drop"),
    "reset: a TCP packet that neither opens a connection nor belongs to a known one",
)
# TCP without SYN belongs to a connection that conntrack has forgotten. Balanced again, it would reach a random
# endpoint, which would reset it; so it is reset here, where it can be counted.

REFUSALS = (NO_ENDPOINT, POLICY_DROP, SOURCE_RANGE, UNKNOWN_PORT, UNALLOCATED, IN_CHANGE, STRAY)


def refusal_chains() -> dict[str, list[str]]:
    """Return the chains with their rules, in an order in which they can be added."""
    return {REJECT_CHAIN: ["reject"], **{each.chain: _rules(each) for each in REFUSALS}}


def _rules(refusal: Refusal) -> list[str]:
    return [f"counter name {refusal.reason} jump {refusal.capture_chain}", *refusal.rules]


def begin_capture(syntax: Syntax, group: int, snap: int) -> str:
    """Return commands that have each refused packet logged, whatever a capture before left. group: of nfnetlink_log.
    snap: bytes of a packet that are wanted. The prefix of the log is the reason."""
    return end_capture(syntax) + "".join(
        f'add rule {syntax.target(each.capture_chain)} log prefix "{each.reason}" group {group} snaplen {snap}\n'
        for each in REFUSALS
    )


def end_capture(syntax: Syntax) -> str:
    """Return commands that end it."""
    return "".join(f"flush chain {syntax.target(each.capture_chain)}\n" for each in REFUSALS)
