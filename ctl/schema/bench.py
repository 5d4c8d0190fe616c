"""What the benchmark prints of a run, and of two."""

from typing import Annotated

from msgspec import Meta

from ctl.schema.words import Versioned
from dataplane.bench.figures.analyse import Row
from dataplane.bench.figures.bars import BarRow
from dataplane.bench.figures.compare import Difference


class MeasuredRecord(Versioned):
    """A run in a cluster."""

    rows: Annotated[list[Row], Meta(description="figures of each mode, scenario and size; see docs/bench")]
    warnings: Annotated[list[str], Meta(description="sentences, worst first")]


class RunRecord(MeasuredRecord):
    """A run."""

    bars: Annotated[list[BarRow], Meta(description="what was aimed at, and whether it was met")]


class ComparisonRecord(Versioned):
    """Two runs compared."""

    differences: Annotated[list[Difference], Meta(description="all figures that both measured")]
    machine: Annotated[list[str], Meta(description="what differs between the machines")]
    unmatched: Annotated[int, Meta(description="groups that only one of them measured")]


class KnownRecord(Versioned):
    """A mode, peer or scenario that the benchmark knows."""

    kind: str
    name: str
    what: Annotated[str, Meta(description="in words")]


class HistoryRecord(Versioned):
    """A figure over runs: beside these fields one for each run, by its name, and `change`, all of them text."""

    scenario: str
    services: int
    mode: str
    unit: str


class _Setup(Versioned):
    mode: Annotated[str, Meta(description="the mode")]
    setup: Annotated[str, Meta(description="policy, weights or way to other nodes")]
    cannot: Annotated[str | None, Meta(description="why the mode cannot have it; null: it can, and all else is there")]


class ImbalanceRecord(_Setup, total=False):
    """How external traffic was balanced in one mode and setup."""

    requests: Annotated[list[int], Meta(description="of each pod")]
    most: Annotated[float, Meta(description="the busiest pod's requests over the mean")]
    clientSeen: Annotated[float, Meta(description="share of requests whose pod saw the client's own address, 0 to 1")]
    seenAs: Annotated[list[str], Meta(description="who the pods saw")]
    connections: Annotated[int, Meta(description="new ones a second")]
    p50: Annotated[float, Meta(description="microseconds of a new connection")]
    p99: Annotated[float, Meta(description="microseconds of a new connection")]
    wireBytes: Annotated[int, Meta(description="on the nodes' uplinks for each connection")]
