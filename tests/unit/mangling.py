"""Good documents made bad: bytes and values at random, of kinds that have brought readers down elsewhere."""

import json
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

PIECES = (
    b"\xff", b"\xc3\x28", b"[" * 60_000, b'{"a":' * 60_000, b"\x00", b"\n", b"'", b'"', b"9" * 5000, b"null", b"[]",
    b"{}", b"5", b"-1", b"1e999", b"true", b"2024-01-01", b"!!python/object:x {}", b"*a", b"&a ", b"\t", b"---\n",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"\\ud800"', b'"\\udc00x"', b'"kind": 5, ', b'"kind": "List", ', b"<<: *a\n",
    b"[" * 700 + b"]" * 700, b'{"a":' * 700 + b"1" + b"}" * 700, b"\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc1",
)  # fmt: skip
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 65536, 2**63, -(2**64), 10**30, 1.5, 1e300, "", "x" * 300, "\u202e", "\x00", "\n", "0",
    "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "1" * 5000, "::", "0.0.0.0/0", "10.0.0.1", "None", [], {},
    [[]], [None], [{}], {"a": {}}, ["x", 1, None],
)  # fmt: skip
_DEPTHS = (150, 400, 800)


def examples(few: int) -> settings:
    """Settings for so many examples; for as many as --soak says, where that is on."""
    soak = settings.default is not None and settings.default.max_examples > 100
    many = settings.default.max_examples if soak and settings.default else few
    return settings(max_examples=many, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def mangled(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good document with pieces of it replaced or repeated, cut off, or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 4, 9, 30))))
        other = draw(st.integers(0, len(data)))
        repeated = data[other : other + draw(st.sampled_from((5, 20, 60)))]
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=3) | st.just(repeated))
        data = data[:start] + piece + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


@st.composite
def flipped(draw: st.DrawFn, whole: bytes) -> bytes:
    """A document with one bit turned over."""
    data = bytearray(whole)
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@st.composite
def twisted(draw: st.DrawFn, whole: Any) -> bytes:
    """A good value, some of whose parts are of another type or beyond every measure, as JSON or YAML."""
    value = whole
    deep = False
    for _ in range(draw(st.integers(1, 3))):
        new = draw(st.sampled_from(_ODD))
        if draw(st.integers(0, 9)) == 0:
            deep = True
            for _ in range(draw(st.sampled_from(_DEPTHS))):
                new = [new]
        value = _put(draw, value, new)
    if not deep and draw(st.booleans()):
        return yaml.safe_dump(value, allow_unicode=True).encode()
    return json.dumps(value).encode()


def _put(draw: st.DrawFn, value: Any, new: Any) -> Any:
    """A copy of a value with something else at some place in it."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 7)) == 0:
        return new
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: _put(draw, value[name], new)}
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], _put(draw, value[at], new), *value[at + 1 :]]
