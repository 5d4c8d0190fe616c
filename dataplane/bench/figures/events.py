"""What a steady load saw while something happened, as a table: all rounds together."""

from collections import Counter
from collections.abc import Mapping, Sequence

from dataplane.bench.figures import hdr
from dataplane.bench.figures.analyse import Analysis, Row, floor_text
from dataplane.bench.figures.results import Cell, Results
from dataplane.bench.figures.watched import PATIENCE, SLOW
from dataplane.bench.scenarios import SCENARIOS, Kind

NOTE = (
    "New connections at a steady rate, each from when it was due (open loop), and a byte there and back on flows that "
    f"were open before; all rounds together. Slow: over {SLOW // 10**6} ms, as what lost a packet is. Lost: failed, or "
    f"not made in {PATIENCE // 10**9} s, as which it counts in the percentiles. Unreachable: the longest time in which "
    "every connection that was due was slow or lost; of flows, that of the worst one. Load late: how late the load "
    "itself was, at most; where that is more than what is slow, slow ones and gaps may be the machine's. Noise floor: "
    "of the scenario's main figure (p99, of a cold start the time unreachable); unknown with fewer than three rounds, "
    "and then nobody wins."
)
"""What a reader of `records` has to know."""
_WHY = "failures_"
_PERCENTILES = {"p50 µs": 0.5, "p90 µs": 0.9, "p99 µs": 0.99, "p99.9 µs": 0.999, "p99.99 µs": 0.9999}


def records(results: Results, analysis: Analysis) -> list[dict[str, object]]:
    """The table: a line for each scenario, size and mode; empty where nothing happened."""
    cells: dict[tuple[str, ...], list[Cell]] = {}
    for cell in results.cells:
        if not cell.error and SCENARIOS[cell.key.scenario].kind is Kind.EVENT:
            cells.setdefault(tuple(map(str, cell.key[:4])), []).append(cell)
    rows = [row for row in analysis.rows if row.scenario.kind is Kind.EVENT]
    return [_record(analysis, row, cells[tuple(map(str, row.key))]) for row in rows]


def sentences(found: Sequence[Mapping[str, object]]) -> list[str]:
    """What to say of a table where nobody sees it: who lost connections while something happened."""
    losers = [
        f"{record['scenario']} {record['mode']} {record['lost']}" for record in found if record["lost"] not in ("", "0")
    ]
    if not found:
        return []
    lost = f"connections were lost in {', '.join(losers)}" if losers else "no connection was lost"
    return [f"while something happened {lost}; --all has the table"]


def _why(cells: Sequence[Cell]) -> str:
    """What new connections were lost by: the errors, and no answer in time."""
    found: Counter[str] = Counter()
    for cell in cells:
        for name, value in cell.figures.items():
            if name.startswith(_WHY):
                found[name.removeprefix(_WHY).replace("ETIMEDOUT", "no answer")] += int(value)
    return ", ".join(f"{count:,} {name}" for name, count in found.most_common())


def _record(analysis: Analysis, row: Row, cells: Sequence[Cell]) -> dict[str, object]:
    def all_of(figure: str) -> list[float]:
        return [cell.figures[figure] for cell in cells if figure in cell.figures]

    def total(figure: str) -> str:
        found = all_of(figure)
        return f"{sum(found):,.0f}" if found else ""

    def most(figure: str) -> str:
        found = all_of(figure)
        return f"{max(found) / 1e6:,.4g}" if found else ""

    made = sum(all_of("operations")) + sum(all_of("failures"))
    shown = {name: hdr.percentile(row.latencies, share) / 1e3 for name, share in _PERCENTILES.items()}
    flows = sum(all_of("flow_operations")) + sum(all_of("flow_failures"))
    return {
        "scenario": row.key.scenario,
        "Services": row.key.services,
        "mode": row.key.mode,
        "rounds": len(cells),
        "connections": f"{made:,.0f}",
        "slow": total("slow"),
        "lost": total("failures"),
        "lost by": _why(cells),
        "unreachable ms": most("gap"),
        **{name: f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for name, value in shown.items()},
        "max ms": most("max"),
        "on flows": f"{flows:,.0f}" if flows else "",
        "flows slow": total("flow_slow"),
        "flows lost": total("flow_failures"),
        "flows unreachable ms": most("flow_gap"),
        "flows ended": total("ended"),
        "event s": f"{row.figures['event'].median:.3g}" if "event" in row.figures else "",
        "load late ms": most("late"),
        "note": "the load was late itself" if max(all_of("late"), default=0.0) > SLOW else "",
        "noise floor": floor_text(analysis.floor(row.place)),
    }
