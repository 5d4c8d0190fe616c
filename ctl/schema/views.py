"""Every view that `-o json` has: the command that prints it, and the type of its objects."""

import enum
from typing import NamedTuple

from ctl.commands.explain import Explained
from ctl.schema import bench, commands, kernel, lab


class Form(enum.Enum):
    """How a view's objects are printed."""

    LIST = "a list of objects"
    OBJECT = "one object"
    STREAM = "a stream: one object a line"


class View(NamedTuple):
    """One view. name: of its schema. command: that prints it. kind: the type of its objects. may_not_count: an object
    may stand in place of all, which says that the mode does not count that. last: the type of a stream's last
    object."""

    name: str
    command: str
    kind: type
    form: Form = Form.LIST
    may_not_count: bool = False
    last: type | None = None


VIEWS = (
    View("explain", "explain", Explained),
    View("show-services", "show services", kernel.ServiceRecord),
    View("show-endpoints", "show endpoints", kernel.EndpointRecord),
    View("show-affinity", "show affinity", kernel.AffinityRecord),
    View("show-connections", "show connections", kernel.ConnectionRecord),
    View("show-drops", "show drops", kernel.DropRecord, may_not_count=True),
    View("show-connect-time", "show connect-time", kernel.OffRecord),
    View("show-counters", "show counters", kernel.CounterRecord),
    View("show-decisions", "show decisions", kernel.DecisionCount),
    View("show-watch", "show services --watch", kernel.Reading, Form.STREAM),
    View("top", "top", kernel.Rates, Form.STREAM, may_not_count=True),
    View("monitor", "monitor", kernel.DecisionRecord, Form.STREAM, may_not_count=True),
    View("monitor-reasons", "monitor --reasons", kernel.ReasonRecord, may_not_count=True),
    View("trace", "trace FLOW", commands.TraceStep, Form.STREAM, last=commands.TraceOutcome),
    View("check", "check", commands.DifferenceRecord),
    View("diff", "diff -f FILE", commands.ChangeRecord),
    View("apply", "apply -f FILE", commands.AppliedRecord),
    View("doctor", "doctor", commands.FindingRecord),
    View("version", "version", commands.VersionRecord),
    View("cleanup", "cleanup", commands.CleanedRecord),
    View("cleanup-stale", "cleanup --stale", commands.StaleRecord),
    View("sysdump", "sysdump", commands.PartRecord),
    View("lab-status", "lab status", lab.PlaceRecord),
    View("lab-apply", "lab apply -f FILE", commands.AppliedRecord),
    View("lab-call", "lab call FROM TO", lab.CallRecord),
    View("demo", "demo", lab.DemoRecord, Form.OBJECT),
    View("bench", "bench", bench.RunRecord, Form.OBJECT),
    View("bench-cluster", "bench cluster", bench.MeasuredRecord, Form.OBJECT),
    View("bench-compare", "bench compare A.json B.json", bench.ComparisonRecord, Form.OBJECT),
    View("bench-imbalance", "bench imbalance", bench.ImbalanceRecord),
    View("bench-list", "bench --list", bench.KnownRecord),
    View("bench-history", "bench history DIR", bench.HistoryRecord),
)
