"""The set of maps that all programs of a node share: create, open, pin, copy and close it."""

import errno
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError, MapFlag
from dataplane.kernel.ebpf.map_elements import MapElements
from dataplane.kernel.memory_limit import anonymous_memory
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.maps.layout import FLOW_MAPS, MapSpec, Sizes, map_specs, size_options, unpack
from dataplane.planes.ebpf.maps.need import MORE_MEMORY, memory_problem, possible_cpus
from dataplane.planes.ebpf.maps.window import Memory
from dataplane.resource import Resource

_INDEX = struct.Struct("=I")
NODE_KEY = _INDEX.pack(0)


_COPIED = (bpf.MapType.HASH, bpf.MapType.LRU_HASH, bpf.MapType.LPM_TRIE)


class MapSet(Resource):
    """Open maps. fds, specs: by map name. memory: of the memory-mapped maps. programs: descriptors of programs loaded
    with these maps ahead of their use (see attach.loaded)."""

    def __init__(self, fds: dict[str, int], sizes: Sizes) -> None:
        self.fds, self.sizes = fds, sizes
        self.programs: dict[str, int] = {}
        self.specs = map_specs(sizes)
        self.memory = Memory({
            name: (fds[name], -(-spec.value_size // 8) * 8 * spec.max_entries)
            for name, spec in self.specs.items() if spec.flags & MapFlag.MMAPABLE
        })  # fmt: skip

    def close(self) -> None:
        """Close the descriptors; pins and programs keep the maps. Memory is unmapped with the last view of it."""
        for fd in (*self.fds.values(), *self.programs.values()):
            os.close(fd)
        self.memory, self.fds, self.programs = Memory({}), {}, {}

    def get(self, name: str, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        return bpf.map_lookup(self.fds[name], key, self.specs[name].value_size)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Store one element. Raises PlaneError naming the map."""
        try:
            bpf.map_update(self.fds[name], key, value)
        except BpfError as error:
            raise PlaneError(f"map {name}: {error.strerror}") from error

    def put_many(self, name: str, keys: bytes | bytearray, values: bytes | bytearray, count: int) -> None:
        """Store elements laid end to end. Raises PlaneError naming the map."""
        try:
            bpf.map_update_batch(self.fds[name], keys, values, count, name)
        except BpfError as error:
            raise PlaneError(f"map {name}: {error.strerror}") from error

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        """Delete elements; missing ones are ignored."""
        for key in keys:
            bpf.map_delete(self.fds[name], key)

    def items(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements of a hash, LRU or trie map."""
        spec = self.specs[name]
        return bpf.map_items(self.fds[name], spec.key_size, spec.value_size, spec.max_entries)

    def batches(self, name: str, chunk: int = 16384) -> Iterator[bpf.MapBatch]:
        """Yield all elements of a hash map in batches of `chunk`."""
        spec = self.specs[name]
        return bpf.map_batches(self.fds[name], spec.key_size, spec.value_size, spec.max_entries, chunk)

    def elements(self, name: str) -> MapElements:
        """Return fast access to single elements of a map, for one thread, while this object is open."""
        spec = self.specs[name]
        return MapElements(self.fds[name], spec.key_size, spec.value_size)

    def per_cpu(self, name: str, index: int) -> list[bytes]:
        """Return the values of all CPUs at one index of a per-CPU array."""
        size = -(-self.specs[name].value_size // 8) * 8
        raw = bpf.map_lookup(self.fds[name], _INDEX.pack(index), size * possible_cpus())
        return [raw[at : at + size] for at in range(0, len(raw), size)] if raw else []

    def clear_per_cpu(self, name: str, index: int) -> None:
        """Zero the values of all CPUs at one index of a per-CPU array."""
        size = -(-self.specs[name].value_size // 8) * 8
        bpf.map_update(self.fds[name], _INDEX.pack(index), bytes(size * possible_cpus()))

    def node(self) -> dict[str, int | bytes | list[int]]:
        """Return the stored settings of the node."""
        return unpack("node", self.get("node", NODE_KEY) or bytes(self.specs["node"].value_size))


INNER = {"flows": ("tcp_flows", "udp_flows")}
"""Maps of maps: the maps in each, by index (enum flow_tables)."""


_HINTS = dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise LimitNOFILE (ulimit -n); each map takes a descriptor")
"""What to do, by errno."""


def _create(spec: MapSpec, fds: Mapping[str, int]) -> int:
    """Create a map; a map of maps is filled with those in `fds`, which must exist."""
    inner = INNER.get(spec.name, ())
    try:
        template = fds[inner[0]] if inner else 0
        fd = bpf.map_create(
            spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name, template
        )
        for index, name in enumerate(inner):
            bpf.map_update(fd, _INDEX.pack(index), _INDEX.pack(fds[name]))
        return fd
    except BpfError as error:
        raise PlaneError(
            f"map {spec.name} ({spec.type.name}, {spec.max_entries} entries) cannot be made: {error.strerror}; "
            f"{_HINTS.get(error.errno or 0, 'is this kernel older than 5.8, or is memory short?')}"
        ) from error


def _check_memory(sizes: Sizes, carried: Collection[str]) -> None:
    """Raise PlaneError if the maps cannot fit beside this process into what its control groups let it use: the kernel
    would end the process in the middle, without a word. carried: maps that exist."""
    mine = anonymous_memory()
    short = memory_problem(sizes, mine, carried)
    if short:
        raise PlaneError(f"{short}, of which this process has {mine >> 20} MiB already; {MORE_MEMORY}")


def create_maps(sizes: Sizes, carried: Mapping[str, int] | None = None) -> MapSet:
    """Create empty maps, except those in `carried` (by name; takes ownership of the descriptors)."""
    fds = dict(carried or {})
    try:
        _check_memory(sizes, fds)
        for name, spec in map_specs(sizes).items():
            if name not in fds:
                fds[name] = _create(spec, fds)
        return MapSet(fds, sizes)
    except (PlaneError, OSError):
        for fd in fds.values():
            os.close(fd)
        raise


def pin_maps(maps: MapSet, directory: Path) -> None:
    """Pin every map under its name. Raises BpfError if a name is taken."""
    for name, fd in maps.fds.items():
        bpf.obj_pin(fd, str(directory / name))


def open_maps(directory: Path, sizes: Sizes) -> MapSet | None:
    """Open the maps pinned in a directory; None unless all exist and have the expected types and sizes."""
    fds: dict[str, int] = {}
    for name, spec in map_specs(sizes).items():
        if not (directory / name).exists() or not _matches(
            fds.setdefault(name, bpf.obj_get(str(directory / name))), spec
        ):
            for fd in fds.values():
                os.close(fd)
            return None
    return MapSet(fds, sizes)


def _matches(fd: int, spec: MapSpec) -> bool:
    info = bpf.map_info(fd)
    return (info.type, info.key_size, info.value_size, info.max_entries) == (
        spec.type,
        spec.key_size,
        spec.value_size,
        spec.max_entries,
    )


def open_any_sizes(directory: Path) -> MapSet | None:
    """Open the maps pinned in a directory, of any sizes; the structs must be of this layout. None if one is missing."""
    found: dict[str, int] = {}
    for name, option in size_options().items():
        if not (directory / name).exists():
            return None
        fd = bpf.obj_get(str(directory / name))
        found[option] = bpf.map_info(fd).max_entries
        os.close(fd)
    return open_maps(directory, Sizes(**found))


def copy_maps(old: MapSet, sizes: Sizes) -> MapSet | None:
    """Create maps of other sizes with the content of `old`, with the same indices; None if it does not fit.

    Flow maps whose size stays are shared, not copied, so that flows that begin meanwhile are in both sets.
    """
    same = {name for name, spec in map_specs(sizes).items() if name in FLOW_MAPS and spec == old.specs[name]}
    shared = {name: os.dup(old.fds[name]) for name in same}
    new = create_maps(sizes, shared)
    try:
        for name, view in old.memory.items():
            if len(new.memory[name]) < len(view):
                new.close()
                return None
            new.memory[name][: len(view)] = view
        for name, spec in old.specs.items():
            if name not in shared and spec.type in _COPIED:
                items = list(islice(old.items(name), new.specs[name].max_entries))
                new.put_many(name, b"".join(k for k, _ in items), b"".join(v for _, v in items), len(items))
    except PlaneError:
        new.close()
        return None
    return new
