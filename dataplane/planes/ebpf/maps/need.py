"""Kernel memory that maps take as soon as they are made, and whether this process may have so much."""

from collections.abc import Collection
from functools import cache
from pathlib import Path

from dataplane.kernel.ebpf.bpf import MapFlag, MapType
from dataplane.kernel.memory_limit import counts_maps, memory_limit
from dataplane.planes.ebpf.maps.layout import MapSpec, Sizes, map_specs

_ELEMENT, _BUCKET = 48, 16
"""Bytes of struct htab_elem before the key, and of struct bucket (kernel/bpf/hashtab.c)."""
BESIDE = 192 << 20
"""Bytes that a daemon takes besides its maps at a start with ten thousand Services, more or less."""

MORE_MEMORY = "raise the limit (resources.limits.memory, MemoryMax), or use the nftables mode"


@cache
def possible_cpus() -> int:
    """Number of CPUs that per-CPU values have room for: the last of /sys's possible CPUs, plus one."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.rpartition(",")[2].rpartition("-")[2]) + 1


def map_bytes(spec: MapSpec) -> int:
    """Return the bytes of a new map: of all its elements where the kernel makes them at once, else of its buckets."""
    value = _rounded(spec.value_size)
    match spec.type:
        case MapType.HASH:
            at_once = 0 if spec.flags & MapFlag.NO_PREALLOC else spec.max_entries
            buckets = 1 << (spec.max_entries - 1).bit_length()
            return buckets * _BUCKET + at_once * (_ELEMENT + _rounded(spec.key_size) + value)
        case MapType.PERCPU_ARRAY:
            return spec.max_entries * value * possible_cpus()
        case MapType.ARRAY:
            return spec.max_entries * value
        case MapType.RINGBUF:
            return spec.max_entries
    return 0


def memory_problem(sizes: Sizes, beside: int = BESIDE, carried: Collection[str] = ()) -> str:
    """Return a clause if maps of these sizes and `beside` bytes are more than this process's control groups let it use,
    else "". carried: maps that exist."""
    limit = memory_limit() if counts_maps() else None
    needed = sum(map_bytes(spec) for name, spec in map_specs(sizes).items() if name not in carried)
    if limit is None or needed + beside <= limit:
        return ""
    return f"the maps take {needed >> 20} MiB, and the control group of this process lets it use {limit >> 20} MiB"


def _rounded(size: int) -> int:
    return -(-size // 8) * 8
