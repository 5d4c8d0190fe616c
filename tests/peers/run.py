"""tests/peer: a real kube-proxy as a peer of the benchmark. See that script's first lines."""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dataplane.bench.figures.results import Results, read
from dataplane.bench.objects import Backend, Shape, probe_ip
from dataplane.bench.peer import leftovers
from dataplane.bench.peer.cluster import LISTEN, PROBE_PORT, cluster
from dataplane.bench.peer.process import PeerProcess
from dataplane.bench.peer.spec import Peer
from dataplane.bench.scenarios import SCENARIOS, Kind
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.lab.apiserver.server import ApiServer
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family
from tests.steplog import Log

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    '--kubeconfig "$KUBECONFIG" --hostname-override "$NODE_NAME" --cluster-cidr "$CLUSTER_CIDR" '
    "--conntrack-max-per-core 0 --conntrack-min 0"
)
PATIENCE = 60.0
PROTOBUF = "application/vnd.kubernetes.protobuf"


def command(binary: Path, mode: str) -> str:
    """What a peer's COMMAND is."""
    return f'PATH="$IPTABLES_LEGACY:$PATH" exec {binary} --proxy-mode {mode} {FLAGS}'


def cleanup(binary: Path) -> str:
    """Its clean-up."""
    return f'PATH="$IPTABLES_LEGACY:$PATH" exec {binary} --cleanup --proxy-mode iptables'


def asks_and_takes(log: Log, binary: Path) -> None:
    """What kube-proxy asks the API server for, and that it takes JSON where it prefers protobuf: a packet passes."""
    with Lab.up(LabSpec(name=f"peer-{os.getpid()}", nodes=2, pods=2)) as lab:
        first, second = lab.nodes
        local, remote = (Backend(node.pods[0].addresses[Family.IPV4], node.name) for node in (first, second))
        with netns(lab.topology.underlay.netns):
            server = ApiServer(lab.topology.underlay.addresses[Family.IPV4])
        lab.start_echo([first.pods[0]], ports=[LISTEN["a"]], protocols=["tcp"])
        with server:
            server.apply(*cluster(Shape(10), local, remote, lab.nodes, "a"))
            peer = PeerProcess(
                lab, first, Peer("kube-proxy", command(binary, "iptables"), cleanup(binary)), Family.IPV4
            )
            try:
                peer.start(server.url)
                end = time.monotonic() + PATIENCE
                while not lab.probe(first.pods[1].name, Probe(probe_ip(), PROBE_PORT, timeout=0.5))[0].servers:
                    peer.check()
                    assert time.monotonic() < end, peer.last_words()
                _say_asked(log, server)
            finally:
                peer.close()
            in_netns(first.netns, _nothing_left, lab)
            log.say(f"ended and cleaned up: {'; '.join(peer.notes.values()) or 'it left nothing behind'}")


def _say_asked(log: Log, server: ApiServer) -> None:
    accepts = sorted(set(server.seen.accepts))
    assert any(text.startswith(PROTOBUF) for text in accepts), accepts
    log.say(f"it asks for: {' | '.join(accepts)}; JSON is what it gets and takes")
    kinds = sorted({kind for kind, _ in server.seen.watches})
    log.say(f"it watches {', '.join(kinds)} by {', '.join(sorted(set(server.seen.paths)))}")
    log.say("a connection through the last Service was answered by its endpoint")


def _nothing_left(lab: Lab) -> None:
    node = lab.nodes[0]
    assert lab.run(node, ["nft", "list", "ruleset"]).stdout == ""
    assert leftovers.devices(node.netns) == {"lo", "eth0", "veth1", "veth2"}
    assert not (lab.cgroup(node) / "peer").exists()


def measured(log: Log, binary: Path, folder: Path) -> None:
    """A run of the benchmark: every scenario in iptables mode; ipvs mode, or that it is left out by name."""
    path = folder / "results.json"
    peers = [word for mode in ("iptables", "ipvs") for word in _peer(binary, mode)]
    arguments = ["--profile", "tiny", "--modes", "direct", "--services", "20", "--rounds", "3", *peers]
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", "bench", *arguments, "--results", str(path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = read(path)
    said = [text for text in results.skipped if "kube-proxy" in text]
    assert any("during-switch" in text and "no other mode" in text for text in said), said
    for text in said:
        log.say(text)
    has_ipvs = "kube-proxy-ipvs" in results.settings.modes
    assert has_ipvs or any("kube-proxy-ipvs: this kernel has no IPVS" in text for text in said), said
    for mode in ("kube-proxy", "kube-proxy-ipvs")[: 1 + has_ipvs]:
        _say_measured(log, results, mode)


def _peer(binary: Path, mode: str) -> list[str]:
    name = "kube-proxy" if mode == "iptables" else f"kube-proxy-{mode}"
    return ["--peer", f"{name}={command(binary, mode)}", "--peer-cleanup", f"{name}={cleanup(binary)}"]


def _say_measured(log: Log, results: Results, mode: str) -> None:
    cells = [cell for cell in results.cells if cell.key.mode == mode]
    wrong = [f"{cell.key.scenario}: {cell.error}" for cell in cells if cell.error]
    assert not wrong, wrong
    scenarios = list(dict.fromkeys(cell.key.scenario for cell in cells))
    assert {"connect", "dns", "north-remote-pps", "first-cold", "first-restart", "first-change"} <= set(scenarios)
    events = {name for name, scenario in SCENARIOS.items() if scenario.kind is Kind.EVENT}
    assert events - set(scenarios) == {"during-switch"}
    log.say(f"{mode}: {len(cells)} measurements without an error, of {', '.join(scenarios)}")
    for name in ("during-rollout", "during-restart", "during-kill"):
        found = [cell.figures for cell in cells if cell.key.scenario == name]
        lost, slow, made = (sum(each[figure] for each in found) for figure in ("failures", "slow", "operations"))
        log.say(f"{mode}, {name}: of {made + lost:.0f} connections {lost:.0f} lost, {slow:.0f} slow")


def main() -> int:
    """0 when every step was seen."""
    parser = argparse.ArgumentParser(prog="tests/peer", description="kube-proxy as a peer of the benchmark.")
    parser.add_argument("--binary", type=Path, required=True, metavar="FILE", help="the kube-proxy")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what was seen")
    options = parser.parse_args()
    log = Log()
    version = subprocess.run([options.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    head = f"tests/peer, {datetime.date.today().isoformat()}, {version}, kernel {platform.release()}"
    print(head)
    with tempfile.TemporaryDirectory(prefix="hotplane-peers-") as folder:
        asks_and_takes(log, options.binary)
        measured(log, options.binary, Path(folder))
    if options.log:
        options.log.write_text("\n".join([head, "", *log.lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
