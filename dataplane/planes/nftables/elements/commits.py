"""The transactions of one change, in the order that packets in flight need (see `transaction.Parts`)."""

from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.elements.transaction import Parts
from dataplane.planes.nftables.netlink.store import ElementStore


class Commits:
    """Commits changes to the kernel. count: transactions that the kernel accepted so far."""

    def __init__(self, nft: Nft, store: ElementStore) -> None:
        self._nft, self._store = nft, store
        self.count = 0

    def change(self, parts: Parts, settings: str) -> None:
        """Commit a change, all but the deletion of what it leaves unused. After a PlaneError nothing has changed.

        settings: commands that belong to the same transaction as the elements.
        """
        if parts.ahead:
            self._run(parts.ahead)
        try:
            if settings or parts.removed or parts.added:
                self._store.change(parts.removed, parts.added, ahead=settings)
                self.count += 1
        except PlaneError as error:
            if parts.ahead:
                self._undo(parts, error)
            raise

    def _undo(self, parts: Parts, error: PlaneError) -> None:
        try:
            self._run(parts.undo)
        except PlaneError as second:
            raise PlaneError(f"{error}; what was made for it stays, unused, until a load: {second}") from error

    def delete_unused(self, parts: Parts) -> None:
        """Delete what `change` left unused, once no packet in flight needs it. Raises PlaneError."""
        if not parts.behind and not parts.disappearing:
            return
        wait_for_packets()
        try:
            self._store.change(parts.behind, (), behind=parts.disappearing)
        except PlaneError as error:
            raise PlaneError(
                f"{error}; the change itself is in effect, what it left unused stays: load again"
            ) from error
        self.count += 1

    def _run(self, text: str) -> None:
        self._nft.run(text)
        self.count += 1
