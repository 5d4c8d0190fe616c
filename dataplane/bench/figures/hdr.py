"""HdrHistogram: buckets of two significant digits, their V2 encoding, and log files of them.

The formats are those that HdrHistogram's own tools read (HistogramLogProcessor, its plotter, hdrhistogram for Python):
https://github.com/HdrHistogram/HdrHistogram, AbstractHistogram.encodeIntoByteBuffer and HistogramLogWriter. Values are
whole nanoseconds from 1 on.
"""

import base64
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

DIGITS = 2
HALF_BITS = 7
"""256 sub-buckets keep two digits, of which all but the first bucket use the upper half."""
HIGHEST = 3_600_000_000_000
"""An hour."""
_COOKIE, _COMPRESSED_COOKIE = 0x1C849313, 0x1C849314
_HEAD = struct.Struct(">iiiiqqd")
_LOG_HEAD = (
    "#[Histogram log format version 1.3]\n"
    "#[Values are nanoseconds; Interval_Max is milliseconds]\n"
    '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
)

Counts = Mapping[int, int]
"""Number of values by bucket."""


def bucket(value: int) -> int:
    """Index of the bucket that a value falls into."""
    shift = max(0, value.bit_length() - HALF_BITS - 1)
    return (shift << HALF_BITS) + (value >> shift)


def highest_in(index: int) -> int:
    """The largest value of a bucket, which stands for all in it."""
    shift = max(0, (index >> HALF_BITS) - 1)
    return ((index - (shift << HALF_BITS) + 1) << shift) - 1


def percentile(counts: Counts, share: float) -> int:
    """The value that this share of all (0 to 1) does not exceed; 0 without values."""
    total, seen = sum(counts.values()), 0
    for index, count in sorted(counts.items()):
        seen += count
        if seen >= share * total:
            return highest_in(index)
    return 0


def merged(histograms: Iterable[Counts]) -> dict[int, int]:
    """All values together."""
    found: Counter[int] = Counter()
    for counts in histograms:
        found.update(counts)
    return dict(found)


def _zigzag(value: int) -> bytes:
    """A signed number as LEB128 of its ZigZag form."""
    rest, out = value << 1 if value >= 0 else (-value << 1) - 1, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _numbers(data: bytes) -> Iterator[int]:
    rest = shift = 0
    for byte in data:
        rest |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield rest >> 1 if not rest & 1 else -(rest >> 1) - 1
            rest = shift = 0


def encode(counts: Counts) -> str:
    """The histogram in the compressed V2 encoding, as base64."""
    body, next_index = bytearray(), 0
    for index in sorted(index for index, count in counts.items() if count):
        if index > next_index:
            body += _zigzag(next_index - index)  # so many buckets without a value
        body += _zigzag(counts[index])
        next_index = index + 1
    payload = zlib.compress(_HEAD.pack(_COOKIE, len(body), 0, DIGITS, 1, HIGHEST, 1.0) + body)
    return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(payload)) + payload).decode()


def decode(text: str) -> dict[int, int]:
    """Decode the output of `encode`. Raises ValueError for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
        plain = zlib.decompress(data[8:])
        cookie, length, _, digits, lowest, _, _ = _HEAD.unpack_from(plain)
    except (ValueError, zlib.error, struct.error) as error:
        raise ValueError(f"not an HdrHistogram in the V2 encoding: {error}") from error
    if (cookie, digits, lowest) != (_COOKIE, DIGITS, 1):
        raise ValueError(f"not an HdrHistogram of {DIGITS} digits from 1 on")
    found, index = {}, 0
    for number in _numbers(plain[_HEAD.size : _HEAD.size + length]):
        if number < 0:
            index -= number
        else:
            found[index] = number
            index += 1
    return found


def log_file(tagged: Iterable[tuple[str, float, Counts]]) -> str:
    """A histogram log: a line for each (tag, seconds that it was measured over, histogram). Tags have no comma."""
    lines, start = [], 0.0
    for tag, seconds, counts in tagged:
        most = highest_in(max(counts, default=0)) / 1e6
        lines.append(f"Tag={tag},{start:.3f},{seconds:.3f},{most:.3f},{encode(counts)}\n")
        start += seconds
    return _LOG_HEAD + "".join(lines)
