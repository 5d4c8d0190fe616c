"""Which cells a run has."""

from collections import Counter
from typing import Any

import pytest

from dataplane.bench.modes import LAB_MODES
from dataplane.bench.objects import Form
from dataplane.bench.pace import Pace, duration, expected, run_seconds
from dataplane.bench.profiles import PROFILES, SCALING, Overrides, Settings, flow_endpoints, seconds_of, settings
from dataplane.bench.run import all_keys, data_modes, plane_modes
from dataplane.bench.scenarios import SCENARIOS, Kind
from dataplane.errors import UsageError

QUIET_WINDOW = 37 * 60


def wished(profile: str, **overrides: Any) -> Settings:
    return settings(profile, Overrides(**overrides))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_measures_each_cell_once_in_every_mode(profile: str) -> None:
    chosen = settings(profile)
    keys = list(all_keys(chosen))
    assert len(keys) == len(set(keys))
    assert {key.scenario for key in keys} == set(chosen.scenarios)
    assert set(chosen.modes) == set(LAB_MODES)
    left_out = {"iptables"} if min(chosen.services) > chosen.iptables_max else set()
    assert {key.mode for key in keys} == set(LAB_MODES) - left_out
    assert {key.services for key in keys} == set(chosen.services)


def test_the_full_profile_has_everything_and_fits_a_break() -> None:
    chosen = settings("full")
    assert chosen.services == (1, 100, 1000, 5000, 10000, 30000)
    of_peers = {name for name, scenario in SCENARIOS.items() if scenario.probed}
    assert set(chosen.scenarios) == set(SCENARIOS) - set(SCALING) - of_peers
    assert run_seconds(chosen, all_keys(chosen)) < QUIET_WINDOW


def test_what_bars_are_about_gets_the_rounds() -> None:
    chosen = settings("full")
    rounds = Counter(
        (key.scenario, key.services) for key in all_keys(chosen) if key[0] == "nftables" and key[3] in ("", "last")
    )
    for scenario, services in (
        ("connect", 10000),
        ("connect", 30000),
        ("connect-alone", 30000),
        ("pod", 10000),
        ("TCP_STREAM", 10000),
    ):
        assert rounds[scenario, services] == chosen.rounds
    assert rounds["connect", 5000] == rounds["connect", 1] == rounds["TCP_RR", 1] == chosen.light_rounds
    assert rounds["coldstart", 30000] == rounds["change", 30000] == chosen.control_rounds
    assert rounds["coldstart", 100] == chosen.light_control_rounds


def test_a_node_with_one_service_is_measured_beside_the_most_services() -> None:
    keys = list(all_keys(wished("full", services=[1, 100, 500], rounds=1)))
    assert {key.services for key in keys if key.scenario == "connect-alone"} == {500}
    assert not any(key.scenario == "connect-alone" for key in all_keys(wished("full", services=[1], rounds=1)))


def test_every_cell_has_its_baseline_in_the_same_round() -> None:
    keys = set(all_keys(wished("full", modes=["nftables"], rounds=2)))
    packets = [key for key in keys if key.mode == "nftables" and SCENARIOS[key.scenario].kind is Kind.DATA]
    assert packets
    assert all(key._replace(mode="direct") in keys for key in packets)


def test_what_is_paced_brings_the_rate_that_it_is_a_share_of() -> None:
    chosen = wished("quick", scenarios=["TCP_CRR@80", "bulk1"])
    assert chosen.scenarios == ("TCP_CRR", "TCP_CRR@80", "TCP_STREAM")  # an earlier name is understood
    assert seconds_of(chosen, SCENARIOS["TCP_CRR@80"]) == 4 * seconds_of(chosen, SCENARIOS["TCP_CRR"])


def test_positions_that_do_not_differ_are_measured_once() -> None:
    chosen = wished("full", modes=["nftables"], scenarios=["connect"], services=[1, 2, 3], rounds=1)
    seen = Counter((key.services, key.position) for key in all_keys(chosen) if key.mode == "nftables")
    assert seen == {(1, "last"): 1, (2, "first"): 1, (2, "last"): 1, **{(3, p): 1 for p in ("first", "middle", "last")}}


def test_the_program_is_measured_where_there_is_one() -> None:
    assert {key.mode for key in all_keys(settings("full")) if key.scenario == "xdp-cost"} == {"ebpf-xdp"}


def test_events_happen_once_a_round_in_the_modes_that_they_concern() -> None:
    keys = [key for key in all_keys(wished("full", rounds=3)) if SCENARIOS[key.scenario].kind is Kind.EVENT]
    of = {name: {key.mode for key in keys if key.scenario == name} for name in SCENARIOS}
    assert of["during-kill"] == set(LAB_MODES)
    assert of["during-coldstart"] == set(LAB_MODES) - {"direct", "direct-again", "conntrack"}
    assert {key.services for key in keys if key.scenario == "during-coldstart"} == {30000}
    assert {key.services for key in keys if key.scenario != "during-coldstart"} == {10000}
    assert Counter((key.mode, key.scenario) for key in keys).most_common(1)[0][1] == 3
    events = {name: {key.scenario for key in all_keys(settings(name))} for name in PROFILES}
    assert {len({n for n in names if n.startswith("during-")}) for names in events.values()} == {7, 2}


@pytest.mark.parametrize(
    ("form", "services", "endpoints", "flows"),
    [(Form.PLAIN, 5000, 50, 8), (Form.SHARED, 10000, 50, 8), (Form.LARGE, 1000, 5, 3000), (Form.AFFINITY, 10000, 5, 8)],
)
def test_stress_has_the_sizes_of_its_form(form: Form, services: int, endpoints: int, flows: int) -> None:
    chosen = wished("stress", form=form)
    assert (chosen.services, chosen.endpoints, flow_endpoints(chosen)) == ((services,), endpoints, flows)
    assert {key.services for key in all_keys(chosen)} == {services}
    assert run_seconds(chosen, all_keys(chosen)) < 300
    smaller = wished("stress", form=form, services=[20], endpoints=2)
    assert (smaller.services, smaller.endpoints) == ((20,), 2)


def test_iptables_is_left_out_above_its_limit() -> None:
    chosen, connect = wished("quick", services=[100, 5000], iptables_max=1000), SCENARIOS["connect"]
    assert "iptables" in plane_modes(chosen, 100)
    assert "iptables" not in plane_modes(chosen, 5000)
    assert "iptables" not in data_modes(chosen, connect, 5000)
    assert "direct" in data_modes(chosen, connect, 5000)
    assert "direct" not in plane_modes(chosen, 100)


def test_the_baseline_is_always_there_and_order_is_that_of_reports() -> None:
    chosen = wished("quick", modes=["ebpf-connect", "iptables"]).modes
    assert chosen == ("direct", "direct-again", "iptables", "ebpf-connect")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modes": ["ipvs"]}, "--modes ipvs"),
        ({"scenarios": ["lunch"]}, "--scenario lunch"),
        ({"services": [0]}, "--services 0"),
        ({"services": [40000]}, "--services 40000"),
        ({"rounds": 0}, "--rounds 0"),
        ({"endpoints": 65}, "--endpoints 65"),
    ],
)
def test_what_does_not_exist_is_wrong_usage(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        wished("quick", **options)


def test_the_rest_is_guessed_by_how_it_went_so_far() -> None:
    chosen = settings("quick")
    keys = list(all_keys(chosen))
    half = len(keys) // 2
    times = iter([0.0, 0.0, 3 * sum(expected(chosen, key) for key in keys[:half])])
    pace = Pace(chosen, lambda: next(times))
    rest = sum(expected(chosen, key) for key in keys[half:])
    assert pace.remaining(keys[half:]) == pytest.approx(rest)
    for key in keys[:half]:
        pace.done(key)
    assert 1.5 * rest < pace.remaining(keys[half:]) <= 3 * rest


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "0:05"), (905.0, "15:05"), (59.9, "1:00"), (3725.0, "1:02:05")])
def test_lengths_of_time_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
