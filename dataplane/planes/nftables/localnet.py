"""Node ports on 127.0.0.0/8: the sysctl route_localnet, and the guard that it requires.

The kernel routes translated packets from loopback addresses only with the sysctl route_localnet, and then also accepts
packets with loopback addresses from other hosts, which it drops otherwise (CVE-2020-8558). A separate table, the guard,
drops these before any other rule; it exists whenever hotplane has set the sysctl. IPv6 has no such sysctl: only
balancing at connect time can serve node ports on ::1.
"""

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from dataplane.kernel import sysctl
from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.sysctl import ROUTE_LOCALNET
from dataplane.planes.base import PlaneError

if TYPE_CHECKING:
    from dataplane.planes.nftables.netlink.store import ElementStore

_FOLDER, _, _FILE = f"/proc/sys/{ROUTE_LOCALNET}".rpartition("/")
_SUFFIX = "-localnet"
_SET_BY_US = "set-by-hotplane"
"""Name of an empty chain that marks the sysctl as set by hotplane; otherwise it is not reset."""

_GUARD = """add table ip {table}
flush table ip {table}
add chain ip {table} prerouting {{ type filter hook prerouting priority -300; }}
add rule ip {table} prerouting iifname != "lo" ip daddr 127.0.0.0/8 drop
add rule ip {table} prerouting iifname != "lo" ip saddr 127.0.0.0/8 drop
"""


def guard(table: str = "hotplane") -> str:
    """Return the commands that create or rewrite the guard of a plane's tables."""
    return _GUARD.format(table=f"{table}{_SUFFIX}")


def keep_open(table: str = "hotplane") -> None:
    """Set the sysctl if the guard of a plane's tables exists, and mark it there as set by hotplane, to be reset with
    it. Raises PlaneError."""
    nft = Nft()
    if ("ip", f"{table}{_SUFFIX}") in nft.tables() and sysctl.ensure(ROUTE_LOCALNET, 1):
        nft.run(f"add chain ip {table}{_SUFFIX} {_SET_BY_US}\n")


class Localnet:
    """The guard and the sysctl in the network namespace in which the object was made. in: name of the plane's tables.
    table, rules: the guard's family and name, and the commands that make it."""

    def __init__(self, nft: Nft, store: "ElementStore", table: str) -> None:
        self._nft, self._store, self.table = nft, store, f"ip {table}{_SUFFIX}"
        self.rules, self._mark = guard(table), f"add chain ip {table}{_SUFFIX} {_SET_BY_US}\n"
        self._ours = False
        # A sysctl directory stays that of its network namespace, even if opened from another one later.
        self._folder = os.open(_FOLDER, os.O_PATH | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._folder)

    def open(self) -> None:
        """Install the guard and set the sysctl. Raises PlaneError."""
        self._nft.run(self.rules)
        self._ours = self._set(1) or _SET_BY_US in self._store.chains(self.table)
        if self._ours:
            self._nft.run(self._mark)

    def mend(self, *, lost: bool) -> list[str]:
        """Put back the guard (lost: it is not as it was made) and the sysctl, if another process reset it; returns the
        names of what it put back. Raises PlaneError."""
        found = []
        if lost:
            self._nft.run(self.rules + (self._mark if self._ours else ""))
            found.append(f"table {self.table}")
        if self._set(1):
            self._ours = True
            self._nft.run(self._mark)
            found.append(f"sysctl {ROUTE_LOCALNET}")
        return found

    def close(self) -> None:
        """Reset the sysctl and delete the guard, if any. Raises PlaneError."""
        if not self._store.has_table(self.table):
            return
        if _SET_BY_US in self._store.chains(self.table):
            self._set(0)
        self._nft.run(f"delete table {self.table}\n")

    def _set(self, value: int) -> bool:
        """Set the sysctl unless it has that value already; returns whether it was written. Raises PlaneError."""
        path = Path(f"/proc/self/fd/{self._folder}/{_FILE}")
        try:
            if path.read_text().strip() == str(value):
                return False
            path.write_text(f"{value}\n")
        except OSError as error:
            raise PlaneError(
                f"node ports on 127.0.0.0/8: cannot set the sysctl {ROUTE_LOCALNET} to {value}: {error.strerror}; root "
                "and a writable /proc/sys are needed, or leave loopback addresses out of nodePortAddresses"
            ) from error
        return True
