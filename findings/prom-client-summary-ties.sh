#!/usr/bin/env bash
# The percentiles of prom-client's Summary are far off where many values are equal, as response times in whole
# milliseconds are: of 995 requests that took 1 ms and 5 that took 1000 ms it says that half took 6 ms or more, and a
# tenth 805 ms or more. Its digest keeps all equal values in one centroid, whatever their number, and draws a straight
# line from the middle of that to the next. With 990 values of 1 to 5 ms and ten of 2000 ms, the 90th percentile is 178.
# README: "Summaries calculate percentiles of observed values." Sum and count are right, and with distinct values so
# are the percentiles. hdr-histogram-js of the same values has the exact ones.
#
# Seen with prom-client 15.1.3, which brings tdigest 0.1.3, and hdr-histogram-js 3.0.1 (the newest releases when this
# was written), node 20.20.2.
#
# Output seen:
#   995 of 1, 5 of 1000, prom-client: p50 6 p90 805 p99 985
#   995 of 1, 5 of 1000, hdr-histogram-js: p50 1 p90 1 p99 1
#   990 of 1 to 5, 10 of 2000, prom-client: p50 3 p90 178 p99 1904
#   990 of 1 to 5, 10 of 2000, hdr-histogram-js: p50 3 p90 5 p99 5
#   1 to 1000, prom-client: p50 501 p90 901 p99 991
#   1 to 1000, hdr-histogram-js: p50 500 p90 900 p99 990
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
npm install --prefix "$folder" --cache "$folder/cache" --silent --no-audit --no-fund --ignore-scripts \
    prom-client@15.1.3 tdigest@0.1.3 hdr-histogram-js@3.0.1
cat >"$folder/tried.cjs" <<'JAVASCRIPT'
const { build } = require("hdr-histogram-js");
const { Registry, Summary } = require("prom-client");

const PERCENTILES = [50, 90, 99];
const of = (count, value) => Array.from({ length: count }, (_, index) => value(index));
const runs = {
  "995 of 1, 5 of 1000": of(1000, (index) => (index < 995 ? 1 : 1000)),
  "990 of 1 to 5, 10 of 2000": of(1000, (index) => (index < 990 ? 1 + (index % 5) : 2000)),
  "1 to 1000": of(1000, (index) => 1 + index),
};

async function fromSummary(values) {
  const registers = [new Registry()];
  const percentiles = PERCENTILES.map((share) => share / 100);
  const summary = new Summary({ name: "took", help: "Milliseconds", percentiles, registers });
  values.forEach((value) => summary.observe(value));
  const told = (await summary.get()).values;
  return percentiles.map((share) => told.find((entry) => entry.labels.quantile === share).value);
}

function fromHistogram(values) {
  const histogram = build({ numberOfSignificantValueDigits: 3 });
  values.forEach((value) => histogram.recordValue(value));
  return PERCENTILES.map((share) => histogram.getValueAtPercentile(share));
}

async function main() {
  for (const [name, values] of Object.entries(runs)) {
    const both = { "prom-client": await fromSummary(values), "hdr-histogram-js": fromHistogram(values) };
    for (const [library, found] of Object.entries(both)) {
      const told = PERCENTILES.map((share, index) => `p${share} ${Math.round(found[index])}`);
      console.log(`${name}, ${library}: ${told.join(" ")}`);
    }
  }
}
main();
JAVASCRIPT
seen=$(node "$folder/tried.cjs")
printf '%s\n' "$seen"
[[ $seen == "995 of 1, 5 of 1000, prom-client: p50 6 p90 805 p99 985
995 of 1, 5 of 1000, hdr-histogram-js: p50 1 p90 1 p99 1
990 of 1 to 5, 10 of 2000, prom-client: p50 3 p90 178 p99 1904
990 of 1 to 5, 10 of 2000, hdr-histogram-js: p50 3 p90 5 p99 5
1 to 1000, prom-client: p50 501 p90 901 p99 991
1 to 1000, hdr-histogram-js: p50 500 p90 900 p99 990" ]]
