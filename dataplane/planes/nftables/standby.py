"""Tables of another name that serve while those of another version are replaced.

Two tables of one name cannot stand side by side, and in one transaction that deletes one and makes the other, packets
under way find neither whole. Both may translate: who comes first does, and the other leaves that packet alone.
"""

from collections.abc import Iterable

from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family
from dataplane.plan.types import Plan
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.elements.books import Books
from dataplane.planes.nftables.load import Loader, remove_tables
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.syntax import Syntax, syntax


class StandIn:
    """The tables `<table>-stand-in`. There are none, save for a moment, or when that moment was a process's last."""

    def __init__(self, nft: Nft, store: ElementStore, families: Iterable[Family], table: str) -> None:
        self._nft, self._store = nft, store
        self._words = {family: syntax(family, f"{table}-stand-in") for family in families}

    def replace(self, old: Iterable[Syntax], plan: Plan, text_limit: int) -> None:
        """Serve the plan, then remove the old tables. Raises PlaneError, after which those stand as they did."""
        self.remove()
        layouts = Layouts(self._words.values())
        Loader(self._nft, self._store.of(layouts), layouts, plan, text_limit).fill(Books(self._words, layouts))
        try:
            remove_tables(self._nft, self._store, old)
        except PlaneError as error:
            names = " and ".join(words.own for words in self._words.values())
            raise PlaneError(f"{error}; tables {names} serve beside them: load again") from error

    def remove(self) -> None:
        """Remove those that there are. Raises PlaneError."""
        remove_tables(self._nft, self._store, self._words.values())
