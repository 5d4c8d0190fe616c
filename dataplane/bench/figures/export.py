"""A run in the formats that other tools read.

k8s-netperf: the CSV that k8s-netperf writes (pkg/archive, WriteCSVResult). perf-dash: the JSON of Kubernetes' perf-dash
(perf-tests, util-images and perfdash: version, dataItems of data, unit, labels). benchstat: Go's benchmark format
(https://go.dev/design/14313-benchmark-format), one line a round. openmetrics: OpenMetrics 1.0 text, gauges in base
units. hdr: an HdrHistogram log of what was paced.
"""

import csv
import io
import platform
from collections.abc import Callable, Iterator

import msgspec

from dataplane.bench.cluster.settings import CLIENT_NODE, HOST, SERVER_NODE
from dataplane.bench.figures import hdr
from dataplane.bench.figures.analyse import Analysis, Row, analyse
from dataplane.bench.figures.results import Cell, Results
from dataplane.bench.modes import MODES
from dataplane.bench.scenarios import SCENARIOS, Kind, Scenario, Way

_CSV_HEAD = (
    "Driver", "Profile", "Same node", "Host Network", "Service", "Duration", "Parallelism", "# of Samples",
    "Message Size", "Avg Throughput", "Throughput Metric", "99%tile Observed Latency", "Latency Metric",
)  # fmt: skip
_MESSAGE_BYTES = {"crr": 1, "rr": 1, "urr": 1, "dns": 40, "udp": 64, "connect": 0}
_BULK_BYTES = 131072
"""What iperf3 writes at once."""
_PERCENTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99", "p999": "0.999", "p9999": "0.9999"}
_DASH = {"Perc50": "p50", "Perc90": "p90", "Perc99": "p99"}


def k8s_netperf(results: Results) -> str:
    """A line for each row of packets. The driver is the mode, since it is what is compared; throughput is in OP/s, Mb/s
    or pkt/s, the mean over the rounds, latency in microseconds, the rounds' median."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    settings = results.settings
    for row in _packets(analyse(results)):
        scenario = row.scenario
        bulk = scenario.operation.startswith("iperf3")
        rates = [cell.figures["rate"] for cell in _cells(results, row) if "rate" in cell.figures]
        if not rates:
            continue
        mean = sum(rates) / len(rates)
        metric = "Mb/s" if bulk else "pkt/s" if scenario.unit == "packets/s" else "OP/s"
        latency = row.figures.get("p99")
        place = f"{scenario.name}/{row.key.services}" + (f"/{row.key.position}" if row.key.position else "")
        writer.writerow((
            row.key.mode, place, _yes(_on_one_node(results, scenario)), _yes(row.key.mode == HOST),
            _yes(not MODES[row.key.mode].reference and scenario.way is not Way.POD), f"{settings.seconds:g}",
            scenario.operation.split()[1] if bulk else 1, len(rates),
            _BULK_BYTES if bulk else _MESSAGE_BYTES.get(scenario.operation, 64),
            f"{mean / 1e6 if bulk else mean:f}", metric, f"{latency.median / 1e3:f}" if latency else "0", "usec",
        ))  # fmt: skip
    return out.getvalue()


def _on_one_node(results: Results, scenario: Scenario) -> bool:
    """True if client and server were on one node: a cluster's results name both, elsewhere the scenario decides."""
    versions = results.machine.versions
    if CLIENT_NODE in versions:
        return versions[CLIENT_NODE] == versions.get(SERVER_NODE)
    return scenario.way is not Way.NODE_PORT_REMOTE


def _yes(value: bool) -> str:
    return "true" if value else "false"


def _packets(analysis: Analysis) -> Iterator[Row]:
    return (row for row in analysis.rows if row.scenario.kind is Kind.DATA and row.scenario.operation != "program")


def _cells(results: Results, row: Row) -> list[Cell]:
    return [cell for cell in results.cells if tuple(cell.key[:4]) == tuple(row.key) and not cell.error]


def _labels(row: Row) -> dict[str, str]:
    key = row.key
    found = {"scenario": key.scenario, "mode": key.mode, "services": str(key.services), "position": key.position}
    return {name: value for name, value in found.items() if value} | (
        {"sli": row.scenario.sli} if row.scenario.sli else {}
    )


def perf_dash(results: Results) -> str:
    """An item of latencies in milliseconds and one of throughput for each row."""
    items: list[dict[str, object]] = []
    for row in analyse(results).rows:
        labels = {name.capitalize(): value for name, value in _labels(row).items()}
        found = {name: row.figures[figure].median / 1e6 for name, figure in _DASH.items() if figure in row.figures}
        if len(found) == len(_DASH):
            items.append({"data": found, "unit": "ms", "labels": labels | {"Metric": "latency"}})
        if "rate" in row.figures and row.scenario.kind is Kind.DATA:
            data = {"Median": row.figures["rate"].median, "Perc25": row.figures["rate"].quartiles[0],
                    "Perc75": row.figures["rate"].quartiles[1]}  # fmt: skip
            unit = "1/s" if row.scenario.load else row.scenario.unit
            items.append({"data": data, "unit": unit, "labels": labels | {"Metric": "throughput"}})
        if row.scenario.metric == "seconds":
            items.append({"data": {"Median": row.main.median}, "unit": "s", "labels": labels | {"Metric": "duration"}})
    return msgspec.json.encode({"version": "v1", "dataItems": items, "labels": {}}).decode() + "\n"


def benchstat(results: Results) -> str:
    """A line for each round, whose name says what was measured and how many processors there are."""
    machine = results.machine
    lines = ["goos: linux", f"goarch: {platform.machine().replace('x86_64', 'amd64').replace('aarch64', 'arm64')}"]
    lines += ["pkg: hotplane/bench", f"cpu: {machine.cpu_model}"]
    for cell in results.cells:
        if cell.error:
            continue
        key, figures = cell.key, cell.figures
        name = f"Benchmark{key.scenario[0].upper()}{key.scenario[1:]}/mode={key.mode}/services={key.services}"
        name += f"/position={key.position}" if key.position else ""
        count = max(1, round(figures.get("operations", 1)))
        pairs = [f"{value:.6g} {unit}" for value, unit in _go_units(cell)]
        if pairs:
            lines.append("\t".join([f"{name}-{machine.cpus}", str(count), *pairs]))
    return "\n".join(lines) + "\n"


def _go_units(cell: Cell) -> Iterator[tuple[float, str]]:
    figures, scenario = cell.figures, SCENARIOS[cell.key.scenario]
    if scenario.kind is Kind.CONTROL and "seconds" in figures:
        yield figures["seconds"] * 1e9, "ns/op"
    if "rate" in figures and scenario.kind is Kind.DATA:
        if scenario.operation.startswith("iperf3"):
            yield figures["rate"] / 8e6, "MB/s"
        else:
            yield 1e9 / figures["rate"], "ns/op"
            yield figures["rate"], "ops/s"
    if scenario.metric == "ns":
        yield figures["ns"], "ns/op"
    for name in _PERCENTILES:
        if name in figures:
            yield figures[name], f"{name}-ns"
    for name in ("cycles", "instructions"):
        if name in figures:
            yield figures[name], f"{name}/op"


def openmetrics(results: Results) -> str:
    """Gauges: medians over the rounds, and the noise floor of each line."""
    analysis = analyse(results)
    families: dict[str, tuple[str, list[str]]] = {}

    def add(name: str, about: str, labels: dict[str, str], value: float) -> None:
        text = ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())
        families.setdefault(name, (about, []))[1].append(f"{name}{{{text}}} {value:.9g}")

    for row in analysis.rows:
        labels, figures = _labels(row), row.figures
        if "rate" in figures and row.scenario.kind is Kind.DATA:
            unit = "bits" if row.scenario.unit == "bit/s" else "operations"
            name = f"hotplane_bench_{unit}_per_second"
            add(name, f"{unit.capitalize()} a second, median of the rounds.", labels, figures["rate"].median)
        for figure, quantile in _PERCENTILES.items():
            if figure in figures:
                about = "Latency of one operation, median of the rounds' quantiles."
                value = figures[figure].median / 1e9
                add("hotplane_bench_latency_seconds", about, labels | {"quantile": quantile}, value)
        if row.scenario.metric == "seconds":
            add("hotplane_bench_cold_start_seconds", "From decoded objects to kernel.", labels, row.main.median)
        if "rss" in figures:
            add("hotplane_bench_memory_bytes", "Resident memory of the control plane.", labels, figures["rss"].median)
    for place in dict.fromkeys(row.place for row in analysis.rows):
        floor, about = analysis.floor(place), "Smallest relative difference of modes that the line finds."
        named = {"scenario": place.scenario, "services": str(place.services), "position": place.position}
        if floor != float("inf"):
            add("hotplane_bench_noise_floor_ratio", about, {k: v for k, v in named.items() if v}, floor)
    text = []
    for name, (about, samples) in families.items():
        unit = name.rpartition("_")[2]
        text += [f"# TYPE {name} gauge", *([f"# UNIT {name} {unit}"] if unit != "second" else [])]
        text += [f"# HELP {name} {about}", *samples]
    return "\n".join([*text, "# EOF"]) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def latency_log(results: Results) -> str:
    """An HdrHistogram log of what was paced, a line for each round, tagged scenario/mode/Services."""
    paced = [cell for cell in results.cells if cell.histogram]
    tags = (f"{cell.key.scenario}/{cell.key.mode}/{cell.key.services}" for cell in paced)
    return hdr.log_file(
        (tag, cell.figures["seconds"], hdr.decode(cell.histogram)) for tag, cell in zip(tags, paced, strict=True)
    )


FORMATS: dict[str, Callable[[Results], str]] = {
    "k8s-netperf": k8s_netperf,
    "perf-dash": perf_dash,
    "benchstat": benchstat,
    "openmetrics": openmetrics,
    "hdr": latency_log,
}
