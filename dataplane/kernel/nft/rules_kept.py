"""Whether base chains still have the rules that a transaction gave them, by one dump of chains."""

from collections import Counter

from dataplane.errors import PlaneError
from dataplane.kernel.netlink.netlink import Refused
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft.base_chains import base_chains


def lost_tables(netlink: Nfnetlink, *texts: str) -> list[str]:
    """Return `family table` of each transaction of which a base chain is gone, or has another number of rules than the
    text gives it. texts: each of one table, a command a line. Raises PlaneError."""
    try:
        held = {(each.family, each.table, each.name): each.rules for each in base_chains(netlink)}
    except (Refused, OSError) as error:
        raise PlaneError(f"nftables chains cannot be listed: {error}; run as root") from error
    return [" ".join(table) for text in texts for table, lacks in [_compared(text, held)] if lacks]


def _compared(text: str, held: dict[tuple[str, str, str], int]) -> tuple[tuple[str, str], bool]:
    """Return the table that a transaction is of, and whether the kernel has its base chains otherwise."""
    lines = [line.split() for line in text.splitlines()]
    chains = [tuple(words[2:5]) for words in lines if words[:2] == ["add", "chain"] and "hook" in words]
    rules = Counter(tuple(words[2:5]) for words in lines if words[:2] == ["add", "rule"])
    table = next((words[2], words[3]) for words in lines if words[:2] == ["add", "table"])
    return table, any(held.get((family, table, name)) != rules[family, table, name] for family, table, name in chains)
