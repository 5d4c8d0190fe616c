#!/usr/bin/env bash
# The percentile distribution of hdrhistogram for Python goes through other percentiles than that of hdr-histogram-js,
# for the same histogram and the same number of ticks. Of five ticks a half distance, JavaScript makes 0, 10, 20, 30,
# 40, 50, then 55, 60 to 75, then 77.5, as the Java original does ("The number of equal-sized iteration steps per
# half-distance to 100%"). In Python each step is a tenth of what is left: 0, 10, 19, 27.1, 34.39. There is no row of
# 50, 75 or 90 %, seven rows lie below the median instead of five, and the file is longer. Python's docstring: the steps
# "reduce their distance to 100% according to the ticks_per_half_distance parameter". (The exponent that counts the
# halves is not cut to a whole number.)
#
# Seen with hdrhistogram 0.10.8 and hdr-histogram-js 3.0.1 (the newest releases when this was written), python3 3.11.2
# of Debian 12, node 20.20.2. Recorded are 1 to 1000; both print with five ticks, which is the default of both.
#
# Output seen:
#   Python: 0.0 10.0 19.0 27.1 34.4 41.0 46.9 52.2 57.0 61.3 65.1 68.6, 68 rows, 50 75 90 % are rows: no no no
#   JavaScript: 0.0 10.0 20.0 30.0 40.0 50.0 55.0 60.0 65.0 70.0 75.0 77.5, 52 rows, 50 75 90 % are rows: yes yes yes
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

histogram = HdrHistogram(1, 3_600_000_000, 3)
for value in range(1, 1001):
    histogram.record_value(value)
histogram.output_percentile_distribution(sys.stdout.buffer, 1)
PYTHON
cat >"$folder/tried.cjs" <<'JAVASCRIPT'
const { build } = require("hdr-histogram-js");

const histogram = build({ highestTrackableValue: 3_600_000_000, numberOfSignificantValueDigits: 3 });
for (let value = 1; value <= 1000; value++) histogram.recordValue(value);
console.log(histogram.outputPercentileDistribution());
JAVASCRIPT
# The first percentiles of a distribution, how many there are, and whether some are among them.
told() {
    awk '$2 ~ /^[01]\.[0-9]+$/ {
        if (rows++ < 12) first = first sprintf(" %.1f", 100 * $2)
        for (wanted = 50; wanted <= 90; wanted++) if ($2 == wanted / 100) has[wanted] = 1
    }
    END {
        printf("%s, %d rows, 50 75 90 %% are rows:", substr(first, 2), rows)
        printf(" %s %s %s\n", has[50] ? "yes" : "no", has[75] ? "yes" : "no", has[90] ? "yes" : "no")
    }'
}
seen="Python: $("$folder/venv/bin/python" "$folder/tried.py" | told)
JavaScript: $(node "$folder/tried.cjs" | told)"
printf '%s\n' "$seen"
[[ $seen == "Python: 0.0 10.0 19.0 27.1 34.4 41.0 46.9 52.2 57.0 61.3 65.1 68.6, 68 rows, 50 75 90 % are rows: no no no
JavaScript: 0.0 10.0 20.0 30.0 40.0 50.0 55.0 60.0 65.0 70.0 75.0 77.5, 52 rows, 50 75 90 % are rows: yes yes yes" ]]
