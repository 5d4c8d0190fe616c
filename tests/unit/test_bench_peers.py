"""Peers of the benchmark without a node: how they are named, what their cluster is, what is made of their figures."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ctl import bench_peers
from ctl.parser import parse
from dataplane.bench.figures import events
from dataplane.bench.figures.analyse import PlaceKey, analyse
from dataplane.bench.figures.results import read, write
from dataplane.bench.modes import LAB_MODES, MODES
from dataplane.bench.objects import FLOWS_SERVICE, Backend, Form, Shape
from dataplane.bench.peer.cluster import LISTEN, PLACES, PROBE_SERVICE, cluster, probe_slice
from dataplane.bench.peer.spec import ENVIRONMENT, Peer
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.page import page, write_report
from dataplane.bench.report.summary import places
from dataplane.bench.report.svg import PEER_LOOKS
from dataplane.bench.run import all_keys
from dataplane.bench.scenarios import SCENARIOS, Kind
from dataplane.errors import UsageError
from dataplane.lab.spec import LabSpec, topology
from dataplane.model.decode import decode
from dataplane.model.net import Family
from tests.bench_modes import own_modes
from tests.unit.bench_runs import made_up

TWINS = (Peer("one", "proxy --fast"), Peer("two", "proxy --fast"))
PROBED = {name for name, scenario in SCENARIOS.items() if scenario.probed}


@pytest.fixture(autouse=True)
def _only_own_modes() -> Iterator[None]:
    with own_modes():
        yield


def options(*words: str) -> argparse.Namespace:
    return parse(["bench", *words])


def test_a_peer_is_a_name_and_a_command() -> None:
    given = options("--peer", "kp=kube-proxy --x=y", "--peer-cleanup", "kp=kube-proxy --cleanup", "--modes", "nftables")
    assert bench_peers.peers_of(given) == (Peer("kp", "kube-proxy --x=y", "kube-proxy --cleanup"),)
    words = ["--peer", "kp=kube-proxy --x=y", "--peer-cleanup", "kp=kube-proxy --cleanup"]
    assert bench_peers.command_of(given) == words


def test_hotplanes_own_daemons_are_measured_beside_others_proxies() -> None:
    def names(*words: str) -> list[str]:
        return [peer.name for peer in bench_peers.peers_of(options(*words))]

    assert names("--peer", "kp=x") == ["kp", "hotplane-nftables", "hotplane-ebpf"]
    assert names("--peer", "kp=x", "--peer", "hotplane-iptables") == ["kp", "hotplane-iptables"]
    assert names("--peer", "kp=x", "--modes", "direct") == ["kp"]
    assert names() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--peer", "kp"), "write NAME=COMMAND"),
        (("--peer", "kp= "), "the command is missing"),
        (("--peer", "nftables=x"), "a mode is named so"),
        (("--peer", "hotplane-ebpf=x"), "is hotplane's own"),
        (("--peer", "a=x", "--peer", "a=y"), "there are 2 of that name"),
        (("--peer", "A_b=x"), "lower-case letters"),
        (("--peer", "a-alone=x"), "lower-case letters"),
        (("--peer-cleanup", "a=x"), "there is no --peer"),
        (("--peer", "a=x", "--peer-cleanup", "b=x"), "no --peer of that name"),
    ],
)
def test_what_is_no_peer_is_wrong_usage(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settings("quick", Overrides(peers=bench_peers.peers_of(options(*words))))


def test_what_peers_are_told_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["bench", "--help"])
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in ENVIRONMENT)


def test_peers_have_the_scenarios_of_packets_and_probes_and_others_those_of_their_planes() -> None:
    chosen = settings("tiny", Overrides(modes=("nftables",), peers=TWINS))
    assert chosen.modes == ("direct", "direct-again", "nftables", "one", "two")
    keys = list(all_keys(chosen))
    control = {name for name, scenario in SCENARIOS.items() if scenario.kind is Kind.CONTROL}
    of_peers = {key.scenario for key in keys if key.mode == "one"}
    assert of_peers & control == PROBED
    assert {"connect", "TCP_CRR", "north-remote-pps", "connect-alone"} <= of_peers
    assert not PROBED & {key.scenario for key in keys if key.mode == "nftables"}
    assert {"coldstart", "change"} <= {key.scenario for key in keys if key.mode == "nftables"}
    assert len(keys) == len(set(keys))


EVENTS = {name for name, scenario in SCENARIOS.items() if scenario.kind is Kind.EVENT}


@pytest.mark.parametrize("profile", ["tiny", "full"])
def test_peers_have_all_events_but_a_change_of_modes(profile: str) -> None:
    keys = list(all_keys(settings(profile, Overrides(modes=("nftables",), peers=TWINS))))
    of = {mode: {key.scenario for key in keys if key.mode == mode} & EVENTS for mode in ("one", "two", "nftables")}
    assert of["nftables"] == EVENTS
    assert of["one"] == of["two"] == EVENTS - {"during-switch"}
    at = {name: {k.services for k in keys if k.scenario == name and k.mode == "one"} for name in of["one"]}
    assert at == {name: {k.services for k in keys if k.scenario == name and k.mode == "nftables"} for name in of["one"]}


def test_a_change_of_modes_is_left_out_by_name() -> None:
    beside = settings("full", Overrides(modes=("nftables",), peers=TWINS))
    kept, said = bench_peers.without_impossible(beside)
    assert said == ["left out: during-switch of one, two: a peer has no other mode"]
    assert kept == beside
    assert {key.mode for key in all_keys(kept) if key.scenario == "during-switch"} > {"nftables"}
    alone, said = bench_peers.without_impossible(settings("full", Overrides(peers=TWINS)))
    assert said == ["left out: during-switch of one, two: a peer has no other mode"]
    assert EVENTS - set(alone.scenarios) == {"during-switch"}
    assert bench_peers.without_impossible(settings("quick", Overrides(peers=TWINS)))[1] == []
    assert bench_peers.without_impossible(settings("full"))[1] == []


def test_what_is_left_out_by_name_is_no_error_in_tables_and_pages() -> None:
    run = made_up(modes=("nftables",), peers=TWINS, services=(100,), rounds=3)
    run.settings, run.skipped = bench_peers.without_impossible(run.settings)
    found = analyse(run)
    table = events.records(run, found)
    assert {record["mode"] for record in table if record["scenario"] == "during-kill"} >= {"nftables", "one", "two"}
    assert not {record["mode"] for record in table if record["scenario"] == "during-switch"} & {"one", "two"}
    assert [text for text in found.warnings if "left out" in text] == run.skipped
    for shown in (markdown(run, whole=True), page(run, found, {})):
        assert "during-switch of one, two: a peer has no other mode" in shown
        assert "have no figures" not in shown


def test_without_other_modes_only_the_references_are_beside_peers() -> None:
    modes = settings("quick", Overrides(peers=TWINS)).modes
    assert modes == ("direct", "direct-again", "conntrack", "one", "two")
    assert not PROBED & set(settings("quick").scenarios)
    with pytest.raises(UsageError, match="of which proxy"):
        settings("quick", Overrides(scenarios=["first-cold"]))
    assert set(LAB_MODES) <= set(MODES)


def test_a_proxy_that_would_fall_back_from_ipvs_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = "kube-proxy --proxy-mode={}"
    peers = (Peer("kp-ipvs", kube.format("ipvs")), Peer("kp", kube.format("iptables") + " --ipvs-min-sync-period=1s"))
    chosen = settings("tiny", Overrides(peers=peers, scenarios=["connect"]))
    monkeypatch.setattr(bench_peers, "_has_ipvs", lambda: False)
    kept, said = bench_peers.without_impossible(chosen)
    assert [peer.name for peer in kept.peers] == ["kp"]
    assert "kp-ipvs" not in kept.modes
    assert said == ["left out: peer kp-ipvs: this kernel has no IPVS (module ip_vs)"]
    monkeypatch.setattr(bench_peers, "_has_ipvs", lambda: True)
    assert bench_peers.without_impossible(chosen) == (chosen, [])


@pytest.mark.parametrize("family", Family)
def test_the_cluster_is_one_that_a_real_server_could_hand_out(family: Family) -> None:
    nodes = topology(LabSpec(nodes=2, ipv6=True)).nodes
    local, remote = (Backend(node.pods[0].addresses[family], node.name) for node in nodes)
    items = list(cluster(Shape(3, 2, family), local, remote, nodes, "a"))
    found = decode(msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items}), "test")
    assert found.problems == []
    assert len(found.objects) == len(items)
    services = [item for item in items if item["kind"] == "Service"]
    assert max(item["metadata"]["name"] for item in services) == PROBE_SERVICE
    assert all(item["spec"]["ipFamilies"] == [f"IPv{family.value}"] for item in services)
    assert all(port["targetPort"] for item in services for port in item["spec"]["ports"])
    assert {item["metadata"]["name"] for item in items if item["kind"] == "Node"} == {"node1", "node2"}
    [a, b] = [probe_slice(local, family, place)["ports"][0]["port"] for place in PLACES]
    assert (a, b) == tuple(LISTEN.values())


def test_what_is_special_about_a_cluster_is_so_for_peers() -> None:
    nodes = topology(LabSpec(nodes=2)).nodes
    local, remote = (Backend(node.pods[0].addresses[Family.IPV4], node.name) for node in nodes)
    items = list(cluster(Shape(3, form=Form.AFFINITY, flows=4), local, remote, nodes, "a"))
    assert decode(msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items}), "test").problems == []
    specs = {item["metadata"]["name"]: item["spec"] for item in items if item["kind"] == "Service"}
    assert FLOWS_SERVICE in specs
    del specs[PROBE_SERVICE]  # whose endpoint is to be met wherever it is
    for spec in specs.values():
        assert spec["type"] in ("ClusterIP", "NodePort")
        assert spec["sessionAffinity"] == "ClientIP"
        assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}  # proxies rely on it


def test_two_peers_of_one_command_are_never_told_apart() -> None:
    """A/A: 20 of 20 runs, in all lines; a slower one is, so that this can fail."""
    for seed in range(20):
        found = analyse(made_up(modes=("direct",), peers=TWINS, services=(100,), noise=0.1, seed=seed))
        told = [place for place in found.lines if found.judge(place, "two", "one").real]
        assert told == [], seed
        best = [{name for name, shown in place.figures.items() if shown.best} for place in places(found)]
        assert all(names in ({"one", "two"}, set()) for names in best)
    slower = analyse(made_up(modes=("direct",), peers=TWINS, services=(100,), noise=0.05, speed={"two": 0.6}))
    verdict = slower.judge(PlaceKey("connect", 100, "last"), "two", "one")
    assert verdict.real
    assert slower.judge(PlaceKey("first-cold", 100, ""), "two", "one").real


def test_a_run_with_peers_is_read_and_reported_where_nobody_knows_them(tmp_path: Path) -> None:
    write(tmp_path / "r.json", made_up(modes=("nftables",), peers=TWINS, services=(1, 100), rounds=3))
    for peer in TWINS:
        del MODES[peer.name]
    results = read(tmp_path / "r.json")
    assert results.settings.peers == TWINS
    write_report(results, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert "the program `proxy --fast`" in page
    assert all(f"--c:{colour}" in page for colour in list(PEER_LOOKS.values())[:2])
    assert (tmp_path / "report/first-cold.svg").exists()


def test_a_results_file_does_not_rename_a_mode() -> None:
    run = made_up(modes=("nftables",), services=(1,), rounds=1)
    run.settings = msgspec.structs.replace(run.settings, peers=(Peer("nftables", "rm -rf"),))
    from dataplane.bench.figures.results import renamed

    renamed(run)
    assert MODES["nftables"].plane == "nftables"
