"""libnftables: run one transaction, explain what the kernel refused; and which tables there are.

One `Nft` holds one libnftables context, whose netlink socket belongs to the network namespace that the thread was
in when the object was made; it stays with that namespace.
"""

import os
import re

from nftables import Nftables

from dataplane.kernel.nfnetlink import Nfnetlink, Refused, attributes, text_of
from dataplane.planes.base import PlaneError

_LOCATION = re.compile(r"^[^\s:]*:\d+:\d+-\d+: ")
_SHOWN = 160

# NFPROTO_* of each family word (linux/netfilter.h); NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE; NFTA_TABLE_NAME.
_FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_GET_TABLES = 10 << 8 | 1
_TABLE_NAME = 1


def _around_caret(line: str, carets: str) -> str:
    """The part of an offending line that the carets point at; transaction lines may be very long."""
    start = max(carets.find("^"), 0)
    first = max(start - _SHOWN // 2, 0)
    shown = line[first : first + _SHOWN].strip()
    return shown if len(line) <= _SHOWN else f"... {shown} ..."


def explain_refusal(output: str, limit: int = 5) -> str:
    """libnftables' error text as sentences: at most `limit` reasons, each with the piece of input it is about."""
    lines = output.splitlines()
    reasons: list[str] = []
    for number, line in enumerate(lines):
        if "Error:" not in line and "BUG:" not in line:
            continue
        reason = _LOCATION.sub("", line).removeprefix("Error: ").strip()
        following = lines[number + 1 : number + 3]
        if len(following) == 2 and following[1].strip().startswith("^"):
            reason += f" at: {_around_caret(*following)}"
        reasons.append(reason)
    if not reasons:
        return output.strip() or "no reason given"
    more = len(reasons) - limit
    return "; ".join(reasons[:limit]) + (f"; and {more} more" if more > 0 else "")


class Nft:
    """A libnftables context in the network namespace it was made in. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._context = Nftables()
        self._door = Nfnetlink()

    def run(self, transaction: str) -> None:
        """Run the commands as one transaction: all of them or none. Raises PlaneError."""
        code, _, errors = self._context.cmd(transaction)
        if code != 0:
            reason = explain_refusal(self._located(transaction) or errors)
            raise PlaneError(f"nftables refused a change, nothing of it was applied: {reason}")

    def _located(self, transaction: str) -> str:
        """The errors of a refused transaction with the lines that they are about, found by a dry run.

        For commands in memory, libnftables prints the first line beside every error; for a file, the right one.
        """
        with os.fdopen(os.memfd_create("transaction"), "w", encoding="utf-8") as file:
            file.write(transaction)
            file.flush()
            self._context.set_dry_run(True)
            try:
                _, _, errors = self._context.cmd_from_file(f"/proc/self/fd/{file.fileno()}")
            finally:
                self._context.set_dry_run(False)
        return str(errors)

    def tables(self) -> set[tuple[str, str]]:
        """(family word, name) of every table in the namespace. Raises PlaneError.

        Asked of the kernel directly: for `list tables`, libnftables first fetches all that is in them.
        """
        try:
            return {
                (word, text_of(payload))
                for word, number in _FAMILIES.items()
                for message in self._door.dump(_GET_TABLES, number, b"")
                for kind, payload in attributes(message)
                if kind == _TABLE_NAME
            }
        except (Refused, OSError) as error:
            raise PlaneError(f"nftables tables cannot be listed: {error}; run as root") from error
