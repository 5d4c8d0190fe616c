"""Other nodes that packets of Services are forwarded to and come from, in the maps of `bpf/tunnel.h`.

A node has a number, which flows and backends have instead of its address. It keeps the number as long as this plane is
loaded, also when it is no peer any more, and when it gets another address: flows that are there go on.
"""

from collections.abc import Collection, Iterable, Mapping

from dataplane.plan.types import EXTERNAL, EntryKey, PlanEntry
from dataplane.planes.ebpf.maps.encode import address_bytes, address_text
from dataplane.planes.ebpf.maps.layout import constant, record
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.members import HERE, Address, wanted_flags
from dataplane.policy.dispatch import SHORT_NAME, alike, endpoint_digest
from dataplane.policy.forwarding import Dispatch

_ENDPOINT_KEY = record("endpoint_key", "service", "endpoint")
_NUMBERS, _RETIRED = constant("TUNNEL_NUMBER"), constant("TUNNEL_RETIRED")
_SHORT_NAME_SERVICE = constant("SHORT_NAME_SERVICE")
_USABLE = constant("BACKEND_USABLE")
_WORD = 4
_TUNNEL = record("tunnel", "address", "format", "always")
_FORMATS = {dispatch: constant(f"FORMAT_{dispatch.name}") for dispatch in Dispatch}


class Tunnels:
    """Numbers of other nodes, and from whom forwarded packets are accepted. closed: no backend gets a number, since the
    programs are not there yet."""

    def __init__(self, maps: MapSet) -> None:
        self._maps = maps
        self._numbers: dict[str, int] = {}
        self._plain: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._peers: dict[str, int] = {}
        self._formats: dict[str, Dispatch] = {}
        self.closed = False

    @property
    def known(self) -> bool:
        """True if there ever was a node to forward to, or to accept packets from."""
        return bool(self._numbers)

    @property
    def accepts(self) -> bool:
        """True if packets of flows that begin are accepted from anybody."""
        return any(not value & _RETIRED for value in self._peers.values())

    def adopt(self) -> None:
        """Take over what an earlier process wrote."""
        formats = {number: dispatch for dispatch, number in _FORMATS.items()}
        for number, (address, form, always) in enumerate(_TUNNEL.iter_unpack(self._maps.memory["tunnels"])):
            if any(address) and always:
                self._plain[address_text(address)], self._texts[number] = number, address_text(address)
            elif any(address):
                self._note(address_text(address), number)
                self._formats[address_text(address)] = formats.get(form, Dispatch.VXLAN)
        for key, value in self._maps.items("tunnel_nodes"):
            self._peers[address_text(key)] = int.from_bytes(value, "little")

    def number(self, address: str) -> int:
        """Return a node's number, by its address; 0 if there is none ("") or no room: such backends get SNAT."""
        if not address:
            return 0
        number = self._numbers.get(address)
        if number is None:
            number = self._next()
            if number:
                self._note(address, number)
                self._write(number, address)
        return number

    def _next(self) -> int:
        number = len(self._texts) + 1
        return number if number < min(self._maps.specs["tunnels"].max_entries, _NUMBERS) else 0

    def _plain_number(self, address: str) -> int:
        """Return a number of a node to which packets are always sent in VXLAN; 0 if there is no room."""
        number = self._plain.get(address) or self._next()
        if number and address not in self._plain:
            self._plain[address], self._texts[number] = number, address
            self._write(number, address, always=True)
        return number

    def _write(self, number: int, address: str, *, always: bool = False) -> None:
        """Have a number lead to an address. always: in VXLAN, whatever the node's format is."""
        dispatch = Dispatch.VXLAN if always else self._formats.get(address, Dispatch.VXLAN)
        record = _TUNNEL.pack(address_bytes(address), _FORMATS[dispatch], always)
        self._maps.put("tunnels", number.to_bytes(_WORD, "little"), record)

    def _note(self, address: str, number: int) -> None:
        self._numbers[address], self._texts[number] = number, address

    def move(self, moves: Mapping[str, str]) -> None:
        """Send packets of flows to nodes that have another address now to that one: what had the number of the one has
        that of the other. moves: see Plan.tunnel_moves; those that are known already change nothing."""
        for old, new in moves.items():
            for numbers, always in ((self._numbers, False), (self._plain, True)):
                number = numbers.pop(old, None)
                if number is None:
                    continue
                self._texts[number] = new
                numbers.setdefault(new, number)
                self._write(number, new, always=always)

    def text(self, number: int) -> str:
        """Return the address of a number, "" for 0."""
        return self._texts.get(number, "")

    def numbers_of(self, entry: PlanEntry) -> dict[Address, int] | None:
        """Return the numbers of an entry's backends, None where nothing is forwarded."""
        if not entry.tunnels or self.closed:
            return None
        pairs = list(zip(entry.cluster, entry.tunnels, strict=True))
        found = {(backend.address, backend.port): self.number(address) for backend, address in pairs if address}
        plain = alike(pairs, self._formats, entry.key.protocol)
        if not plain:
            return found
        return found | {each: self._plain_number(to) for b, to in pairs if (each := (b.address, b.port)) in plain}

    def use(self, formats: Mapping[str, Dispatch]) -> bool:
        """Wrap packets to these addresses like this, and all others in VXLAN; also those of flows that there are, since
        their node opens every format that it announces. O(addresses). Returns whether `numbers_of` may say something
        else of entries from now on."""
        before, self._formats = self._formats, dict(formats)
        for address in {*before, *formats} & self._numbers.keys():
            if before.get(address, Dispatch.VXLAN) is not formats.get(address, Dispatch.VXLAN):
                self._write(self._numbers[address], address)
        return _short(before) != _short(self._formats)

    def accept(self, peers: Collection[str]) -> None:
        """Accept forwarded packets from these nodes, in any format. From those that were peers before, only packets of
        flows that there are."""
        wanted = {address: number for address in sorted(peers) if (number := self.number(address))}
        for address in self._peers.keys() - wanted.keys():
            wanted[address] = self._peers[address] | _RETIRED
        for address, value in wanted.items():
            if self._peers.get(address) != value:
                self._maps.put("tunnel_nodes", address_bytes(address), value.to_bytes(_WORD, "little"))
        self._peers = wanted


def _short(formats: Mapping[str, Dispatch]) -> set[str]:
    return {address for address, dispatch in formats.items() if dispatch is Dispatch.IPIP}


class Forwarded:
    """The map `forwarded`: this node's endpoints under the names by which other nodes call them. on: it is filled."""

    def __init__(self, maps: MapSet) -> None:
        self._maps = maps
        self._held: dict[EntryKey, dict[bytes, bytes]] = {}
        self.on = False

    def fill(self, entries: Iterable[tuple[PlanEntry, int, Collection[int]]], *, on: bool) -> None:
        """Have the map hold exactly what these entries need, or nothing. entries: with the index of each one's service
        and those of its backends, in the order of `wanted_flags`."""
        self.on = on
        found = dict(self._maps.items("forwarded"))
        self._held = {}
        for entry, service, backends in entries if on else ():
            elements = _elements(entry, service, backends)
            if elements:
                self._held[entry.key] = elements
        wanted = {key: value for elements in self._held.values() for key, value in elements.items()}
        self._maps.remove("forwarded", found.keys() - wanted.keys())
        self._put({key: value for key, value in wanted.items() if found.get(key) != value})

    def change(self, key: EntryKey, installed: tuple[PlanEntry, int, Collection[int]] | None) -> None:
        """Bring the map to what an entry needs; None: the entry has gone."""
        if not self.on:
            return
        old, new = self._held.pop(key, {}), _elements(*installed) if installed is not None else {}
        self._maps.remove("forwarded", old.keys() - new.keys())
        self._put({name: value for name, value in new.items() if old.get(name) != value})
        if new:
            self._held[key] = new

    def _put(self, elements: dict[bytes, bytes]) -> None:
        self._maps.put_many("forwarded", b"".join(elements), b"".join(elements.values()), len(elements))


def _elements(entry: PlanEntry, service: int, backends: Collection[int]) -> dict[bytes, bytes]:
    """Return the elements of an entry: none without a frontend that takes traffic from outside."""
    if not any(frontend.kind in EXTERNAL for frontend in entry.frontends):
        return {}
    found: dict[bytes, bytes] = {}
    for usable in (False, True):  # of several with the same short name that which takes connections
        for (address, flags), index in zip(wanted_flags(entry).items(), backends, strict=True):
            if flags & HERE and bool(flags & _USABLE) is usable:
                digest, value = endpoint_digest(*address, entry.key.protocol), index.to_bytes(_WORD, "little")
                found[_ENDPOINT_KEY.pack(service, digest)] = value
                found[_ENDPOINT_KEY.pack(service | _SHORT_NAME_SERVICE, digest & SHORT_NAME)] = value
    return found
