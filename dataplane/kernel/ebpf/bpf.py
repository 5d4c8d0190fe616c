"""bpf(2): maps, programs, pins, links and test runs, as thin typed functions over descriptors.

Keys and values are bytes exactly as the kernel holds them; descriptors are plain ints that the caller closes
(`os.close`). Numbers are those of linux/bpf.h. Every refusal of the kernel is a BpfError.
"""

import enum
import errno
import os
import resource
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cffi import FFI

_ffi = FFI()
_ffi.cdef("long syscall(long number, ...);")
_libc: Any = _ffi.dlopen(None)

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
SYSTEM_CALL = _SYSCALL_NUMBERS.get(os.uname().machine, -1)  # -1: ENOSYS
"""Number of bpf(2) on this machine."""
_ATTR_SIZE = 152
ENOTSUPP = 524
"""The kernel's own number, which libc does not know: no such operation on this kind of map. Tries have batches since
Linux 5.14."""
BPF_FS_MAGIC = 0xCAFE4A11


class BpfError(OSError):
    """bpf(2) failed; errno as usual, the text says which operation on what, with the verifier's log if any."""


class Command(enum.IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_AND_DELETE = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class MapType(enum.IntEnum):
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    DEVMAP_HASH = 25
    RINGBUF = 27


class MapFlag(enum.IntFlag):
    NO_PREALLOC = 1
    NO_COMMON_LRU = 2
    MMAPABLE = 1024


class ProgramType(enum.IntEnum):
    SCHED_CLS = 3
    SCHED_ACT = 4
    XDP = 6
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18


class AttachType(enum.IntEnum):
    """Hooks that a program may be attached to. NONE is for types that have no such distinction (SCHED_CLS)."""

    NONE = 0
    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class MapInfo(NamedTuple):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class ProgramInfo(NamedTuple):
    """instructions: after the verifier's rewriting. jited_bytes: machine code. run_*: with kernel.bpf_stats_enabled.
    verified: instructions that the verifier went through, over all ways, of at most a million; 0 before Linux 5.16."""

    type: int
    id: int
    tag: str
    instructions: int
    jited_bytes: int
    name: str
    run_ns: int
    run_count: int
    verified: int


class LinkInfo(NamedTuple):
    type: int
    id: int
    program_id: int
    target: int
    attach_type: int


class ProgramRun(NamedTuple):
    """Outcome of a test run: the program's return value, the packet after it, its context after it, mean time."""

    result: int
    data: bytes
    context: bytes
    duration_ns: int


def _call(command: Command, attr: bytes | bytearray) -> tuple[int, int, Any]:
    """Call bpf(2). Returns its errno (0: success), its result, and the attribute buffer, where some commands answer."""
    buffer = _ffi.new("char[]", _ATTR_SIZE)
    _ffi.memmove(buffer, attr, len(attr))
    size = _ffi.cast("unsigned long", max(len(attr), 8))
    result = int(_libc.syscall(SYSTEM_CALL, _ffi.cast("long", command), buffer, size))
    return _ffi.errno if result < 0 else 0, result, buffer


def _bpf(command: Command, attr: bytes | bytearray, what: str) -> tuple[int, Any]:
    """The result of bpf(2) and the attribute buffer. Raises BpfError."""
    number, result, buffer = _call(command, attr)
    if number:
        raise BpfError(number, f"{command.name.lower()} {what}: {os.strerror(number)}")
    return result, buffer


def _lift_memory_limit() -> bool:
    """Let this process lock as much memory as it may: before Linux 5.11, maps and programs count as locked memory, of
    which a process often has 64 KiB. Without CAP_SYS_RESOURCE only the hard limit can be reached. Whether it rose."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        if limit == soft:
            return False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        except (ValueError, OSError):
            continue
        return True
    return False


def _make(command: Command, attr: bytes | bytearray, what: str) -> int:
    """Call bpf(2) for something that takes memory; returns the descriptor."""
    try:
        return _bpf(command, attr, what)[0]
    except BpfError as error:
        if error.errno != errno.EPERM:
            raise
        if not _lift_memory_limit():
            hint = "rights are missing or, before Linux 5.11, locked memory (ulimit -l) is too little"
            raise BpfError(error.errno, f"{error.strerror}; {hint}") from error
    return _bpf(command, attr, what)[0]


def _pointer(data: Any) -> int:
    return int(_ffi.cast("uintptr_t", data))


def _text(name: str) -> bytes:
    """An object name as the kernel takes it: at most 15 characters, alphanumeric, '_' and '.'."""
    return name.encode()[:15]


def map_create(
    kind: MapType,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: MapFlag | int = 0,
    name: str = "",
    inner: int = 0,
) -> int:
    """Create a map; returns its descriptor. inner: for a map of maps, the descriptor of one like those that it will
    hold. Raises BpfError (ENOMEM, E2BIG, EINVAL for what the kernel cannot do)."""
    attr = struct.pack("=IIIIIIi16s", kind, key_size, value_size, max_entries, flags, inner, 0, _text(name))
    return _make(Command.MAP_CREATE, attr, f"{name} ({kind.name}, {max_entries} entries)")


def _element(fd: int, key: Any, value: Any, flags: int = 0) -> bytes:
    return struct.pack("=IxxxxQQQ", fd, _pointer(key), _pointer(value), flags)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value under `key`, or None. Per-CPU maps: value_size is that of all CPUs' values, each rounded up to 8."""
    keys, value = _ffi.from_buffer(key), _ffi.new("char[]", value_size)
    try:
        _bpf(Command.MAP_LOOKUP, _element(fd, keys, value), "element")
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return bytes(_ffi.buffer(value, value_size))


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Store one element. flags: 0 any, 1 only if absent (EEXIST), 2 only if present (ENOENT). E2BIG: full."""
    keys, values = _ffi.from_buffer(key), _ffi.from_buffer(value)
    _bpf(Command.MAP_UPDATE, _element(fd, keys, values, flags), "element")


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one element; False when it was not there."""
    keys = _ffi.from_buffer(key)
    try:
        _bpf(Command.MAP_DELETE, _element(fd, keys, _ffi.NULL), "element")
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys, one call each: for maps without batch operations. May miss or repeat keys while others write."""
    key, following = _ffi.NULL, _ffi.new("char[]", key_size)
    while True:
        try:
            _bpf(Command.MAP_GET_NEXT_KEY, _element(fd, key, following), "")
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield bytes(_ffi.buffer(following, key_size))
        key, following = following, _ffi.new("char[]", key_size)


def _batch(fd: int, into: Any, out: Any, keys: Any, values: Any, count: int) -> bytes:
    return struct.pack("=QQQQIIQQ", _pointer(into), _pointer(out), _pointer(keys), _pointer(values), count, fd, 0, 0)


def _cut(data: bytes | bytearray, count: int) -> list[bytes]:
    """Elements that are laid end to end, one by one."""
    size = len(data) // count
    return [bytes(data[at : at + size]) for at in range(0, size * count, size)]


def map_update_batch(fd: int, keys: bytes | bytearray, values: bytes | bytearray, count: int, name: str = "") -> None:
    """Store `count` elements, keys and values laid end to end. E2BIG when the map fills up half-way."""
    if count:
        held_keys, held_values = _ffi.from_buffer(keys), _ffi.from_buffer(values)
        attr = _batch(fd, _ffi.NULL, _ffi.NULL, held_keys, held_values, count)
        try:
            _bpf(Command.MAP_UPDATE_BATCH, attr, f"{name} ({count} elements)")
        except BpfError as error:
            if error.errno != ENOTSUPP:
                raise
            for key, value in zip(_cut(keys, count), _cut(values, count), strict=True):
                map_update(fd, key, value)


def map_delete_batch(fd: int, keys: bytes | bytearray, count: int, name: str = "") -> None:
    """Delete `count` elements, all of which must be there (ENOENT otherwise)."""
    if count:
        held = _ffi.from_buffer(keys)
        attr = _batch(fd, _ffi.NULL, _ffi.NULL, held, _ffi.NULL, count)
        try:
            _bpf(Command.MAP_DELETE_BATCH, attr, f"{name} ({count} elements)")
        except BpfError as error:
            if error.errno != ENOTSUPP:
                raise
            for key in _cut(keys, count):
                if not map_delete(fd, key):
                    raise BpfError(errno.ENOENT, f"map_delete {name}: {os.strerror(errno.ENOENT)}") from None


MapBatch = tuple[bytes, bytes, int]
"""Keys and values of some elements, each laid end to end, and how many there are."""


def map_batches(fd: int, key_size: int, value_size: int, max_entries: int, chunk: int = 16384) -> Iterator[MapBatch]:
    """All elements of a hash or LRU map, read in batches of about `chunk`. May miss what is added meanwhile."""
    chunk = min(chunk, max_entries)
    position, following = _ffi.NULL, _ffi.new("char[]", max(key_size, 8))
    while True:
        keys, values = _ffi.new("char[]", chunk * key_size), _ffi.new("char[]", chunk * value_size)
        attr = _batch(fd, position, following, keys, values, chunk)
        number, _, buffer = _call(Command.MAP_LOOKUP_BATCH, attr)
        if number == errno.ENOSPC and chunk < max_entries:  # one bucket holds more than fits
            chunk *= 2
            continue
        if number == ENOTSUPP:
            yield from _one_by_one(fd, key_size, value_size)
            return
        if number not in (0, errno.ENOENT):
            raise BpfError(number, f"map_lookup_batch: {os.strerror(number)}")
        (count,) = struct.unpack_from("=I", _ffi.buffer(buffer, _ATTR_SIZE), 32)
        yield bytes(_ffi.buffer(keys, count * key_size)), bytes(_ffi.buffer(values, count * value_size)), count
        if number == errno.ENOENT:
            return
        position, following = following, _ffi.new("char[]", max(key_size, 8))


def _one_by_one(fd: int, key_size: int, value_size: int) -> Iterator[MapBatch]:
    for key in map_keys(fd, key_size):
        value = map_lookup(fd, key, value_size)
        if value is not None:
            yield key, value, 1


def map_items(
    fd: int, key_size: int, value_size: int, max_entries: int, chunk: int = 16384
) -> Iterator[tuple[bytes, bytes]]:
    """All (key, value) pairs of a hash or LRU map, read in batches."""
    for keys, values, count in map_batches(fd, key_size, value_size, max_entries, chunk):
        for index in range(count):
            yield (
                keys[index * key_size : (index + 1) * key_size],
                values[index * value_size : (index + 1) * value_size],
            )


def obj_pin(fd: int, path: str) -> None:
    """Pin a map, program or link under a path of a mounted bpffs. EEXIST when something is there."""
    name = _ffi.new("char[]", path.encode())
    _bpf(Command.OBJ_PIN, struct.pack("=QII", _pointer(name), fd, 0), path)


def obj_get(path: str) -> int:
    """Open what is pinned at a path. ENOENT when there is nothing."""
    name = _ffi.new("char[]", path.encode())
    return _bpf(Command.OBJ_GET, struct.pack("=QII", _pointer(name), 0, 0), path)[0]


def _info(fd: int, size: int, what: str) -> bytes:
    data = _ffi.new("char[]", size)
    _bpf(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, _pointer(data)), what)
    return bytes(_ffi.buffer(data, size))


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode()


def map_info(fd: int) -> MapInfo:
    """A map's properties, as the kernel reports them."""
    raw = _info(fd, 88, "map")
    kind, number, key_size, value_size, max_entries, flags, name = struct.unpack_from("=6I16s", raw)
    return MapInfo(kind, number, key_size, value_size, max_entries, flags, _name(name))


def program_info(fd: int) -> ProgramInfo:
    """A program's properties, as the kernel reports them."""
    raw = _info(fd, 224, "program")
    kind, number, tag, jited, translated = struct.unpack_from("=II8sII", raw)
    (name,) = struct.unpack_from("=16s", raw, 64)
    run_ns, run_count, _, verified = struct.unpack_from("=QQQI", raw, 192)
    return ProgramInfo(kind, number, tag.hex(), translated // 8, jited, _name(name), run_ns, run_count, verified)


def program_maps(fd: int) -> frozenset[int]:
    """Ids of the maps that a program refers to."""
    room = 64
    ids, data = _ffi.new("unsigned int[]", room), _ffi.new("char[]", 224)
    _ffi.buffer(data)[52:64] = struct.pack("=IQ", room, _pointer(ids))
    _bpf(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, 224, _pointer(data)), "program")
    (count,) = struct.unpack_from("=I", _ffi.buffer(data), 52)
    return frozenset(ids[index] for index in range(min(count, room)))


def link_info(fd: int) -> LinkInfo:
    """A link's properties. target: control group id (inode number) for cgroup links, 0 once it is gone."""
    raw = _info(fd, 64, "link")
    kind, number, program = struct.unpack_from("=III", raw)
    target, attach = struct.unpack_from("=QI", raw, 16)
    return LinkInfo(kind, number, program, target, attach)


_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE = 1, 2
_LOAD_IMMEDIATE_64 = 0x18


def relocate(code: bytes, references: Mapping[int, int]) -> bytes:
    """Put map descriptors where the code has map placeholders. Raises KeyError for a placeholder without a map."""
    patched = bytearray(code)
    offset = 0
    while offset < len(patched):
        if patched[offset] == _LOAD_IMMEDIATE_64:
            if patched[offset + 1] >> 4 in (_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE):
                (reference,) = struct.unpack_from("=I", patched, offset + 4)
                struct.pack_into("=I", patched, offset + 4, references[reference])
            offset += 8  # this instruction is two long
        offset += 8
    return bytes(patched)


def program_load(
    code: bytes, kind: ProgramType, attach: AttachType = AttachType.NONE, name: str = "", log_size: int = 1 << 22
) -> int:
    """Load relocated code; returns its descriptor. Raises BpfError with the end of the verifier's log."""
    text, license_name = _ffi.from_buffer(code), _ffi.new("char[]", b"GPL")

    def attempt(log: Any, size: int) -> int:
        attr = struct.pack(
            "=IIQQIIQII16sII",
            *(kind, len(code) // 8, _pointer(text), _pointer(license_name)),
            *(1 if size else 0, size, _pointer(log), 0, 0, _text(name), 0, attach),
        )
        return _make(Command.PROG_LOAD, attr, name)

    try:
        return attempt(_ffi.NULL, 0)
    except BpfError as plain:
        log = _ffi.new("char[]", log_size)
        try:
            return attempt(log, log_size)
        except BpfError as error:
            log_text = bytes(_ffi.string(log)).decode(errors="replace")[-4000:]
            raise BpfError(
                plain.errno or error.errno, f"program {name} was refused: {plain.strerror}\n{log_text}"
            ) from None


def program_by_id(number: int) -> int:
    """A descriptor of a program that is loaded; ENOENT when there is none."""
    return _bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"program {number}")[0]


def link_create(program: int, target: int, attach: AttachType, flags: int = 0) -> int:
    """Attach a program by a link. target: descriptor of a control group, or an ifindex for XDP and tcx."""
    attr = struct.pack("=IIIIQQQ", program, target, attach, flags, 0, 0, 0)
    return _bpf(Command.LINK_CREATE, attr, f"{attach.name} on {target}")[0]


def link_update(link: int, program: int) -> None:
    """Replace the program of a link atomically. ENOLINK when what it was attached to is gone."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "link")


def link_detach(link: int) -> None:
    """Detach a link at once, even if other descriptors or pins of it exist."""
    _bpf(Command.LINK_DETACH, struct.pack("=I", link), "link")


def attached_programs(target: int, attach: AttachType) -> list[int]:
    """Ids of the programs attached to a control group, or to a device (by ifindex) for XDP and tcx."""
    room = 64
    ids = _ffi.new("unsigned int[]", room)
    attr = struct.pack("=IIIIQII", target, attach, 0, 0, _pointer(ids), room, 0)
    _, buffer = _bpf(Command.PROG_QUERY, attr, f"{attach.name} on {target}")
    (count,) = struct.unpack_from("=I", _ffi.buffer(buffer, _ATTR_SIZE), 24)
    return [ids[index] for index in range(count)]


def run_program(
    program: int, data: bytes, repeat: int = 1, context: bytes = b"", flags: int = 0, batch_size: int = 0
) -> ProgramRun:
    """Run a program on a packet (a kernel test run).

    flags 2 (BPF_F_TEST_XDP_LIVE_FRAMES) lets XDP's verdicts happen; then no data comes back.
    A context may not grow, a packet may, up to 64 KiB. Raises BpfError (EINVAL for packets the kernel does not take).
    """
    room = 0 if flags & 2 else 65536
    held, context_in = _ffi.from_buffer(data), _ffi.from_buffer(context) if context else _ffi.NULL
    out = _ffi.new("char[]", room) if room else _ffi.NULL
    context_size = 0 if flags & 2 else len(context)
    context_out = _ffi.new("char[]", context_size) if context_size else _ffi.NULL
    attr = struct.pack(
        "=IIIIQQIIIIQQIII",
        *(program, 0, len(data), room, _pointer(held), _pointer(out), repeat, 0),
        *(len(context), context_size, _pointer(context_in), _pointer(context_out), flags, 0, batch_size),
    )
    _, buffer = _bpf(Command.PROG_TEST_RUN, attr, "program")
    answer = _ffi.buffer(buffer, _ATTR_SIZE)
    result, _, size = struct.unpack_from("=III", answer, 4)
    (duration,) = struct.unpack_from("=I", answer, 36)
    (context_size,) = struct.unpack_from("=I", answer, 44)
    return ProgramRun(
        result,
        bytes(_ffi.buffer(out, size)) if room else b"",
        bytes(_ffi.buffer(context_out, context_size)) if context_size and room else b"",
        duration,
    )
