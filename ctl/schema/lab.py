"""What the lab and the demo print."""

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from ctl.schema.words import Versioned
from dataplane.lab.scenarios.compare import Row


class _Place(Versioned):
    lab: Annotated[str, Meta(description="name of the lab")]
    place: Annotated[str, Meta(description="node1, pod1-2, client; empty for a lab that is not finished")]
    state: Annotated[Literal["up", "missing", "unfinished"], Meta(description="of the place, or of the lab")]


class PlaceRecord(_Place, total=False):
    """A place of a lab: a network namespace. A lab that is not finished has the first fields alone."""

    addresses: Annotated[list[str], Meta(description="its own")]
    netns: Annotated[str, Meta(description="name of the network namespace")]
    cgroup: Annotated[str, Meta(description="control group of its processes")]
    pids: Annotated[list[int], Meta(description="its processes")]


class CallRecord(Versioned):
    """Calls that ended alike."""

    answer: Annotated[str, Meta(description="the pod that answered, else how the calls ended")]
    outcome: Annotated[Literal["answered", "refused", "timeout", "error"], Meta(description="how the calls ended")]
    count: Annotated[int, Meta(description="calls")]
    share: Annotated[float, Meta(description="of all calls, from 0 to 1")]
    seenAs: Annotated[list[str], Meta(description="source addresses that the pod saw")]


class DemoResult(TypedDict):
    """A scenario in one mode."""

    passed: bool
    able: Annotated[bool, Meta(description="whether the mode can have it at all; one that cannot says so, and passes")]
    seen: Annotated[str, Meta(description="what was seen, in words")]


class DemoScenario(TypedDict):
    """A scenario in all modes that were tried."""

    name: str
    proves: Annotated[str, Meta(description="what it proves, in words")]
    modes: dict[str, DemoResult]


class DemoRecord(Versioned):
    """All of a demo."""

    scenarios: list[DemoScenario]
    comparison: Annotated[list[Row], Meta(description="modes side by side; times in microseconds; may be empty")]
