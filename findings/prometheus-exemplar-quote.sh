#!/usr/bin/env bash
# prometheus_client cannot read what it writes if the label of an exemplar has a double quote in it, one or any other
# odd number: text_string_to_metric_families of its OpenMetrics parser ends with ValueError("Invalid line: ...") for the
# whole exposition. The line is right (OpenMetrics 1.0, ABNF: exemplar labels are escaped as all labels are), and the
# same value as a label of the metric, backslashes and newlines in exemplars, and the two quotes below do no harm: the
# parser toggles "in quotes" at each quote behind the value, escaped or not.
#
# Seen with prometheus_client 0.26.0 (the newest release when this was written), python3 3.11.2 of Debian 12.
#
# Output seen:
#   label 'GET "/"': read back
#   exemplar 'GET "/"': read back
#   label 'height 5"': read back
#   exemplar 'height 5"': ValueError
#   written: c_total 1.0 # {path="height 5\""} 1.0
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check prometheus_client==0.26.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families


def written(place, value):
    """A counter that has the value as a label, or an exemplar that has."""
    registry = CollectorRegistry()
    if place == "label":
        Counter("c", "help", ["path"], registry=registry).labels(value).inc()
    else:
        Counter("c", "help", registry=registry).inc(exemplar={"path": value})
    return generate_latest(registry).decode()


def read(place, text):
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == "c_total"]
    return (samples[0].labels if place == "label" else samples[0].exemplar.labels)["path"]


for value in ('GET "/"', 'height 5"'):
    for place in ("label", "exemplar"):
        text = written(place, value)
        try:
            told = "read back" if read(place, text) == value else "something else"
        except ValueError as error:
            told = type(error).__name__
        print(f"{place} {value!r}: {told}")
print("written:", *text.splitlines()[2].split(" ")[:-1])  # without the time
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "label 'GET \"/\"': read back
exemplar 'GET \"/\"': read back
label 'height 5\"': read back
exemplar 'height 5\"': ValueError
written: c_total 1.0 # {path=\"height 5\\\"\"} 1.0" ]]
