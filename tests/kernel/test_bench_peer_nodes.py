"""Peers of the benchmark on real nodes: hotplane's own daemon, two of one command, and such as behave badly."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.results import Results, read
from dataplane.bench.peer import control
from dataplane.bench.peer.control import PeerControl
from dataplane.bench.peer.spec import ENVIRONMENT, Peer
from dataplane.bench.profiles import Overrides, Probing, settings
from dataplane.bench.rig import remove_abandoned
from dataplane.bench.run import all_keys
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabError, LabSpec
from tests.bench_modes import own_modes
from tests.kernel.test_bench_run import bench, without_figures

DAEMON = (
    'exec "$HOTPLANE" run --mode nftables --kubeconfig "$KUBECONFIG" --node-name "$NODE_NAME" '
    '--cluster-cidr "$CLUSTER_CIDR" --state-dir "$PEER_DIR/state"'
)
PACKETS = ("connect", "TCP_RR", "dns", "north-local", "north-remote-pps")
TWINS = ("connect", "TCP_RR", "first-change", "first-rollout")
PROBED = ("first-cold", "first-restart", "first-change", "first-rollout")
EVENTS = ("during-coldstart", "during-rollout", "during-kill")
SWITCH = "during-switch"


@pytest.fixture(scope="module", autouse=True)
def _only_own_modes() -> Iterator[None]:
    with own_modes():
        yield


class Run(NamedTuple):
    """A run of the benchmark: what it printed, and its results."""

    printed: str
    results: Results


def test_the_daemon_as_a_peer_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = bench(
        "--profile", "tiny", "--modes", "direct", "--services", "5", "--rounds", "1", "--peer", "hotplane-nftables",
        "--scenario", ",".join((*PACKETS, *PROBED, *EVENTS, SWITCH)), "--results", str(path),
    )  # fmt: skip
    results = read(path)
    assert without_figures(results) == []
    assert {cell.key for cell in results.cells} == set(all_keys(results.settings))
    cells = {(cell.key.mode, cell.key.scenario): cell.figures for cell in results.cells}
    for scenario in PROBED:
        figures = cells["hotplane-nftables", scenario]
        assert 0 < figures.get("seconds", figures.get("p50", 0.0) / 1e9) < 300
        assert figures["rss"] > 10e6
    assert all(cells["hotplane-nftables", scenario]["rate"] > 0 for scenario in PACKETS)
    assert cells["hotplane-nftables", "first-rollout"]["rate"] > 5
    for scenario in EVENTS:
        figures = cells["hotplane-nftables", scenario]
        assert figures["operations"] > 0
        assert figures["event"] > 0
        assert scenario == "during-coldstart" or (figures["failures"], figures["ended"]) == (0, 0)
    assert cells["hotplane-nftables", "during-coldstart"]["gap"] > 0
    assert results.skipped == [f"left out: {SWITCH} of hotplane-nftables: a peer has no other mode"]
    assert "no figures" not in done.stdout


def twins(path: Path) -> Run:
    """One run with two peers of the same command, and one that crashes."""
    crash = "echo Starting; echo cannot find my configuration >&2; exit 3"
    done = bench("--profile", "tiny", "--modes", "direct", "--services", "5", "--rounds", "3",
                 "--scenario", ",".join(TWINS), "--peer", f"one={DAEMON}", "--peer", f"two={DAEMON}",
                 "--peer", f"crash={crash}", "--results", str(path))  # fmt: skip
    return Run(done.stdout, read(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return twins(tmp_path_factory.mktemp("bench") / "r.json")


def told_apart(run: Run) -> set[tuple[str, bool]]:
    """In which scenarios a run says that the two differ, and whether that the first has more."""
    found = analyse(run.results)
    assert {place.scenario for place in found.lines} == {*TWINS}
    assert all({"one", "two"} <= set(line.logarithms) for line in found.lines.values())
    verdicts = {place.scenario: found.judge(place, "one", "two") for place in found.lines}
    return {(scenario, verdict.difference > 0) for scenario, verdict in verdicts.items() if verdict.real}


def test_two_peers_of_one_command_are_not_told_apart(run: Run, tmp_path: Path) -> None:
    """A run in which nothing differs may say so of something once in a hundred (noise.ERROR): of the same thing twice
    it does not."""
    told = told_apart(run)
    if told:
        told &= told_apart(twins(tmp_path / "r.json"))
    assert told == set()


def test_a_peer_that_crashes_is_told_with_its_last_words_and_the_others_are_measured(run: Run) -> None:
    told = "crash is left out at 5 Services: crash: it has ended with status 3; its last words: Starting / cannot find"
    assert told in run.printed
    assert {cell.key.mode for cell in run.results.cells} == {"direct", "direct-again", "one", "two"}
    assert without_figures(run.results) == []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"peers-{os.getpid()}", nodes=2, pods=2)) as found:
        yield found


def controlled(lab: Lab, command: str, cleanup: str = "") -> PeerControl:
    peer = Peer("bad", command, cleanup)
    chosen = settings("tiny", Overrides(modes=("direct",), services=(3,), peers=(peer,)))
    chosen = msgspec.structs.replace(chosen, probing=Probing(1, 1, 0.0))
    return PeerControl(lab, lab.nodes[0], lab.nodes[1], peer, chosen)


def test_a_peer_that_programs_nothing_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 2.0)
    peer = controlled(lab, "echo thinking; exec sleep 1000")
    try:
        with pytest.raises(LabError, match=r"bad: no connection through the last of 3 Services .* words: thinking"):
            peer.load(3)
        with pytest.raises(LabError, match="no connection"):  # what is measured with it afterwards says why, too
            peer.check()
    finally:
        peer.close()
    assert not _folders(lab)


def test_what_a_peer_leaves_is_removed_and_told(lab: Lab) -> None:
    """Rules, a device, a process that SIGTERM does not reach, a clean-up that fails."""
    leave = (
        "nft add table ip litter; ip link add litter0 type veth peer name litter1; tc qdisc add dev eth0 clsact; "
        "(trap '' TERM; touch deaf; exec sleep 1000) & until [ -e deaf ]; do sleep 0.01; done; "
    )
    end = time.monotonic() + 120
    peer = controlled(lab, leave + "echo made; wait", cleanup="echo cleaning; exit 4")
    peer._process.start("http://127.0.0.1:1")
    while "made" not in peer._process.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    peer.close()
    told = " ".join(peer.notes.values())
    assert "bad: left processes behind, which were killed: sleep" in told
    assert "its clean-up ended with status 4; its last words: made / cleaning" in told
    assert "left behind after its clean-up, and removed: nftables table ip litter" in told
    assert "device litter0" in told
    assert "clsact on eth0" in told
    node = lab.nodes[0]
    assert lab.run(node, ["nft", "list", "ruleset"]).stdout == ""
    assert "litter" not in lab.run(node, ["ip", "link"]).stdout
    assert "clsact" not in lab.run(node, ["tc", "qdisc"]).stdout
    assert not (lab.cgroup(node) / "peer").exists()
    assert not _folders(lab)


def test_a_command_is_told_where_it_is(lab: Lab) -> None:
    wanted = " ".join(ENVIRONMENT)
    peer = controlled(lab, f"uname -n; for name in {wanted}; do eval echo $name=\\$$name; done; ip -o link; pwd")
    try:
        peer._process.start("http://172.18.0.254:1234")
        assert peer._process._process is not None
        peer._process._process.wait(120)
        said = peer._process.log.read_text()
    finally:
        peer.close()
    assert said.startswith("node1\n")
    for expected in ("NODE_NAME=node1", "NODE_IP=172.18.0.1", "CLUSTER_CIDR=10.244.0.0/16", "POD_CIDR=10.244.1.0/24",
                     "UPLINK=eth0", "API_SERVER=http://172.18.0.254:1234", " eth0@", " veth1@"):  # fmt: skip
        assert expected in said, expected
    assert all(f"{name}=" in said and f"{name}=\n" not in said for name in wanted.split())


def test_the_command_of_this_hotplane_is_one(lab: Lab) -> None:
    peer = controlled(lab, 'exec "$HOTPLANE" --version')
    try:
        peer._process.start("http://127.0.0.1:1")
        assert peer._process._process is not None
        assert peer._process._process.wait(120) == 0
        assert peer._process.log.read_text().startswith("hotplane ")
    finally:
        peer.close()


def _folders(lab: Lab) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"hotplane-peer-{lab.spec.name}-*"))


def test_abandoned_folders_go_with_their_lab() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"bench-{ended.pid}"
    Lab.up(LabSpec(name=name, nodes=1, pods=0)).close()
    folder = Path(tempfile.mkdtemp(prefix=f"hotplane-peer-{name}-"))
    remove_abandoned()
    assert not folder.exists()
    assert name not in Lab.names()
