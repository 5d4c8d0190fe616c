"""Load on several processors: who runs where, what is measured, and the table and charts of how rates grow."""

import random
from pathlib import Path

import msgspec
import pytest

from dataplane.bench.figures import scaling
from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.results import Cell, Machine, Results, read, write
from dataplane.bench.load.processors import together
from dataplane.bench.objects import PROCESSORS_SERVICE, Backend, Shape, objects
from dataplane.bench.processors import client_places, count_of, position, refuse_missing, server_places
from dataplane.bench.profiles import SCALING, Overrides, settings
from dataplane.bench.report.charts import charts
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.page import write_report
from dataplane.bench.run import all_keys, scaling_keys
from dataplane.bench.scenarios import SCENARIOS
from dataplane.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
SHARE = {"nftables": 1.0, "iptables": 0.5}
"""How much of one processor's rate each further processor adds."""


def run(processors: tuple[int, ...] = (1, 2, 4, 8), rounds: int = 9) -> Results:
    """A run in which every further processor adds its mode's SHARE of one's rate."""
    overrides = Overrides(("iptables", "nftables"), SCALING, (100,), rounds=rounds, processors=processors)
    chosen, chance, cells = settings("full", overrides), random.Random(1), []
    for key in all_keys(chosen):
        grown = 1 + SHARE.get(key.mode, 1.0) * (count_of(key.position) - 1)
        figures = {"rate": 1e4 * grown * chance.gauss(1, 0.01), "operations": 1e3, "failures": 0.0, "seconds": 0.1}
        if key.scenario == "connect-processors":
            figures |= {"p50": 2e4, "p99": 3e4 * count_of(key.position) ** 0.5}
        cells.append(Cell(key, figures))
    facts = Machine(started="2024-05-01T00:00:00+00:00", cpus=16, kernel="6.1.0")
    return Results(facts, chosen, "hotplane bench", complete=True, cells=cells)


def test_it_is_off_unless_asked_for() -> None:
    for profile in ("tiny", "quick", "full"):
        assert not set(SCALING) & set(settings(profile).scenarios)
        assert settings(profile).processors == ()
    assert not any(SCENARIOS[key.scenario].scaling for key in all_keys(settings("quick")))


def test_asked_for_it_comes_beside_the_rest_and_always_with_one_processor() -> None:
    chosen = settings("quick", Overrides(processors=(4, 2)))
    assert chosen.processors == (1, 2, 4)
    assert set(SCALING) < set(chosen.scenarios)
    keys = list(scaling_keys(chosen, 1000))
    assert {key.position for key in keys} == {"1 processor", "2 processors", "4 processors"}
    assert {key.round for key in keys} == set(range(1, chosen.light_rounds + 1))
    assert len(keys) == len(set(keys)) == 2 * len(chosen.modes) * 3 * chosen.light_rounds
    assert set(keys) <= set(all_keys(chosen))
    assert list(scaling_keys(chosen, 10000)) == []


def test_one_of_the_scenarios_alone() -> None:
    chosen = settings("quick", Overrides(scenarios=("connect-processors",), processors=(2,)))
    assert chosen.scenarios == ("connect-processors",)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (Overrides(scenarios=("forward-processors",)), "--scenario forward-processors: say on how many processors"),
        (Overrides(processors=(0, 2)), "--processors 0,2: numbers from 1"),
    ],
)
def test_wrong_wishes_are_said(overrides: Overrides, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settings("quick", overrides)


def test_processors_that_are_not_there_are_named() -> None:
    refuse_missing((1, 2), 2)
    with pytest.raises(UsageError, match=r"--processors 4,8: this machine has 2 processors; give numbers up to that"):
        refuse_missing((1, 2, 4, 8), 2)


def test_clients_and_servers_meet_only_beyond_half_of_the_processors() -> None:
    processors = list(range(8))
    servers = set(server_places(4, processors))
    assert servers == {4, 5, 6, 7}
    assert not servers & set(client_places(4, processors))
    assert client_places(8, processors) == processors
    assert (server_places(1, [0, 1]), client_places(1, [0, 1])) == ([1], [0])
    assert (server_places(1, [0]), client_places(1, [0])) == ([0], [0])


def test_the_cluster_has_a_service_with_an_endpoint_for_each_server() -> None:
    backend = Backend("10.0.0.2", "node1")

    def named(servers: int) -> list[dict[str, object]]:
        found = objects(Shape(3, servers=servers), backend, backend)
        return [item for item in found if item["metadata"]["name"].startswith(PROCESSORS_SERVICE)]

    assert named(0) == []
    service, *slices = named(4)
    assert service["kind"] == "Service"
    ports = [ports[0]["port"] for item in slices if isinstance(ports := item["ports"], list)]
    assert len(set(ports)) == len(slices) == 4


def test_several_clients_add_up() -> None:
    one = {"operations": 100, "failures": 1, "seconds": 0.1, "p50": 10, "p90": 20, "p99": 30, "p999": 40}
    other = one | {"operations": 300, "failures": 0, "seconds": 0.2, "p99": 50}
    found = together([one, other])
    assert (found["operations"], found["failures"], found["seconds"]) == (400, 1, 0.2)
    assert found["rate"] == pytest.approx(100 / 0.1 + 300 / 0.2)
    assert found["p99"] == pytest.approx(45)
    assert found["p99_slowest"] == 50
    assert together([one | {"operations": 0}])["operations"] == 0


def test_the_table_says_what_each_further_processor_gives() -> None:
    analysis = analyse(run())
    lines = {(line["scenario"], line["mode"]): line for line in scaling.records(analysis)}
    fast, slow = lines["connect-processors", "nftables"], lines["connect-processors", "iptables"]
    for line, ratios in ((fast, (2, 4, 8)), (slow, (1.5, 2.5, 4.5))):
        for count, ratio in zip((2, 4, 8), ratios, strict=True):
            value, low, high = (float(word.strip("[],")) for word in str(line[f"{count} / 1"]).split())
            assert low <= value <= high
            assert value == pytest.approx(ratio, rel=0.03)
    assert fast["on 1"] in {"9.9", "10", "9.95", "10.1", "9.96", "9.97", "9.98", "9.99", "10.0"}
    assert fast["p99 µs on 1"] == "30"
    assert str(fast["p99 4 / 1"]).startswith("2.00 ")
    assert lines["forward-processors", "nftables"]["p99 4 / 1"] == ""
    assert len(str(fast["noise floor"]).split(", ")) == 4
    assert {str(line["noise floor"]) for line in lines.values()} != {"none, none, none, none"}


def test_rows_are_in_the_order_of_their_processors() -> None:
    rows = [r for r in analyse(run((1, 2, 16))).rows if (r.key.mode, r.key.scenario) == ("nftables", SCALING[0])]
    assert [row.key.position for row in rows] == [position(1), position(2), position(16)]


def test_the_report_has_table_and_charts_and_the_rest_does_not_see_them(tmp_path: Path) -> None:
    results = run()
    files = {path.name for path in write_report(results, tmp_path)}
    assert {"scaling-connect.svg", "scaling-forward.svg"} <= files
    page = (tmp_path / "index.html").read_text()
    assert "On several processors" in page
    assert "chart-scaling-connect" in page
    assert "8 / 1 processors: 8" in page or "8 / 1 processors: 7.9" in page
    assert "| connect-processors | 100 | nftables |" in markdown(results)
    assert not any(name.startswith(("connect-rate", "positions")) for name in files)


def test_a_run_without_has_no_such_section(tmp_path: Path) -> None:
    results = read(ROOT / "docs/bench/results.json")
    assert results.settings.processors == ()
    assert scaling.records(analyse(results)) == []
    assert "several processors" not in markdown(results)
    assert not any(name.startswith("scaling") for name in charts(analyse(results)))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, results = tmp_path / "r.json", run(rounds=2)
    write(path, results)
    assert msgspec.structs.asdict(read(path)) == msgspec.structs.asdict(results)
