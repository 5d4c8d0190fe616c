#!/usr/bin/env bash
# Two ports of HdrHistogram disagree about the percentiles of one and the same encoded histogram. hdrhistogram for
# Python rounds to the nearest whole how many values lie at or below a percentile, hdr-histogram-js rounds up. Of 60
# connections the 99th percentile (59.4 values) is the slowest by JavaScript, the last but one by Python, so that an
# outlier is the p99 of the one and is not seen by the other. It is so with 51 to 99 values a histogram; with more,
# the two are a value apart for every second fifty. hdr-histogram-js: "The value that the given percentage of the
# overall recorded value entries in the histogram are either smaller than or equivalent to", which Python's answer is
# not: 98.3 % are. Python's only says "the value for the given percentile".
#
# Seen with hdrhistogram 0.10.8 and hdr-histogram-js 3.0.1 (the newest releases when this was written), python3 3.11.2
# of Debian 12, node 20.20.2. 59 values are 1 ms, in microseconds, one is 10 s. Python encodes, both decode that.
#
# Output seen:
#   Python, of 60: p50 1000, p90 1000, p99 1000, p100 10002431, 60 values
#   JavaScript, of 60: p50 1000, p90 1000, p99 10002431, p100 10002431, 60 values
#   Python, of 100: p50 1000, p90 1000, p99 1000, p100 10002431, 100 values
#   JavaScript, of 100: p50 1000, p90 1000, p99 1000, p100 10002431, 100 values
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check hdrhistogram==0.10.8
npm install --prefix "$folder" --cache "$folder/cache" --silent --no-audit --no-fund --ignore-scripts \
    hdr-histogram-js@3.0.1
cat >"$folder/tried.py" <<'PYTHON'
import sys

from hdrh.histogram import HdrHistogram

count, file = int(sys.argv[1]), sys.argv[2]
histogram = HdrHistogram(1, 3_600_000_000, 3)
for _ in range(count - 1):
    histogram.record_value(1000)
histogram.record_value(10_000_000)
encoded = histogram.encode()
with open(file, "wb") as out:
    out.write(encoded)
read = HdrHistogram.decode(encoded)
told = ", ".join(f"p{share} {read.get_value_at_percentile(share)}" for share in (50, 90, 99, 100))
print(f"Python, of {count}: {told}, {read.get_total_count()} values")
PYTHON
cat >"$folder/tried.cjs" <<'JAVASCRIPT'
const fs = require("fs");
const { decodeFromCompressedBase64 } = require("hdr-histogram-js");

const [count, file] = process.argv.slice(2);
const read = decodeFromCompressedBase64(fs.readFileSync(file, "ascii"));
const told = [50, 90, 99, 100].map((share) => `p${share} ${read.getValueAtPercentile(share)}`).join(", ");
console.log(`JavaScript, of ${count}: ${told}, ${read.totalCount} values`);
JAVASCRIPT
seen=$(
    for count in 60 100; do
        "$folder/venv/bin/python" "$folder/tried.py" "$count" "$folder/encoded"
        node "$folder/tried.cjs" "$count" "$folder/encoded"
    done
)
printf '%s\n' "$seen"
[[ $seen == "Python, of 60: p50 1000, p90 1000, p99 1000, p100 10002431, 60 values
JavaScript, of 60: p50 1000, p90 1000, p99 10002431, p100 10002431, 60 values
Python, of 100: p50 1000, p90 1000, p99 1000, p100 10002431, 100 values
JavaScript, of 100: p50 1000, p90 1000, p99 1000, p100 10002431, 100 values" ]]
