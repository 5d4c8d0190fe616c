"""The transactions of one change, in the order in which packets under way need them (see `transaction.Parts`)."""

from collections.abc import Sequence

from dataplane.kernel.nft import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.fields import Element
from dataplane.planes.nftables.store import ElementStore
from dataplane.planes.nftables.transaction import Parts


class Commits:
    """Sends changes. count: the transactions that the kernel took so far."""

    def __init__(self, nft: Nft, store: ElementStore) -> None:
        self._nft, self._store = nft, store
        self.count = 0

    def change(self, parts: Parts, settings: str) -> None:
        """Everything of a change but what goes behind it. Raises PlaneError, after which nothing has changed.

        settings: commands that belong into the same transaction as the elements.
        """
        if parts.ahead:
            self._run(parts.ahead)
        try:
            if settings or parts.removed or parts.added:
                self._send(parts.removed, parts.added, ahead=settings)
        except PlaneError as error:
            if parts.ahead:
                self._take_back(parts, error)
            raise

    def _take_back(self, parts: Parts, error: PlaneError) -> None:
        try:
            self._run(parts.undo)
        except PlaneError as second:
            raise PlaneError(f"{error}; what was made for it stays, unused, until a load: {second}") from error

    def tidy(self, parts: Parts) -> None:
        """Remove what only packets needed that were under way at the time of `change`. Raises PlaneError."""
        if not parts.behind and not parts.disappearing:
            return
        wait_for_packets()
        try:
            self._send(parts.behind, (), behind=parts.disappearing)
        except PlaneError as error:
            raise PlaneError(
                f"{error}; the change itself is in effect, what it left unused stays: load again"
            ) from error

    def _run(self, text: str) -> None:
        self._nft.run(text)
        self.count += 1

    def _send(
        self,
        removed: Sequence[Element],
        added: Sequence[tuple[Element, bytes]],
        ahead: str = "",
        behind: str = "",
    ) -> None:
        self._store.change(removed, added, ahead, behind)
        self.count += 1
