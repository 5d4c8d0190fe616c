"""What a steady load saw while something happened: latencies from the intended start, slow and lost ones, and gaps.

An operation is due at a moment, whatever became of those before it (open loop). It is lost if it failed or did not end
within PATIENCE. It is slow if it took longer than SLOW: Linux sends a lost segment of an established connection again
after 200 ms at the earliest (TCP_RTO_MIN) and a lost SYN after a second (RFC 6298), so whatever lost a packet is slow,
and little else is.
"""

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dataplane.bench.figures.hdr import bucket

SLOW, PATIENCE = 200_000_000, 3_000_000_000
"""Nanoseconds."""
LOST = -errno.ETIMEDOUT
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999, "max": 1.0}


class Operation(NamedTuple):
    """due: microseconds from the begin of the load. took: nanoseconds from then until its end; of a lost one the
    negative errno of why, LOST where it did not end in time."""

    due: int
    took: int

    @property
    def is_bad(self) -> bool:
        """True if it was slow or lost."""
        return not 0 <= self.took <= SLOW

    @property
    def is_lost(self) -> bool:
        return self.took < 0


def operations(raw: Iterable[Sequence[int]]) -> list[Operation]:
    """As watch.c lists them, in the order in which they were due. One that took longer than PATIENCE is lost."""
    found = (Operation(due, took if took <= PATIENCE else LOST) for due, took in raw)
    return sorted(found)


def percentiles(found: Iterable[Operation]) -> dict[str, float]:
    """Latencies in nanoseconds, p50 to p9999 and max. A lost operation counts as PATIENCE, so that a data plane that
    loses what is slow is not the better for it. Nothing without operations."""
    ordered = sorted(_counted(each) for each in found)
    last = len(ordered) - 1
    return {name: float(ordered[min(last, int(share * len(ordered)))]) for name, share in _SHARES.items() if ordered}


def _counted(operation: Operation) -> int:
    return PATIENCE if operation.is_lost else operation.took


def longest_gap(found: Sequence[Operation], end: float) -> float:
    """How long operations that were due were all slow or lost, at most, in nanoseconds: from when the first of them was
    due until one was that went well; else until `end`, seconds from the begin, when the load ended."""
    longest, since = 0.0, None
    for operation in found:
        if operation.is_bad:
            since = operation.due if since is None else since
        elif since is not None:
            longest, since = max(longest, operation.due - since), None
    if since is not None:
        longest = max(longest, end * 1e6 - since)
    return longest * 1e3


def counts(found: Iterable[Operation]) -> list[tuple[int, int]]:
    """How many latencies are in each bucket of an HdrHistogram, lost ones as for `percentiles`."""
    return sorted(Counter(bucket(_counted(each)) for each in found).items())


def figures(found: Sequence[Operation], end: float) -> dict[str, float]:
    """operations: those that did not fail; failures: lost ones, and by the names of errno why; slow; gap: nanoseconds;
    percentiles."""
    why = Counter(errno.errorcode.get(-each.took, "unknown") for each in found if each.is_lost)
    lost = sum(why.values())
    return {
        "operations": float(len(found) - lost),
        "failures": float(lost),
        "slow": float(sum(each.took > SLOW for each in found)),
        "gap": longest_gap(found, end),
        **percentiles(found),
        **{f"failures_{name}": float(count) for name, count in why.items()},
    }


def seen(answer: dict[str, Any], flows: int) -> dict[str, Any]:
    """The figures of an answer of watch.c: those of new connections by their own names, those of a byte there and back
    on the open flows, in turn, with `flow_` before; the gap is that of the worst flow. flows: how many were open;
    ended: flows that somebody ended. late: nanoseconds that the load itself was late, at most. counts: of new
    connections, as `counts` gives them."""
    connects, exchanges = operations(answer["connects"]), operations(answer["exchanges"])
    end = float(answer["seconds"])
    found: dict[str, Any] = {**figures(connects, end), "late": float(answer["late"]), "seconds": end}
    if flows:
        found |= {f"flow_{name}": value for name, value in figures(exchanges, end).items()}
        found["flow_gap"] = max(longest_gap(exchanges[flow::flows], end) for flow in range(flows))
        found |= {"flows": float(flows), "ended": float(answer["ended"])}
    return found | {"counts": counts(connects)}


def closed_loop(answer: dict[str, Any], operation: str) -> dict[str, Any]:
    """Figures of `connects` or `exchanges` in a closed loop: operations, failures, seconds, percentiles."""
    found, end = operations(answer[operation]), float(answer["seconds"])
    told = figures(found, end)
    del told["slow"], told["gap"]
    return told | {"seconds": end}


def imbalance(ports: Sequence[int], endpoints: int) -> dict[str, float]:
    """How uneven flows are over endpoints. ports: the port that serves each flow, 0 for one that does not answer.
    most: flows of the endpoint with most of them over the mean; idle: endpoints without any; failures: flows that do
    not answer."""
    by_port = Counter(port for port in ports if port)
    total = sum(by_port.values())
    return {
        "operations": float(total),
        "failures": float(len(ports) - total),
        "most": max(by_port.values(), default=0) * endpoints / total if total else 0.0,
        "idle": float(endpoints - len(by_port)),
    }
