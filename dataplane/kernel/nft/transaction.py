"""nftables' text as transactions: netlink messages of hotplane's own, whose rules libnftables compiled elsewhere.

libnftables never runs in the network namespace that is programmed: it would first read every table there, also large
foreign ones, and fails on some of them (see compile.py). One `Nft` has a netlink socket, which belongs to
the network namespace that the thread was in when the object was made.
"""

import errno

from dataplane.errors import PlaneError
from dataplane.kernel.netlink.netlink import Refused, attributes, text_of
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.command import Command
from dataplane.kernel.nft.forms import Compiler, Library
from dataplane.kernel.nft.messages import commands, messages
from dataplane.kernel.nft.uapi import Operation

_SHOWN = 160
_TABLE_NAME = 1

COMPILER = Compiler()
"""Compiled text that this process knows."""


class Nft:
    """Transactions of text in the network namespace that the object was made in. Not for use by two threads at once.

    library: of the tables in the text; planes whose tables have a library pass it.
    """

    library = Library()

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def run(self, transaction: str) -> None:
        """Run the commands as one transaction: all of them or none. Raises PlaneError."""
        sent = messages(transaction, COMPILER, self.library)
        try:
            self._netlink.transact(nf_tables.SUBSYSTEM, [item.message for item in sent])
        except Refused as error:
            about = f" at: {shown(sent[error.message].command)}" if error.message is not None else ""
            raise PlaneError(f"nftables refused a change, nothing of it was applied: {error}{about}") from error
        except OSError as error:
            raise PlaneError(f"nftables could not be told a change: {error}; run as root") from error

    def prepare(self, transaction: str) -> None:
        """Have the rules of a transaction compiled, and do nothing with them. Raises PlaneError."""
        COMPILER.prepare(commands(transaction), self.library)

    def tables(self) -> set[tuple[str, str]]:
        """(family keyword, name) of every table in the namespace; none if the kernel has no nf_tables, which it says by
        EINVAL (nfnetlink_rcv_msg in net/netfilter/nfnetlink.c). Raises PlaneError."""
        try:
            return {
                (keyword, text_of(payload))
                for keyword, number in nf_tables.FAMILIES.items()
                for message in self._netlink.dump(Operation.GET_TABLE.kind, number, b"")
                for kind, payload in attributes(message)
                if kind == _TABLE_NAME
            }
        except (Refused, OSError) as error:
            if isinstance(error, Refused) and error.number == errno.EINVAL:
                return set()
            raise PlaneError(f"nftables tables cannot be listed: {error}; run as root") from error


def shown(command: Command) -> str:
    """A command as errors show it: what is long, in short."""
    text = command.text
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
