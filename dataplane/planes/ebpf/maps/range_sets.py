"""Sets of source CIDRs in the map `source_ranges`."""

from dataplane.planes.ebpf.maps.allocate import Ids, MapFull
from dataplane.planes.ebpf.maps.encode import range_key_bytes
from dataplane.planes.ebpf.maps.mapset import MapSet


class RangeSets:
    """Sets of source CIDRs, shared by all frontends that have the same list."""

    def __init__(self, maps: MapSet) -> None:
        self._maps = maps
        self._users: dict[int, int] = {}
        self._by_cidrs: dict[tuple[str, ...], int] = {}
        self._cidrs: dict[int, tuple[str, ...]] = {}
        self._ids = Ids("source_ranges", 1 << 31)
        self._stored = 0

    def adopt(self, found: dict[int, tuple[str, ...]]) -> None:
        """Adopt the sets that the map holds, with no users until `take` or `use`."""
        self._ids = Ids("source_ranges", 1 << 31, [0, *found])
        self._cidrs = dict(found)
        self._by_cidrs = {cidrs: number for number, cidrs in found.items()}
        self._users = dict.fromkeys(found, 0)
        self._stored = sum(map(len, found.values()))

    def use(self, number: int) -> None:
        """Count one more user of an adopted set."""
        self._users[number] = self._users.get(number, 0) + 1

    def take(self, cidrs: tuple[str, ...]) -> int:
        """Return the number of the set with these CIDRs, stored if it is new. Raises MapFull."""
        number = self._by_cidrs.get(cidrs)
        if number is None:
            size = self._maps.specs["source_ranges"].max_entries
            if self._stored + len(cidrs) > size:
                raise MapFull("source_ranges", size)
            number = self._ids.take() or self._ids.take()  # 0 means none
            keys = b"".join(range_key_bytes(number, cidr) for cidr in cidrs)
            values = b"".join(order.to_bytes(4, "little") for order in range(len(cidrs)))
            self._maps.put_many("source_ranges", keys, values, len(cidrs))
            self._stored += len(cidrs)
            self._by_cidrs[cidrs], self._cidrs[number], self._users[number] = number, cidrs, 0
        self._users[number] += 1
        return number

    def give_back(self, number: int) -> None:
        """Count one user less; without users the set is removed."""
        self._users[number] -= 1
        if not self._users[number]:
            self._drop(number)

    def drop_unused(self) -> None:
        """Remove adopted sets that have no user."""
        for number in [number for number, users in self._users.items() if not users]:
            self._drop(number)

    def _drop(self, number: int) -> None:
        cidrs = self._cidrs.pop(number)
        self._maps.remove("source_ranges", [range_key_bytes(number, cidr) for cidr in cidrs])
        self._stored -= len(cidrs)
        del self._users[number]
        if self._by_cidrs.get(cidrs) == number:
            del self._by_cidrs[cidrs]
        self._ids.give_back(number)
