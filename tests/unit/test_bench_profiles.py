"""Which cells a run has."""

from collections import Counter

import pytest

from dataplane.bench.profiles import settings
from dataplane.bench.run import all_keys, data_modes, plane_modes
from dataplane.errors import UsageError


def test_quick_covers_every_mode_and_scenario() -> None:
    chosen = settings("quick")
    keys = list(all_keys(chosen))
    assert len(keys) == len(set(keys))
    assert {key.scenario for key in keys} == set(chosen.scenarios)
    assert {key.mode for key in keys} == set(chosen.modes) >= {"direct", "iptables", "nftables", "ebpf-connect"}
    assert {key.round for key in keys if key.scenario == "connect"} == set(range(1, chosen.rounds + 1))


def test_every_cell_has_its_baseline_in_the_same_round() -> None:
    keys = set(all_keys(settings("full", modes=["nftables"], rounds=2)))
    packets = [key for key in keys if key.mode == "nftables" and key.scenario not in ("coldstart", "change", "rollout")]
    assert packets
    assert all(key._replace(mode="direct") in keys for key in packets)


def test_positions_that_do_not_differ_are_measured_once() -> None:
    chosen = settings("full", modes=["nftables"], scenarios=["connect"], services=[1, 2, 3], rounds=1)
    seen = Counter((key.services, key.position) for key in all_keys(chosen) if key.mode == "nftables")
    assert seen == {(1, "last"): 1, (2, "first"): 1, (2, "last"): 1, **{(3, p): 1 for p in ("first", "middle", "last")}}


def test_iptables_is_left_out_above_its_limit() -> None:
    chosen = settings("quick", services=[100, 5000], iptables_max=1000)
    assert "iptables" in plane_modes(chosen, 100)
    assert "iptables" not in plane_modes(chosen, 5000)
    assert "iptables" not in data_modes(chosen, 5000)
    assert "direct" in data_modes(chosen, 5000)
    assert "direct" not in plane_modes(chosen, 100)


def test_the_baseline_is_always_there_and_order_is_that_of_reports() -> None:
    assert settings("quick", modes=["ebpf-connect", "iptables"]).modes == ("direct", "iptables", "ebpf-connect")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modes": ["ipvs"]}, "--modes ipvs"),
        ({"scenarios": ["lunch"]}, "--scenario lunch"),
        ({"services": [0]}, "--services 0"),
        ({"services": [40000]}, "--services 40000"),
        ({"rounds": 0}, "--rounds 0"),
    ],
)
def test_what_does_not_exist_is_wrong_usage(options: dict[str, list[str]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settings("quick", **options)  # type: ignore[arg-type]
