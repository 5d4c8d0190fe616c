"""One report of what was run on the machines: raw as JSON, and a page of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from dataplane.lab.scenarios.shares import Share
from dataplane.lab.spec import LabError, LabSpec
from dataplane.malformed import MALFORMED


class Facts(msgspec.Struct, frozen=True):
    """Facts about the machines."""

    kernel: str
    system: str
    nft: str
    iptables: str
    virtualization: str
    box: str
    driver: str
    spec: LabSpec


class TableRun(msgspec.Struct, frozen=True):
    """The scenario table through one variant. findings: cells in which packets and oracle disagree.

    load_seconds: from the manifests to all nodes' kernels, over ssh, the start of the command included. families: cells
    of each.
    """

    variant: str
    cells: int
    verdicts: dict[str, int]
    findings: list[str]
    load_seconds: float
    probe_seconds: float
    counters: dict[str, int]
    said: list[str]
    families: dict[str, int] = {}

    def line(self) -> str:
        """A line of text."""
        result = "all as the oracle says" if not self.findings else f"{len(self.findings)} DISAGREE"
        verdicts = ", ".join(f"{count} {name}" for name, count in sorted(self.verdicts.items()))
        times = f"load {self.load_seconds:.0f} s, probes {self.probe_seconds:.0f} s"
        cells = " and ".join(f"{count} {name}" for name, count in sorted(self.families.items()))
        return f"{self.variant}: {cells} cells ({verdicts}): {result}; {times}"


class SharesRun(msgspec.Struct, frozen=True):
    """What each pod got of the client's connections through one variant, and whom it saw (lab.scenarios.shares)."""

    variant: str
    shares: list[Share]
    counters: dict[str, int]
    said: list[str]

    def line(self) -> str:
        """A line of text."""
        findings = sum(len(share.findings) for share in self.shares)
        total = sum(sum(share.requests.values()) for share in self.shares)
        result = "all as the oracle says" if not findings else f"{findings} DISAGREE"
        return f"{self.variant}: {total} connections by {len(self.shares)} ways in: {result}"


class BenchRun(msgspec.Struct, frozen=True):
    """The benchmark between the machines. page: its part of the page. results: raw, see bench.results.Results."""

    page: str
    results: msgspec.Raw


class Report(msgspec.Struct):
    """Everything that was run, of one kind each the last."""

    facts: Facts
    table: list[TableRun] = []
    shares: list[SharesRun] = []
    benchmark: BenchRun | None = None


def about(facts: Facts) -> list[str]:
    """Return the facts about the machines, a line each."""
    shape = f"{facts.spec.nodes} nodes, {facts.spec.pods} pods each, routing {facts.spec.routing}"
    return [
        f"machines: {facts.system}, Linux {facts.kernel}, {facts.nft}, {facts.iptables}",
        f"virtualization: {facts.virtualization} ({facts.driver}); box: {facts.box}",
        f"lab: {shape}, pods on a {facts.spec.pod_link}, {'both families' if facts.spec.ipv6 else 'IPv4'}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(report: Report) -> str:
    """The page."""
    lines = ["# The Vagrant lab: what was run", "", *(f"- {line}" for line in about(report.facts))]
    if report.table:
        families = sorted({name for run in report.table for name in run.families})
        heads = ["mode", *(f"{name} cells" for name in families), "disagree with the oracle", "load, s", "probes, s"]
        lines += ["", _line(heads), "|---" * len(heads) + "|"]
        for r in report.table:
            cells = [str(r.families.get(name, 0)) for name in families]
            lines.append(
                _line([r.variant, *cells, str(len(r.findings)), f"{r.load_seconds:.0f}", f"{r.probe_seconds:.0f}"])
            )
    for run in report.table:
        lines += [f"- {run.variant}: {text}" for text in (*run.said, *run.findings)]
        lines += _counted(run.variant, run.counters)
    for of_variant in report.shares:
        lines += _shares(of_variant)
    if report.benchmark:
        lines += ["", report.benchmark.page.rstrip()]
    return "\n".join(lines) + "\n"


def _counted(variant: str, counters: Mapping[str, int]) -> list[str]:
    if not counters:
        return []
    most = sorted(counters.items(), key=lambda item: -item[1])
    return ["", f"{variant}, ways out of the programs: " + ", ".join(f"{way} {count}" for way, count in most)]


def _shares(run: SharesRun) -> list[str]:
    """What each pod got of the connections from outside, through one variant."""
    pods = list(run.shares[0].requests) if run.shares else []
    heads = ["Service", "to", "family", *pods, "see the client", "disagree with the oracle"]
    lines = ["", f"## Shares, {run.variant}", "", _line(heads), "|---" * len(heads) + "|"]
    for share in run.shares:
        total = sum(share.requests.values())
        counts = [str(count) for count in share.requests.values()]
        seen = f"{share.kept} of {total}"
        lines.append(_line([share.service, share.kind, share.family, *counts, seen, str(len(share.findings))]))
    said = [*run.said, *(text for share in run.shares for text in share.findings)]
    return [*lines, *([""] if said else []), *(f"- {text}" for text in said), *_counted(run.variant, run.counters)]


def earlier(directory: Path, now: Facts) -> Report:
    """What is in that directory already, of machines as they are `now`; makes the directory.

    Raises OSError, LabError when what is there is no such report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored = directory / "report.json"
    if not stored.exists():
        return Report(now)
    try:
        found = msgspec.json.decode(stored.read_bytes(), type=Report)
    except MALFORMED as error:
        raise LabError(f"{stored}: no report of this lab ({error}); remove it, or name another directory") from error
    return found if found.facts == now else Report(now)


def write(report: Report, directory: Path) -> None:
    """Write report.json and report.md. Raises OSError."""
    (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    (directory / "report.md").write_text(markdown(report))
