"""What is made of the operations of a steady load: slow, lost, gaps, percentiles, and how uneven flows are."""

import errno
import random

import msgspec
import pytest

from dataplane.bench.figures import events
from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.watched import (
    LOST,
    PATIENCE,
    SLOW,
    Operation,
    closed_loop,
    figures,
    imbalance,
    longest_gap,
    operations,
    seen,
)
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.page import page
from dataplane.bench.report.summary import places
from tests.unit.bench_runs import made_up

FINE, MS = 50_000, 1_000_000
RATE = 500


def load(seconds: float, block: tuple[float, float] = (0.0, 0.0), took: int = LOST) -> list[Operation]:
    """Operations at RATE a second; those that are due from block[0] until block[1] (seconds) take `took`."""
    due = [number * 1_000_000 // RATE for number in range(int(seconds * RATE))]
    return [Operation(at, took if block[0] * 1e6 <= at < block[1] * 1e6 else FINE) for at in due]


def test_a_quiet_load_has_no_gap() -> None:
    found = figures(load(2.0), 2.0)
    assert (found["operations"], found["failures"], found["slow"], found["gap"]) == (1000, 0, 0, 0)
    assert found["p50"] == found["p9999"] == found["max"] == FINE


@pytest.mark.parametrize("took", [LOST, SLOW + 1, 900 * MS])
def test_a_service_that_is_away_for_300_ms_is_told_so(took: int) -> None:
    found = figures(load(3.0, (1.0, 1.3), took), 3.0)
    assert found["gap"] == 300 * MS
    assert found["slow"] + found["failures"] == 150
    assert found["failures"] == found.get("failures_ETIMEDOUT", 0) == (150 if took == LOST else 0)


def test_the_longest_of_several_gaps_counts_and_scattered_losses_add_up_to_none() -> None:
    found = load(1.0, (0.1, 0.15)) + [at._replace(due=at.due + 1_000_000) for at in load(1.0, (0.5, 0.7))]
    assert longest_gap(found, 2.0) == 200 * MS
    scattered = [at._replace(took=LOST) if number % 2 else at for number, at in enumerate(load(1.0))]
    assert longest_gap(scattered, 1.0) == 2 * MS


def test_what_never_comes_back_is_away_until_the_end() -> None:
    assert longest_gap(load(2.0, (1.5, 9.0)), 2.2) == 700 * MS
    assert longest_gap(load(2.0, (0.0, 9.0)), 2.0) == 2000 * MS


def test_a_load_that_was_merely_delayed_has_percentiles_and_no_gap() -> None:
    found = figures(load(1.0, (0.4, 0.5), SLOW), 1.0)
    assert (found["slow"], found["gap"]) == (0, 0)
    assert (found["p90"], found["p99"]) == (SLOW, SLOW)


def test_losing_what_is_slow_makes_nobody_better() -> None:
    slow, lost = (figures(load(1.0, (0.4, 0.5), took), 1.0) for took in (SLOW, LOST))
    assert lost["p99"] == lost["max"] == PATIENCE > slow["p99"]
    assert lost["p50"] == slow["p50"]


def test_why_operations_were_lost_is_told() -> None:
    found = figures([Operation(0, FINE), Operation(2000, -errno.ECONNREFUSED), Operation(4000, LOST)], 1.0)
    assert (found["failures"], found["failures_ECONNREFUSED"], found["failures_ETIMEDOUT"]) == (2, 1, 1)


def test_operations_come_in_any_order_and_in_no_more_time_than_is_waited() -> None:
    found = load(1.0, (0.2, 0.3))
    shuffled = random.Random(1).sample([list(each) for each in found], len(found))
    assert operations(shuffled) == found
    assert operations([[0, PATIENCE], [1, PATIENCE + 1]]) == [Operation(0, PATIENCE), Operation(1, LOST)]


def answer(connects: list[Operation], exchanges: list[Operation], ended: int = 0) -> dict[str, object]:
    return {"connects": connects, "exchanges": exchanges, "ended": ended, "late": 5000, "seconds": 2.0}


def test_the_worst_flow_has_the_gap_although_others_go_on() -> None:
    exchanges = [at._replace(took=LOST) if number % 4 == 1 else at for number, at in enumerate(load(2.0))]
    found = seen(answer(load(2.0), exchanges, ended=1), 4)
    assert found["gap"] == 0
    assert (found["flow_failures"], found["flows"], found["ended"], found["late"]) == (250, 4, 1, 5000)
    assert found["flow_gap"] == 2000 * MS - 2 * MS  # from when it was due first
    assert sum(count for _, count in found["counts"]) == 1000


def test_without_flows_nothing_is_said_of_them() -> None:
    assert not {name for name in seen(answer(load(2.0), []), 0) if name.startswith("flow")}


def test_a_closed_loop_has_no_gap() -> None:
    found = closed_loop(answer(load(1.0), []), "connects")
    assert (found["operations"], found["seconds"]) == (500, 2.0)
    assert not {"gap", "slow"} & set(found)


def test_flows_over_endpoints() -> None:
    even, uneven = imbalance([1, 2, 3, 4] * 5, 4), imbalance([1] * 15 + [2] * 5 + [0] * 3, 4)
    assert (even["most"], even["idle"], even["failures"]) == (1.0, 0, 0)
    assert (uneven["most"], uneven["idle"], uneven["failures"], uneven["operations"]) == (3.0, 2, 3, 20)
    assert imbalance([], 4)["most"] == 0


def test_the_table_adds_up_all_rounds_and_shows_the_worst() -> None:
    run = made_up(services=(10000,), rounds=3)
    at = next(n for n, cell in enumerate(run.cells) if cell.key[:2] == ("nftables", "during-kill"))
    worse = run.cells[at].figures | {"failures": 7.0, "gap": 2.5e9}
    run.cells[at] = msgspec.structs.replace(run.cells[at], figures=worse)
    found = {(line["scenario"], line["mode"]): line for line in events.records(run, analyse(run))}
    line = found["during-kill", "nftables"]
    assert (line["rounds"], line["lost"], line["slow"], line["unreachable ms"]) == (3, "11", "120", "2,500")
    assert (line["connections"], line["flows slow"], line["flows lost"]) == ("9,005", "9", "0")
    assert found["during-kill", "direct"]["lost"] == "6"
    assert ("during-coldstart", "direct") not in found
    text = markdown(run)
    assert "While something happens." in text
    assert "| during-kill | 10000 | nftables | 3 | 9,005 | 120 | 11 |  | 2,500 |" in text
    assert 'id="while-something-happens"' in page(run, analyse(run), {})


@pytest.mark.parametrize(("rounds", "somebody"), [(1, False), (2, False), (9, True)])
def test_figures_of_one_round_have_no_winner(rounds: int, somebody: bool) -> None:
    run = made_up(services=(10000,), rounds=rounds, speed={"nftables": 0.3})
    found = [place for place in places(analyse(run)) if place.key.scenario.startswith("during-")]
    assert len(found) == 7
    assert any(shown.best for place in found for shown in place.figures.values()) is somebody
