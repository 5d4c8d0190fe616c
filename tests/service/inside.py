"""On the machine: hotplane.service started, killed, restarted, reloaded, taken over and stopped, in every mode.

`python -m tests.service.inside RESULTS MODE...`: RESULTS/log has what was seen, RESULTS/journal what the unit said. The
machine is node1 of the Vagrant lab (vagrant/provision), with an API server beside the unit, and clients that keep on in
a pod and on the node.
"""

import itertools
import os
import signal
import ssl
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.apiserver.server import ApiServer
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec, namespace_name, topology
from dataplane.model.net import Family
from tests.apiserver.objects import endpoint_slice, node, service
from tests.apiserver.tls import CERTIFICATE, KEY
from tests.kernel.traffic import Report, Traffic, lost
from tests.service import unit
from tests.steplog import Log

VIP, NODE_PORT, TOKEN = "10.96.0.10", 30080, "token-of-the-node"
SETTINGS = Path("/etc/hotplane")
CACHE = Path("/var/cache/hotplane")
PINS = Path("/run/hotplane/bpf")
COMMAND = (
    "/opt/hotplane/hotplane",
    "--config",
    f"{SETTINGS}/config.yaml",
    "run",
    "--kubeconfig",
    f"{SETTINGS}/kubeconfig",
)
LAB = topology(LabSpec(nodes=1, pods=3))
NODE = LAB.nodes[0]
PATIENCE = 900.0
"""Seconds that anything may take on an emulated processor; only a defect makes anyone wait so long."""


def until(condition: Callable[[], bool], what: str, pause: float = 1.0) -> None:
    """Wait for something that must come true. pause: seconds between looks, which take a processor from the unit."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}\n{unit.journal()[-3000:]}"
        time.sleep(pause)


class Places:
    """Where traffic comes from, as tests.kernel.traffic asks for it."""

    @staticmethod
    def python(place: str, module: str, arguments: list[str], **streams: Any) -> "subprocess.Popen[Any]":
        with netns(namespace_name("lab", place)):
            return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], cwd=unit.ROOT, **streams)


def clients() -> Traffic:
    """A pod and the node, by a clusterIP, and the pod by a node port."""
    pod, address = NODE.pods[2].name, NODE.addresses[Family.IPV4]
    ways = {"pod": (pod, VIP, 80), "node": (NODE.name, VIP, 80), "node port": (pod, address, NODE_PORT)}
    return Traffic(Places, ways, "--tcp-only", "--rate", "3", "--hold", "5")


def configure(mode: str, port: int = 10256, established: int = 86400) -> None:
    """Write the unit's configuration. port: of /healthz; established: conntrack's timeout in seconds."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode,
        "clusterCIDR": CLUSTER_CIDR[Family.IPV4], "healthzBindAddress": f"127.0.0.1:{port}",
        "conntrack": {"tcpEstablishedTimeout": f"{established}s"},
    }  # fmt: skip
    (SETTINGS / "config.yaml").write_text(yaml.safe_dump(config))


def credentials(port: int) -> None:
    """A kubeconfig with a certificate authority and a token's file, as a node has it."""
    SETTINGS.mkdir(exist_ok=True)
    (SETTINGS / "ca.crt").write_bytes(CERTIFICATE)
    (SETTINGS / "token").write_text(TOKEN)
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": f"{SETTINGS}/ca.crt"}
    kubeconfig = {
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "node", "user": {"tokenFile": f"{SETTINGS}/token"}}],
        "contexts": [{"name": "node", "context": {"cluster": "lab", "user": "node"}}],
    }  # fmt: skip
    (SETTINGS / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))


def healthy(port: int = 10256) -> bool:
    """Whether /healthz says that all is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def loaded(pid: int) -> str:
    """What a process said of its load; "" as long as it has not."""
    return next((line for line in unit.journal(pid).splitlines() if " loaded mode=" in line), "")


def kube_chains() -> str:
    """Where kube-proxy's chains are; without having the kernel load what it has not."""
    names = Path("/proc/net/ip_tables_names")
    variants = [*(["legacy"] if names.exists() and "nat" in names.read_text() else []), "nft"]
    found = [name for name in variants if "KUBE-SVC" in unit.run(f"iptables-{name}-save", "-t", "nat")]
    return f"KUBE-SVC chains: {' '.join(found) or 'none'}"


def held(folder: Path) -> dict[str, int]:
    """Files below a folder, with the times when they were written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


class Proof:
    """One machine's unit through all modes. log: what was seen."""

    def __init__(self, server: ApiServer, log: Log) -> None:
        self.server, self.log, self.mode = server, log, ""
        self.failed = 0

    def see(self, step: Callable[[], None]) -> None:
        """Go through a step; the next ones are gone through even where it fails."""
        try:
            step()
        except (AssertionError, OSError, subprocess.SubprocessError):
            self.failed += 1
            self.say(f"FAILED: {traceback.format_exc()}")

    def say(self, text: str) -> None:
        self.log.say(f"{self.mode}: {text}")

    def serves(self, *, changed: int | None = None, port: int = 10256) -> str:
        """Wait until the unit serves; what it said of its load. changed: how many entries that must have changed."""
        until(lambda: unit.pid() != 0 and bool(loaded(unit.pid())), "the unit loads")
        until(lambda: healthy(port), "/healthz is good")
        assert unit.show("ActiveState") == "active"
        words = loaded(unit.pid())
        assert changed is None or f" changed={changed} " in words, words
        return words.partition(" loaded ")[2]

    def points_to(self, *pods: int) -> None:
        """Have the API server say who is behind the Service."""
        chosen = [NODE.pods[number].addresses[Family.IPV4] for number in pods]
        self.server.apply(endpoint_slice("echo", chosen))

    def start(self, mode: str, before: str = "") -> None:
        """The first start in a mode, beside what an earlier one left."""
        self.mode = mode
        configure(mode)
        unit.install(*dict.fromkeys((mode, *filter(None, (before,)))))
        seconds = unit.do("start")
        words = self.serves()
        rights = Path(f"/proc/{unit.pid()}/status").read_text().split("CapEff:")[1].split()[0]
        granted = unit.show("CapabilityBoundingSet").upper()
        self.say(f"verified, started ({seconds:.1f} s), CapEff {rights} ({granted}); {words}")
        self.say(f"memory {unit.memory()}; {kube_chains()}")
        if before:
            until(lambda: f"replaced mode old={before}" in unit.journal(unit.pid()), f"{before}'s rules go")
            self.say(f"{before}'s rules went")
        if before and {*unit.capabilities(before)} - {*unit.capabilities(mode)}:
            unit.install(mode)
            unit.do("restart")
            self.say(f"started again without {before}'s capabilities: {self.serves(changed=0)}")

    def killed(self) -> None:
        old, restarts = unit.pid(), int(unit.show("NRestarts"))
        begun = time.monotonic()
        unit.do("kill", "--signal=KILL", "--kill-whom=main")
        until(lambda: unit.pid() not in (0, old), "systemd starts it again", 0.1)
        again = time.monotonic() - begun
        words = self.serves(changed=0)
        assert int(unit.show("NRestarts")) == restarts + 1
        self.say(f"SIGKILL: a new process after {again:.1f} s; {words}")

    def restarted(self) -> None:
        compiled, pins = held(CACHE), held(PINS)
        seconds = unit.do("restart")
        words = self.serves(changed=0)
        assert held(CACHE) == compiled, "nothing is compiled again"
        assert set(held(PINS)) >= set(pins), "pins stay"
        self.say(f"restart ({seconds:.1f} s), nothing compiled ({len(compiled)} files), {len(pins)} pins stay; {words}")

    def reloaded(self) -> None:
        old = unit.pid()
        configure(self.mode, 10266, 4321)
        unit.do("reload")
        until(lambda: healthy(10266), "/healthz moves")
        assert not healthy(10256)
        timeout = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
        assert timeout.read_text().strip() == "4321"
        configure(self.mode)
        unit.do("reload")
        until(healthy, "/healthz comes back")
        assert unit.pid() == old
        self.say("reload: /healthz and conntrack's timeout changed, twice, in one process")

    def stopped(self) -> None:
        limit = int(unit.setting("TimeoutStopSec")[0])
        memory = unit.memory()
        seconds = unit.do("stop")
        assert seconds < limit
        assert (unit.show("Result"), unit.show("ExecMainStatus")) == ("success", "0")
        self.points_to(1)
        time.sleep(5)
        begun = time.monotonic()
        unit.do("start")
        after = self.serves(changed=1)
        self.say(
            f"stop ({seconds:.1f} s of {limit}), memory {memory}; start ({time.monotonic() - begun:.1f} s); {after}"
        )
        self.points_to(0, 1)

    def taken_over(self) -> None:
        restarts = unit.show("NRestarts")
        other = subprocess.Popen([*COMMAND, "--takeover"], stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: unit.pid() == 0, "the unit gives way")
            time.sleep(5)
            until(healthy, "the other one serves")
            state = [unit.show(name) for name in ("ActiveState", "Result", "ExecMainStatus", "NRestarts")]
            assert state == ["failed", "exit-code", "4", restarts], state
        finally:
            other.terminate()
            _, said = other.communicate(timeout=PATIENCE)
        assert other.returncode == 0, said
        assert "Traceback" not in said, said
        unit.do("start")
        self.say(f"--takeover: status 4, not started again; started by hand: {self.serves(changed=0)}")

    def killed_often(self) -> None:
        """Six times within seconds, as a fault at each start would end it."""
        for _ in range(6):
            until(lambda: unit.pid() != 0 or unit.show("Result") == "start-limit-hit", "systemd starts it again", 0.1)
            assert unit.pid(), "systemd has given up: start-limit-hit"
            os.kill(unit.pid(), signal.SIGKILL)
        self.say(f"killed six times as it began: {self.serves(changed=0)}")

    def checked(self) -> None:
        """What the sandbox must allow, and what was said."""
        main = str(unit.pid())
        inside = ("nsenter", "--target", main, "--mount", "--")
        for path in (CACHE, Path("/run/hotplane"), *([Path("/run/xtables.lock")] if self.mode == "iptables" else [])):
            unit.run(*inside, "test", "-w", str(path))
        refused = subprocess.run([*inside, "touch", "/opt/hotplane/x"], capture_output=True, text=True, check=False)
        assert "Read-only file system" in refused.stderr, refused
        said = unit.journal()
        assert "Traceback" not in said, said
        told = [line for line in said.splitlines() if " WARNING " in line or " ERROR " in line]
        for line in dict.fromkeys(line.partition("Z ")[2] for line in told):
            self.say(f"the journal has: {line}")

    def without_modules(self) -> None:
        """The iptables mode where nobody has loaded the classic tables, which it may not load itself."""
        self.start("iptables")
        traffic = clients()
        time.sleep(20)
        self.count(traffic.end(), 20)
        self.checked()
        unit.do("stop")
        unit.run("/opt/hotplane/hotplane", "cleanup")
        unit.run("modprobe", "-a", "ip_tables", "ip6_tables")

    def prove(self, mode: str, before: str) -> None:
        """One mode, with clients that keep on from its start to its end."""
        self.start(mode, before)
        traffic = clients()
        try:
            for step in (self.killed, self.restarted, self.reloaded, self.stopped, self.taken_over, self.checked):
                self.see(step)
            if not before:
                self.see(self.killed_often)
            reports = traffic.end()
        finally:
            traffic.kill()
        self.see(lambda: self.count(reports))
        unit.do("stop")

    def count(self, reports: dict[str, Report], least: int = 100) -> None:
        assert not lost(reports), lost(reports)
        assert all(report.opened > least and report.held for report in reports.values()), reports
        counts = ", ".join(f"{report.opened} of {name} ({report.held} held)" for name, report in reports.items())
        self.say(f"connections: {counts}; 0 failed or broken")


def prove(log: Log, modes: list[str]) -> int:
    """Every mode after the other, and back to the first. Returns how many steps failed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, text in (("certificate", CERTIFICATE), ("key", KEY)):
        Path(f"/run/{name}").write_bytes(text)
    context.load_cert_chain("/run/certificate", "/run/key")
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(tls=context))
        server.behave(token=TOKEN)
        server.apply(node(NODE.name, NODE.addresses[Family.IPV4]))
        port = {"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}
        server.apply(service("echo", VIP, type="NodePort", ports=[port]))
        credentials(server.port)
        proof = Proof(server, log)
        proof.points_to(0, 1)
        if "iptables" in modes:
            proof.see(proof.without_modules)
        for before, mode in itertools.pairwise(["", *modes]):
            proof.prove(mode, before)
        if modes[1:]:
            proof.start(modes[0], modes[-1])
            proof.see(proof.checked)
        unit.do("stop")
        return proof.failed


def main() -> int:
    """0 when every step was seen."""
    results = Path(sys.argv[1])
    log = Log()
    system = unit.run("sh", "-c", "systemctl is-system-running; systemctl --version | head -n 1; uname -r")
    log.say(f"the machine: {', '.join(system.splitlines())}")
    try:
        status = int(prove(log, sys.argv[2:]) > 0)
    except Exception:  # noqa: BLE001  # said, kept and told by the status
        log.say(f"FAILED: {traceback.format_exc()}")
        status = 1
    (results / "journal").write_text(unit.run("journalctl", "-o", "short-monotonic", "-u", unit.NAME))
    (results / "log").write_text("\n".join([*log.lines, ""]))
    (results / "status").write_text(str(status))
    return status


if __name__ == "__main__":
    sys.exit(main())
