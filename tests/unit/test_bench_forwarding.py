"""The benchmark's modes that keep clients' addresses on their way to another node: which cells and bars they have."""

from pathlib import Path

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.bars import LEAST_ROUNDS, Verdict, bars
from dataplane.bench.modes import LAB_MODES, MODES
from dataplane.bench.profiles import PROFILES, Overrides, settings
from dataplane.bench.report import front
from dataplane.bench.report.charts import charts
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.summary import sentences
from dataplane.bench.run import all_keys, plane_modes
from dataplane.policy.forwarding import LbMode
from tests.unit.bench_runs import made_up
from tests.unit.test_bench_rounds import FakeRig, run

FORWARDING = ("ebpf-tunnel", "ebpf-dsr")
TO_REMOTE = {"north-remote", "north-remote-rr", "north-remote-udp", "north-remote-pps"}
SPEED = {"ebpf-tunnel": 4.0, "ebpf-dsr": 5.0, "ebpf-xdp": 1.0}


def test_they_differ_from_xdp_in_how_packets_get_to_another_node_alone() -> None:
    ways = {name: mode.lb_mode for name, mode in MODES.items() if mode.forwards}
    assert ways == {"ebpf-tunnel": LbMode.TUNNEL, "ebpf-dsr": LbMode.DSR}
    assert {MODES[name].hooks for name in (*FORWARDING, "ebpf-xdp")} == {("tc", "xdp")}
    assert set(FORWARDING).isdisjoint(LAB_MODES)


def test_they_are_measured_where_packets_come_from_outside_to_another_node() -> None:
    for profile in PROFILES:
        chosen = settings(profile, Overrides((*FORWARDING, "ebpf-xdp"), processors=(1, 2)))
        keys = list(all_keys(chosen))
        for mode in FORWARDING:
            assert {key.scenario for key in keys if key.mode == mode} == TO_REMOTE & set(chosen.scenarios)
            for services in chosen.services:
                has_cells = any((key.mode, key.services) == (mode, services) for key in keys)
                assert (mode in plane_modes(chosen, services)) == has_cells  # loaded only where it is measured
    full = [key for key in all_keys(settings("full", Overrides(FORWARDING))) if key.mode == "ebpf-dsr"]
    assert {key.scenario for key in full} == TO_REMOTE


def test_they_are_loaded_for_their_packets_and_have_no_cold_start(tmp_path: Path) -> None:
    names = ["connect", "connect-alone", "north-remote", "coldstart", "change"]
    chosen = settings("quick", Overrides(("ebpf-xdp", *FORWARDING), names, [1, 1000], rounds=2))
    rig = FakeRig(tmp_path)
    results = run(tmp_path, rig, chosen)
    assert sorted(cell.key for cell in results.cells) == sorted(all_keys(chosen))
    assert [what for what in rig.asked if what[:2] == ("load", "ebpf-dsr")] == [("load", "ebpf-dsr", "1000")]
    assert not any(what[1] == "ebpf-dsr-alone" for what in rig.asked)
    assert {cell.key.scenario for cell in results.cells if cell.key.mode == "ebpf-dsr"} == {"north-remote"}


def test_one_that_does_not_start_is_told_and_has_no_cells(tmp_path: Path) -> None:
    chosen = settings("quick", Overrides(FORWARDING, ["north-remote", "coldstart"], [1000], rounds=2))
    results = run(tmp_path, FakeRig(tmp_path, broken="ebpf-dsr"), chosen)
    assert results.skipped == ["ebpf-dsr is left out at 1,000 Services: the kernel refuses"]
    assert {cell.key.mode for cell in results.cells if cell.key.scenario == "north-remote"} >= {"ebpf-tunnel"}
    assert not any(cell.key.mode == "ebpf-dsr" or cell.error for cell in results.cells)


def test_bars_compare_them_with_snat_and_with_plain_forwarding() -> None:
    results = made_up(modes=("ebpf-xdp", *FORWARDING), services=(10000,), speed=SPEED)
    rows = {(row.what, row.mode): row for row in bars(results) if row.mode in FORWARDING}
    connects = "new connections/s from outside to another node / ebpf-xdp"
    packets = "packets/s to a remote backend / plain forwarding"
    assert {key: row.limit for key, row in rows.items()} == {
        (connects, "ebpf-dsr"): 1.3, (connects, "ebpf-tunnel"): 1.0,
        (packets, "ebpf-dsr"): 3.0, (packets, "ebpf-tunnel"): 3.0,
    }  # fmt: skip
    assert {row.verdict for row in rows.values()} == {Verdict.MET}
    slow = made_up(modes=("ebpf-xdp", *FORWARDING), services=(10000,), speed=dict.fromkeys(FORWARDING, 0.5))
    assert {row.verdict for row in bars(slow) if row.mode in FORWARDING} == {Verdict.MISSED}
    alone = made_up(modes=FORWARDING, services=(10000,), speed=SPEED)
    unmeasured = [row for row in bars(alone) if row.verdict is Verdict.UNMEASURED and row.what == connects]
    assert {row.mode for row in unmeasured} == set(FORWARDING)  # nothing to compare with


def test_connections_to_another_node_have_the_rounds_that_a_bar_needs() -> None:
    chosen = settings("full", Overrides(("ebpf-xdp", *FORWARDING)))
    rounds = [key.round for key in all_keys(chosen) if key[:2] == ("ebpf-dsr", "north-remote")]
    assert max(rounds) == chosen.rounds > LEAST_ROUNDS


def test_reports_have_columns_for_them_and_nothing_where_they_have_no_cell() -> None:
    results = made_up(modes=("nftables", "ebpf-xdp", *FORWARDING), services=(1, 10000), speed=SPEED)
    analysis = analyse(results)
    lines = {str(record[""]): record for record in front.records(analysis)}
    by_name = {
        name: next(lines[text] for text in lines if text.startswith(name)) for name in ("new", "packets", "cold")
    }
    assert by_name["cold"]["ebpf-dsr"] == by_name["new"]["ebpf-dsr"] == ""
    assert str(by_name["packets"]["ebpf-dsr"]).startswith("**4.9")
    outside = lines["new connections/s from outside to a pod elsewhere, 10,000 Services, of plain forwarding's"]
    assert 3.8 < float(str(outside["ebpf-tunnel"]).split()[0]) < 4.2
    text = markdown(results)
    assert "have no figures" not in text
    assert any("ebpf-dsr wins" in sentence for sentence in sentences(analysis))
    assert "ebpf-dsr" in charts(analysis)["against-direct"]


def test_the_published_run_has_them() -> None:
    text = (Path(__file__).resolve().parents[2] / "tests/perf/bench").read_text()
    modes = text.split("modes=")[1].split("\n")[0].split(",")
    chosen = settings("full", Overrides(modes))
    assert {"direct-again", "conntrack", "iptables", "ebpf-host", "ebpf-xdp", *FORWARDING} <= set(modes)
    assert chosen.modes == ("direct", *modes)
