"""Other programs' netfilter rules for packets that pass through a network namespace: where they are, if there are any.

Base chains of nftables of every family and the built-in chains of both legacy families, at the hooks that a forwarded
packet meets. A chain counts if it has a rule or its policy is drop; one that iptables-nft made and nobody filled
(policy accept, no rule) does nothing.
"""

from collections.abc import Collection, Iterator

from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft.base_chains import base_chains
from dataplane.kernel.nft.trace import is_trace_table
from dataplane.kernel.xtables import builtin_chains
from dataplane.model.net import Family
from dataplane.resource import Resource

HOOKS = frozenset({"prerouting", "forward", "postrouting", "ingress", "egress"})
_TOOLS = {Family.IPV4: "iptables-legacy", Family.IPV6: "ip6tables-legacy"}
_IGNORED_FAMILY = "arp"  # whose packets no program of ours takes
TableName = tuple[str, str]
"""Family keyword of nftables, and name."""


class ForeignChains(Resource):
    """Looks in the network namespace of the thread that makes it; use it in that thread. own: tables that are not
    foreign. Raises OSError if the kernel has no such netlink socket."""

    def __init__(self, own: Collection[TableName]) -> None:
        self.own = frozenset(own)
        self._netlink = Nfnetlink()

    def look(self) -> list[str]:
        """Return a description of each foreign chain that counts, in a fixed order. Loads no module and creates no
        table. Raises HotplaneError, OSError."""
        return [*self.nftables(), *self.legacy()]

    def nftables(self) -> list[str]:
        """Return those of nftables. O(chains of all tables). Raises Refused, OSError."""
        return sorted(self._foreign())

    def legacy(self) -> list[str]:
        """Return those of the legacy tables. Takes microseconds where there are none. Raises XtablesError."""
        found = ((chain, _what(chain.rules, chain.drops)) for chain in builtin_chains(HOOKS))
        return sorted(
            f"{_TOOLS[chain.family]} chain {chain.table} {chain.hook.upper()} {what}" for chain, what in found if what
        )

    def _foreign(self) -> Iterator[str]:
        for chain in base_chains(self._netlink):
            if chain.family == _IGNORED_FAMILY or chain.hook not in HOOKS or (chain.family, chain.table) in self.own:
                continue
            if is_trace_table(chain.table):  # whose rules decide nothing
                continue
            what = _what(chain.rules > 0, chain.drops)
            if what:
                where = f" of {', '.join(chain.devices)}" if chain.devices else ""
                yield f"nftables chain {chain.family} {chain.table} {chain.name} ({chain.hook}{where}) {what}"

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._netlink.close()


def _what(rules: bool, drops: bool) -> str:
    """Return what makes a chain count, "" if nothing does."""
    return "has rules" if rules else "has the policy drop" if drops else ""
