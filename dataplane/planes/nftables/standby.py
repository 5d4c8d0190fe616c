"""Standby tables, under another name, that serve packets while tables of another version are replaced.

Two tables of one name cannot exist at the same time. If one transaction deletes one and creates the other, packets in
flight find neither complete. While both exist, the first one to see a packet translates it; the other ignores it.
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
from dataplane.planes.nftables.rules.syntax import Syntax, syntax_for

STAND_IN = "-stand-in"
"""What their names end in."""


class StandbyTables:
    """The tables `<table>-stand-in`. They exist only during a replacement, or after a process died in one."""

    def __init__(self, nft: Nft, store: ElementStore, families: Iterable[Family], table: str) -> None:
        self._nft, self._store = nft, store
        self._syntax = {family: syntax_for(family, f"{table}{STAND_IN}") for family in families}

    def replace(self, old: Iterable[Syntax], plan: Plan, text_limit: int) -> None:
        """Load the plan into the standby tables, then remove the old ones. After a PlaneError those are unchanged."""
        self.remove()
        layouts = Layouts(self._syntax.values())
        Loader(self._nft, self._store.of(layouts), layouts, plan, text_limit).fill(Books(self._syntax, layouts))
        try:
            remove_tables(self._nft, self._store, old)
        except PlaneError as error:
            names = " and ".join(syntax.own for syntax in self._syntax.values())
            raise PlaneError(f"{error}; tables {names} serve beside them: load again") from error

    def remove(self) -> None:
        """Remove the standby tables that exist. Raises PlaneError."""
        remove_tables(self._nft, self._store, self._syntax.values())
