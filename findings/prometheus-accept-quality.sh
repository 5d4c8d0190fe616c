#!/usr/bin/env bash
# The exporter of prometheus_client does not look at the quality values of an Accept header. A client that prefers the
# text format (q=0.9) and would take OpenMetrics if need be (q=0.1) gets OpenMetrics, and so does one that says by q=0
# that it cannot read it. RFC 9110, 12.4.2: 'a value of 0 means "not acceptable"'; Prometheus gives each format that
# it asks for a q of its own. Types are compared by case, too (RFC 9110, 8.3.1: "The type and subtype tokens are
# case-insensitive").
#
# The version that is asked for comes back as that of the answer, whatever it is: OpenMetrics 9.0.0, which nobody has
# written, is sent as `version=9.0.0`, with the content of 1.0.0.
#
# Seen with prometheus_client 0.26.0 (the newest release when this was written), python3 3.11.2 of Debian 12. Its own
# server is asked over the loopback.
#
# Output seen:
#   text/plain;version=0.0.4 -> text/plain; version=0.0.4
#   text/plain;version=0.0.4;q=0.9, application/openmetrics-text;version=1.0.0;q=0.1 -> application/openmetrics-text; version=1.0.0
#   text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0 -> application/openmetrics-text; version=1.0.0
#   Application/OpenMetrics-Text;version=1.0.0 -> text/plain; version=0.0.4
#   application/openmetrics-text;version=9.0.0 -> application/openmetrics-text; version=9.0.0
#   bodies of 1.0.0 and 9.0.0: the same
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check prometheus_client==0.26.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
from urllib.request import ProxyHandler, Request, build_opener

from prometheus_client import CollectorRegistry, Gauge, start_http_server

registry = CollectorRegistry()
Gauge("connections", "open", registry=registry).set(5)
server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
opener = build_opener(ProxyHandler({}))


def asked(accept):
    """Type and version of the answer, and its body."""
    request = Request(f"http://127.0.0.1:{server.server_port}/metrics", headers={"Accept": accept})
    with opener.open(request, timeout=10) as answer:
        return "; ".join(answer.headers["Content-Type"].split("; ")[:2]), answer.read()


TEXT, OPENMETRICS = "text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0"
for accept in (
    TEXT,
    f"{TEXT};q=0.9, {OPENMETRICS};q=0.1",
    f"{TEXT}, {OPENMETRICS};q=0",
    "Application/OpenMetrics-Text;version=1.0.0",
    "application/openmetrics-text;version=9.0.0",
):
    print(accept, "->", asked(accept)[0])
same = asked(OPENMETRICS)[1] == asked(OPENMETRICS.replace("1.0.0", "9.0.0"))[1]
print("bodies of 1.0.0 and 9.0.0:", "the same" if same else "others")
server.shutdown()
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "text/plain;version=0.0.4 -> text/plain; version=0.0.4
text/plain;version=0.0.4;q=0.9, application/openmetrics-text;version=1.0.0;q=0.1 -> application/openmetrics-text; version=1.0.0
text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0 -> application/openmetrics-text; version=1.0.0
Application/OpenMetrics-Text;version=1.0.0 -> text/plain; version=0.0.4
application/openmetrics-text;version=9.0.0 -> application/openmetrics-text; version=9.0.0
bodies of 1.0.0 and 9.0.0: the same" ]]
