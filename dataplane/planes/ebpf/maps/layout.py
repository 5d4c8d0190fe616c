"""The C headers of `bpf/` as Python sees them: constants, struct layouts, map descriptions, layout version.

Nothing about a layout is written twice: cffi parses `consts.h` and `structs.h`, and the lines of `maps.h` that describe
maps are read here. Packing goes through struct.Struct, whose format is derived from cffi's offsets, because that is
several times faster than filling C structs field by field.

Byte order: be16 and be32 fields are taken and given as host integers of the stored bytes; use `socket.htons`.
"""

import hashlib
import re
import struct
from functools import cache
from typing import Any, NamedTuple

import msgspec
from cffi import FFI

from dataplane.kernel.ebpf.bcc_loader import SOURCE_DIR
from dataplane.kernel.ebpf.bpf import MapFlag, MapType

_TYPES = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
typedef uint16_t __be16; typedef uint32_t __be32; typedef uint32_t u32; typedef uint64_t u64;
"""
_MAP_LINE = re.compile(r"^\s*MAP\((\w+), (\w+), (\w+), (\w+), (\w+), (\w+)\)", re.MULTILINE)
_FORMATS = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q", "char": "s"}
FLOW_MAPS = frozenset(
    {
        *("affinity", "peers", "sockets", "answers", "tcp_flows", "udp_flows", "direct_tcp", "direct_udp"),
        *("fragments", "counters", "service_counters"),
    }
)
"""Maps that the programs fill."""


class Sizes(msgspec.Struct, frozen=True):
    """How many entries each map may hold (events: bytes, a power of two). Memory is taken when the maps are made.
    slots: half of them at most are Maglev tables'."""

    frontends: int = 131072
    slots: int = 1048576
    backends: int = 262144
    services: int = 65536
    source_ranges: int = 65536
    detector: int = 1024
    addresses: int = 1024
    connect_off: int = 4096
    devices: int = 4096
    affinity: int = 131072
    peers: int = 131072
    sockets: int = 65536
    answers: int = 8192
    tcp_flows: int = 262144
    udp_flows: int = 131072
    tunnels: int = 4096
    forwarded: int = 524288
    pods: int = 4096
    direct_tcp: int = 131072
    direct_udp: int = 131072
    fragments: int = 32768
    held: int = 1024
    events: int = 1 << 20


class MapSpec(NamedTuple):
    """One map as `maps.h` describes it, with sizes filled in. reference: its placeholder in compiled code."""

    name: str
    type: MapType
    key: str
    value: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    reference: int


def _source(name: str) -> str:
    """A header without comments and preprocessor lines: what cffi can read, and what a layout version depends on."""
    text = re.sub(r"/\*.*?\*/", "", (SOURCE_DIR / name).read_text(), flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def _definitions() -> FFI:
    ffi = FFI()
    ffi.cdef(_TYPES + _source("consts.h") + _source("structs.h"))
    return ffi


@cache
def enumeration(name: str) -> dict[str, int]:
    """The members of a C enum, in its order."""
    kind: Any = _definitions().typeof(f"enum {name}")
    return dict(sorted(kind.relements.items(), key=lambda item: item[1]))


@cache
def constants() -> dict[str, int]:
    """Every enum member of consts.h."""
    names = re.findall(r"\benum (\w+) \{", _source("consts.h"))
    return {member: number for name in names for member, number in enumeration(name).items()}


def constant(name: str) -> int:
    """One enum member. Raises KeyError for an unknown name."""
    return constants()[name]


@cache
def reason_names() -> tuple[str, ...]:
    """Names of the reasons for people, by number: `no_endpoint`."""
    return tuple(n.removeprefix("REASON_").lower() for n in enumeration("reason") if n != "REASON_COUNT")


@cache
def reason_meanings() -> dict[str, str]:
    """What each reason means, by its name for people: the comment beside it in consts.h."""
    text = (SOURCE_DIR / "consts.h").read_text()
    body = text[text.index("enum reason {") : text.index("REASON_COUNT,", text.index("enum reason {"))]
    found = re.findall(r"REASON_(\w+),\s*/\*(.*?)\*/", body, flags=re.DOTALL)
    return {name.lower(): " ".join(re.sub(r"^\s*\*", "", words, flags=re.MULTILINE).split()) for name, words in found}


@cache
def hook_names() -> tuple[str, ...]:
    """Names of the hooks for people, by number: `tc_ingress`."""
    return tuple(n.removeprefix("HOOK_").lower() for n in enumeration("hook") if n != "HOOK_COUNT")


def size_of(name: str) -> int:
    """Size in bytes of a struct, or of u32 and u64; 0 for `none`."""
    if name == "none":
        return 0
    return int(_definitions().sizeof(name if name in ("u32", "u64") else f"struct {name}"))


def _field_format(field: Any) -> str:
    """struct module format of one field; arrays of bytes and nested structs become strings of bytes."""
    kind = field.type
    if kind.kind == "struct" or (kind.kind == "array" and kind.item.cname == "char"):
        return f"{_definitions().sizeof(kind)}s"
    if kind.kind == "array":
        return f"{kind.length}{_FORMATS[kind.item.cname]}"
    return _FORMATS[kind.cname]


def fields_of(name: str) -> dict[str, int]:
    """Field names of a struct, in order, with their offsets."""
    kind: Any = _definitions().typeof(f"struct {name}")
    return {field_name: field.offset for field_name, field in kind.fields}


@cache
def record(name: str, *fields: str) -> struct.Struct:
    """A packer of a C struct. `fields` must be the header's field names in order, which makes a caller that packs by
    position fail at once when the header changes. Trailing alignment of the C compiler is packed as zeros."""
    kind: Any = _definitions().typeof(f"struct {name}")
    if list(fields_of(name)) != list(fields):
        raise TypeError(
            f"struct {name} has the fields {', '.join(fields_of(name))}; the caller packs {', '.join(fields)}"
        )
    form, end = "=", 0
    for _, field in kind.fields:
        form += f"{field.offset - end}x" if field.offset > end else ""
        form += _field_format(field)
        end = field.offset + _definitions().sizeof(field.type)
    size = _definitions().sizeof(kind)
    return struct.Struct(form + (f"{size - end}x" if size > end else ""))


def unpack(name: str, raw: bytes) -> dict[str, Any]:
    """The fields of one struct by name: ints, bytes for nested structs, lists for arrays of numbers."""
    ffi = _definitions()
    value: Any = ffi.from_buffer(f"struct {name} *", raw)
    result: dict[str, Any] = {}
    kind: Any = ffi.typeof(f"struct {name}")
    for field_name, field in kind.fields:
        item = getattr(value, field_name)
        if field.type.kind == "struct" or (field.type.kind == "array" and field.type.item.cname == "char"):
            result[field_name] = bytes(raw[field.offset : field.offset + ffi.sizeof(field.type)])
        else:
            result[field_name] = list(item) if field.type.kind == "array" else int(item)
    return result


def _size(token: str, sizes: Sizes) -> int:
    if token.isdigit():
        return int(token)
    return constant(token) if token.isupper() else int(getattr(sizes, token))


@cache
def map_specs(sizes: Sizes) -> dict[str, MapSpec]:
    """Every map of `maps.h`, by name."""
    text = (SOURCE_DIR / "maps.h").read_text()
    base = int(re.findall(r"MAP_REFERENCE_BASE = (0x[0-9a-fA-F]+)", text)[0], 16)
    specs = {}
    for index, (name, kind, key, value, size, flags) in enumerate(_MAP_LINE.findall(text)):
        specs[name] = MapSpec(
            name,
            MapType[kind],
            key,
            value,
            size_of(key),
            size_of(value),
            _size(size, sizes),
            0 if flags == "0" else int(MapFlag[flags]),
            base + index,
        )
    return specs


@cache
def size_options() -> dict[str, str]:
    """For each map whose size is an option, the name of the option."""
    lines = _MAP_LINE.findall((SOURCE_DIR / "maps.h").read_text())
    return {name: size for name, _, _, _, size, _ in lines if size.islower()}


@cache
def struct_version() -> str:
    """Digest of what makes the content of maps readable: all descriptions, layouts and constants."""
    lines = _MAP_LINE.findall((SOURCE_DIR / "maps.h").read_text())
    text = repr(lines) + _source("consts.h") + _source("structs.h")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def layout_version(sizes: Sizes) -> str:
    """`<structs>-<sizes>`. Maps of another version are never written to; new ones are made beside them."""
    return f"{struct_version()}-{hashlib.sha256(msgspec.json.encode(sizes)).hexdigest()[:8]}"
