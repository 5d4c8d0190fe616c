"""HdrHistogram's buckets, encoding and log files: as its own tools write and read them."""

import random

import pytest

from dataplane.bench.figures import hdr

VALUES = [1, 255, 256, 257, 1000, 24277, 24277, 45291, 1528185, 7388374, 123456789]
ENCODED = "HISTFAAAADp4nJNpmSzMwMAgwQABTFCakYGB2c1gxwIG+w9QAaafzEwsH5mZmjlZHjMyTeRiOs3CNJGDCQABVwnc"
"""Of VALUES, by the package hdrhistogram 0.10.8: HdrHistogram(1, 3600000000000, 2)."""


def counts_of(values: list[int]) -> dict[int, int]:
    return hdr.merged({hdr.bucket(value): 1} for value in values)


def test_the_encoding_is_the_librarys_to_the_byte() -> None:
    assert hdr.encode(counts_of(VALUES)) == ENCODED
    assert hdr.decode(ENCODED) == counts_of(VALUES)


def test_every_value_is_in_a_bucket_that_keeps_two_digits() -> None:
    chance = random.Random(1)
    for value in [*range(1, 1000), *(int(2 ** chance.uniform(0, 41)) for _ in range(2000))]:
        index = hdr.bucket(value)
        assert value <= hdr.highest_in(index) <= value * 1.01
        assert hdr.bucket(hdr.highest_in(index)) == index
        assert hdr.bucket(hdr.highest_in(index) + 1) == index + 1


def test_what_is_encoded_comes_back() -> None:
    chance = random.Random(2)
    counts = counts_of([int(2 ** chance.uniform(0, 40)) for _ in range(3000)]) | {hdr.bucket(5): 10**9}
    assert hdr.decode(hdr.encode(counts)) == counts
    assert hdr.decode(hdr.encode({})) == {}


@pytest.mark.parametrize("text", ["", "nonsense", "HISTFAAAADp4nJNpmSzMwMAgwQ", hdr.encode({1: 1})[:-8]])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an HdrHistogram"):
        hdr.decode(text)


def test_percentiles_are_those_of_the_values() -> None:
    counts = counts_of(list(range(1, 10001)))
    assert [hdr.percentile(counts, share) for share in (0.5, 0.99, 0.9999, 1.0)] == pytest.approx(
        [5000, 9900, 9999, 10000], rel=0.01
    )
    assert hdr.percentile({}, 0.5) == 0


def test_a_percentile_between_two_values_is_the_greater() -> None:
    """59.4 of 60 values are 60, as in the Java original; not in all ports (findings/hdr-percentile-rounding.sh)."""
    counts = hdr.merged([{hdr.bucket(1000): 59}, {hdr.bucket(10_000_000): 1}])
    assert hdr.percentile(counts, 0.99) == pytest.approx(10_000_000, rel=0.01)
    assert hdr.percentile(counts, 59 / 60) == pytest.approx(1000, rel=0.01)


def test_a_log_has_a_line_for_each_histogram() -> None:
    lines = hdr.log_file([("TCP_CRR@50/nftables", 1.5, counts_of(VALUES)), ("b", 2.0, {})]).splitlines()
    assert lines[0] == "#[Histogram log format version 1.3]"
    assert lines[-3] == '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    assert lines[-2] == f"Tag=TCP_CRR@50/nftables,0.000,1.500,123.732,{ENCODED}"
    assert lines[-1].startswith("Tag=b,1.500,2.000,0.000,HIST")
