#!/usr/bin/env bash
# loadtest takes a percentile of 0 ms for one that it has not found yet, so the percentiles of a fast server are the
# latencies of its few slow requests. It counts in whole milliseconds, rounded down; of 100 requests 98 took less than
# one, two took 500 ms, and the median, p90 and p95 are said to be 500 ms, as p99 is. One request of 3 ms beside 99
# below a millisecond makes all four 3, and if all are below one, all are 0. With 1 ms instead of 0 they are right. Its
# own count of requests per millisecond (histogramMs of the same result) and the mean say otherwise. The report it
# prints calls them "Percentage of requests served within a certain time".
#
# Seen with loadtest 8.2.1 (the newest release when this was written), node 20.20.2. Latencies are given to the class
# that loadtest gives them to, so that no clock is in the way.
#
# Output seen:
#   98 of 0 ms, 2 of 500 ms: p50 500 p90 500 p95 500 p99 500, mean 10, counted {"0":98,"500":2}
#   99 of 0 ms, 1 of 3 ms: p50 3 p90 3 p95 3 p99 3, mean 0, counted {"0":99,"3":1}
#   98 of 1 ms, 2 of 500 ms: p50 1 p90 1 p95 1 p99 500, mean 11, counted {"1":98,"500":2}
#   100 of 0 ms: p50 0 p90 0 p95 0 p99 0, mean 0, counted {"0":100}
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
npm install --prefix "$folder" --cache "$folder/cache" --silent --no-audit --no-fund --ignore-scripts loadtest@8.2.1
cat >"$folder/tried.mjs" <<'JAVASCRIPT'
import { Latency } from "loadtest/lib/latency.js";

function told(...groups) {
  const latency = new Latency({ options: {}, running: true, countClients: () => 1 });
  for (const [count, milliseconds] of groups) {
    for (let number = 0; number < count; number++) {
      latency.totalRequests += 1;
      latency.add(milliseconds);
    }
  }
  latency.stop();
  const result = latency.getResult();
  const name = groups.map(([count, milliseconds]) => `${count} of ${milliseconds} ms`).join(", ");
  const shares = Object.entries(result.percentiles).map(([share, value]) => `p${share} ${value}`);
  const counted = JSON.stringify(result.histogramMs);
  console.log(`${name}: ${shares.join(" ")}, mean ${result.meanLatencyMs}, counted ${counted}`);
}

told([98, 0], [2, 500]);
told([99, 0], [1, 3]);
told([98, 1], [2, 500]);
told([100, 0]);
JAVASCRIPT
seen=$(node "$folder/tried.mjs")
printf '%s\n' "$seen"
[[ $seen == '98 of 0 ms, 2 of 500 ms: p50 500 p90 500 p95 500 p99 500, mean 10, counted {"0":98,"500":2}
99 of 0 ms, 1 of 3 ms: p50 3 p90 3 p95 3 p99 3, mean 0, counted {"0":99,"3":1}
98 of 1 ms, 2 of 500 ms: p50 1 p90 1 p95 1 p99 500, mean 11, counted {"1":98,"500":2}
100 of 0 ms: p50 0 p90 0 p95 0 p99 0, mean 0, counted {"0":100}' ]]
